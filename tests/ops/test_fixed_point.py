"""The integer semantics, judged in rational arithmetic."""

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lilliput.ops.fixed_point import (
    add_multipliers,
    dequantize,
    integer_range,
    quantize,
    quantize_multiplier,
    requantize,
    requantize_add,
    requantize_shift,
    rounding_shift,
)

HALF = Fraction(1, 2)
accumulators = st.one_of(
    st.integers(-(2**31), 2**31), st.sampled_from([-(2**31), 1 - 2**31, -1, 0, 1, 2**31 - 1, 2**31])
)
multipliers = st.one_of(st.just(0), st.integers(2**30, 2**31 - 1), st.sampled_from([2**30, 2**31 - 1]))
shifts = st.integers(1, 62)
reals = st.floats(2.0**-32, 2.0**30 * (1 - 2.0**-31), exclude_max=True)
normal_scales = st.floats(float(np.finfo(np.float32).tiny), 2.0**100, width=32)


def int64(*values: int) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int64)


def nearest(x: Fraction) -> int:
    return math.floor(x + HALF)


def saturate(x: int, low: int, high: int) -> int:
    return max(low, min(high, x))


@given(
    st.lists(accumulators, min_size=1), multipliers, shifts, st.integers(-128, 255), st.integers(1, 16), st.booleans()
)
@settings(deadline=None)
def test_requantize_is_the_rational_product_rounded_half_up(
    acc: list[int], multiplier: int, shift: int, zero_point: int, bit_width: int, signed: bool
) -> None:
    low, high = integer_range(bit_width, signed=signed)
    exact = [saturate(nearest(Fraction(a * multiplier, 2**shift)) + zero_point, low, high) for a in acc]
    assert requantize(int64(*acc), multiplier, shift, zero_point, low, high).tolist() == exact


@given(st.lists(st.integers(-(2**62), 2**62), min_size=1), st.integers(0, 62))
@settings(deadline=None)
def test_rounding_shift_rounds_halves_up(x: list[int], shift: int) -> None:
    assert rounding_shift(int64(*x), shift).tolist() == [nearest(Fraction(v, 2**shift)) for v in x]


@pytest.mark.parametrize(("x", "shift", "y"), [(1, 1, 1), (-1, 1, 0), (3, 1, 2), (-3, 1, -1), (-6, 2, -1), (-7, 0, -7)])
def test_halves_go_towards_plus_infinity(x: int, shift: int, y: int) -> None:
    assert rounding_shift(int64(x), shift).item() == y


def test_shifts_and_multipliers_broadcast_over_channels() -> None:
    acc = int64(100, -100).expand(3, 2)
    shift = int64(1, 2, 3)[:, None]
    assert rounding_shift(acc, shift).tolist() == [[50, -50], [25, -25], [13, -12]]
    multiplier = int64(2**30, 0, 2**31 - 1)[:, None]
    assert requantize(acc, multiplier, 31, int64(0, 5, 0)[:, None], -128, 127).tolist() == [
        [50, -50],
        [5, 5],
        [100, -100],
    ]


@given(reals)
@settings(deadline=None)
def test_multiplier_is_the_nearest_of_31_bits(real: float) -> None:
    multiplier, shift = (int(value) for value in quantize_multiplier(real))
    assert 2**30 <= multiplier < 2**31
    assert 1 <= shift <= 62
    assert abs(Fraction(real) - Fraction(multiplier, 2**shift)) <= Fraction(1, 2 ** (shift + 1))


@pytest.mark.parametrize("exponent", [-32, -31, -8, -1, 0, 1, 29])
def test_powers_of_two_are_exact(exponent: int) -> None:
    multiplier, shift = quantize_multiplier(2.0**exponent)
    assert Fraction(int(multiplier), 2 ** int(shift)) == Fraction(2) ** exponent


@given(accumulators, st.integers(1, 32), st.integers(-128, 127))
@settings(deadline=None)
def test_power_of_two_multiplier_and_shift_agree(acc: int, exponent: int, zero_point: int) -> None:
    multiplier, shift = quantize_multiplier(2.0**-exponent)
    by_shift = requantize_shift(int64(acc), exponent, zero_point, -128, 127)
    assert requantize(int64(acc), multiplier, shift, zero_point, -128, 127).tolist() == by_shift.tolist()


def test_multiplier_just_below_a_power_of_two_is_carried() -> None:
    multiplier, shift = quantize_multiplier(math.nextafter(1.0, 0.0))
    assert (int(multiplier), int(shift)) == (2**30, 30)
    multiplier, shift = quantize_multiplier(math.nextafter(2.0**-31, 0.0))
    assert (int(multiplier), int(shift)) == (2**30, 61)


@given(st.floats(0, 2.0**-32, exclude_max=True), accumulators)
@settings(deadline=None)
def test_vanishing_multiplier_gives_the_zero_point(real: float, acc: int) -> None:
    multiplier, shift = quantize_multiplier(real)
    assert requantize(int64(acc), multiplier, shift, 7, -128, 127).item() == nearest(Fraction(real) * acc) + 7 == 7


def test_multipliers_are_found_per_channel() -> None:
    multiplier, shift = quantize_multiplier(torch.tensor([0.5, 0.0, 0.1], dtype=torch.float64))
    assert multiplier.tolist() == [2**30, 0, round(0.1 * 2**34)]
    assert shift.tolist()[::2] == [31, 34]
    assert multiplier.dtype == shift.dtype == torch.int64


@pytest.mark.parametrize("real", [-1.0, -1e-12, math.nan, math.inf, 2.0**30, 1e300])
def test_multiplier_out_of_range_is_refused(real: float) -> None:
    with pytest.raises(ValueError, match="multipliers must"):
        quantize_multiplier(torch.tensor([0.5, real], dtype=torch.float64))


@given(st.floats(width=32, allow_nan=False), normal_scales, st.integers(-128, 255), st.booleans())
@settings(max_examples=300, deadline=None)
def test_quantize_is_the_rational_quotient_rounded_half_up(
    x: float, scale: float, zero_point: int, signed: bool
) -> None:
    low, high = integer_range(16, signed=signed)
    code = quantize(torch.tensor([x]), torch.tensor([scale]), zero_point, low, high)
    if math.isinf(x):
        assert code.item() == (high if x > 0 else low)
    else:
        assert code.item() == saturate(nearest(Fraction(x) / Fraction(scale)) + zero_point, low, high)


@given(st.integers(-(2**15), 2**15), st.integers(-2, 2), normal_scales.filter(lambda s: 1e-20 < s < 1e20))
@settings(max_examples=300, deadline=None)
def test_quantize_is_exact_next_to_halves(code: int, steps: int, scale: float) -> None:
    x = np.float32((code + 0.5) * scale)
    for _ in range(abs(steps)):
        x = np.nextafter(x, np.float32(math.copysign(math.inf, steps)))
    exact = nearest(Fraction(float(x)) / Fraction(scale))
    assert quantize(torch.tensor([x]), scale, 0, -(2**20), 2**20).item() == exact


@given(st.integers(0, 255), normal_scales, st.integers(0, 255))
@settings(deadline=None)
def test_quantize_inverts_dequantize(code: int, scale: float, zero_point: int) -> None:
    x = dequantize(int64(code), scale, zero_point)
    assert x.dtype == torch.float32
    assert quantize(x, scale, zero_point, 0, 255).item() == code


def test_dequantize_rounds_once() -> None:
    assert dequantize(int64(3), 0.1, 0).item() == np.float32(3 * 0.1)
    wide = int64(2**31 - 1)
    assert dequantize(wide, 1.0 + 2.0**-23, 0).item() == np.float32((2**31 - 1) * (1.0 + 2.0**-23))


def test_nan_is_refused() -> None:
    with pytest.raises(ValueError, match="NaN"):
        quantize(torch.tensor([0.0, math.nan]), 1.0, 0, -128, 127)


@given(
    st.lists(st.tuples(st.integers(0, 255), st.integers(0, 255), st.floats(1e-4, 1e4)), min_size=1, max_size=4),
    st.floats(1e-4, 1e4),
    st.integers(0, 255),
)
@settings(deadline=None)
def test_add_is_the_rational_sum_rounded_once(
    inputs: list[tuple[int, int, float]], scale_out: float, zero_point: int
) -> None:
    codes, zero_points, scales = zip(*inputs, strict=True)
    found, shift = add_multipliers(scales, scale_out)
    assert 2**30 <= max(found) < 2**31
    total = sum(
        (Fraction((q - z) * m, 2**shift) for q, z, m in zip(codes, zero_points, found, strict=True)), Fraction(0)
    )
    code = requantize_add([int64(q) for q in codes], zero_points, found, shift, zero_point, 0, 255)
    assert code.item() == saturate(nearest(total) + zero_point, 0, 255)
    ratios = [Fraction(s) / Fraction(scale_out) for s in scales]
    for multiplier, ratio in zip(found, ratios, strict=True):
        assert abs(Fraction(multiplier, 2**shift) - ratio) <= max(ratios) / 2**30


def test_adding_equal_scales_adds_the_codes() -> None:
    found, shift = add_multipliers([0.25, 0.25], 0.25)
    codes = requantize_add([int64(100, -100, 3), int64(50, -50, -4)], [0, 0], found, shift, 0, -128, 127)
    assert codes.tolist() == [127, -128, -1]


def test_widest_sum_does_not_overflow() -> None:
    codes = [int64(-(2**15))] * 4
    assert requantize_add(codes, [2**15 - 1] * 4, [2**31 - 1] * 4, 62, 0, -(2**31), 2**31).item() == 0
    assert requantize_add(codes, [2**15 - 1] * 4, [2**31 - 1] * 4, 31, 0, -(2**31), 2**31).item() == -(2**18) + 4


@pytest.mark.parametrize("scales", [[], [0.0], [1.0, math.nan], [-1.0], [math.inf]])
def test_bad_addition_scales_are_refused(scales: list[float]) -> None:
    with pytest.raises(ValueError, match="scale"):
        add_multipliers(scales, 1.0)


def test_inputs_too_small_to_count_add_nothing() -> None:
    found, shift = add_multipliers([1e-20, 1e-21], 1.0)
    assert requantize_add([int64(255), int64(255)], [0, 0], found, shift, 3, 0, 255).item() == 3


@pytest.mark.parametrize(
    ("bit_width", "signed", "narrow", "expected"),
    [
        (8, True, False, (-128, 127)),
        (8, True, True, (-127, 127)),
        (8, False, False, (0, 255)),
        (8, False, True, (1, 255)),
        (1, True, False, (-1, 0)),
        (1, False, False, (0, 1)),
        (2, True, True, (-1, 1)),
        (32, True, False, (-(2**31), 2**31 - 1)),
    ],
)
def test_integer_range(bit_width: int, signed: bool, narrow: bool, expected: tuple[int, int]) -> None:
    assert integer_range(bit_width, signed=signed, narrow=narrow) == expected


@pytest.mark.parametrize(("bit_width", "narrow"), [(0, False), (33, False), (1, True)])
def test_impossible_bit_widths_are_refused(bit_width: int, narrow: bool) -> None:
    with pytest.raises(ValueError, match="bit"):
        integer_range(bit_width, signed=True, narrow=narrow)
