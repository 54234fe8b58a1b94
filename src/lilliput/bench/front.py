"""Few bytes against a good score: which points nothing beats, and how much of the plane a method covers."""

from collections.abc import Sequence

Point = tuple[float, float]
"""Bytes, fewer is better; score, more is better (errors come in negated)."""


def front(points: Sequence[Point]) -> list[bool]:
    """Whether no other point has at most its bytes and at least its score, and is better in one of them."""
    return [not any(q != p and q[0] <= p[0] and q[1] >= p[1] for q in points) for p in points]


def hypervolume(points: Sequence[Point], reference: Point) -> float:
    """The area that lies between `reference` (most bytes, worst score) and the points, overlaps once.

    Points that are worse than the reference in one of the two add nothing.
    """
    most, worst = reference
    area, best = 0.0, worst
    for size, score in sorted(points):  # from small files to large: each step up in score counts to the right end
        if size < most and score > best:
            area += (most - size) * (score - best)
            best = score
    return area
