"""New rows for a neuron: zero, then 1, 2, 3, ... shared values, each the best clustering of its weights.

All values of k come from one dynamic program, made larger when the search needs more of them.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lilliput.ops.clustering import Clusters, optimal_1d_all

LEAST = 1e-12
"""Of a weight's error: what inputs count that are zero in most samples."""
FIRST = 15
"""Values of k beyond 0 that are tried at once, to begin with; four times as many each time after."""


@dataclass(frozen=True, kw_only=True)
class Candidates:
    """Of one row: `rows` [count, ...] for k = first, first + 1, ...; `labels` and `centroids` tell how each is made."""

    first: int
    rows: Tensor
    clusters: tuple[Clusters | None, ...]


@dataclass(frozen=True, kw_only=True)
class Neuron:
    """The weights of one output: `live` are the places of those that are not zero."""

    row: Tensor
    live: Tensor
    values: np.ndarray
    weights: np.ndarray | None
    short: bool = False

    @staticmethod
    def of(row: Tensor, weights: Tensor | None = None, *, short: bool = False) -> "Neuron":
        """`weights` [...] of the row's shape say how much each entry's error counts; `short` centroids have 11 bits."""
        flat = row.reshape(-1)
        live = torch.nonzero(flat).reshape(-1)
        chosen = None if weights is None else weights.reshape(-1)[live].double().clamp(min=LEAST).numpy()
        return Neuron(row=row, live=live, values=flat[live].double().numpy(), weights=chosen, short=short)

    @property
    def distinct(self) -> int:
        return len(np.unique(self.values))

    def most(self, limit: int) -> int:
        """The largest k that is tried: one less than there are values, at least 1."""
        return max(1, min(self.distinct - 1, limit))

    def candidates(self, limit: int, error: float = 1.0) -> Iterator[Candidates]:
        """k = 0, 1, 2, ... up to `most(limit)`, in growing groups.

        Those that leave more than a share `error` of the row's (weighted) energy are left out.
        """
        last, first, size = self.most(limit), 0, FIRST
        energy = float((self.values**2 * (1.0 if self.weights is None else self.weights)).sum())
        while first <= last:
            end = min(size, last)
            found = optimal_1d_all(self.values, max(end, 1), self.weights)
            first += sum(found[min(k, len(found)) - 1].sse > error * energy for k in range(max(first, 1), end + 1))
            first += int(error < 1.0 and first == 0)
            if first > end:
                size = 4 * size
                continue
            clusters = [None if k == 0 else found[min(k, len(found)) - 1] for k in range(first, end + 1)]
            yield Candidates(
                first=first, rows=torch.stack([self.spread(c) for c in clusters]), clusters=tuple(clusters)
            )
            first, size = end + 1, 4 * size

    def spread(self, clusters: Clusters | None) -> Tensor:
        """The row with each weight at its centroid; zeros stay zero. None: all zero."""
        flat = torch.zeros(self.row.numel())
        if clusters is not None:
            centroids = torch.from_numpy(clusters.centroids).float()
            if self.short:  # keep the sign: a weight that is not zero stays so
                rounded = centroids.half().float()
                centroids = torch.where((rounded != 0) & rounded.isfinite(), rounded, centroids)
            flat[self.live] = centroids[torch.from_numpy(clusters.labels)]
        return flat.reshape(self.row.shape)
