"""Lines between points, judged in rational arithmetic."""

import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lilliput.ops.fixed_point import integer_range
from lilliput.ops.interpolation import interpolate, look_up, point_codes


@st.composite
def cases(draw):
    """(bits of the codes, signed, bits of the points, points, codes)."""
    bits, signed = draw(st.integers(9, 16)), draw(st.booleans())
    k = draw(st.integers(3, 8))
    low, high = integer_range(bits, signed=signed)
    ends = draw(st.sampled_from([(-128, 127), (0, 255), (-32768, 32767), (0, 65535)]))
    points = draw(st.lists(st.integers(*ends) | st.sampled_from(ends), min_size=2**k + 1, max_size=2**k + 1))
    codes = draw(st.lists(st.integers(low, high) | st.sampled_from([low, high]), min_size=1, max_size=20))
    return bits, signed, k, points, codes


@given(cases())
@settings(deadline=None, max_examples=60)
def test_a_value_lies_on_the_line_between_its_points_rounded_half_up(case):
    bits, signed, k, points, codes = case
    low, shift = integer_range(bits, signed=signed)[0], bits - k
    found = interpolate(torch.tensor(codes), torch.tensor(points), low, shift).tolist()
    for code, y in zip(codes, found, strict=True):
        m, rest = divmod(code - low, 2**shift)
        left, right = points[m], points[m + 1]
        assert y == left + math.floor(Fraction((right - left) * rest, 2**shift) + Fraction(1, 2))
        assert min(left, right) <= y <= max(left, right)
        assert abs((right - left) * rest) + 2**shift // 2 < 2**31


def test_at_a_point_the_value_is_the_point():
    at = point_codes(-32768, 16)
    points = torch.randint(-32768, 32768, at.shape, generator=torch.Generator().manual_seed(0))
    assert torch.equal(interpolate(at[:-1], points, -32768, 8), points[:-1])


@pytest.mark.parametrize(("bits", "k"), [(16, 8), (16, 3), (9, 8), (12, 5)])
def test_the_last_point_stands_one_step_beyond_the_highest_code(bits, k):
    low, high = integer_range(bits, signed=True)
    at = point_codes(low, bits, k)
    assert len(at) == 2**k + 1
    assert (int(at[0]), int(at[-1])) == (low, high + 1)
    assert set(at.diff().tolist()) == {2 ** (bits - k)}


def test_each_channel_has_its_own_row():
    table = torch.tensor([[0, 10, 20, 30], [5, 6, 7, 8]])
    codes = torch.tensor([[[-2, 1], [0, 1]]])  # [1, channels, places]
    assert look_up(codes, table, -2).tolist() == [[[0, 30], [7, 8]]]
    assert look_up(codes, table, -2, channel=2).tolist() == [[[0, 8], [20, 8]]]
    assert interpolate(torch.tensor([[1, 1]]), torch.tensor([[0, 4], [0, 9]]), 0, 2).tolist() == [[1, 2]]


@pytest.mark.parametrize("k", [2, 9])
def test_other_numbers_of_points_are_refused(k):
    with pytest.raises(ValueError, match=r"point_bits must be in 3\.\.8"):
        point_codes(0, 16, k)
