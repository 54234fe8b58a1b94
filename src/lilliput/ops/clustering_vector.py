"""Eight candidates of the clustering program at once, as LLVM vector instructions.

LLVM lowers them to whatever the processor has, so the results are the same everywhere. Imports numba: import this file
inside the function that needs it.
"""

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from lilliput.ops.vector import spread

LANES = 8
"""Arrays given to `best_of_eight` must be readable this many items past the last candidate."""

FLOAT, WORD = ir.DoubleType(), ir.IntType(64)
FLOATS, WORDS = ir.VectorType(FLOAT, LANES), ir.VectorType(WORD, LANES)


def _best_of_eight(context: Any, G: Any, S: Any, W: Any, i: Any, more: Any, s: Any, w: Any, slack: Any) -> Any:  # noqa: N803
    """Of G[q] + (s - S[q])^2 / (w - W[q]) for q = i..i + min(more, 7): the most, and the first and last near it.

    "Near" is at most `slack` below. The latter two count from i. Arrays are contiguous float64; i, more are uint64.
    """
    kinds = (G, S, W, i, more, s, w, slack)

    def build(c: Any, b: Any, signature: Any, arguments: Any) -> Any:
        *arrays, i, more, s, w, slack = arguments

        def load(value: Any, kind: Any) -> Any:
            data = c.make_array(kind)(c, b, value).data
            return b.load(b.bitcast(b.gep(data, [i]), FLOATS.as_pointer()), align=8)

        best, moment, mass = (load(array, kind) for array, kind in zip(arrays, kinds[:3], strict=True))
        step = b.fsub(spread(b, s, FLOATS), moment)
        gain = b.fdiv(b.fmul(step, step), b.fsub(spread(b, w, FLOATS), mass))
        wanted = b.icmp_unsigned("<=", ir.Constant(WORDS, list(range(LANES))), spread(b, more, WORDS))
        value = b.select(wanted, b.fadd(best, gain), ir.Constant(FLOATS, [float("-inf")] * LANES))
        reduce = b.module.declare_intrinsic(
            f"llvm.vector.reduce.fmax.v{LANES}f64", (), ir.FunctionType(FLOAT, [FLOATS])
        )
        most = b.call(reduce, [value], fastmath=("nnan",))
        near = b.fcmp_ordered(">=", value, spread(b, b.fsub(most, slack), FLOATS))
        bits = b.zext(b.bitcast(near, ir.IntType(LANES)), WORD)
        defined = ir.Constant(ir.IntType(1), 1)
        first = b.cttz(bits, defined)
        last = b.sub(ir.Constant(WORD, 63), b.ctlz(bits, defined))
        return c.make_tuple(b, signature.return_type, [most, first, last])

    return types.Tuple((types.float64, types.uint64, types.uint64))(*kinds), build


best_of_eight: Any = intrinsic(_best_of_eight)
