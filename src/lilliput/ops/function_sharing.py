"""Which functions can be one: k-means over their values at points, weighted by how often inputs lie near each.

Lloyd's iterations from several starts of k-means++ (Arthur and Vassilvitskii, 2007), in float64; the best start counts.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

STARTS, ROUNDS = 32, 100
UNSEEN = 1e-3
"""What a point counts near which no input lies, as a part of the mean."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Shared:
    """`owner` int64 [rows]: the table of each row; `tables` float64 [count, points]."""

    owner: Tensor
    tables: Tensor

    def squared_errors(self, rows: Tensor, weights: Tensor) -> Tensor:
        """float64 [rows]: the weighted mean of squared changes of each row."""
        weights = _floored(weights)
        return (weights * (rows.double() - self.tables[self.owner]) ** 2).sum(1) / weights.sum(1)


def near_points(x: Tensor, limit: float, points: int) -> Tensor:
    """float64 [channels, points]: how many of `x` [channels, n] lie near each point; between two, a part for each."""
    place = ((x.double() / limit + 1) * (points - 1) / 2).clamp(0, points - 1)
    left = place.floor().clamp(max=points - 2)
    part = place - left
    found = torch.zeros(len(x), points, dtype=torch.float64, device=x.device)
    found.scatter_add_(1, left.long(), 1 - part)
    return found.scatter_add_(1, left.long() + 1, part)


def share(rows: Tensor, weights: Tensor, count: int, generator: torch.Generator) -> Shared:
    """`count` tables for `rows` [n, points], n >= count; `weights` [n, points] are at least 0.

    Every table is used: where rows are equal, they are dealt out.
    """
    values, weights = rows.double(), _floored(weights)
    best, least = None, float("inf")
    for _ in range(STARTS):
        found = _lloyd(values, weights, _seeds(values, weights, count, generator))
        cost = float((weights * (values - found.tables[found.owner]) ** 2).sum())
        if best is None or cost < least:
            best, least = found, cost
    assert best is not None  # noqa: S101 - there is at least one start
    return best


def _lloyd(values: Tensor, weights: Tensor, tables: Tensor) -> Shared:
    owner = torch.full((len(values),), -1)
    for _ in range(ROUNDS):
        new = _dealt(_distances(values, weights, tables).argmin(1), len(tables))
        if torch.equal(new, owner):
            break
        owner = new
        tables = _means(values, weights, owner, len(tables))
    return Shared(owner=owner, tables=tables)


def _distances(values: Tensor, weights: Tensor, tables: Tensor) -> Tensor:
    """[rows, tables]: weighted squared distances."""
    cross = (weights * values) @ tables.T
    return (weights * values**2).sum(1, keepdim=True) - 2 * cross + weights @ (tables**2).T


def _means(values: Tensor, weights: Tensor, owner: Tensor, count: int) -> Tensor:
    sums = torch.zeros(count, values.shape[1], dtype=torch.float64)
    totals = sums.clone()
    return sums.index_add_(0, owner, weights * values) / totals.index_add_(0, owner, weights)


def _seeds(values: Tensor, weights: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """The next row is drawn in proportion to how far it is from those that are there."""
    chosen = [int(torch.randint(len(values), (1,), generator=generator))]
    while len(chosen) < count:
        left = _distances(values, weights, values[chosen]).amin(1).clamp(min=0)
        left[chosen] = 0.0
        if not float(left.sum()) > 0:
            left = torch.ones(len(values), dtype=torch.float64)
            left[chosen] = 0.0
        chosen.append(int(torch.multinomial(left, 1, generator=generator)))
    return values[chosen]


def _dealt(owner: Tensor, count: int) -> Tensor:
    """Tables that nobody has get half of the rows of those that most have."""
    owner = owner.clone()
    for empty in (torch.bincount(owner, minlength=count) == 0).nonzero().reshape(-1).tolist():
        most = int(torch.bincount(owner, minlength=count).argmax())
        owner[(owner == most).nonzero().reshape(-1)[1::2]] = empty
    return owner


def _floored(weights: Tensor) -> Tensor:
    weights = weights.double()
    mean = float(weights.mean())
    return weights + UNSEEN * mean if mean > 0 else torch.ones_like(weights)
