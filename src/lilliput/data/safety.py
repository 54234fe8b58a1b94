"""Safety sets: few samples that a training must not forget, and why each of them was chosen.

A set holds numbers of samples and reasons, no data and no labels: both are read together from the task, so a label
cannot come to another sample. It remembers which data it was chosen from, and refuses others.
"""

import hashlib
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lilliput.core.device import each_tensor
from lilliput.core.errors import DataError, UnsupportedError, UsageError
from lilliput.core.fields import items, mapping, number, shown, text
from lilliput.core.progress import SILENT, Progress
from lilliput.core.task import Data, Role, Task
from lilliput.data.rankings import NEED_CLASSES, RANKINGS, Ranking, View
from lilliput.data.select import SOURCES

VERSION = 1
WITH_CLASSES, WITHOUT_CLASSES = ("grad_cam", "margin", "diversity"), ("loss", "diversity")
ROLES: tuple[Role, ...] = ("train", "validation")
MAX_SEED = 2**32 - 1


@dataclass(frozen=True, kw_only=True)
class Reason:
    """Which method took the sample, the number that it gave it, and the sample's class (None without classes)."""

    method: str
    value: float
    label: int | None


@dataclass(frozen=True, kw_only=True)
class SafetySet:
    """`where` are (role, number in `task.data(role)`), in order; `reasons` one for each.

    `seen` counts the samples it was chosen from, `notes` say which method had nothing to say about the network.
    """

    where: tuple[tuple[Role, int], ...]
    reasons: tuple[Reason, ...]
    source: str
    seed: int
    seen: int
    fingerprints: Mapping[str, str]
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.where)

    def counts(self) -> dict[str, dict[int | None, int]]:
        """{method: {class: samples}}: the quotas of methods and, inside them, of classes."""
        found = Counter((r.method, r.label) for r in self.reasons)
        labels = sorted({r.label for r in self.reasons}, key=lambda label: -1 if label is None else label)
        methods = dict.fromkeys(r.method for r in self.reasons)
        return {m: {label: found[m, label] for label in labels} for m in RANKINGS if m in methods}

    def numbers(self, role: Role) -> Tensor:
        """int64: the samples of this role, ascending."""
        return torch.tensor([n for r, n in self.where if r == role], dtype=torch.int64)

    def data(self, task: Task) -> Data:
        """The samples with their targets, in the order of `where`, read from the task.

        Raises `DataError` if its data are not those that the set was chosen from.
        """
        pairs: list[tuple[Tensor, Any]] = []
        for role in self.fingerprints:
            pairs += _pairs(task.data(_role(role)), self.numbers(_role(role)), role, self.fingerprints[role])
        x = torch.stack([x for x, _ in pairs])
        if all(isinstance(y, Tensor) for _, y in pairs):
            return Data(x, torch.stack([y for _, y in pairs]))
        return Data(pairs, None)

    def to_data(self) -> dict[str, Any]:
        """For JSON; `from_data` reads it."""
        samples = [
            {"role": role, "number": n, "method": r.method, "value": r.value, "class": r.label}
            for (role, n), r in zip(self.where, self.reasons, strict=True)
        ]
        return {
            "lilliput_safety_set": VERSION,
            "source": self.source,
            "seed": self.seed,
            "seen": self.seen,
            "fingerprints": dict(self.fingerprints),
            "notes": list(self.notes),
            "samples": samples,
        }

    @staticmethod
    def from_data(data: object) -> "SafetySet":
        """Raises `DataError` for what `to_data` cannot have given."""
        try:
            return _read(mapping(data))
        except (KeyError, ValueError) as error:
            found = f"no field {error}" if isinstance(error, KeyError) else str(error)
            raise DataError("a safety set", found, "choose it again, with lilliput safety-set --out") from error


def safety_set(
    task: Task,
    model: nn.Module,
    *,
    size: int,
    source: str = "train",
    methods: Sequence[str] | None = None,
    seed: int = 0,
    batch_size: int = 256,
    progress: Progress = SILENT,
) -> SafetySet:
    """`size` samples of `source` (a key of `data.select.SOURCES`), or all there are.

    Main arguments: `methods` of `RANKINGS` share the set equally, and classes share it equally inside each, as far as
    they have samples; labelled anomalies are left out. None: Grad-CAM, margin and diversity; loss and diversity where
    there are no classes. What one method has taken another replaces by its next of that class. A method that has
    nothing to say about this network leaves its share to the others, with a note.
    """
    _check(size, source, methods, seed)
    view = View.of(task, model, SOURCES[source], seed, batch_size, progress)
    named = tuple(methods or (WITH_CLASSES if view.labels is not None else WITHOUT_CLASSES))
    wrong = [name for name in named if name in NEED_CLASSES and view.labels is None]
    if wrong:
        known = ", ".join(name for name in RANKINGS if name not in NEED_CLASSES)
        raise UsageError(f"a safety set by {wrong[0]}", "the task has no classes", f"use {known}")
    seen = int((view.groups >= 0).sum())
    if not seen:
        raise DataError(f"a safety set from {source}", "anomalies only", "give normal samples")
    size = min(size, seen)
    rankings, notes = _rankings(view, named, size)
    taken = _taken(view.groups, rankings, size)
    chosen = sorted(taken)
    places: list[tuple[Role, int]] = [(role, n) for role, data in view.parts.items() for n in range(len(data))]
    where = tuple(places[i] for i in chosen)
    reasons = tuple(
        Reason(
            method=taken[i],
            value=float(rankings[taken[i]].values[i]),
            label=None if view.labels is None else int(view.labels[i]),
        )
        for i in chosen
    )
    prints: dict[str, str] = {}
    for role, data in view.parts.items():
        index = torch.tensor([n for r, n in where if r == role], dtype=torch.int64)
        if len(index):
            prints[role] = _fingerprint(data, index)
    return SafetySet(
        where=where,
        reasons=reasons,
        source=source,
        seed=seed,
        seen=seen,
        fingerprints=prints,
        notes=notes,
    )


def shares(total: int, room: Sequence[int]) -> list[int]:
    """`total` in equal parts, none larger than its room; the odd ones to the first that have some."""
    given = [0] * len(room)
    while total > 0 and (having := [i for i, most in enumerate(room) if given[i] < most]):
        part = max(1, total // len(having))
        for i in having:
            more = min(part, room[i] - given[i], total)
            given[i] += more
            total -= more
    return given


def _check(size: int, source: str, methods: Sequence[str] | None, seed: int) -> None:
    asked = "a safety set"
    if size < 1:
        raise UsageError(asked, f"a size of {size}", "ask for at least one sample")
    if source not in SOURCES:
        found = f"samples of {source!r}"
        do = f"use {', '.join(SOURCES)}: what is tested must not be trained on"
        raise UsageError(asked, found, do)
    if not 0 <= seed <= MAX_SEED:
        raise UsageError(asked, f"the seed {seed}", f"give one from 0 to {MAX_SEED}")
    if methods is None:
        return
    if unknown := [name for name in methods if name not in RANKINGS]:
        raise UsageError(asked, f"the method {unknown[0]!r}", f"use {', '.join(RANKINGS)}")
    if not methods or len(set(methods)) < len(methods):
        raise UsageError(asked, f"methods {list(methods)}", "name at least one, each once")


def _rankings(view: View, named: Sequence[str], size: int) -> tuple[dict[str, Ranking], tuple[str, ...]]:
    found: dict[str, Ranking] = {}
    reasons: dict[str, str] = {}
    for name in named:
        ranking = RANKINGS[name](view, -(-size // len(named)))
        if isinstance(ranking, str):
            reasons[name] = ranking
        else:
            found[name] = ranking
    if not found:
        name, reason = next(iter(reasons.items()))
        raise UnsupportedError(f"a safety set by {name}", reason, "name other methods: loss or random always work")
    return found, tuple(f"{name}: {reason}; its share went to the others" for name, reason in reasons.items())


def _taken(groups: Tensor, rankings: Mapping[str, Ranking], size: int) -> dict[int, str]:
    """{sample: the method that took it}: classes share the set, and methods each class; both equal to one sample."""
    classes, counts = groups[groups >= 0].unique(return_counts=True)
    totals, taken = dict.fromkeys(rankings, 0), dict[int, str]()
    free = torch.ones(len(groups), dtype=torch.bool)
    for label, share in zip(classes, shares(size, counts.tolist()), strict=True):
        base, odd = divmod(share, len(rankings))
        behind = sorted(totals, key=lambda name: totals[name])[:odd]
        for name, ranking in rankings.items():
            quota = base + (name in behind)
            order = ranking.order[(groups == label)[ranking.order] & free[ranking.order]][:quota]
            free[order] = False
            taken |= dict.fromkeys(order.tolist(), name)
            totals[name] += quota
    return taken


def _fingerprint(data: Data, index: Tensor) -> str:
    """16 hex digits of the length of the data and of all samples of these numbers, targets included."""
    parts = [data.subset(chunk).fingerprint() for chunk in index.split(64)]  # of 64 it looks at all
    return hashlib.blake2b(" ".join([str(len(data)), *parts]).encode(), digest_size=8).hexdigest()


def _pairs(data: Data, index: Tensor, role: str, wanted: str) -> list[tuple[Tensor, Any]]:
    if int(index[-1]) >= len(data) or _fingerprint(data, index) != wanted:
        found = f"it was chosen from other data than {role} of this task"
        raise DataError("a safety set", found, "choose it again, from these data")
    x, y = data.batch(index)
    return [(x[i], each_tensor(y, lambda t, i=i: t[i])) for i in range(len(index))]


def _role(name: object) -> Role:
    for role in ROLES:
        if role == name:
            return role
    raise ValueError(f"{shown(name)} where train or validation should be")


def _read(data: dict[str, Any]) -> SafetySet:
    if data["lilliput_safety_set"] != VERSION:
        raise ValueError(f"version {shown(data['lilliput_safety_set'])}, this one reads {VERSION}")
    samples = [mapping(sample) for sample in items(data["samples"])]
    where: tuple[tuple[Role, int], ...] = tuple((_role(s["role"]), number(s["number"])) for s in samples)
    if not where or list(where) != sorted(set(where)):
        raise ValueError("samples that are not in order, each once")
    prints = {_role(role): text(value) for role, value in mapping(data["fingerprints"]).items()}
    if set(prints) != {role for role, _ in where}:
        raise ValueError("fingerprints of other roles than its samples have")
    return SafetySet(
        where=where,
        reasons=tuple(_reason(s) for s in samples),
        source=text(data["source"]),
        seed=number(data["seed"], MAX_SEED),
        seen=number(data["seen"]),
        fingerprints=dict(sorted(prints.items())),
        notes=tuple(text(note) for note in items(data["notes"])),
    )


def _reason(sample: Mapping[str, Any]) -> Reason:
    value, label = sample["value"], sample["class"]
    if type(value) not in (int, float) or not math.isfinite(value):
        raise ValueError(f"{shown(value)} where a finite number should be")
    method = text(sample["method"])
    if method not in RANKINGS:
        raise ValueError(f"{shown(method)} where a method should be")
    own = None if label is None else number(label, lowest=-(2**40))
    return Reason(method=method, value=float(value), label=own)
