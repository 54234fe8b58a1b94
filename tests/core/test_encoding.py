"""The laws of encodings: every combination of slots, in every shape."""

import itertools
import re
from dataclasses import replace
from typing import Any, cast

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lilliput.core.encoding import Encoding, Grid, Sharing, cluster_means
from lilliput.core.errors import UsageError
from lilliput.core.grid import MAX_BITS
from strategies import axes, encodings, generator_of, grids, law, masks, seeds, shapes, sharings

SLOTS = list(itertools.product([False, True], repeat=3))


def slots_of(e):
    return e.mask is not None, e.sharing is not None, e.grid is not None


def chosen(draw, size):
    return torch.tensor(draw(st.lists(st.integers(0, size - 1), min_size=1, max_size=6)))


def grid(bits: Any = 8, zero: Any = 0, **more):
    n = len(bits) if isinstance(bits, list) else 1
    axis = 0 if isinstance(bits, list) else None
    bits, zero = (v if isinstance(v, list) else [v] * n for v in (bits, zero))
    scale = torch.full((n,), 0.5)
    return Grid(
        **{"scale": scale, "zero_point": torch.tensor(zero), "bit_width": torch.tensor(bits), "axis": axis} | more
    )


def shared(indices, sizes, axis=None):
    return Sharing(indices=torch.tensor(indices), sizes=torch.tensor(sizes), axis=axis)


# The laws


@pytest.mark.parametrize(("mask", "sharing", "grid"), SLOTS)
def test_encode_inverts_decode(mask, sharing, grid):
    @given(encodings(mask=mask, sharing=sharing, grid=grid))
    @law(60)
    def check(e):
        assert slots_of(e) == (mask, sharing, grid)
        assert e.decode().dtype == torch.float32
        assert tuple(e.decode().shape) == e.shape
        assert e.encode(e.decode()).same(e)
        assert torch.equal(e.encode(e.decode()).decode(), e.decode())

    check()


@pytest.mark.parametrize(("mask", "sharing", "grid"), SLOTS)
def test_select_is_index_select_of_every_dimension(mask, sharing, grid):
    @given(encodings(mask=mask, sharing=sharing, grid=grid), st.data())
    @law(60)
    def check(e, data):
        dim = data.draw(st.integers(0, len(e.shape) - 1))
        index = chosen(data.draw, e.shape[dim])
        part = e.select(dim, index)
        assert torch.equal(part.decode(), e.decode().index_select(dim, index))
        assert slots_of(part) == slots_of(e)
        assert part.shape == tuple(part.decode().shape)
        assert part.encode(part.decode()).same(part)
        if grid:
            assert torch.equal(part.integers(), e.integers().index_select(dim, index))

    check()


@given(encodings(grid=True))
@law(150)
def test_values_are_those_of_integers_in_the_range(e):
    q = e.integers()
    assert q.dtype == torch.int64
    assert e.grid.holds(q)
    assert torch.equal(e.grid.dequantize(q), e.decode())
    assert not bool(e.decode()[(e.grid.spread(e.grid.bit_width, q.dim()) == 0).expand(e.shape)].any())


@given(encodings(mask=True))
@law(60)
def test_masked_entries_are_zero_and_zero_again_after_encoding_anything(e):
    x = e.encode(torch.full(e.shape, 3.0))
    assert not bool(x.decode()[~e.mask].any())
    assert not bool(e.decode()[~e.mask].any())
    assert torch.equal(x.mask, e.mask)


@given(encodings(sharing=True))
@law(100)
def test_tables_are_sorted_and_have_neither_equal_nor_unused_rows(e):
    used = e.sharing.rows() if e._live() is None else e.sharing.rows()[e._live()]
    start = 0
    for size in e.sharing.sizes.tolist():
        table = e.values[start : start + size]
        assert bool((table[1:] > table[:-1]).all())
        rows = used[(used >= start) & (used < start + size)].unique()
        assert len(rows) == size or (size == 1 and len(rows) == 0)
        start += size
    assert start == len(e.values)


@given(encodings(), st.data())
@law(100)
def test_masks_meet_in_any_order(e, data):
    first, second = data.draw(masks(e.shape)), data.draw(masks(e.shape))
    one = e.with_mask(first).with_mask(second)
    assert one.same(e.with_mask(second).with_mask(first))
    assert one.same(e.with_mask(first & second))
    assert one.same(one.with_mask(first))
    expected = torch.where(first & second, e.decode(), torch.zeros(()))
    assert torch.equal(one.decode(), expected)


@given(st.data(), shapes, seeds)
@law(80)
def test_slots_filled_in_any_order_are_the_same(data, shape, seed):
    """The grid is one for the tensor, or one for each table: any other is refused under a table."""
    axis = data.draw(axes(shape))
    sharing, rows = data.draw(sharings(shape, axis))
    g = data.draw(grids(shape, data.draw(st.sampled_from([None, axis]))))
    mask, generator = data.draw(masks(shape)), generator_of(seed)
    table, x = torch.randn(rows, generator=generator), torch.randn(shape, generator=generator)
    owner = torch.repeat_interleave(torch.arange(len(sharing.sizes)), sharing.sizes)
    integers = (
        g
        if g.axis is None
        else Grid(
            scale=g.scale[owner],
            zero_point=g.zero_point[owner],
            bit_width=g.bit_width[owner],
            signed=g.signed,
            narrow=g.narrow,
            axis=0,
        )
    ).quantize(table)
    fill = {
        "mask": lambda e: e.with_mask(mask),
        "sharing": lambda e: e.with_sharing(sharing, table if e.grid is None else integers),
        "grid": lambda e: e.with_grid(g),
    }
    results = []
    for order in itertools.permutations(fill):
        e = Encoding.of(x)
        for slot in order:
            e = fill[slot](e)
        results.append(e)
    assert all(e.same(results[0]) for e in results)


@given(st.data(), shapes, seeds)
@law(60)
def test_mask_and_any_grid_commute(data, shape, seed):
    g, mask = data.draw(grids(shape, data.draw(axes(shape)))), data.draw(masks(shape))
    e = Encoding.of(torch.randn(shape, generator=generator_of(seed)))
    assert e.with_mask(mask).with_grid(g).same(e.with_grid(g).with_mask(mask))


@given(grids((4,), 0, bits=MAX_BITS), seeds)
@law(100)
def test_rounding_a_decoded_integer_gives_it_back_at_every_width(g, seed):
    low, high = g.range()
    share = torch.rand((50, 4), generator=generator_of(seed), dtype=torch.float64)
    q = torch.stack([low, high, *(low + (share * (high - low)).long())])
    wide = Grid(scale=g.scale, zero_point=g.zero_point, bit_width=g.bit_width, signed=g.signed, narrow=g.narrow, axis=1)
    assert torch.equal(wide.quantize(wide.dequantize(q)), q)


@pytest.mark.parametrize("scale", [2.0**-149, 3e-45, 2.0**-126, 1.1754942e-38, 1.0, 4.05e31])
@pytest.mark.parametrize("signed", [False, True])
def test_rounding_gives_integers_back_at_the_ends_of_float32(scale, signed):
    g = Grid.per_tensor(scale, 0, MAX_BITS, signed=signed)
    low, high = (int(v) for v in g.range())
    q = torch.tensor([low, low + 1, -1 if signed else 3, 0, 1, high - 1, high])
    assert torch.equal(g.quantize(g.dequantize(q)), q)


@given(encodings(sharing=True, grid=False), seeds)
@law(60)
def test_encoding_under_a_table_takes_the_mean_of_each_cluster(e, seed):
    x = torch.randn(e.shape, generator=generator_of(seed))
    y, rows = e.encode(x), e.sharing.rows()
    kept = torch.ones(e.shape, dtype=torch.bool) if e.mask is None else e.mask
    for row in range(len(e.values)):
        members = x[kept & (rows == row)]
        expected = members.double().mean() if len(members) else torch.zeros(())
        assert float(y.values[row]) == pytest.approx(float(expected), rel=1e-6, abs=1e-7)


@given(encodings(grid=True, sharing=False, mask=False), seeds)
@law(60)
def test_encoding_on_a_grid_takes_the_nearest_value(e, seed):
    x = torch.randn(e.shape, generator=generator_of(seed))
    q, rank = e.encode(x).integers(), x.dim()
    low, high = (e.grid.spread(v, rank) for v in e.grid.range())
    here = (e.grid.dequantize(q).double() - x.double()).abs()
    for other in (q - 1, q + 1):
        there = (e.grid.dequantize(other).double() - x.double()).abs()
        inside = (low <= other) & (other <= high)
        assert bool((~inside | (here <= there * (1 + 1e-6))).all())


@given(encodings(), encodings())
@law(60)
def test_same_is_an_equality(a, b):
    assert a.same(a.to(torch.device("cpu")))
    assert a.same(b) == b.same(a)
    if not torch.equal(a.decode(), b.decode()):
        assert not a.same(b)


@given(encodings(mask=True, sharing=True, grid=True))
@law(40)
def test_every_slot_counts_for_sameness(e):
    x = Encoding.of(e.decode())
    assert not e.same(x)
    assert not x.same(e)
    sharing, grid = e.sharing, e.grid
    for changed in (
        replace(e, mask=~e.mask),
        replace(e, values=e.values + 1),
        replace(e, sharing=replace(sharing, indices=sharing.indices + 1)),
        replace(e, sharing=None),
        replace(e, grid=None),
        replace(e, grid=replace(grid, scale=grid.scale / 2)),
        replace(e, grid=Grid.per_tensor(1.0, 0, 9, signed=grid.signed)),
    ):
        assert not e.same(changed)
        assert not changed.same(e)


def test_changing_what_an_encoding_was_made_from_does_not_change_it():
    x, mask, q = torch.ones(3), torch.tensor([True, True, False]), torch.tensor([1, 2, 3])
    plain, masked = Encoding.of(x), Encoding.of(x).with_mask(mask)
    gridded = Encoding.of(x).with_grid(grid(), q)
    x.zero_()
    mask.zero_()
    q.zero_()
    assert plain.decode().tolist() == [1, 1, 1]
    assert masked.decode().tolist() == [1, 1, 0]
    assert gridded.decode().tolist() == [0.5, 1, 1.5]


# Hard cases


def test_learned_roundings_are_kept():
    e = Encoding.of(torch.tensor([0.2, 0.2])).with_grid(grid(), torch.tensor([0, 1]))
    assert e.integers().tolist() == [0, 1]
    assert e.encode(e.decode()).same(e)


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("axis", [None, 0])
def test_table_of_a_slice_without_entries_obeys_the_law_on_a_grid_whose_zero_is_not_zero(signed, axis):
    sizes, indices = ([2], [[0, 1], [1, 0]]) if axis is None else ([2, 2], [[0, 1], [1, 0]])
    e = Encoding.of(torch.randn(2, 2)).with_sharing(shared(indices, sizes, axis), torch.randn(sum(sizes)))
    e = e.with_grid(Grid.per_tensor(0.1, 5, 4, signed=signed)).with_mask(torch.zeros(2, 2))
    assert e.encode(e.decode()).same(e)
    assert e.decode().tolist() == [[0, 0], [0, 0]]


def test_cluster_across_slices_saturates_to_the_narrowest_of_its_own_slices():
    e = Encoding.of(torch.zeros(3, 2)).with_grid(grid([8, 2, 8]))
    e = e.with_sharing(shared([[0, 1], [1, 1], [0, 0]], [2]), torch.tensor([100, 100]))
    assert e.integers().tolist() == [[100, 1], [1, 1], [100, 100]]
    assert e.encode(e.decode()).same(e)
    assert e.select(0, torch.tensor([0])).encode(e.decode()[:1]).integers().tolist() == [[100, 1]]


def test_slice_of_no_bits_under_a_table_of_all_slices_is_gone():
    e = Encoding.of(torch.zeros(2, 2)).with_grid(grid([0, 4], [100, 3]))
    e = e.with_sharing(shared([[0, 1], [0, 1]], [2]), torch.tensor([-8, 7]))
    assert e.decode().tolist() == [[0, 0], [-5.5, 2]]
    assert e.integers().tolist() == [[100, 100], [-8, 7]]
    assert e.encode(e.decode()).same(e)


def test_grid_of_no_bits_under_a_table_holds_nothing():
    e = Encoding.of(torch.zeros(2)).with_grid(grid([0, 0], [100, 7]))
    e = e.with_sharing(shared([0, 1], [2]), torch.tensor([1, 2]))
    assert e.decode().tolist() == [0, 0]
    assert e.encode(e.decode()).same(e)


def test_scalar_parameter_has_every_slot():
    e = Encoding.of(torch.tensor(0.7)).with_mask(torch.tensor(True)).with_grid(grid())
    e = e.with_sharing(Sharing(indices=torch.tensor(0), sizes=torch.tensor([1])), torch.tensor([1]))
    assert e.shape == ()
    assert float(e.decode()) == 0.5
    assert e.encode(e.decode()).same(e)


def test_of_keeps_float32_bits_and_takes_no_integers():
    x = torch.tensor([1e-45, -0.0, 3.4e38])
    assert torch.equal(Encoding.of(x).decode().view(torch.int32), x.view(torch.int32))
    assert Encoding.of(x).is_plain
    with pytest.raises(UsageError, match="encode floating-point tensors"):
        Encoding.of(torch.tensor([1]))


def test_cluster_means_of_no_entries_are_zero():
    means = cluster_means(torch.tensor([1.0, 2.0, 6.0]), shared([0, 0, 2], [3]), torch.tensor([True, True, False]))
    assert means.tolist() == [1.5, 0, 0]


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda e: e, "float32"),
        (lambda e: e.with_mask(torch.tensor([[1, 0], [1, 1]])), "75% kept"),
        (lambda e: e.with_sharing(shared([[0, 1], [2, 2]], [3]), torch.arange(3.0)), "3 shared values"),
        (
            lambda e: e.with_sharing(shared([[0, 1], [1, 0]], [2, 2], 0), torch.arange(4.0)),
            "2 shared values per channel",
        ),
        (lambda e: e.with_sharing(shared([[0, 0], [0, 0]], [1]), torch.zeros(1)), "1 shared value"),
        (
            lambda e: e.with_sharing(shared([[0, 1], [0, 0]], [2, 1], 0), torch.arange(3.0)),
            "1..2 shared values per channel",
        ),
        (lambda e: e.with_grid(grid(4)), "4 bits"),
        (lambda e: e.with_grid(grid([3, 5])), "3..5 bits per channel"),
        (lambda e: e.with_grid(grid([5, 5])).with_mask(torch.ones(2, 2)), "100% kept, 5 bits per channel"),
    ],
)
def test_description_is_one_short_phrase(make, text):
    assert make(Encoding.of(torch.zeros(2, 2))).describe() == text


# What is refused

INFINITE = torch.tensor([float("inf")])
PLAIN = Encoding.of(torch.zeros(2, 3))
REFUSED = {
    "float64 scale": (lambda: grid(scale=torch.ones(1).double()), "a scale that is not a positive finite float32"),
    "zero scale": (lambda: grid(scale=torch.zeros(1)), "a scale that is not a positive finite float32"),
    "infinite scale": (lambda: grid(scale=INFINITE), "a scale that is not a positive finite float32"),
    "24 bits": (lambda: grid(24), "bit widths from 24 to 24; use 0 to 23 bits"),
    "-1 bits": (lambda: grid([3, -1]), "bit widths from -1 to 3; use 0 to 23 bits"),
    "float zero point": (lambda: grid(zero=0.0), "zero_point of torch.float32 and bit_width of torch.int64"),
    "zero point below": (
        lambda: grid(zero=-129),
        "zero point -129 outside of its range; choose zero points with ops.affine",
    ),
    "zero point of a narrow grid": (lambda: grid(zero=-128, narrow=True), "zero point -128 outside of its range"),
    "zero point above": (lambda: grid([8, 2], [127, 2]), "zero point 2 outside of its range"),
    "far zero point": (lambda: grid(0, 1 << 23), "zero point 8388608 outside of its range"),
    "narrow bit": (
        lambda: grid(1, narrow=True),
        "a narrow range of 1 bit, which is a single integer; use at least 2 bits",
    ),
    "too large values": (
        lambda: grid(scale=torch.tensor([3e38])),
        "values up to 3.84e+40; use a smaller scale or fewer bits",
    ),
    "two scales for the tensor": (
        lambda: grid([8, 8], axis=None),
        r"scale, zero_point and bit_width of shapes (2,), (2,), (2,) for axis None",
    ),
    "no scale": (lambda: grid([], scale=torch.zeros(0)), "shapes (0,), (0,), (0,) for axis 0"),
    "grid of another axis": (
        lambda: PLAIN.with_grid(grid([8] * 3)),
        r"3 scales on axis 0 for a tensor of shape (2, 3); give one for each slice",
    ),
    "integers beyond the grid": (
        lambda: PLAIN.with_grid(grid(4), torch.full((2, 3), 8)),
        "values that are not integers of the grid; round and saturate",
    ),
    "floats as integers": (
        lambda: PLAIN.with_grid(grid(4), torch.zeros(2, 3)),
        "values that are not integers of the grid",
    ),
    "integers of another shape": (
        lambda: PLAIN.with_grid(grid(4), torch.zeros(3).long()),
        "values that are not integers of the grid",
    ),
    "mask of another shape": (
        lambda: PLAIN.with_mask(torch.ones(3)),
        r"mask: a mask of shape (3,); give one of shape (2, 3)",
    ),
    "tensor of another shape": (
        lambda: PLAIN.encode(torch.ones(3)),
        r"encode: a tensor of shape (3,); give one of shape (2, 3)",
    ),
    "integers of floats": (PLAIN.integers, "integers of an encoding: it has no grid; quantize the tensor first"),
    "range without slots": (
        PLAIN.row_range,
        "range of a table: no grid or no shared table; quantize and cluster first",
    ),
    "integers as table": (
        lambda: PLAIN.with_sharing(shared([[0] * 3] * 2, [1]), torch.zeros(1).long()),
        "a table of torch.int64; give floats, or integers where there is a grid",
    ),
    "index beyond its table": (
        lambda: PLAIN.with_sharing(shared([[0, 0, 0], [0, 0, 1]], [2, 1], 0), torch.zeros(3)),
        "sharing: an index beyond its table; count from 0 in the table of the entry's slice",
    ),
    "negative index": (
        lambda: PLAIN.with_sharing(shared([[0, 0, 0], [0, 0, -1]], [1]), torch.zeros(1)),
        "an index beyond its table; count from 0",
    ),
    "sizes of another axis": (
        lambda: PLAIN.with_sharing(shared([[0] * 3] * 2, [1, 1], 1), torch.zeros(2)),
        "2 sizes for 3 tables (axis 1); give one size for the tensor, or one for each slice of the axis",
    ),
    "axis beyond the rank": (
        lambda: PLAIN.with_sharing(shared([[0] * 3] * 2, [1, 1], 2), torch.zeros(2)),
        "axis 2 of a tensor of shape (2, 3); use one of its dimensions",
    ),
    "short table": (
        lambda: PLAIN.with_sharing(shared([[0] * 3] * 2, [2]), torch.zeros(1)),
        "a table of 1 values for sizes that add up to 2; give each slice as many values as its size says",
    ),
    "empty table": (
        lambda: PLAIN.with_sharing(shared([[0] * 3] * 2, [2, 0], 0), torch.zeros(2)),
        "sharing: a table without values; give each slice at least one",
    ),
    "indices of floats": (
        lambda: Sharing(indices=torch.zeros(2, 3), sizes=torch.tensor([1])),
        "sharing: indices of torch.float32; give indices as a tensor of torch.int64",
    ),
    "indices of 32 bits": (
        lambda: Sharing(indices=torch.zeros(2, 3).int(), sizes=torch.tensor([1])),
        "sharing: indices of torch.int32; give indices as a tensor of torch.int64",
    ),
    "sizes in a list": (
        lambda: Sharing(indices=torch.zeros(2, 3).long(), sizes=cast("Any", [1])),
        "sharing: sizes of list; give sizes as a tensor of torch.int64",
    ),
    "sizes as a number": (
        lambda: Sharing(indices=torch.zeros(2, 3).long(), sizes=torch.tensor(1)),
        "sharing: sizes of shape (); give a vector of them",
    ),
    "axis as a word": (
        lambda: Sharing(indices=torch.zeros(2, 3).long(), sizes=torch.tensor([1]), axis=cast("Any", "rows")),
        "sharing: axis 'rows'; give the number of a dimension, or None",
    ),
    "indices of another shape": (
        lambda: PLAIN.with_sharing(shared([0, 0, 0], [1]), torch.zeros(1)),
        "sharing: indices of shape (3,) for a tensor of shape (2, 3); give one index for each entry",
    ),
    "table in a list": (
        lambda: PLAIN.with_sharing(shared([[0] * 3] * 2, [1]), cast("Any", [0.0])),
        "sharing: a table of list; give floats, or integers where there is a grid",
    ),
    "table of floats on a grid": (
        lambda: PLAIN.with_grid(grid(8)).with_sharing(shared([[0] * 3] * 2, [1]), torch.zeros(1)),
        "sharing: a table of torch.float32; give floats, or integers where there is a grid",
    ),
    "table of truths on a grid": (
        lambda: PLAIN.with_grid(grid(8)).with_sharing(shared([[0] * 3] * 2, [1]), torch.zeros(1) > 0),
        "sharing: a table of torch.bool; give floats, or integers where there is a grid",
    ),
    "table with rows": (
        lambda: PLAIN.with_sharing(shared([[0] * 3] * 2, [1, 1], 0), torch.zeros(2, 1)),
        "sharing: a table of shape (2, 1); give a vector: the tables one after the other",
    ),
    "table with infinity": (
        lambda: PLAIN.with_sharing(shared([[0] * 3] * 2, [1]), torch.tensor([torch.inf])),
        "sharing: a table with NaN or infinity; give finite values",
    ),
    "grid by channel under one table": (
        lambda: PLAIN.with_sharing(shared([[0] * 3] * 2, [1]), torch.zeros(1)).with_grid(grid([8, 8])),
        "one scale for each channel under a table shared by all channels; use one grid for the tensor, or share per",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_does_not_fit_is_refused(name):
    make, text = REFUSED[name]
    with pytest.raises(UsageError, match=re.escape(text)):
        make()


def test_table_may_have_65535_values_and_no_more():
    for n in (65535, 65536):
        e: Any = Encoding.of(torch.zeros(n))
        sharing = Sharing(indices=torch.arange(n), sizes=torch.tensor([n]))
        if n == 65535:
            assert int(e.with_sharing(sharing, torch.arange(float(n))).sharing.sizes) == n
        else:
            with pytest.raises(UsageError, match="sharing: more than 65535 values in a table; use fewer clusters"):
                e.with_sharing(sharing, torch.arange(float(n)))
