"""Ranges and grids: every value of the range is within half a step of a code, and zero is exact."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lilliput.ops.affine import (
    Range,
    affine_parameters,
    dequantize_rows,
    min_max,
    mse,
    percentile,
    quantize_rows,
    rows_of,
    short,
)
from lilliput.ops.fixed_point import integer_range

TINY = 2.0**-126
values = st.one_of(st.floats(-(2.0**125), 2.0**125, width=32), st.floats(-4, 4, width=32))
matrices = st.integers(1, 6).flatmap(
    lambda n: st.lists(st.lists(values, min_size=n, max_size=n), min_size=1, max_size=3).map(
        lambda rows: torch.tensor(rows, dtype=torch.float32)
    )
)
settings_of_grids = st.fixed_dictionaries(
    {"bit_width": st.integers(2, 16), **dict.fromkeys(("signed", "symmetric", "narrow", "power_of_two"), st.booleans())}
)


def rounded(rows: torch.Tensor, limits: Range, kind: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """`(dequantized, scale, zero_point)`."""
    scale, zero_point = affine_parameters(*limits, **kind)
    low, high = integer_range(kind["bit_width"], signed=bool(kind["signed"]), narrow=bool(kind["narrow"]))
    codes = quantize_rows(rows, scale, zero_point, low, high)
    assert low <= int(codes.min())
    assert int(codes.max()) <= high
    return dequantize_rows(codes, scale, zero_point), scale, zero_point


@given(matrices, settings_of_grids)
@settings(max_examples=400, deadline=None)
def test_rounding_error_is_at_most_half_a_scale(rows: torch.Tensor, kind: dict[str, Any]) -> None:
    found, scale, zero_point = rounded(rows, min_max(rows), kind)
    error = (found.double() - rows.double()).abs()
    float32_rounding = rows.double().abs() * 2.0**-23 + 2.0**-149
    assert (error <= scale.double()[:, None] * (0.5 + 1e-9) + float32_rounding).all()
    assert scale.dtype == torch.float32
    assert zero_point.dtype == torch.int64
    assert scale.shape == zero_point.shape == (len(rows),)


@given(matrices, settings_of_grids)
@settings(max_examples=200, deadline=None)
def test_scales_are_normal_and_zero_is_exact(rows: torch.Tensor, kind: dict[str, Any]) -> None:
    limits = min_max(rows)
    found, scale, zero_point = rounded(torch.zeros_like(rows), limits, kind)
    assert (found == 0).all()
    assert torch.isfinite(scale).all()
    assert (scale >= TINY).all()
    low, high = integer_range(kind["bit_width"], signed=bool(kind["signed"]), narrow=bool(kind["narrow"]))
    assert ((zero_point >= low) & (zero_point <= high)).all()
    if kind["symmetric"]:
        assert (zero_point == (0 if kind["signed"] else 2 ** (kind["bit_width"] - 1))).all()
    if kind["power_of_two"]:
        assert (torch.frexp(scale).mantissa == 0.5).all()


@given(matrices, settings_of_grids)
@settings(max_examples=60, deadline=None)
def test_mse_never_loses_more_than_min_max(rows: torch.Tensor, kind: dict[str, Any]) -> None:
    def loss(limits: Range) -> torch.Tensor:
        return (rounded(rows, limits, kind)[0].double() - rows.double()).square().sum(1)

    assert (loss(mse(rows, **kind)) <= loss(min_max(rows))).all()


def test_mse_clips_the_outlier_of_its_own_row_only() -> None:
    rows = torch.randn(2, 4000, generator=torch.Generator().manual_seed(0))
    rows[1, 7] = 40.0
    kind: dict[str, Any] = {"bit_width": 4, "signed": True, "symmetric": True, "narrow": True}
    found = mse(rows, **kind)
    assert 2.0 < found.high[0] < 3.5
    assert 2.0 < max(found.high[1].item(), -found.low[1].item()) < 6.0
    alone = mse(rows[:1], **kind)
    assert (alone.low[0], alone.high[0]) == (found.low[0], found.high[0])


@given(matrices)
@settings(deadline=None)
def test_min_max_is_the_hundredth_percentile(rows: torch.Tensor) -> None:
    assert [limit.tolist() for limit in percentile(rows, 100)] == [limit.tolist() for limit in min_max(rows)]


def test_percentile_is_a_rank_from_either_end() -> None:
    rows = torch.stack([torch.arange(1000.0), -torch.arange(1000.0)])
    low, high = percentile(rows, 99.9)
    assert (low.tolist(), high.tolist()) == ([1.0, -998.0], [998.0, -1.0])
    assert percentile(torch.tensor([[5.0]]), 99.0) == (torch.tensor([5.0]), torch.tensor([5.0]))


@pytest.mark.parametrize(
    ("low", "high", "kind", "scale", "zero_point"),
    [
        (-1.27, 1.27, {"bit_width": 8, "signed": True, "symmetric": True, "narrow": True}, 0.01, 0),
        (-0.5, 1.27, {"bit_width": 8, "signed": True, "symmetric": True, "narrow": True}, 0.01, 0),
        (0.0, 2.55, {"bit_width": 8, "signed": False, "symmetric": False}, 0.01, 0),
        (1.0, 2.55, {"bit_width": 8, "signed": False, "symmetric": False}, 0.01, 0),
        (-2.55, -1.0, {"bit_width": 8, "signed": False, "symmetric": False}, 0.01, 255),
        (0.0, 2.55, {"bit_width": 8, "signed": True, "symmetric": False}, 0.01, -128),
        (-1.27, 1.27, {"bit_width": 8, "signed": False, "symmetric": True, "narrow": True}, 0.01, 128),
        (-1.0, 1.0, {"bit_width": 2, "signed": True, "symmetric": True, "narrow": True}, 1.0, 0),
        (-1.0, 1.0, {"bit_width": 2, "signed": True, "symmetric": True}, 1.0, 0),
        (0.0, 2.55, {"bit_width": 8, "signed": False, "symmetric": False, "power_of_two": True}, 2.0**-6, 0),
        (0.0, 255 / 64, {"bit_width": 8, "signed": False, "symmetric": False, "power_of_two": True}, 2.0**-6, 0),
        (0.0, 0.0, {"bit_width": 8, "signed": False, "symmetric": False}, 1.0, 0),
        (0.0, 0.0, {"bit_width": 8, "signed": True, "symmetric": True, "power_of_two": True}, 1.0, 0),
        (0.0, 1e-45, {"bit_width": 8, "signed": True, "symmetric": True}, TINY, 0),
        (-1e-45, 0.0, {"bit_width": 8, "signed": True, "symmetric": True, "power_of_two": True}, TINY, 0),
    ],
)
def test_known_grids(low: float, high: float, kind: dict[str, Any], scale: float, zero_point: int) -> None:
    found, point = affine_parameters(torch.tensor([low]).double(), torch.tensor([high]).double(), **kind)
    assert found.tolist() == pytest.approx([scale], rel=2e-7, abs=0)
    assert point.tolist() == [zero_point]


def test_rows_are_the_tensor_or_its_first_dimension() -> None:
    weight = torch.arange(24.0).reshape(2, 3, 4)
    assert rows_of(weight, per_channel=False).shape == (1, 24)
    assert rows_of(weight, per_channel=True).tolist() == weight.flatten(1).tolist()
    assert rows_of(weight[0, 0], per_channel=True).shape == (4, 1)


@pytest.mark.parametrize(
    "rows", [torch.zeros(3), torch.zeros(2, 0), torch.tensor([[math.nan]]), torch.tensor([[math.inf]])]
)
def test_bad_rows_are_refused(rows: torch.Tensor) -> None:
    for choose in (
        min_max,
        lambda x: percentile(x, 99.0),
        lambda x: mse(x, bit_width=8, signed=True, symmetric=True),
    ):
        with pytest.raises(ValueError, match="rows must be"):
            choose(rows)


@pytest.mark.parametrize("percent", [50.0, 100.1, math.nan, -1.0])
def test_bad_percentages_are_refused(percent: float) -> None:
    with pytest.raises(ValueError, match="percent"):
        percentile(torch.zeros(1, 3), percent)


@pytest.mark.parametrize(
    ("low", "high", "bit_width", "message"),
    [
        (0, 1, 1, "bit width"),
        (0, 1, 17, "bit width"),
        (1, 0, 8, "range"),
        (0, math.inf, 8, "range"),
        (0, 1e300, 8, "float32"),
    ],
)
def test_impossible_grids_are_refused(low: float, high: float, bit_width: int, message: str) -> None:
    limits = (torch.tensor([low]).double(), torch.tensor([high], dtype=torch.float64))
    with pytest.raises(ValueError, match=message):
        affine_parameters(*limits, bit_width=bit_width, signed=True, symmetric=False)


def test_short_steps_have_few_bits_of_mantissa():
    steps = torch.rand(100, dtype=torch.float64) + 1e-3
    mantissa = torch.frexp(short(steps))[0] * 8
    assert torch.equal(mantissa, mantissa.round())
    assert float((short(steps) / steps).log2().abs().max()) < 0.18
