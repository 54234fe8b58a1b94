"""Fronts of several numbers against brute force."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from lilliput.ops.pareto import crowding, nondominated, thinned

POINTS = st.integers(1, 4).flatmap(
    lambda n: st.lists(st.tuples(*[st.integers(0, 4)] * n), min_size=1, max_size=12).map(lambda x: [list(p) for p in x])
)


def beats(p, q):
    return all(a <= b for a, b in zip(p, q, strict=True)) and p != q


@given(POINTS)
def test_what_is_kept_is_beaten_by_nothing_and_all_else_is(points):
    kept = nondominated(points)
    for i, p in enumerate(points):
        alone = not any(beats(q, p) for q in points) and p not in points[:i]
        assert (i in kept) is alone


@given(POINTS)
def test_crowding_is_the_way_around_each_point(points):
    found = crowding(points)
    for i in range(len(points)):
        total = 0.0
        for m in range(len(points[0])):
            order = sorted(range(len(points)), key=lambda j, m=m: (points[j][m], j))
            low, high = points[order[0]][m], points[order[-1]][m]
            if high > low:
                at = order.index(i)
                if at in (0, len(order) - 1):
                    total = np.inf
                else:
                    total += (points[order[at + 1]][m] - points[order[at - 1]][m]) / (high - low)
        assert found[i] == total or abs(found[i] - total) < 1e-12


@given(POINTS, st.integers(1, 12))
def test_thinning_takes_the_most_crowded_one_by_one(points, most):
    left = list(range(len(points)))
    while len(left) > most:
        crowd = crowding([points[i] for i in left]).tolist()
        at = max(i for i, c in enumerate(crowd) if c == min(crowd))
        left.pop(at)
    assert thinned(points, most) == left


def test_ends_of_every_number_stay():
    generator = np.random.default_rng(0)
    points = generator.random((40, 4))
    kept = points[thinned(points, 8)]
    assert (kept.min(0) == points.min(0)).all()
    assert (kept.max(0) == points.max(0)).all()
