"""New rows for a neuron: zero, then 1, 2, 3, ... shared values, each the best clustering of its weights.

All values of k come from one dynamic program, made larger when the search needs more of them.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lilliput.ops.clustering import Clusters, optimal_1d_all

MOST_ACTIVE = 0.95
FIRST = 15
"""Values of k beyond 0 that are tried at once, to begin with; four times as many each time after."""


@dataclass(frozen=True, kw_only=True)
class Candidates:
    """Of one neuron: `rows` [count, ...], which share `ks` values."""

    ks: tuple[int, ...]
    rows: Tensor


@dataclass(frozen=True, kw_only=True)
class Neuron:
    """The weights of one output: `live` are the places of those that are not zero, `quiet` of these (bool) follow.

    Quiet weights take the value that is nearest to them, but have no say in where the values are.
    """

    row: Tensor
    live: Tensor
    values: np.ndarray
    quiet: np.ndarray

    @staticmethod
    def of(row: Tensor, active: Tensor | None = None) -> "Neuron":
        """`active` [...], of the row's shape: its weights have a say, if there are 2 to 95% of them; else all have."""
        flat = row.reshape(-1)
        live = torch.nonzero(flat).reshape(-1)
        quiet = np.zeros(len(live), dtype=bool)
        if active is not None:
            chosen = active.reshape(-1)[live].numpy()
            if 2 <= chosen.sum() <= MOST_ACTIVE * len(chosen):
                quiet = ~chosen
        return Neuron(row=row, live=live, values=flat[live].double().numpy(), quiet=quiet)

    @property
    def distinct(self) -> int:
        return len(np.unique(self.values))

    def most(self, limit: int) -> int:
        """The largest k that is tried: one less than there are values, at least 1."""
        return max(1, min(self.distinct - 1, limit))

    def candidates(self, limit: int, sweep: int | None = None) -> Iterator[Candidates]:
        """k = 0, 1, 2, ... up to `most(limit)`, in growing groups; with `sweep`, so many evenly spaced ones of k."""
        last = self.most(limit)
        wanted = list(range(last + 1))
        if sweep is not None and sweep < last:
            wanted = [0, *sorted({round(k) for k in np.linspace(1, last, sweep)})]
        own = self.values[~self.quiet]
        size = FIRST + 1
        while wanted:
            ks, wanted = wanted[:size], wanted[size:]
            found = optimal_1d_all(own, max(ks[-1], 1))
            rows = [self._spread(found[min(k, len(found)) - 1] if k else None) for k in ks]
            yield Candidates(ks=tuple(ks), rows=torch.stack(rows))
            size *= 4

    def _spread(self, clusters: Clusters | None) -> Tensor:
        """The row with each weight at its centroid; zeros stay zero. None: all zero."""
        flat = torch.zeros(self.row.numel())
        if clusters is not None:
            centroids = torch.from_numpy(clusters.centroids).float()
            borders = (clusters.centroids[1:] + clusters.centroids[:-1]) / 2
            labels = np.searchsorted(borders, self.values)
            labels[~self.quiet] = clusters.labels
            flat[self.live] = centroids[torch.from_numpy(labels)]
        return flat.reshape(self.row.shape)
