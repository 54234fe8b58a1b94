"""Hypothesis strategies that tests of several parts share: grids, sharings and encodings of every kind.

Structure is drawn, so that it shrinks; the numbers inside come from a drawn seed, so that drawing stays fast.
"""

import math
from typing import Any

import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from lilliput.core.encoding import Encoding, Grid, Sharing
from lilliput.core.grid import MAX_BITS

seeds = st.integers(0, 2**31)
shapes = st.lists(st.integers(1, 4), min_size=1, max_size=4).map(tuple)


def law(examples):
    """Settings of a property test: the same examples in every run, and no time limit for one."""
    return settings(
        max_examples=examples,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
    )


def generator_of(seed):
    return torch.Generator().manual_seed(seed)


def uniform_integers(low, high, generator):
    """One integer from `low[i]` to `high[i]` for each i."""
    share = torch.rand(low.shape, generator=generator, dtype=torch.float64)
    return low + ((high - low + 1) * share).long()


@st.composite
def grids(draw, shape=(4,), axis=None, bits=None):
    """Affine and power-of-two, signed, unsigned and narrow, up to 23 bits; one bit width, or 0 to 8 bits by slice."""
    generator, n = generator_of(draw(seeds)), 1 if axis is None else shape[axis]
    signed, narrow = draw(st.booleans()), draw(st.booleans())
    if bits is None:
        bits = draw(st.one_of(st.integers(0, 8), st.integers(9, MAX_BITS)))
    width = torch.full((n,), bits)
    if axis is not None and draw(st.booleans()):
        width = torch.randint(0, 9, (n,), generator=generator)
    if narrow:
        width[width == 1] = 2
    if draw(st.booleans()):
        scale = 2.0 ** torch.randint(-30, 20, (n,), generator=generator)
    else:
        scale = torch.rand(n, generator=generator) * 10.0 ** draw(st.integers(-8, 3)) + 1e-9
    zero = torch.zeros(n, dtype=torch.int64)
    grid = Grid(
        scale=scale,
        zero_point=zero + (not signed and narrow) * (width > 0),
        bit_width=width,
        signed=signed,
        narrow=narrow,
        axis=axis,
    )
    if draw(st.booleans()):
        low, high = grid.range()
        zero = uniform_integers(low, high, generator)
        zero[width == 0] = draw(st.integers(-100, 100))
        grid = Grid(scale=scale, zero_point=zero, bit_width=width, signed=signed, narrow=narrow, axis=axis)
    return grid


@st.composite
def sharings(draw, shape, axis=None):
    """(indices into ragged tables, rows of all tables together)."""
    generator, n = generator_of(draw(seeds)), 1 if axis is None else shape[axis]
    sizes = torch.randint(1, 1 + draw(st.integers(1, 9)), (n,), generator=generator)
    limit = sizes if axis is None else sizes.reshape([-1 if d == axis else 1 for d in range(len(shape))])
    indices = (torch.rand(shape, generator=generator) * limit).long()
    return Sharing(indices=indices, sizes=sizes, axis=axis), int(sizes.sum())


def masks(shape):
    return st.builds(
        lambda seed, share: torch.rand(shape, generator=generator_of(seed)) < share,
        seeds,
        st.sampled_from([0.0, 0.2, 0.7, 1.0]),
    )


def axes(shape):
    return st.sampled_from([None, *range(min(2, len(shape)))])


@st.composite
def encodings(draw, *, mask=None, sharing=None, grid=None, shape=None):
    """Any of the 8 combinations of slots (None = either), filled in either order."""
    shape = draw(shapes) if shape is None else shape
    generator = generator_of(draw(seeds))
    wanted = [draw(st.booleans()) if slot is None else slot for slot in (mask, sharing, grid)]
    mask_first, grid_first = draw(st.booleans()), draw(st.booleans())
    encoding: Any = Encoding.of(torch.randn(shape, generator=generator) * 10.0 ** draw(st.integers(-3, 2)))
    if wanted[0] and mask_first:
        encoding = encoding.with_mask(draw(masks(shape)))
    if wanted[1] and not (wanted[2] and grid_first):
        axis = draw(axes(shape))
        references, rows = draw(sharings(shape, axis))
        encoding = encoding.with_sharing(references, torch.randn(rows, generator=generator))
        grid_axis = draw(st.sampled_from([None, axis]))
    else:
        axis, grid_axis = draw(axes(shape)), draw(axes(shape))
    if wanted[2]:
        encoding = encoding.with_grid(draw(grids(shape, grid_axis)))
    if wanted[1] and encoding.sharing is None:
        references, rows = draw(sharings(shape, axis))
        low, high, _ = encoding.grid.common()
        encoding = encoding.with_sharing(references, torch.randint(low, high + 1, (rows,), generator=generator))
    if wanted[0] and not mask_first:
        encoding = encoding.with_mask(draw(masks(shape)))
    return encoding


def entries(shape):
    return math.prod(shape)
