"""A combinational circuit of integers as data: nodes in an order in which each reads only what comes before it."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from lilliput.ops.cartesian_functions import COUNT, OPERATIONS, READS, evaluate, limits

Ints = npt.NDArray[np.int64]
FUNCTION_BITS = (COUNT - 1).bit_length()
WIDTH_BITS, GROUP_BITS = 4, 8
"""Of a circuit's width in the packed form; of each group of 7 bits of a count, the last one without its highest bit."""
MOST_INPUTS, MOST_GATES, MOST_OUTPUTS, MOST_COUNT_BITS = 1 << 12, 1 << 15, 1 << 16, 21
"""In the packed form."""


class Gate(NamedTuple):
    """One function of `cartesian_functions` and the pins it reads; a source that it does not read is 0."""

    function: int
    a: int = 0
    b: int = 0


@dataclass(frozen=True, kw_only=True)
class Netlist:
    """Pins 0..inputs - 1 are given, gate k drives pin inputs + k; outputs are any pins, also inputs.

    >>> Netlist(bits=8, inputs=1, gates=(Gate(12, 0), Gate(1, 0, 1)), outputs=(2,)).evaluate([5])
    array([15])
    """

    bits: int
    inputs: int
    gates: tuple[Gate, ...]
    outputs: tuple[int, ...]

    def __post_init__(self) -> None:
        limits(self.bits)
        for k, gate in enumerate(self.gates):
            if not 0 <= gate.function < COUNT:
                raise ValueError(f"gate {k}: functions are 0 to {COUNT - 1}, not {gate.function}")
            for source in sources(gate):
                if not 0 <= source < self.inputs + k:
                    raise ValueError(f"gate {k} reads pin {source}, which is not before it")
        for pin in self.outputs:
            if not 0 <= pin < self.pins:
                raise ValueError(f"an output reads pin {pin} of {self.pins}")

    @property
    def pins(self) -> int:
        return self.inputs + len(self.gates)

    def values(self, given: npt.ArrayLike) -> Ints:
        """[..., pins] of all pins, from [..., inputs]; multiplexers choose by the parity of the row, [rows, inputs]."""
        given = np.asarray(given, dtype=np.int64)
        low, high = limits(self.bits)
        if given.ndim not in (1, 2) or given.shape[-1] != self.inputs:
            raise ValueError(f"a circuit of {self.inputs} inputs was given numbers of shape {given.shape}")
        if given.size and not low <= given.min() <= given.max() <= high:
            raise ValueError(f"numbers of {self.bits} bits are {low} to {high}, not {given.min()} to {given.max()}")
        if given.ndim == 1:
            return np.array(self._of_one_row(given.tolist()), dtype=np.int64)
        pins = np.zeros((len(given), self.pins), dtype=np.int64)
        pins[:, : self.inputs] = given
        row = np.arange(len(given))
        zero = np.zeros(len(given), dtype=np.int64)
        for k, gate in enumerate(self.gates, start=self.inputs):
            a, b = (pins[:, pin] if used else zero for pin, used in zip(gate[1:], _reads(gate), strict=True))
            pins[:, k] = evaluate(gate.function, a, b, self.bits, row)
        return pins

    def _of_one_row(self, pins: list[int]) -> list[int]:
        """Of all pins, from those of the inputs: a hundred times faster on numbers than on arrays of one."""
        (low, high), mask = limits(self.bits), (1 << self.bits) - 1
        for function, a, b in self.gates:
            reads = READS[function]
            made = OPERATIONS[function](pins[a] if reads else 0, pins[b] if reads > 1 else 0, low, high)
            pins.append(((made - low) & mask) + low)
        return pins

    def evaluate(self, given: npt.ArrayLike) -> Ints:
        """[..., outputs] from [..., inputs]."""
        return self.values(given)[..., list(self.outputs)]

    def active(self) -> list[bool]:
        """For each gate: does an output depend on it?"""
        used = [False] * self.pins
        for pin in self.outputs:
            used[pin] = True
        for k in range(len(self.gates) - 1, -1, -1):
            if used[self.inputs + k]:
                for pin in sources(self.gates[k]):
                    used[pin] = True
        return used[self.inputs :]

    def pruned(self) -> "Netlist":
        """The same circuit without gates that no output depends on."""
        new = list(range(self.inputs))
        gates: list[Gate] = []
        for gate, kept in zip(self.gates, self.active(), strict=True):
            new.append(self.inputs + len(gates))
            if kept:
                gates.append(Gate(gate.function, *(new[pin] for pin in sources(gate))))
        return Netlist(
            bits=self.bits, inputs=self.inputs, gates=tuple(gates), outputs=tuple(new[pin] for pin in self.outputs)
        )

    def with_inputs(self, kept: Sequence[int]) -> "Netlist":
        """The same circuit with these inputs alone, in ascending order: nothing may read the others."""
        new = {pin: i for i, pin in enumerate(kept)} | {self.inputs + k: len(kept) + k for k in range(len(self.gates))}
        gates = tuple(Gate(gate.function, *(new[pin] for pin in sources(gate))) for gate in self.gates)
        outputs = tuple(new[pin] for pin in self.outputs)
        return Netlist(bits=self.bits, inputs=len(kept), gates=gates, outputs=outputs)

    def depth(self) -> int:
        """Gates on the longest way to an output."""
        return int(longest(self, [1.0] * COUNT))

    def pack(self) -> bytes:
        """Width and counts, then each gate's function and the pins it reads, then the outputs.

        Outputs in the order of their pins, each once, take a bit for each pin, if that is less than their numbers.
        """
        stream = _Bits()
        stream.put(self.bits - 2, WIDTH_BITS)
        for count in (self.inputs, len(self.gates), len(self.outputs)):
            stream.put_count(count)
        for k, gate in enumerate(self.gates):
            stream.put(gate.function, FUNCTION_BITS)
            for pin in sources(gate):
                stream.put(pin, width_of(self.inputs + k))
        stream.put(_marked(self), 1)
        if _marked(self):
            stream.put(sum(1 << pin for pin in self.outputs), self.pins)
        else:
            for pin in self.outputs:
                stream.put(pin, width_of(self.pins))
        return stream.data()

    @staticmethod
    def unpack(data: bytes) -> "Netlist":
        """Inverse of `pack`. ValueError for what it did not write."""
        stream = _Bits(data)
        bits = stream.take(WIDTH_BITS) + 2
        inputs, gate_count, output_count = (stream.take_count() for _ in range(3))
        if inputs > MOST_INPUTS or gate_count > MOST_GATES or output_count > MOST_OUTPUTS:
            raise ValueError(f"a circuit of {inputs} inputs, {gate_count} gates, {output_count} outputs")
        gates: list[Gate] = []
        for k in range(gate_count):
            function = stream.take(FUNCTION_BITS)
            if function >= COUNT:
                raise ValueError(f"gate {k}: functions are 0 to {COUNT - 1}, not {function}")
            gates.append(Gate(function, *(stream.take(width_of(inputs + k)) for _ in range(READS[function]))))
        pins = inputs + gate_count
        if stream.take(1):
            marks = stream.take(pins)
            outputs = tuple(pin for pin in range(pins) if marks >> pin & 1)
        else:
            outputs = tuple(stream.take(width_of(pins)) for _ in range(output_count))
        found = Netlist(bits=bits, inputs=inputs, gates=tuple(gates), outputs=outputs)
        if found.pack() != data:
            raise ValueError("bytes are left over after the circuit")
        return found


def sources(gate: Gate) -> tuple[int, ...]:
    """The pins that its function reads."""
    return gate[1 : 1 + READS[gate.function]]


def longest(net: Netlist, delays: "npt.ArrayLike") -> float:
    """The largest sum of its gates' `delays` [COUNT] on a way to an output: each gate of the way counts once."""
    each = np.asarray(delays, dtype=np.float64)
    ready = [0.0] * net.inputs
    for gate in net.gates:
        ready.append(float(each[gate.function]) + max((ready[pin] for pin in sources(gate)), default=0.0))
    return max((ready[pin] for pin in net.outputs), default=0.0)


def output_bits(net: Netlist) -> int:
    """What the packed form takes to say which pins are outputs."""
    return 1 + (net.pins if _marked(net) else len(net.outputs) * width_of(net.pins))


def _marked(net: Netlist) -> bool:
    ascending = all(a < b for a, b in itertools.pairwise(net.outputs))
    return ascending and net.pins < len(net.outputs) * width_of(net.pins)


def width_of(count: int) -> int:
    """Bits that name one of `count` things: 0 for a single one."""
    return max(count - 1, 0).bit_length()


def _reads(gate: Gate) -> tuple[bool, bool]:
    return READS[gate.function] > 0, READS[gate.function] > 1


class _Bits:
    """A stream of numbers of given widths, lowest bits first."""

    def __init__(self, data: bytes = b"") -> None:
        self.bytes, self.length = data, 0
        self.number, self.whole = 0, list[bytes]()

    def put(self, value: int, width: int) -> None:
        left = self.length % 8
        self.number |= value << left
        self.length += width
        if whole := (left + width) // 8:
            self.whole.append((self.number & ((1 << 8 * whole) - 1)).to_bytes(whole, "little"))
            self.number >>= 8 * whole

    def put_count(self, count: int) -> None:
        while True:
            more = count >> (GROUP_BITS - 1)
            self.put(count & 127 | (128 if more else 0), GROUP_BITS)
            if not more:
                return
            count = more

    def take_count(self) -> int:
        count = 0
        for shift in range(0, MOST_COUNT_BITS, GROUP_BITS - 1):
            group = self.take(GROUP_BITS)
            count |= (group & 127) << shift
            if group < 128:
                return count
        raise ValueError(f"a count of more than {MOST_COUNT_BITS} bits")

    def data(self) -> bytes:
        return b"".join(self.whole) + self.number.to_bytes((self.length % 8 + 7) // 8, "little")

    def take(self, width: int) -> int:
        first, end = self.length // 8, self.length + width
        if end > 8 * len(self.bytes):
            raise ValueError("the bytes of a circuit end too early")
        value = int.from_bytes(self.bytes[first : (end + 7) // 8], "little") >> self.length % 8
        self.length = end
        return value & ((1 << width) - 1)
