"""Strengths go to where candidates just keep the limits, on any falling curve of bytes."""

import math

from hypothesis import given, settings
from hypothesis import strategies as st

from lilliput.auto.search.budget import Budget, Measured
from lilliput.auto.search.strength import next_strength

BYTES = Budget(limits={"max_bytes": ("bytes", 1000.0)}, goal="drop")
DROP = Budget(limits={"max_drop": ("drop", 1.0)}, goal="bytes")


def measured(size, drop=0.0):
    return Measured(bytes=size, flash=0.0, ram=0.0, score=0.0, drop=drop)


@settings(max_examples=60, deadline=None)
@given(where=st.floats(0.1, 0.9), fall=st.floats(1.0, 8.0), fixed=st.floats(0.0, 0.6), guess=st.floats(-8.0, -1.0))
def test_a_byte_limit_is_met_closely_in_a_few_tries(where, fall, fixed, guess):
    """Bytes fall by `exp(fall)` over all strengths, beside a `fixed` share of the limit; they fit from `where` on."""

    def size(s):
        return 1000 * (fixed + (1 - fixed) * math.exp(-fall * (s - where)))

    points = []
    for _ in range(8):
        s = next_strength(points, BYTES, 0.5, guess)
        assert 0 <= s <= 1
        points.append((s, measured(size(s))))
    assert any(m.bytes <= 1000 for _, m in points)
    assert max(m.bytes for _, m in points if m.bytes <= 1000) > 950


@settings(max_examples=60, deadline=None)
@given(where=st.floats(0.05, 0.95))
def test_the_strongest_that_keeps_the_score_is_bisected(where):
    points = []
    for _ in range(9):
        s = next_strength(points, DROP, 0.5, -4.0)
        points.append((s, measured(1000 * (1 - s), drop=2.0 if s > where else 0.0)))
    kept = [s for s, m in points if m.drop <= 1]
    assert kept
    assert where - max(kept) < 0.06


def test_the_first_try_is_the_start_and_a_useless_budget_stays_in_range():
    assert next_strength([], BYTES, 0.3, -4.0) == 0.3
    assert next_strength([], BYTES, 1.1, -4.0) == 1.0
    assert next_strength([(1.0, measured(5000.0))], BYTES, 0.5, -4.0) == 1.0
    assert next_strength([(0.0, measured(0.0, drop=9.0))], DROP, 0.5, -4.0) == 0.0
