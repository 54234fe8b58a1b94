"""The lowest bit of a word that is set, as the processor's own instruction. Imports numba: import this file late."""

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic


def _lowest_bit(context: Any, word: Any) -> Any:
    """0..63 for a uint64 that is not 0."""

    def build(c: Any, b: Any, signature: Any, arguments: Any) -> Any:
        return b.cttz(arguments[0], ir.Constant(ir.IntType(1), 1))

    return types.int64(types.uint64), build


lowest_bit: Any = intrinsic(_lowest_bit)
