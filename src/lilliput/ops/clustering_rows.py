"""Optimal clustering of many short lines: the rows of a matrix, spread over threads.

Each row is solved as `clustering` solves one line, so the result depends neither on the other rows nor on the threads.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from lilliput.ops import clustering
from lilliput.ops.clustering import Floats, Ints

LEAST_VALUES = 16_384
"""Fewer are not worth a thread."""


class RowClusters(NamedTuple):
    """The clusters of each row, as `Clusters` has them.

    `centroids` [rows, k]: the first sizes[r] of row r, then NaN. `labels` [rows, n]: 0 where the mask is false. A row
    without values has no clusters.
    """

    centroids: Floats
    sizes: Ints
    labels: Ints
    sse: Floats


@dataclass(frozen=True, kw_only=True, eq=False)
class RowTables:
    """`sse` [rows, max_k]: the least squared errors of at most k = 1..max_k clusters; and these clusters on demand."""

    sse: Floats
    lines: "Lines"
    starts: Ints

    def clusters(self, k: int | Ints) -> RowClusters:
        """At most `k` clusters in each row, or k[r] in row r."""
        ks = np.broadcast_to(np.asarray(k, dtype=np.int64), len(self.sse))
        if not ((ks >= 1) & (ks <= self.sse.shape[1])).all():
            raise ValueError(f"the number of clusters must be in 1..{self.sse.shape[1]}, not {k}")
        return self.lines.describe(1, ks, self.starts)


def optimal_1d_rows(
    rows: ArrayLike, k: int, *, mask: NDArray[np.bool_] | None = None, threads: int | None = None
) -> RowClusters:
    """`optimal_1d(row, k)` of each of `rows` [rows, n], of the values only where `mask` [rows, n] is true.

    `threads`: as many as torch uses, by default.

    >>> optimal_1d_rows([[0.0, 9.0, 1.0], [2.0, 2.0, 2.0]], 2).centroids.tolist()
    [[0.5, 9.0], [2.0, nan]]
    """
    clustering.check_count(k)
    lines = Lines.of(rows, mask, threads)
    k = min(k, max(lines.values.shape[1], 1))
    return lines.describe(k, np.full(len(lines.values), k), lines.solve(k, k)[0])


def optimal_1d_rows_all(
    rows: ArrayLike, max_k: int, *, mask: NDArray[np.bool_] | None = None, threads: int | None = None
) -> RowTables:
    """`optimal_1d_all(row, max_k)` of each row; beyond the number of distinct values `sse` is 0."""
    clustering.check_count(max_k)
    lines = Lines.of(rows, mask, threads)
    starts, errors = lines.solve(1, max_k)
    return RowTables(sse=errors, lines=lines, starts=starts)


class Lines(NamedTuple):
    """`values` with infinity where the mask is false, the same in ascending order, and how many of a row are finite."""

    values: Floats
    ordered: Floats
    lengths: Ints
    threads: int

    @staticmethod
    def of(rows: ArrayLike, mask: NDArray[np.bool_] | None, threads: int | None) -> "Lines":
        values = clustering.as_floats(rows)
        if values.ndim != 2:
            raise ValueError(f"rows must be a matrix, not of shape {values.shape}")
        lengths = np.full(len(values), values.shape[1])
        if mask is not None:
            if mask.shape != values.shape or mask.dtype != np.bool_:
                raise ValueError(f"the mask must be bool of shape {values.shape}, not {mask.dtype} of {mask.shape}")
            lengths = np.count_nonzero(mask, axis=1)
            values = np.where(mask, values, values.dtype.type(np.inf))
        if values.shape[1] > clustering.LONG:
            ordered = np.stack([clustering.ascending(row) for row in values]) if len(values) else values
        else:
            ordered = np.sort(values, axis=1)
        for r in np.flatnonzero(lengths):
            clustering.check_ends(float(ordered[r, 0]), float(ordered[r, lengths[r] - 1]))
        values, ordered = (np.ascontiguousarray(a, dtype=np.float64) for a in (values, ordered))
        return Lines(values, ordered, lengths, threads or torch.get_num_threads())

    def solve(self, first_k: int, last_k: int) -> tuple[Ints, Floats]:
        """Starts and errors of each row for k = first_k..last_k, or for its number of distinct values if less."""
        compiled = clustering.solver()
        count, n = self.values.shape
        most = min(last_k, n)
        least = min(first_k, most)
        starts = np.zeros((count, max(most * (most + 1) - least * (least - 1), 2 * most) // 2), dtype=np.int64)
        errors = np.zeros((count, last_k - first_k + 1))
        status = np.where(self.lengths > 0, compiled.DOUBTFUL, compiled.SOLVED)

        def work(part: slice) -> None:
            if n <= clustering.LONG:
                outputs = starts[part], errors[part], status[part]
                limit = clustering.MOST_CELLS
                compiled.solve_rows(self.ordered[part], self.lengths[part], least, most, limit, outputs)
            for r in np.arange(part.start, part.stop)[status[part] != compiled.SOLVED]:
                ordered = self.ordered[r, : self.lengths[r]]
                own = clustering.settle(ordered, clustering.NO_WEIGHTS, first_k, last_k)
                found = clustering.solve(ordered[:0], ordered, clustering.NO_WEIGHTS, first_k, last_k, own)
                starts[r, : len(own)] = own
                errors[r, : len(found)] = [clusters.sse for clusters in found]

        self._spread(work)
        return starts, errors

    def describe(self, first_k: int, ks: Ints, starts: Ints) -> RowClusters:
        """The clusterings with ks[r] clusters, from the starts that `solve` found."""
        compiled = clustering.solver()
        count = len(self.values)
        centroids = np.full((count, int(ks.max(initial=1))), np.nan)
        sizes, errors = np.zeros(count, dtype=np.int64), np.zeros(count)
        labels = np.zeros(self.values.shape, dtype=np.int64)

        def work(part: slice) -> None:
            outputs = centroids[part], sizes[part], labels[part], errors[part]
            compiled.describe_rows(
                self.values[part], self.ordered[part], self.lengths[part], first_k, ks[part], starts[part], outputs
            )

        self._spread(work)
        return RowClusters(centroids, sizes, labels, errors)

    def _spread(self, work: Callable[[slice], None]) -> None:
        count = len(self.values)
        threads = max(1, min(self.threads, count, self.values.size // LEAST_VALUES))
        parts = [slice(count * t // threads, count * (t + 1) // threads) for t in range(threads)]
        if threads == 1:
            work(parts[0])
            return
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(work, parts))
