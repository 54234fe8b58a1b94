"""The context coder's vectors of int32, as LLVM instructions: what numba's loop vectorizer does not find by itself.

LLVM lowers them to whatever the processor has, so the results are the same everywhere. Addresses are those of C
arrays (`array.ctypes.data`); the caller keeps the arrays alive and the accesses inside of them. Arithmetic wraps.

Imports numba: import this file inside the function that needs a kernel.
"""

from collections.abc import Callable
from typing import Any, cast

from llvmlite import ir
from numba import extending, types
from numba.core import cgutils

from lilliput.ops.vector import spread

INT32, INT64 = ir.IntType(32), ir.IntType(64)
TAPS = 8
LANES = 16
ONE_BITS = 20
"""Tables hold cumulative probabilities times 2^20."""
RATE_BITS = 11
SLOT_BITS = 15

Generated = tuple[Any, Callable[..., Any]]
intrinsic = cast("Callable[[Callable[..., Generated]], Callable[..., Any]]", extending.intrinsic)


def _vector(n: int) -> Any:
    return ir.VectorType(INT32, n)


def _same(value: int, n: int) -> Any:
    return ir.Constant(_vector(n), [value] * n)


def _count(n: int) -> Any:
    return ir.Constant(_vector(n), list(range(n)))


def _spread(b: Any, x: Any, n: int) -> Any:
    return spread(b, x, _vector(n))


def _load(b: Any, address: Any, n: int) -> Any:
    return b.load(b.inttoptr(address, _vector(n).as_pointer()), align=4)


def _store(b: Any, value: Any, address: Any, n: int) -> None:
    b.store(value, b.inttoptr(address, _vector(n).as_pointer()), align=4)


def _call(b: Any, name: str, result: Any, *values: Any) -> Any:
    kind = ir.FunctionType(result, [v.type for v in values])
    return b.call(cgutils.get_or_insert_function(b.module, kind, name), values)


def _sum(b: Any, v: Any, n: int) -> Any:
    return _call(b, f"llvm.vector.reduce.add.v{n}i32", INT32, v)


def _clip(b: Any, v: Any, limit: int, n: int) -> Any:
    above = _call(b, f"llvm.smax.v{n}i32", _vector(n), v, _same(-limit, n))
    return _call(b, f"llvm.smin.v{n}i32", _vector(n), above, _same(limit, n))


@intrinsic
def starts_up_to(context: Any, table: Any, scale: Any, slot: Any) -> Generated:
    """How many of 16 symbols start at or below `slot`: (table[k] >> 5) * scale >> 15 + k <= slot."""

    def build(_: Any, b: Any, signature: Any, arguments: Any) -> Any:
        table, scale, slot = arguments
        share = b.ashr(_load(b, table, LANES), _same(ONE_BITS - SLOT_BITS, LANES))
        starts = b.ashr(b.mul(share, _spread(b, scale, LANES)), _same(SLOT_BITS, LANES))
        below = b.icmp_signed("<=", b.add(starts, _count(LANES)), _spread(b, slot, LANES))
        return b.zext(b.ctpop(b.bitcast(below, ir.IntType(LANES))), INT64)

    return types.int64(types.int64, types.int32, types.int32), build


@intrinsic
def move_table(context: Any, table: Any, symbol: Any, rate: Any) -> Generated:
    """table[k] += ((2^20 if k > symbol else 0) - table[k]) * rate >> 11, for 16 k."""

    def build(c: Any, b: Any, signature: Any, arguments: Any) -> Any:
        table, symbol, rate = arguments
        now = _load(b, table, LANES)
        after = b.icmp_signed(">", _count(LANES), _spread(b, symbol, LANES))
        goal = b.select(after, _same(1 << ONE_BITS, LANES), _same(0, LANES))
        step = b.ashr(b.mul(b.sub(goal, now), _spread(b, rate, LANES)), _same(RATE_BITS, LANES))
        _store(b, b.add(now, step), table, LANES)
        return c.get_dummy_value()

    return types.void(types.int64, types.int32, types.int32), build


@intrinsic
def predict(context: Any, history: Any, starts: Any, base: Any, weights: Any, inputs: Any) -> Generated:
    """The two sums of 8 products of weights and inputs.

    Cell `starts[j] + base` of `history` holds input j of both: the value in its high 16 bits, the size in its low ones.
    `weights` and `inputs` are 2 x 8: for values, then for sizes. The inputs are left in `inputs`. Input 0, usually the
    newest, is added last: all else can be done while it is still being decoded.
    """

    def build(c: Any, b: Any, signature: Any, arguments: Any) -> Any:
        history, starts, base, weights, inputs = arguments
        history = b.inttoptr(history, INT32.as_pointer())
        starts = b.inttoptr(starts, INT64.as_pointer())

        def cell(j: int) -> Any:
            return b.load(b.gep(history, [b.add(b.load(b.gep(starts, [ir.Constant(INT64, j)])), base)]))

        older = _same(0, TAPS)
        for j in range(1, TAPS):
            older = b.insert_element(older, cell(j), ir.Constant(INT32, j))
        newest = cell(0)
        sums: list[Any] = []
        for half in range(2):
            offset = ir.Constant(INT64, 4 * TAPS * half)
            own = _load(b, b.add(weights, offset), TAPS)

            def split(x: Any, n: int, half: int = half) -> Any:
                bits, low = (_same(16, n), _same(65535, n)) if n > 1 else (INT32(16), INT32(65535))
                return b.and_(x, low) if half else b.ashr(x, bits)

            others, last = split(older, TAPS), split(newest, 1)
            total = _sum(b, b.mul(own, others), TAPS)
            first = b.extract_element(own, ir.Constant(INT32, 0))
            sums.append(b.add(total, b.mul(first, last)))
            _store(b, b.insert_element(others, last, ir.Constant(INT32, 0)), b.add(inputs, offset), TAPS)
        return c.make_tuple(b, signature.return_type, sums)

    return types.UniTuple(types.int32, 2)(*[types.int64] * 5), build


def _learner(bits: int, most: int) -> Any:
    @intrinsic
    def learn(context: Any, weights: Any, inputs: Any, error: Any) -> Generated:
        def build(c: Any, b: Any, signature: Any, arguments: Any) -> Any:
            weights, inputs, error = arguments
            step = b.add(b.mul(_load(b, inputs, TAPS), _spread(b, error, TAPS)), _same(1 << (bits - 1), TAPS))
            moved = b.add(_load(b, weights, TAPS), b.ashr(step, _same(bits, TAPS)))
            _store(b, _clip(b, moved, most, TAPS), weights, TAPS)
            return c.get_dummy_value()

        return types.void(types.int64, types.int64, types.int32), build

    return learn


VALUE_SHIFT, VALUE_LIMIT = 7, 1 << 17
SIZE_SHIFT, SIZE_LIMIT = 9, 1 << 16
learn_values = _learner(VALUE_SHIFT, VALUE_LIMIT)
"""weights[j] += inputs[j] * error, rounded after 7 bits, clipped to +-2^17, for 8 j."""
learn_sizes = _learner(SIZE_SHIFT, SIZE_LIMIT)
"""The same after 9 bits, clipped to +-2^16."""
