"""Front and hypervolume against counting every cell of a raster."""

from hypothesis import given
from hypothesis import strategies as st

from lilliput.bench.front import front, hypervolume

POINTS = st.lists(st.tuples(st.integers(0, 8), st.integers(-4, 8)), max_size=7)


@given(POINTS, st.integers(0, 9), st.integers(-5, 9))
def test_the_hypervolume_is_the_number_of_raster_cells_that_a_point_covers(points, most, worst):
    """A cell [x, x+1] x [y, y+1] is covered: not left of the file's bytes, not above its score."""
    counted = sum(any(px <= x and py >= y + 1 for px, py in points) for x in range(most) for y in range(worst, 9))
    assert hypervolume(points, (most, worst)) == counted


@given(POINTS)
def test_the_front_is_what_no_other_point_beats(points):
    for p, on in zip(points, front(points), strict=True):
        beaten = any((q[0] < p[0] and q[1] >= p[1]) or (q[0] <= p[0] and q[1] > p[1]) for q in points)
        assert on is not beaten


@given(POINTS)
def test_points_off_the_front_add_nothing(points):
    kept = [p for p, on in zip(points, front(points), strict=True) if on]
    assert hypervolume(kept, (9, -5)) == hypervolume(points, (9, -5))
