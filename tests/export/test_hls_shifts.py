"""A power of two as a multiplier is a shorter shift, exactly."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lilliput.core.program import Operation, Rescale
from lilliput.export.hls.shifts import after_shifts, factors_of_addends, right_shifts, shifts_of_addends

ENDS = (-(2**31) + 1, 2**31 - 1, 0, 1, -1)


def rescale(multiplier, shift):
    return Rescale(
        multiplier=np.array(multiplier), shift=np.array(shift), zero_point=0, low=-(1 << 31), high=(1 << 31) - 1
    )


def rounded(sums, shift):
    """As hardware does it that never adds beyond 32 bits: the last bit that falls out is added."""
    return np.where(shift == 0, sums, (sums >> np.maximum(shift - 1, 0) >> 1) + (sums >> np.maximum(shift - 1, 0) & 1))


@given(st.integers(0, 30), st.integers(1, 62), st.integers(-(2**31) + 1, 2**31 - 1))
def test_a_shift_is_the_rescaling(a, s, number):
    r = rescale([1 << a], [s])
    found = right_shifts(r)
    if s < a:
        assert found is None
        return
    sums = np.array([number, *ENDS])
    assert found is not None
    assert np.array_equal(rounded(sums, found), r(sums, None))


def test_what_multiplies_has_no_shifts():
    assert right_shifts(rescale([3, 4], [8])) is None
    assert right_shifts(rescale([1 << 30, (1 << 30) + 1], [33])) is None
    found = right_shifts(rescale([1 << 30, 0, 1], [33]))
    assert found is not None
    assert found.tolist() == [3, 32, 32]


def test_a_bias_goes_behind_the_shift_only_without_a_rest():
    moved = after_shifts(np.array([8, -16, 0]), np.array([3, 4, 32]))
    assert moved is not None
    assert moved.tolist() == [1, -1, 0]
    assert after_shifts(np.array([8, -9]), np.array([3])) is None


def add(multipliers, shift):
    return Operation(
        kind="add",
        inputs=("a", "b"),
        output="c",
        attributes={"multipliers": multipliers},
        rescale=(rescale([1], [shift]),),
    )


@given(st.integers(0, 12), st.booleans(), st.integers(-128, 127), st.integers(-128, 127))
def test_two_shifts_are_the_sum(k, turned, x, y):
    multipliers = (1 << 20 - k, 1 << 20)
    o = add(multipliers[::-1] if turned else multipliers, 20)
    found = (0, k) if turned else (k, 0)
    assert shifts_of_addends(o) == found
    exact = o.rescale[0](np.array([x * o.attributes["multipliers"][0] + y * o.attributes["multipliers"][1]]), None)
    assert int(rounded(x, found[0]) + rounded(y, found[1])) == int(exact[0])


@pytest.mark.parametrize(
    "multipliers", [(1 << 19, 1 << 19), (1 << 20, -(1 << 20)), (3, 1 << 20), (1 << 21, 1 << 20), (0, 0)]
)
def test_other_sums_have_factors_and_one_shift(multipliers):
    o = add(multipliers, 20)
    assert shifts_of_addends(o) is None
    factors, shift = factors_of_addends(o)
    x, y = np.meshgrid(np.arange(-128, 128), np.arange(-128, 128))
    expected = o.rescale[0](x * multipliers[0] + y * multipliers[1], None)
    assert np.array_equal(rescale([1], [shift])(x * factors[0] + y * factors[1], None), expected)
