"""What became of one candidate; and which of two is better."""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from lilliput.auto.search.budget import Budget, Measured
from lilliput.pipeline.folder import json_text

UNTRAINED, SHORT, FULL, LONG = "untrained", "short", "full", "long"
RUNGS = {UNTRAINED: 1, SHORT: 2, FULL: 3, LONG: 4}


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A template with values of its knobs. `of`: the trial whose shorter trainings this one's follow.

    `epochs`: of each training where the effort is "long", else 0.
    """

    template: str
    values: Mapping[str, float]
    effort: str = UNTRAINED
    of: int | None = None
    epochs: int = 0


@dataclass(frozen=True, kw_only=True)
class Record:
    """`rung`: how far it came. `refused`: why it came no further; "" if it was measured to the end."""

    number: int | None
    name: str
    values: Mapping[str, float] = field(default_factory=dict[str, float])
    effort: str = UNTRAINED
    of: int | None = None
    epochs: int = 0
    same_as: int | None = None
    recipe: Mapping[str, Any] = field(default_factory=dict[str, Any])
    measured: Measured | None = None
    rung: int = 0
    refused: str = ""
    seconds: float = 0.0

    def to_data(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_data(data: Mapping[str, Any]) -> "Record":
        measured = data.get("measured")
        return replace(Record(**data), measured=None if measured is None else Measured(**measured))


def key_of(recipe: Mapping[str, Any]) -> str:
    """Equal recipes have equal keys."""
    return hashlib.blake2b(json_text(recipe).encode(), digest_size=8).hexdigest()


def order(budget: Budget, record: Record) -> tuple[float, ...]:
    """Less is better: kept limits, the goal, then the other of score and bytes; else by how far they are missed."""
    measured = record.measured
    if measured is None:
        return (2.0,)
    missed = sum(budget.missed(measured).values())
    other = measured.bytes if budget.goal == "drop" else measured.drop
    return (float(missed > 0), missed, budget.cost(measured), other, float(bool(record.refused)))


def feasible(budget: Budget, record: Record) -> bool:
    return record.measured is not None and not record.refused and not budget.missed(record.measured)


def best(budget: Budget, records: Iterable[Record]) -> Record | None:
    """Of what was measured to the end; of equal ones the first. None if nothing was."""
    complete = [r for r in records if r.measured is not None and not r.refused]
    return min(complete, key=lambda r: order(budget, r), default=None)


def described(budget: Budget, record: Record) -> dict[str, Any]:
    """A record for people and pages: one entry of `Result.trials`."""
    measured = record.measured
    return {
        "trial": record.number,
        "name": record.name,
        "settings": dict(record.values),
        "training": record.effort,
        "bytes": None if measured is None else measured.bytes,
        "flash": None if measured is None else measured.flash,
        "ram": None if measured is None else measured.ram,
        "latency ratio": None if measured is None else measured.ratio,
        "score": None if measured is None else measured.score,
        "drop": None if measured is None else measured.drop,
        "feasible": feasible(budget, record),
        "missed": [] if measured is None else sorted(budget.missed(measured)),
        "seconds": record.seconds,
        "rung": record.rung,
        "refused": record.refused,
        "same as": record.same_as,
        "recipe": dict(record.recipe),
    }
