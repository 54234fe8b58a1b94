"""The integer program: what a network without float computes, one operation after the other.

Lowered once from an artifact (`graph.lower`), it is what the interpreter runs and what back-ends write. Values are
integers; `Value` says what they are worth and between which bounds they are proved to lie. Weights are those of the
artifact: an operation names them, and `Program.tensors` holds each once.

`docs/program.md` has the rules of every operation.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]
LARGEST_SUM = (1 << 31) - 1
"""Accumulators hold int32."""


@dataclass(frozen=True, kw_only=True)
class Value:
    """Integers q of `shape` (of one sample), `low <= q <= high`, worth (q - zero_point) x scale.

    `scale` has one entry; that of accumulators may have one for each channel (`channel` is their dimension), or one for
    each element.
    """

    name: str
    shape: tuple[int, ...]
    low: int
    high: int
    scale: tuple[float, ...]
    zero_point: int = 0
    channel: int = 0

    @property
    def bits(self) -> int:
        """8, 16 or 32: the smallest word that holds the bounds, signed or not."""
        for bits in (8, 16):
            if -(1 << (bits - 1)) <= self.low and self.high < 1 << (bits - 1 if self.low < 0 else bits):
                return bits
        return 32

    @property
    def signed(self) -> bool:
        return self.low < 0

    def scales(self) -> npt.NDArray[np.float64]:
        """The scale of each element, of the shape of the value."""
        scale = np.array(self.scale)
        if len(scale) == math.prod(self.shape):
            return scale.reshape(self.shape)
        wide = [-1 if d == self.channel else 1 for d in range(len(self.shape))]
        return np.broadcast_to(scale.reshape(wide), self.shape)


@dataclass(frozen=True, kw_only=True, eq=False)
class Rescale:
    """From sums to codes: saturate(floor(sum x multiplier / 2^shift + 1/2) + zero_point + offset) to low..high.

    `multiplier` and `shift` have one entry, or one for each channel. So has `offset`, if there is one: a bias on the
    scale of the output, as networks have it whose rescaling is a shift.
    """

    multiplier: Ints
    shift: Ints
    zero_point: int
    low: int
    high: int
    offset: Ints | None = None

    def __call__(self, sums: Ints, channel: int | None) -> Ints:
        """`channel` is the dimension of channels in `sums`; None where there is one multiplier."""
        multiplier, shift = (_spread(v, sums.ndim, channel) for v in (self.multiplier, self.shift))
        rounded = (sums * multiplier + (np.int64(1) << shift >> 1)) >> shift
        if self.offset is not None:
            rounded = rounded + _spread(self.offset, sums.ndim, channel)
        return np.clip(rounded + self.zero_point, self.low, self.high)

    def bounds(self, low: Ints, high: Ints) -> tuple[int, int]:
        """What sums from `low` to `high` (one each, or one for each channel) become: rounding is monotonous."""
        ends = [self(np.atleast_1d(end), 0) for end in (low, high)]
        return int(ends[0].min()), int(ends[1].max())


def sum_bounds(rows: Ints, low: int, high: int, bias: Ints | None = None) -> tuple[Ints, Ints]:
    """For each of `rows` [outputs, terms]: between which bounds its sums with inputs in low..high lie.

    That holds at every step, in every order and where terms are missing; the bias comes first.
    """
    low, high = min(low, 0), max(high, 0)
    positive, negative = np.clip(rows, 0, None).sum(1), np.clip(rows, None, 0).sum(1)
    least, most = positive * low + negative * high, positive * high + negative * low
    return (least, most) if bias is None else (least + bias, most + bias)


def _spread(values: Ints, rank: int, channel: int | None) -> Ints:
    wide = [1] * rank
    if channel is not None and len(values) > 1:
        wide[channel] = -1
    return values.reshape(wide)


@dataclass(frozen=True, kw_only=True, eq=False)
class Operation:
    """`kind` with `inputs` gives `output`; `source` is the user's line."""

    kind: str
    inputs: tuple[str, ...]
    output: str
    attributes: Mapping[str, Any] = field(default_factory=dict[str, Any])
    weight: str | None = None
    bias: str | None = None
    rescale: tuple[Rescale, ...] = ()
    table: Ints | None = None
    sums: tuple[int, int] | None = None  # between which the accumulator is proved to lie, at every step
    source: str = ""


@dataclass(frozen=True, kw_only=True, eq=False)
class Program:
    """Operations in order; `input` and `outputs` name values. `tensors` are integers less their zero point."""

    values: Mapping[str, Value]
    operations: tuple[Operation, ...]
    input: str
    outputs: tuple[str, ...]
    tensors: Mapping[str, Ints]
    tail: str = ""  # "softmax" or "log_softmax": what the network does to its outputs, and this does not

    def readers(self) -> dict[str, list[Operation]]:
        result: dict[str, list[Operation]] = {name: [] for name in self.values}
        for operation in self.operations:
            for name in dict.fromkeys(operation.inputs):
                result[name].append(operation)
        return result

    def __iter__(self) -> Iterator[Operation]:
        return iter(self.operations)
