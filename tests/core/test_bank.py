"""Integers that a circuit makes: the laws of encodings with a bank, and its bytes in a file."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lilliput.core.bank import Bank
from lilliput.core.coding import Reader, Writer
from lilliput.core.encoding import Encoding
from lilliput.core.errors import UsageError
from lilliput.core.grid import Grid
from lilliput.core.streams import read_encoding, write_encoding
from lilliput.ops.cartesian_functions import BINARY, CONSTANTS, COUNT, MULTIPLEXER
from lilliput.ops.netlist import Gate, Netlist
from strategies import generator_of, law, seeds


@st.composite
def banks(draw, bits=8):
    """A random circuit of a few gates; inputs that nothing reads are gone."""
    inputs = draw(st.lists(st.integers(-(1 << bits - 1), (1 << bits - 1) - 1), max_size=4))
    functions = [f for f in range(COUNT) if f != MULTIPLEXER and (inputs or f in CONSTANTS)]
    gates = []
    for k in range(draw(st.integers(0 if inputs else 1, 12))):
        pins = st.integers(0, len(inputs) + k - 1) if inputs or k else None
        function = draw(st.sampled_from(functions if pins is not None else list(CONSTANTS)))
        reads = 0 if function in CONSTANTS else 2 if function in BINARY else 1
        gates.append(Gate(function, *(draw(pins) for _ in range(reads))))
    n = len(inputs) + len(gates)
    outputs = draw(st.lists(st.integers(0, n - 1), min_size=1, max_size=8))
    return Bank.of(Netlist(bits=bits, inputs=len(inputs), gates=tuple(gates), outputs=tuple(outputs)), inputs)


@st.composite
def made(draw):
    """An encoding of random weights in the values of a bank, on 9 bits so that all of them fit; with a mask or not."""
    bank = draw(banks())
    shape, axis = draw(st.sampled_from([((3, 2, 2), 0), ((4,), None), ((2, 3), 1), ((2, 3), None)]))
    generator = generator_of(draw(seeds))
    n = 1 if axis is None else shape[axis]
    width = torch.full((n,), 9)
    if axis is not None and draw(st.booleans()):
        width[0] = 0
    scale = 2.0 ** torch.randint(-8, 3, (n,), generator=generator) * 1.1
    grid = Grid(scale=scale, zero_point=torch.zeros(n, dtype=torch.int64), bit_width=width, signed=True, axis=axis)
    e = Encoding.of(torch.randn(shape, generator=generator) * 50)
    if draw(st.booleans()):
        e = e.with_mask(torch.rand(shape, generator=generator) < 0.6)
    return e.with_grid(grid).with_bank(bank)


@given(made())
@law(200)
def test_laws(e):
    assert e.encode(e.decode()).same(e)
    for dim, size in enumerate(e.shape):
        for index in ([0], list(range(size))[::-1]):
            part = e.select(dim, torch.tensor(index))
            assert torch.equal(part.decode(), e.decode().index_select(dim, torch.tensor(index)))
            assert part.encode(part.decode()).same(part)
    assert e.with_grid(e.grid).same(e)


@given(made(), seeds)
@law(100)
def test_entries_take_the_nearest_value_in_range(e, seed):
    x = torch.randn(e.shape, generator=generator_of(seed)) * 80
    found = e.encode(x)
    rank = len(e.shape)
    low, high = (e.grid.spread(end, rank).expand(e.shape) for end in e.grid.range())
    scale, width = (e.grid.spread(v, rank).expand(e.shape) for v in (e.grid.scale, e.grid.bit_width))
    for at in itertools.product(*map(range, e.shape)):
        if width[at] == 0 or (e.mask is not None and not e.mask[at]):
            continue
        inside = [v for v in e.bank.values.tolist() if low[at] <= v <= high[at]]
        real = float(x[at].double() / scale[at].double())
        assert abs(int(found.values[at]) - real) == min(abs(v - real) for v in inside)


@given(made(), made())
@law(200)
def test_the_file_holds_it(e, other):
    writer = Writer()
    first = write_encoding(writer, e)
    at = len(writer.streams)
    second = write_encoding(writer, Encoding.of(torch.zeros(2)))
    codes = writer.codes(), writer.codes(at)
    reader = Reader(writer.data)
    reader.begin(codes[0])
    assert read_encoding(reader, e.shape, first, lambda _: torch.zeros(0)).same(e)
    assert second == []
    writer = Writer()
    again = write_encoding(writer, e, circuit=1)
    reader = Reader(writer.data)
    reader.begin(writer.codes())
    assert read_encoding(reader, e.shape, again, lambda _: torch.zeros(0), [other, e]).same(e)
    assert sum(s.slot in ("circuit", "inputs") for s in writer.streams) == 0


def bank(values=(3, -5)):
    return Bank(
        netlist=Netlist(bits=8, inputs=len(values), gates=(Gate(1, 0, 1),), outputs=(0, 1, 2)[: len(values) + 1]),
        inputs=values,
    )


def on_grid(values, bits=8):
    grid = Grid.per_tensor(1.0, 0, bits, signed=True)
    return Encoding.of(torch.tensor(values)).with_grid(grid)


def read(numbers, streams, before=()):
    writer = Writer()
    for slot, values, width in streams:
        writer.symbols(slot, torch.tensor(values, dtype=torch.int64).numpy(), width)
    reader = Reader(writer.data)
    reader.begin(writer.codes())
    return read_encoding(reader, (2,), numbers, lambda _: torch.zeros(0), before)


PACKED = list(bank().netlist.pack())
SCALE = ("scale", [128], 8)


def test_what_a_file_may_not_say():
    good = [12, 0, 9, 8, 0, len(PACKED)]
    streams = [SCALE, ("circuit", PACKED, 8), ("inputs", [131, 123], 8), ("values", [0, 2], 2)]
    assert read(good, streams).integers().tolist() == [-5, 3]
    for numbers, change in (
        ([8, 0, len(PACKED)], {}),
        ([14, 0, 0, 9, 8, 0, len(PACKED)], {}),
        ([12, 0, 9, 8, 0, 1 << 40], {}),
        ([12, 0, 9, 8, 1], {}),
        (good, {3: ("values", [0, 3], 2)}),
        (good, {1: ("circuit", [255] * len(PACKED), 8)}),
        ([12, 0, 9, 3, 0, len(PACKED)], {}),
    ):
        with pytest.raises((ValueError, UsageError)):
            read(numbers, [change.get(i, s) for i, s in enumerate(streams)])
    with pytest.raises(ValueError, match="which has none"):
        read([12, 0, 9, 8, 1], [SCALE, ("values", [0, 2], 2)], [Encoding.of(torch.zeros(2))])
    for inputs, fault in ((1 << 20, "inputs"), (1 << 50, "count")):
        huge = Netlist(bits=8, inputs=inputs, gates=(), outputs=(0,)).pack()
        with pytest.raises(ValueError, match=fault):
            read([12, 0, 9, 8, 0, len(huge)], [SCALE, ("circuit", list(huge), 8)])


def test_other_slots_around_it():
    e = on_grid([1.0, -4.0, 90.0, -7.0]).with_bank(bank())
    assert e.grid is not None
    assert e.values.tolist() == [3, -5, 3, -5]
    assert e.with_mask(torch.tensor([1, 0, 1, 0])).bank is e.bank
    assert e.with_grid(e.grid, torch.tensor([-2, -2, 3, 3])).bank is e.bank
    assert e.with_grid(e.grid, torch.tensor([-2, -1, 3, 3])).bank is None
    assert e.describe() == "8 bits, 3 values from 1 gates"
    narrow = on_grid([1.0, -4.0]).with_bank(bank((3, 60))).with_grid(Grid.per_tensor(1.0, 0, 2, signed=True))
    assert (narrow.values.tolist(), narrow.bank) == ([1, 1], None)  # no value of the bank has 2 bits
    with pytest.raises(UsageError, match="without a grid"):
        Encoding.of(torch.zeros(3)).with_bank(bank())
    with pytest.raises(UsageError, match="none is in the range"):
        on_grid([1.0, 0.0], bits=2).with_bank(bank((7, 9)))


def test_a_bank_says_what_is_wrong_with_it():
    net = bank().netlist
    with pytest.raises(UsageError, match="1 values for 2 inputs"):
        Bank(netlist=net, inputs=(3,))
    with pytest.raises(UsageError, match="multiplexers"):
        Bank(netlist=Netlist(bits=8, inputs=2, gates=(Gate(MULTIPLEXER, 0, 1),), outputs=(2,)), inputs=(1, 2))
    read_by_none = Netlist(bits=8, inputs=3, gates=(Gate(12, 1), Gate(12, 0)), outputs=(3, 2))
    found = Bank.of(read_by_none, [1, 2, 3])
    assert (found.inputs, found.netlist.outputs) == ((2, 3), (1, 2))
