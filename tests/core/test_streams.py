"""Encodings to bytes and back: nothing is lost, the size is that of the bytes, and hostile bytes are refused."""

import itertools
import re
import tracemalloc
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lilliput.core.coding import CODE_BYTES, Reader, Stream, Writer
from lilliput.core.encoding import Encoding, Grid, Sharing
from lilliput.core.errors import UsageError
from lilliput.core.streams import read_encoding, size_bits, streams_of, write_encoding
from lilliput.ops import entropy
from strategies import encodings, generator_of, grids, law, seeds

FLOAT = np.float32(0.3).tobytes()


def no_source(source):
    raise ValueError(f"no source {source}")


def written(e, source=None):
    writer = Writer()
    return write_encoding(writer, e, source=source), writer.codes(), writer.data


def read(description, codes, data, shape, derive=no_source) -> Any:
    reader = Reader(data)
    reader.begin(codes)
    e = read_encoding(reader, shape, description, derive)
    reader.end()
    if reader.at != len(data):
        raise ValueError(f"{len(data) - reader.at} bytes left over")
    return e


# The laws


@pytest.mark.parametrize(("mask", "sharing", "grid"), list(itertools.product([False, True], repeat=3)))
def test_reading_inverts_writing(mask, sharing, grid):
    @given(encodings(mask=mask, sharing=sharing, grid=grid))
    @law(60)
    def check(e):
        description, codes, data = written(e)
        again = read(description, codes, data, e.shape)
        assert again.same(e)
        assert torch.equal(again.decode(), e.decode())
        assert written(again) == (description, codes, data)
        assert all(type(n) is int and n >= 0 for n in [*description, *codes])
        assert (description[0] if description else 0) == mask + 2 * sharing + 4 * grid

    check()


@given(encodings())
@law(150)
def test_size_is_that_of_the_bytes_and_raw_bits_that_of_the_slots(e):
    streams = streams_of(e)
    assert size_bits(e) == 8 * len(written(e)[2]) == 8 * sum(len(s.data) for s in streams)
    bits = {s.slot: s.raw_bits for s in streams}
    assert len(bits) == len(streams)
    kept = e.decode().numel() if e.mask is None else int(e.mask.sum())
    if e.mask is not None:
        assert bits["mask"] == e.mask.numel()
    if e.sharing is not None:
        assert bits["sharing"] == 16 * len(e.sharing.sizes)
        axis, rank = e.sharing.axis, len(e.shape)
        widths = torch.tensor([(size - 1).bit_length() for size in e.sharing.sizes.tolist()])
        widths = widths.reshape([-1 if d == axis else 1 for d in range(rank)]).expand(e.shape)
        assert bits["indices"] == int(widths.sum() if e.mask is None else widths[e.mask].sum())
    stored = kept if e.sharing is None else len(e.values)
    if e.grid is None:
        assert bits["values"] == 32 * stored
    elif e.grid.axis is None:
        assert bits["values"] == stored * int(e.grid.bit_width)
    for s in streams:
        assert len(s.data) <= -(-s.raw_bits // 8) + 24  # groups of different widths end at bytes
        assert s.coding == 0 or s.raw_bits / 8 + 24 >= len(s.data) + CODE_BYTES


@given(encodings(grid=True, sharing=False, shape=(4, 3)), seeds)
@law(60)
def test_derived_scales_are_not_stored(e, seed):
    source = int(torch.randint(9, (), generator=generator_of(seed)))
    description, codes, data = written(e, source)
    asked = []
    again = read(description, codes, data, e.shape, lambda n: asked.append(n) or e.grid.scale)
    assert again.same(e)
    assert asked == [source]
    writer = Writer()
    write_encoding(writer, e, source=source)
    assert "scale" not in {s.slot for s in writer.streams}


@given(encodings(), st.data())
@law(300)
def test_changed_bytes_or_numbers_are_refused_or_some_encoding(e, data):
    description, codes, raw = written(e)
    what = data.draw(st.sampled_from(["bytes", "description", "codes", "shape"]))
    shape, broken = e.shape, bytearray(raw)
    if what == "bytes" and broken:
        broken[data.draw(st.integers(0, len(broken) - 1))] ^= data.draw(st.integers(1, 255))
    elif what == "description" and description:
        description[data.draw(st.integers(0, len(description) - 1))] = data.draw(st.integers(0, 70))
    elif what == "codes":
        codes = data.draw(st.lists(st.integers(0, 100), max_size=4))
    else:
        shape = data.draw(st.lists(st.integers(1, 5), max_size=4).map(tuple))
    try:
        again = read(description, codes, bytes(broken), shape, lambda n: torch.ones(4))
    except (ValueError, UsageError):
        return
    assert again.decode().shape == shape
    if again.grid is not None:
        assert again.grid.holds(again.integers())


# What is in the bytes


def test_layout_of_a_pruned_clustered_and_quantized_tensor_is_as_the_format_says():
    e = Encoding.of(torch.zeros(2, 4)).with_grid(Grid.per_tensor(0.25, 1, 4, signed=False))
    e = e.with_mask(torch.tensor([[1, 1, 0, 1], [0, 1, 1, 1]]))
    sharing = Sharing(indices=torch.tensor([[0, 1, 0, 2], [0, 2, 1, 0]]), sizes=torch.tensor([3]))
    e = e.with_sharing(sharing, torch.tensor([2, 9, 15]))
    description, codes, data = written(e)
    assert description == [7, 0, 0, 4 + 8, 4]  # all slots; one table; one grid: zero points, power of two; 4 bits
    assert codes == []
    mask, sizes, indices = b"\xeb", b"\x03\x00", bytes([0b10_10_01_00, 0b00_01])
    scale, zero, values = bytes([-1 + 127]), (1 + (1 << 23)).to_bytes(3, "little"), b"\x92\x0f"
    assert data == mask + sizes + indices + scale + zero + values


def test_slices_of_different_widths_stand_narrow_ones_first():
    grid = Grid(
        scale=torch.tensor([0.3, 0.3, 0.3]), zero_point=torch.zeros(3).long(), bit_width=torch.tensor([8, 0, 2]), axis=1
    )
    e = Encoding.of(torch.zeros(2, 3)).with_grid(grid, torch.tensor([[-128, 0, 1], [127, 0, -2]]))
    description, _, data = written(e)
    assert description == [4, 2, 1 + 32, 0]
    assert data == 3 * FLOAT + (8 | 0 << 5 | 2 << 10).to_bytes(2, "little") + bytes([0b00_11, 0, 255])


@given(grids((5,), 0))
@law(60)
def test_scales_that_are_powers_of_two_take_one_byte(grid):
    e = Encoding.of(torch.zeros(5)).with_grid(grid)
    bits = {s.slot: s.raw_bits for s in streams_of(e)}
    powers = bool((torch.frexp(grid.scale).mantissa == 0.5).all())
    assert bits["scale"] == (8 if powers else 32) * 5


@pytest.mark.parametrize("scale", [2.0**-149, 2.0**-130, 2.0**-129, 2.0**-128, 2.0**-127, 2.0**-126, 1.0, 2.0**104])
def test_every_power_of_two_of_float32_comes_back(scale):
    e = Encoding.of(torch.zeros(2)).with_grid(Grid.per_tensor(scale, 0, 23, signed=True))
    assert float(read(*written(e), e.shape).grid.scale) == scale


def test_coding_is_used_where_it_saves_more_than_its_code_takes():
    for n in range(0, 400, 7):
        e = Encoding.of(torch.zeros(1000)).with_mask(torch.arange(1000) % 31 < n % 31)
        for s in streams_of(e):
            assert s.coding == 0 or len(s.data) + CODE_BYTES <= -(-s.raw_bits // 8)
    zeros = Encoding.of(torch.zeros(100_000))
    assert [s.coding for s in streams_of(zeros)] != [0]
    assert size_bits(zeros) < 8 * 500
    noise = Encoding.of(torch.randn(1000, generator=generator_of(0)))
    assert size_bits(noise) <= 32 * 1000


def test_bytes_layout_of_narrow_symbols_comes_back():
    generator = generator_of(0)
    q = torch.randint(-4, 4, (50,), generator=generator).repeat(100)  # a dictionary finds what no neighbour tells
    e = Encoding.of(torch.zeros(5000)).with_grid(Grid.per_tensor(0.1, 0, 3, signed=True), q)
    description, codes, data = written(e)
    assert [s.coding for s in streams_of(e)][-1] in (3, 4)
    assert read(description, codes, data, e.shape).same(e)


@pytest.mark.parametrize("masked", [False, True])
def test_floats_with_their_exponents_in_contexts_come_back(masked):
    x = torch.randn(40, 20, 3, 3, generator=generator_of(0))
    x.view(-1)[:6] = torch.tensor([0.0, -0.0, float("inf"), float("nan"), 1e-45, -3.4e38])
    e = Encoding.of(x).with_mask(x.abs() > 0.3) if masked else Encoding.of(x)
    description, codes, data = written(e)
    assert streams_of(e)[-1].coding == 5
    again = read(description, codes, data, e.shape)
    assert torch.equal(again.values.view(torch.int32), e.values.view(torch.int32))


@pytest.mark.parametrize("slots", ["mask", "indices", "values", "masked indices", "masked values", "widths"])
def test_streams_of_neighbours_in_contexts_come_back(slots):
    generator = generator_of(0)
    x = torch.randn(24, 12, 3, 3, generator=generator) * torch.randn(24, 1, 1, 1, generator=generator).exp()
    e = Encoding.of(x)
    if "mask" in slots:
        e = e.with_mask(x.abs() > 0.5)
    if "indices" in slots:
        indices = torch.clamp((x * 2 + 4).floor(), 0, 7).long()
        e = e.with_sharing(Sharing(indices=indices, sizes=torch.tensor([8])), torch.linspace(-2, 2, 8))
    if "values" in slots:
        e = e.with_grid(Grid.per_tensor(0.4, 0, 4, signed=True))
    if slots == "widths":
        bits = 3 + torch.arange(24) % 3
        scale = torch.full((24,), 0.4)
        e = e.with_grid(Grid(scale=scale, zero_point=torch.zeros(24).long(), bit_width=bits, axis=0))
    description, codes, data = written(e)
    kind = {"widths": "values"}.get(slots, slots.split()[-1])
    assert {s.slot: s.coding for s in streams_of(e)}[kind] == 5
    assert read(description, codes, data, e.shape).same(e)


def test_codes_name_streams_up_to_the_last_coded_one():
    e = Encoding.of(torch.randn(2000, generator=generator_of(0))).with_mask(torch.arange(2000) < 3)
    description, codes, data = written(e)
    assert len(codes) == 1
    assert codes[0] % 8 in (1, 2, 3, 4)
    assert len(data) == codes[0] // 8 + 3 * 4
    with pytest.raises(ValueError, match="3 codes for 2 streams"):
        read(description, [*codes, 0, 0], data, e.shape)


def test_size_does_not_depend_on_the_order_of_memory():
    x = torch.randn(6, 5, generator=generator_of(1))
    e = Encoding.of(x.T.contiguous().T)
    assert written(e) == written(Encoding.of(x))


# What is refused

TABLES = (3).to_bytes(2, "little")


@pytest.mark.parametrize(
    ("description", "codes", "data", "text"),
    [
        ([], [], bytes(23), "a stream of 24 bytes, 23 left"),
        ([], [], bytes(25), "1 bytes left over"),
        ([0], [], bytes(24), "slot flags 0"),
        ([8], [], bytes(24), "slot flags 8"),
        ([1], [], b"\x3f" + bytes(20), "a stream of 24 bytes, 20 left"),
        ([1], [], b"\xff" + bytes(24), "the last 2 bits of the packed values are padding and must be zero"),
        ([1, 2], [], b"\x3f" + bytes(24), "more numbers than the slots need"),
        ([2], [], b"", "fewer numbers than the slots need"),
        ([4, 0, 1], [], b"", "fewer numbers than the slots need"),
        ([4, 0, 17, 8], [], b"", "fewer numbers than the slots need"),
        ([4, 3, 1, 8], [], b"", "axis 2 of a tensor of 2 dimensions"),
        ([4, 0, 64, 8], [], b"", "grid kind 64, width 8"),
        ([4, 0, 24, 8, 0], [], bytes(24), "more numbers than the slots need"),
        ([4, 0, 1, 24], [], b"", "grid kind 1, width 24"),
        ([4, 0, 33, 8], [], b"", "grid kind 33, width 8"),
        ([4, 0, 17, 8, 0], [], b"", "no source 0"),
        ([4, 0, 1, 8], [], bytes(4) + bytes(6), "a grid: a scale that is not a positive finite float32"),
        ([4, 0, 5, 8], [], FLOAT + b"\x80\x00\x80" + bytes(6), "a grid: zero point 128 outside of its range"),
        ([4, 0, 3, 8], [], FLOAT + b"\xff" + bytes(5), "an integer beyond its grid"),
        ([4, 0, 3, 1], [], FLOAT + b"\x00", "a grid: a narrow range of 1 bit, which is a single integer"),
        ([4, 1, 33, 0], [], 2 * FLOAT + b"\x1f\x03" + bytes(9), "a grid: bit widths from 24 to 31"),
        ([2, 0], [], b"\x00\x00", "tables of 0 to 0 values for 6 entries"),
        ([2, 0], [], b"\x07\x00", "tables of 7 to 7 values for 6 entries"),
        ([2, 1], [], b"\x04\x00\x01\x00", "tables of 1 to 4 values for 3 entries"),
        ([2, 0], [], TABLES + b"\xff\x0f" + bytes(12), "an index beyond its table"),
        (
            [6, 0, 1, 33, 0],
            [],
            b"\x01\x00" + 2 * FLOAT + (8 | 2 << 5).to_bytes(2, "little") + b"\xe4",
            "an integer of a table beyond a slice that uses it",
        ),
        ([], [8], bytes(24), "unknown coding 0"),
        ([], [6], bytes(24), "coding 6 for floats"),
        ([], [14], bytes(24), "unknown coding 6"),
        ([], [5 + 8 * 24], bytes(24), "the context stream has centre 0 and unit 0 for 8 bits"),
        ([], [5 + 8 * 17], bytes(24), "17 bytes for the fractions of 6 floats"),
        ([], [3 + 8 * 4], bytes(24), "coding 3 for floats"),
        ([], [1 + 8 * 25], bytes(24), "a stream of 25 bytes, 24 left"),
        (
            [],
            [1 + 8 * 31],
            bytes([0, 24, 0, 231, 255, *bytes(26)]),
            "the zlib stream of 24 bytes is cut off before its end mark",
        ),
        ([], [2 + 8 * 24], b"\x03" + bytes(23), "damaged lzma stream: Corrupt input data"),
        ([4, 0, 1, 9], [0, 3 + 8 * 2], FLOAT + b"\x03\x00", "coding 3 for symbols of more than 8 bits"),
    ],
)
def test_what_is_not_well_formed_is_refused(description, codes, data, text):
    with pytest.raises((ValueError, UsageError), match=f"^{re.escape(text)}($|; )"):
        read(description, codes, data, (2, 3))


def test_symbol_of_the_bytes_layout_must_fit_its_width():
    writer = Writer()
    writer.streams.append(Stream("values", entropy.encode(b"\x04" + bytes(999), "zlib"), 8000, 3))
    reader = Reader(writer.data)
    reader.begin(writer.codes())
    with pytest.raises(ValueError, match="a symbol of more than 2 bits"):
        reader.symbols("values", 1000, 2)


def test_gigantic_tables_are_refused_before_they_are_made():
    """A table of 65535 rows for each of a million slices, of a grid of no bits: 64 GB of rows in 2 kB."""
    n = 1 << 20
    writer = Writer()
    writer.symbols("sharing", np.full(n, 65535), 16)
    tracemalloc.start()
    with pytest.raises(ValueError, match="tables of 65535 to 65535 values for 1 entries"):
        read([6, 1, 0, 8, 0], writer.codes(), writer.data, (n, 1))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 100e6


CHAINS = st.lists(
    st.tuples(
        st.sampled_from([(7,), (4, 3), (5, 1, 3, 3), (30, 20), (1,)]),
        st.sampled_from([2, 3, 4, 5, 8, 9]),
        st.sampled_from(["one grid", "powers", "short", "widths", "mask"]),
        st.integers(0, 3),
    ),
    min_size=1,
    max_size=5,
)


def of_a_chain(shape, bits, kind, seed):
    generator = torch.Generator().manual_seed(seed)
    e = Encoding.of(torch.randn(shape, generator=generator) * 0.3)
    n = shape[0]
    if kind == "mask":
        e = e.with_mask(torch.rand(shape, generator=generator) < 0.6)
    if kind in ("one grid", "mask"):
        return e.with_grid(Grid.per_tensor(0.3, 0, bits, signed=True))
    scale = 2.0 ** torch.randint(-5, 0, (n,), generator=generator)
    if kind == "short":
        scale = scale * torch.randint(4, 8, (n,), generator=generator)
    widths = torch.randint(0, 9, (n,), generator=generator) if kind == "widths" else torch.full((n,), bits)
    return e.with_grid(Grid(scale=scale, zero_point=torch.zeros(n, dtype=torch.int64), bit_width=widths, axis=0))


@given(CHAINS)
@law(40)
def test_chained_streams_come_back_and_take_little_more_than_others(cases):
    encodings = [of_a_chain(*case) for case in cases]
    writer, alone, entries = Writer(chained=True), Writer(), []
    for e in encodings:
        first = len(writer.streams)
        slots = write_encoding(writer, e)
        write_encoding(alone, e)
        entries.append((e, slots, writer.codes(first)))
    assert len(writer.data) <= len(alone.data) + 8
    reader, streams = Reader(writer.data), []
    for e, slots, codes in entries:
        reader.begin(codes)
        assert read_encoding(reader, e.shape, slots, no_source).same(e)
        streams += reader.end()
    assert reader.left == 0
    assert sum(len(s.data) for s in streams) == len(writer.data)


def test_a_chain_ends_with_its_symbols_at_the_other_streams():
    e = of_a_chain((30, 20), 4, "powers", 0)
    writer = Writer(chained=True)
    slots = write_encoding(writer, e)
    assert [s.coding for s in writer.streams] == [6, 6]
    for data, found in (
        (writer.data[1:], "cut off"),
        (writer.data[:-1], "start|end where|cut off|not there|a grid"),
        (b"\0" + writer.data, None),
        (writer.data[:40] + b"\x11" + writer.data[41:], "end where|cut off|not there|beyond|finite|a grid"),
    ):
        reader = Reader(data)
        reader.begin(writer.codes())
        if found is None:
            read_encoding(reader, e.shape, slots, no_source)
            assert reader.left == 1
        else:
            with pytest.raises((ValueError, UsageError), match=found):
                _ = read_encoding(reader, e.shape, slots, no_source), reader.left


@given(st.lists(st.tuples(st.integers(4, 7), st.integers(-50, 13)), min_size=1, max_size=20))
@law(60)
def test_scales_of_three_bits_take_eight(numbers):
    scale = torch.tensor([m * 2.0**e for m, e in numbers])
    n = len(scale)
    grid = Grid(scale=scale, zero_point=torch.zeros(n, dtype=torch.int64), bit_width=torch.full((n,), 4), axis=0)
    e = Encoding.of(torch.zeros(n, 2)).with_grid(grid)
    description, codes, data = written(e)
    assert read(description, codes, data, e.shape).same(e)
    assert description[2] & 24 == (8 if all(m == 4 for m, _ in numbers) else 24)
    assert streams_of(e)[0].raw_bits == 8 * n


@pytest.mark.parametrize("scale", [0.3, 4.5 * 2.0**-3, 4 * 2.0**-51 * 1.25, 5 * 2.0**14])
def test_other_scales_stay_floats(scale):
    e = Encoding.of(torch.zeros(1, 2)).with_grid(Grid.per_tensor(scale, 0, 4, signed=True))
    description, codes, data = written(e)
    assert description[2] & 24 == 0
    assert read(description, codes, data, e.shape).same(e)
