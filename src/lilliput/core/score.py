"""Scores with intervals, and paired differences of two networks on the same samples.

A score is computed from per-sample statistics: an accuracy needs one bit a sample, an AUC a value and a label, an IoU
the counts of each class. Resampling rows of these statistics gives intervals for any score.
"""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from lilliput.core.errors import DataError, UsageError

Z95 = 1.959963984540054
RESAMPLES = 1000

Statistics = Callable[[Tensor, object], Tensor]


@dataclass(frozen=True, kw_only=True)
class Score:
    """`statistics(outputs, targets)` gives float [n, d] for n samples; `reduce` turns all rows into one number.

    Without `reduce` the score is the mean of column 0. `binary` says that column 0 is 0 or 1. Shares are given in
    percent (`unit="%"`): one point ("0.5pt") is one percent there.
    """

    name: str
    unit: str = ""
    higher_is_better: bool = True
    statistics: Statistics
    reduce: Callable[[Tensor], float] | None = None
    binary: bool = False

    @property
    def factor(self) -> float:
        return 100.0 if self.unit == "%" else 1.0

    def value(self, rows: Tensor) -> float:
        self._samples(rows)
        raw = float(rows[:, 0].double().mean()) if self.reduce is None else self.reduce(rows)
        if math.isnan(raw):
            raise DataError(
                f"score {self.name}",
                "the result is not a number",
                "look for NaN outputs, or for a class that never appears",
            )
        return raw * self.factor

    def interval(self, rows: Tensor) -> tuple[float, float]:
        """95%: Wilson (1927) for shares, normal for means, percentile bootstrap (seeded) for the rest."""
        n = self._samples(rows)
        if self.reduce is not None:
            values = self._resampled(rows)
            return _percentile(values, 0.025), _percentile(values, 0.975)
        column = rows[:, 0].double()
        mean = float(column.mean())
        if self.binary:
            centre = (mean + Z95**2 / (2 * n)) / (1 + Z95**2 / n)
            half = Z95 / (1 + Z95**2 / n) * math.sqrt(mean * (1 - mean) / n + Z95**2 / (4 * n * n))
            half = min(half, centre, 1 - centre)  # rounding must not leave 0..1
        else:
            centre, half = mean, Z95 * float(column.std()) / math.sqrt(n) if n > 1 else math.inf
        return (centre - half) * self.factor, (centre + half) * self.factor

    def difference(self, rows: Tensor, reference: Tensor) -> tuple[float, tuple[float, float]]:
        """This minus the reference on the same samples, with a 95% interval.

        Shares: Agresti and Min (2005), half a sample added to each cell, so that no disagreement is not certainty.
        """
        if len(rows) != len(reference):
            raise UsageError("paired difference", f"{len(rows)} and {len(reference)} samples", "score the same samples")
        value = self.value(rows) - self.value(reference)
        n = len(rows)
        if self.reduce is not None:
            generator = torch.Generator().manual_seed(0)
            picks = torch.randint(n, (RESAMPLES, n), generator=generator)
            values = [self._safe(rows[p]) - self._safe(reference[p]) for p in picks]
            return value, (_percentile(values, 0.025), _percentile(values, 0.975))
        change = rows[:, 0].double() - reference[:, 0].double()
        if self.binary:
            gained, lost = float((change > 0).sum()), float((change < 0).sum())
            centre = (gained - lost) / (n + 2)
            half = Z95 * math.sqrt(max(gained + lost + 1 - (gained - lost) ** 2 / (n + 2), 0)) / (n + 2)
        else:
            centre, half = float(change.mean()), Z95 * float(change.std()) / math.sqrt(n) if n > 1 else math.inf
        return value, ((centre - half) * self.factor, (centre + half) * self.factor)

    def format(self, value: float) -> str:
        if self.unit == "%":
            return f"{value:.2f}%"
        return f"{value:.4g} {self.unit}".strip()

    def _samples(self, rows: Tensor) -> int:
        if len(rows) == 0:
            raise DataError(f"score {self.name}", "no samples", "give a data set that is not empty")
        return len(rows)

    def _safe(self, rows: Tensor) -> float:
        raw = self.reduce(rows) if self.reduce is not None else float(rows[:, 0].mean())
        return raw * self.factor

    def _resampled(self, rows: Tensor) -> list[float]:
        generator = torch.Generator().manual_seed(0)
        picks = torch.randint(len(rows), (RESAMPLES, len(rows)), generator=generator)
        return [self._safe(rows[p]) for p in picks]


def _percentile(values: list[float], q: float) -> float:
    finite = torch.tensor([v for v in values if not math.isnan(v)], dtype=torch.float64)
    return float(finite.quantile(q)) if len(finite) else math.nan


def parse_drop(text: str | float, score: Score, reference: float) -> float:
    """The largest allowed loss in the score's own unit (a positive number).

    "0.5pt" = half a point of a score in percent; "1%" = one percent of the reference; a bare number is in the
    score's unit.
    """
    asked = f"max_drop={text!r}"
    if isinstance(text, (int, float)) and not isinstance(text, bool):
        limit = float(text)
    else:
        match = re.fullmatch(r"\s*((?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:e-?[0-9]+)?)\s*(pt|%|)\s*", str(text))
        if not match:
            raise UsageError(asked, "not a number with a unit", 'write "0.5pt", "1%" or a number in the score\'s unit')
        if match[2] == "pt" and score.unit != "%":
            raise UsageError(asked, f"{score.name} is not in percent", 'write "1%" or a number in the score\'s unit')
        limit = abs(reference) * float(match[1]) / 100 if match[2] == "%" else float(match[1])
    if not math.isfinite(limit) or limit < 0:
        raise UsageError(asked, "a drop that is not a finite number from 0 up", 'write for example "0.5pt"')
    return limit


def accuracy() -> Score:
    """Share of samples whose largest output is the target class."""

    def statistics(outputs: Tensor, targets: object) -> Tensor:
        if outputs.dim() < 2 or outputs.shape[1] < 2:
            raise DataError(
                "score accuracy",
                f"outputs of shape {tuple(outputs.shape)}",
                "let the model give one output for each class; one number is a regression",
            )
        return (outputs.argmax(1) == _tensor(targets).reshape(-1)).double()[:, None]

    return Score(name="accuracy", unit="%", statistics=statistics, binary=True)


def mean_absolute_error(unit: str = "") -> Score:
    def statistics(outputs: Tensor, targets: object) -> Tensor:
        return _differences(outputs, _tensor(targets)).abs().mean(1, keepdim=True)

    return Score(name="MAE", unit=unit, higher_is_better=False, statistics=statistics)


def reconstruction_auc() -> Score:
    """Area under the ROC curve of the mean squared reconstruction error; targets are (inputs, 1 = anomaly).

    Equal to the chance that an anomaly's error exceeds a normal sample's, ties counted half (Mann and Whitney, 1947).
    """

    def statistics(outputs: Tensor, targets: object) -> Tensor:
        inputs, labels = _pair(targets)
        error = _differences(outputs, inputs).square().mean(1)
        return torch.stack([error, labels.double().reshape(-1)], 1)

    return Score(name="AUC", unit="%", statistics=statistics, reduce=auc)


def auc(rows: Tensor) -> float:
    """Rows of (value, label); NaN when a label is missing."""
    values, labels = rows[:, 0], rows[:, 1] > 0.5
    positives, negatives = int(labels.sum()), int((~labels).sum())
    if not positives or not negatives:
        return math.nan
    _, inverse, counts = torch.unique(values, sorted=True, return_inverse=True, return_counts=True)
    ends = counts.cumsum(0).double()
    ranks = (ends - (counts - 1) / 2)[inverse]
    return float((ranks[labels].sum() - positives * (positives + 1) / 2) / (positives * negatives))


def mean_iou(n_classes: int) -> Score:
    """Intersection over union over the whole set, averaged over the classes that appear."""

    def statistics(outputs: Tensor, targets: object) -> Tensor:
        predicted, wanted = outputs.argmax(1).reshape(len(outputs), -1), _tensor(targets).reshape(len(outputs), -1)
        columns: list[Tensor] = []
        for c in range(n_classes):
            p, w = predicted == c, wanted == c
            columns += [(p & w).sum(1), (p | w).sum(1)]
        return torch.stack(columns, 1).double()

    def reduce(rows: Tensor) -> float:
        total = rows.sum(0)
        intersection, union = total[0::2], total[1::2]
        return float((intersection[union > 0] / union[union > 0]).mean()) if bool((union > 0).any()) else math.nan

    return Score(name="mean IoU", unit="%", statistics=statistics, reduce=reduce)


def _differences(outputs: Tensor, wanted: Tensor) -> Tensor:
    """float64 [n, d]: no broadcasting, which would compare each output with another sample's target."""
    if outputs.numel() != wanted.numel() or len(outputs) != len(wanted):
        found = f"outputs of shape {tuple(outputs.shape)} for targets of shape {tuple(wanted.shape)}"
        raise DataError("a score", found, "let the model give one number for each target")
    return outputs.reshape(len(outputs), -1).double() - wanted.reshape(len(wanted), -1).double()


def _tensor(targets: object) -> Tensor:
    if not isinstance(targets, Tensor):
        raise DataError("a score", f"targets of type {type(targets).__name__}", "give tensors of targets")
    return targets


def _pair(targets: object) -> tuple[Tensor, Tensor]:
    if not isinstance(targets, tuple) or len(targets) != 2:
        raise DataError("a reconstruction score", "targets that are not (inputs, labels)", "use Task.anomaly")
    return targets[0], targets[1]
