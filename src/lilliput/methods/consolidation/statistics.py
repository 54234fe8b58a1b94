"""What a consolidation did, neuron by neuron, as plain data for JSON; and as a table for spreadsheets.

The fields carry the names that the published implementation gives them, where it has them.
"""

import io
import resource
import sys
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lilliput.core.artifact import Artifact
from lilliput.core.container import dumps
from lilliput.core.errors import MissingExtraError
from lilliput.core.files import write_atomically

REASONS = (
    *("zeroed_perceptron", "zero_rejected", "converged", "accuracy_loss", "max_clusters_exceeded"),
    *("frozen_by_patience", "all_zero_weights", "pruned"),
)


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """One candidate of one neuron: k shared values. `reason` is one of `REASONS`; `timestamp` in seconds since 1970.

    Where weights become zero one after the other, it stands for all `candidates` of the neuron, and k of these became
    zero.
    """

    neuron: int
    k: int
    accepted: bool
    reason: str
    timestamp: float = field(default_factory=time.time)
    candidates: int = 1

    @property
    def tried(self) -> bool:
        """Has it been evaluated, and not only noted?"""
        return self.reason not in ("max_clusters_exceeded", "frozen_by_patience", "all_zero_weights")


@dataclass(kw_only=True)
class Trail:
    """All attempts by weight, one pass after the other; how often a search was done again is noted apart."""

    attempts: dict[str, list[Attempt]] = field(default_factory=dict[str, list[Attempt]])
    again: Counter[str] = field(default_factory=Counter[str])
    seconds: Counter[str] = field(default_factory=Counter[str])
    passes: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])

    def add(self, weight: str, attempts: Iterable[Attempt], seconds: float = 0.0) -> None:
        self.attempts.setdefault(weight, []).extend(attempts)
        self.seconds[weight] += seconds  # pyright: ignore[reportArgumentType]

    @property
    def candidates(self) -> int:
        return sum(a.candidates for found in self.attempts.values() for a in found if a.tried)

    def to_data(self) -> dict[str, Any]:
        """Plain data, from which `of_data` makes it again."""
        return {
            "attempts": {
                w: [[a.neuron, a.k, a.accepted, a.reason, a.timestamp, a.candidates] for a in v]
                for w, v in self.attempts.items()
            },
            "again": dict(self.again),
            "seconds": dict(self.seconds),
            "passes": self.passes,
        }

    @staticmethod
    def of_data(data: Mapping[str, Any]) -> "Trail":
        names = ("neuron", "k", "accepted", "reason", "timestamp", "candidates")
        attempts = {w: [Attempt(**dict(zip(names, a, strict=True))) for a in v] for w, v in data["attempts"].items()}
        return Trail(
            attempts=attempts,
            again=Counter(data["again"]),
            seconds=Counter(data["seconds"]),
            passes=list(data["passes"]),
        )


def unique_weights(weight: Tensor, decimals: int, *, without_zero: bool = True) -> int:
    """How many values a tensor has after rounding."""
    values = torch.round(weight.double(), decimals=decimals).unique()
    return int((values != 0).sum()) if without_zero else len(values)


def layer_statistics(before: Tensor, after: Tensor, trail: Trail, weight: str, *, trials: bool) -> dict[str, Any]:
    """Of one layer; `before` and `after` are [neurons, ...]."""
    rows, old = after.flatten(1), before.flatten(1)
    ks = [len(row[row != 0].unique()) for row in rows]
    attempts = trail.attempts.get(weight, [])
    failed = {a.neuron for a in attempts if a.reason in ("max_clusters_exceeded", "frozen_by_patience")}
    done = {a.neuron for a in attempts if a.accepted}
    tried = [a for a in attempts if a.tried]
    found: dict[str, Any] = {
        "shape": list(after.shape),
        "total_params": after.numel(),
        "neurons_total": len(rows),
        "neurons_consolidated": sum(k < len(row[row != 0].unique()) for k, row in zip(ks, old, strict=True)),
        "neurons_zero": sum(k == 0 for k in ks),
        "neurons_failed": len(failed - done),
        "success_rate": 1.0 - len(failed - done) / max(1, len(rows)),
        "original_unique_weights": sum(len(row[row != 0].unique()) for row in old),
        "final_unique_weights": sum(ks),
        "zero_weights_before": int((old == 0).sum()),
        "zero_weights_after": int((rows == 0).sum()),
        "clustering_attempts": len(tried),
        "searched_again": trail.again[weight],
        "processing_time": round(float(trail.seconds[weight]), 3),
        "k_histogram": {str(k): count for k, count in sorted(Counter(ks).items())},
        "weight_distribution": {"before": _distribution(old), "after": _distribution(rows)},
        "total_k_trials": len(tried),
        "avg_k_trials": round(len(tried) / max(1, len(rows)), 3),
    }
    if trials:
        found["k_trials_list"] = [sum(a.neuron == row for a in tried) for row in range(len(rows))]
    return found


def _distribution(rows: Tensor) -> dict[str, float]:
    if rows.numel() == 0:
        return {}
    values = {"min": rows.min(), "max": rows.max(), "mean": rows.mean(), "std": rows.std(correction=0)}
    return {name: float(v) for name, v in values.items()}


def totals(net: Artifact, started: float, original: int, zero: int) -> dict[str, Any]:
    """Of the whole network: times, its values and how many of them are zero, bytes."""
    stored = len(dumps(net, strip=True))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {
        "start_time": started,
        "end_time": time.time(),
        "total_duration": round(time.time() - started, 3),
        "original_params": original,
        "final_params": original - zero,
        "zero_params": zero,
        "file_bytes": stored,
        "compression_ratio": round(4 * original / stored, 3),
        "memory_peak_bytes": peak if sys.platform == "darwin" else 1024 * peak,
    }


def convergence(trail: Trail, names: Mapping[str, str]) -> list[dict[str, Any]]:
    """Every attempt in order; `names` gives the layer of each weight."""
    return [
        {
            "layer": names[weight], "neuron": a.neuron, "clusters": a.k, "success": a.accepted,
            "timestamp": a.timestamp, "reason": a.reason,
        }
        for weight, attempts in trail.attempts.items()
        for a in attempts
    ]  # fmt: skip


def histogram(counts: Mapping[str, int], width: int = 40) -> list[str]:
    """Lines of text: how many neurons have k shared values, k from few to many; many values of k in ranges."""
    ks = sorted((int(k), n) for k, n in counts.items())
    if not ks:
        return []
    step = max(1, -(-(ks[-1][0] + 1) // 24))
    bins = Counter[int]()
    for k, n in ks:
        bins[k // step] += n
    most = max(bins.values())
    lines: list[str] = []
    for place in range(ks[0][0] // step, ks[-1][0] // step + 1):
        low, high, count = place * step, place * step + step - 1, bins[place]
        name = f"{low}" if step == 1 else f"{low}-{high}"
        lines.append(f"{name:>9} {count:>6} {'#' * -(-count * width // most)}".rstrip())
    return lines


def text(data: Mapping[str, Any]) -> list[str]:
    """Lines for people: the whole, then each layer with its histogram."""
    whole, proof = data["global"], data["acceptance"]
    summary = (
        f"{whole['mode']}: {proof['right']:,} of {proof['of']:,} samples right, {data['sic']['total_k_trials']:,} "
        f"candidates, {whole['effective_params']:,} of {whole['original_params']:,} values left, "
        f"{whole['file_bytes']:,} bytes, {whole['total_duration']:.1f} s"
    )
    lines = [summary]
    for name, row in data["layers"].items():
        shape = "x".join(str(n) for n in row["shape"])
        lines.append(
            f"{name} {shape}: {row['final_unique_weights']:,} values in {row['neurons_total']} neurons "
            f"({row['neurons_zero']} zero, {row['neurons_failed']} as they were); neurons by shared values:"
        )
        lines += histogram(row["k_histogram"])
    return lines


def write_excel(data: Mapping[str, Any], path: Path) -> None:
    """Sheets of the whole, of layers and of attempts. Needs openpyxl."""
    try:
        from openpyxl import Workbook
    except ImportError as error:
        raise MissingExtraError(
            f"write {path}", "openpyxl is not installed", "pip install 'lilliput[report]'"
        ) from error
    book = Workbook()
    book.remove(book.worksheets[0])
    whole = book.create_sheet("global")
    for section in ("global", "phases", "sic"):
        for key, value in data.get(section, {}).items():
            whole.append([section, key, value if isinstance(value, (int, float, str, type(None))) else str(value)])
    layers = book.create_sheet("layers")
    columns = [
        *("shape", "neurons_total", "neurons_zero", "neurons_failed", "original_unique_weights"),
        *(
            "final_unique_weights",
            "zero_weights_before",
            "zero_weights_after",
            "clustering_attempts",
            "processing_time",
        ),
    ]
    layers.append(["layer", *columns])
    for name, row in data["layers"].items():
        layers.append([name, *(str(row[c]) if isinstance(row[c], list) else row[c] for c in columns)])
    attempts = book.create_sheet("attempts")
    attempts.append(["layer", "neuron", "clusters", "success", "reason"])
    for a in data["convergence"]:
        attempts.append([a["layer"], a["neuron"], a["clusters"], a["success"], a["reason"]])
    buffer = io.BytesIO()
    book.save(buffer)
    write_atomically(path, buffer.getvalue())
