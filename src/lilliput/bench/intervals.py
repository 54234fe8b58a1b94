"""Differences of two methods on the same test samples and several seeds, with 95% intervals.

What varies is which samples were drawn, and the seed. Both variances are added:

- samples: each sample's difference, averaged over seeds, over the number of samples. Where a sample is right or wrong,
  half a sample is added to gained and to lost ones (Agresti and Min, 2005), so that no disagreement is not certainty;
  with one seed the interval is theirs.
- seeds: the variance of the differences of seeds over their number; both methods with the same seed are a pair.

The quantile is Student's, with the degrees of freedom of Satterthwaite (1946): few seeds make wide intervals. Scores
that are no mean over samples (AUC, mean IoU) are compared over seeds alone.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from lilliput.core.score import Z95


@dataclass(frozen=True, kw_only=True)
class Scored:
    """What one seed gave: the score, and its parts by sample (None where it is no mean)."""

    score: float
    samples: Tensor | None
    one: float | None = None
    """The score of a right sample, where samples are right (this) or wrong (0)."""


def difference(ours: Mapping[int, Scored], theirs: Mapping[int, Scored]) -> tuple[float, tuple[float, float] | None]:
    """Ours minus theirs, both by seed, and its 95% interval; None where one seed and no samples give none."""
    value = _mean([s.score for s in ours.values()]) - _mean([s.score for s in theirs.values()])
    by_seed, freedom = _variance_of_seeds(ours, theirs)
    centre, by_sample = value, 0.0
    a, b = _average(ours), _average(theirs)
    if a is not None and b is not None and len(a) == len(b) and len(a) > 1:
        centre, by_sample = _variance_of_samples(a - b, next(iter(ours.values())).one)
    elif freedom is None:
        return value, None
    variance = by_seed + by_sample
    quantile = Z95
    if by_seed > 0 and freedom is not None:
        quantile = _student(freedom * (variance / by_seed) ** 2)
    half = quantile * math.sqrt(variance)
    return value, (centre - half, centre + half)


def _variance_of_samples(change: Tensor, one: float | None) -> tuple[float, float]:
    """Mean of the differences and its variance."""
    n, total, squares = len(change), float(change.sum()), float(change.square().sum())
    if one is None:
        return total / n, float(change.var()) / n
    m = n + 2
    return total / m, max(squares + one**2 - total**2 / m, 0.0) / m**2


def _variance_of_seeds(ours: Mapping[int, Scored], theirs: Mapping[int, Scored]) -> tuple[float, float | None]:
    """Of the difference of the means, and its degrees of freedom; None where no method has two seeds."""
    if set(ours) == set(theirs):
        changes = [ours[seed].score - theirs[seed].score for seed in ours]
        return _variance(changes) / len(changes), len(changes) - 1 if len(changes) > 1 else None
    parts = [
        (_variance([s.score for s in side.values()]) / len(side), len(side) - 1)
        for side in (ours, theirs)
        if len(side) > 1
    ]
    total = sum(variance for variance, _ in parts)
    if not parts or total == 0:
        return 0.0, min((count for _, count in parts), default=None)
    return total, total**2 / sum(variance**2 / count for variance, count in parts)


def _average(side: Mapping[int, Scored]) -> Tensor | None:
    """Each sample's mean over seeds."""
    known = [s.samples for s in side.values() if s.samples is not None]
    if len(known) < len(side) or len({len(k) for k in known}) != 1:
        return None
    return sum(known[1:], start=known[0]) / len(known)


def _mean(values: list[float]) -> float:
    return math.fsum(values) / len(values)


def _variance(values: list[float]) -> float:
    if len(values) < 2:
        return 0.0
    mean = _mean(values)
    return math.fsum((v - mean) ** 2 for v in values) / (len(values) - 1)


def mean_and_deviation(values: list[float]) -> tuple[float, float | None]:
    """The mean and the standard deviation of a sample; None for a single value."""
    return _mean(values), math.sqrt(_variance(values)) if len(values) > 1 else None


def _student(freedom: float) -> float:
    """The 97.5% quantile of Student's distribution."""
    from scipy.special import stdtrit

    return float(stdtrit(freedom, 0.975))
