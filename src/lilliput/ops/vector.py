"""What kernels with LLVM vector instructions share. Imports llvmlite: import this file inside what needs it."""

from typing import Any

from llvmlite import ir


def spread(b: Any, x: Any, kind: Any) -> Any:
    """A vector of type `kind` with `x` in every place."""
    undefined, index = ir.Constant(kind, ir.Undefined), ir.IntType(32)
    one = b.insert_element(undefined, x, ir.Constant(index, 0))
    return b.shuffle_vector(one, undefined, ir.Constant(ir.VectorType(index, kind.count), [0] * kind.count))
