"""Points of several numbers, each the better the smaller: which nothing beats, and which few stand for many."""

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


def nondominated(points: npt.ArrayLike) -> list[int]:
    """Ascending: places of points [points, numbers] that no other is at most equal to throughout and below somewhere.

    Of equal points the first alone.

    >>> nondominated([[1, 5], [2, 2], [2, 3], [1, 5]])
    [0, 1]
    """
    x = np.asarray(points, dtype=np.float64)
    kept: list[int] = []
    for i in np.lexsort(x.T[::-1]):  # what dominates a point comes before it, and equals keep their order
        if not (x[kept] <= x[i]).all(1).any():
            kept.append(int(i))
    return sorted(kept)


def crowding(points: npt.ArrayLike) -> Floats:
    """How far apart the neighbours of each point are, added up over the numbers, each as a share of its range.

    Points at the end of a number's range have infinity; a number that all share counts for nothing.
    Source: Deb, Pratap, Agarwal and Meyarivan (2002), "A fast and elitist multiobjective genetic algorithm: NSGA-II".

    >>> crowding([[0, 4], [1, 1], [4, 0]])
    array([inf,  2., inf])
    """
    x = np.asarray(points, dtype=np.float64)
    found = np.zeros(len(x))
    for column in x.T:
        order = np.argsort(column, kind="stable")
        low, high = column[order[0]], column[order[-1]]
        if high > low:
            found[order[1:-1]] += (column[order[2:]] - column[order[:-2]]) / (high - low)
            found[[order[0], order[-1]]] = np.inf
    return found


def thinned(points: npt.ArrayLike, most: int) -> list[int]:
    """Ascending: places of at most `most` points; the most crowded goes, of equals the last, until so many are left."""
    x = np.asarray(points, dtype=np.float64)
    left = list(range(len(x)))
    while len(left) > most:
        crowd = crowding(x[left])
        del left[len(left) - 1 - int(np.argmin(crowd[::-1]))]
    return left
