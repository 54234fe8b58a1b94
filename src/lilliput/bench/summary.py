"""From the records of cells to the rows of the tables: plain data, which every format is written from."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from lilliput.bench.front import front, hypervolume
from lilliput.bench.grid import FLOAT, NO_BUDGET
from lilliput.bench.intervals import Scored, difference, mean_and_deviation
from lilliput.bench.samples import unpack

QUANTITIES = ("score", "bytes", "raw_bytes", "steps")


@dataclass(kw_only=True)
class Row:
    """A method at a budget on a model, over seeds; or only what is published of it (`seeds` 0, no `values`).

    `values` are (mean, standard deviation over seeds); `interval` is that of `difference` to the baseline. `cpu` is the
    least of the seeds: the first cell of a process also pays for loading and compiling kernels.
    """

    model: str
    method: str
    budget: str
    seeds: int = 0
    values: dict[str, tuple[float, float | None]] = field(default_factory=dict[str, tuple[float, float | None]])
    cpu: float | None = None
    difference: float | None = None
    interval: tuple[float, float] | None = None
    on_front: bool = False
    errors: list[str] = field(default_factory=list[str])
    refused: list[str] = field(default_factory=list[str])
    published: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])


@dataclass(kw_only=True)
class Section:
    """One model. `reference` are the bytes and the score from which the `volumes` of methods are measured."""

    model: str
    scored: dict[str, Any]
    rows: list[Row]
    reference: tuple[float, float] | None = None
    volumes: dict[str, tuple[float, float | None]] = field(default_factory=dict[str, tuple[float, float | None]])
    pending: int = 0


def summarize(plan: Mapping[str, Any], records: Mapping[str, Mapping[str, Any]]) -> list[Section]:
    """One section for each model, rows in the order of the grid. Cells without record are pending."""
    models = dict.fromkeys(plan["cells"][name]["model"] for name in plan["order"])
    return [_Model(plan, records, model).section() for model in models]


def to_data(sections: Sequence[Section]) -> list[dict[str, Any]]:
    return [asdict(section) for section in sections]


class _Model:
    def __init__(self, plan: Mapping[str, Any], records: Mapping[str, Mapping[str, Any]], model: str) -> None:
        self.plan, self.model = plan, model
        self.groups: dict[tuple[str, str], dict[int, Mapping[str, Any]]] = {}
        self.pending = 0
        for name in plan["order"]:
            cell = plan["cells"][name]
            if cell["model"] == model:
                group = self.groups.setdefault((cell["method"], cell["budget"]), {})
                if name in records:
                    group[cell["seed"]] = records[name]
                else:
                    self.pending += 1
        self.good = {
            key: {seed: r for seed, r in group.items() if "error" not in r} for key, group in self.groups.items()
        }
        known = [r for group in self.good.values() for r in group.values()]
        self.scored: dict[str, Any] = dict(known[0]["scored"]) if known else {}
        self.sign = 1.0 if self.scored.get("higher_is_better", True) else -1.0

    def section(self) -> Section:
        rows = [self._row(*key) for key in self.groups]
        measured = [row for row in rows if row.values]
        for row, best in zip(measured, front([self._point(row) for row in measured]), strict=True):
            row.on_front = best
        found = Section(model=self.model, scored=self.scored, rows=rows, pending=self.pending)
        if measured:
            found.reference = self._reference(measured)
            found.volumes = self._volumes(found.reference)
        self._add_published(rows)
        return found

    def _row(self, method: str, budget: str) -> Row:
        group, good = self.groups[method, budget], self.good[method, budget]
        row = Row(model=self.model, method=method, budget=budget, seeds=len(good))
        row.errors = sorted({r["error"] for r in group.values() if "error" in r})
        row.refused = sorted({step for r in good.values() for step in r["refused"]})
        if not good:
            return row
        row.values = {q: mean_and_deviation([float(r[q]) for r in good.values()]) for q in QUANTITIES}
        row.cpu = min(r["cpu_seconds"] for r in good.values())
        baseline = self.plan["baseline"]
        theirs = self.good.get((baseline, budget)) or self.good.get((baseline, NO_BUDGET))
        if theirs and method != baseline:
            row.difference, row.interval = difference(_scored(good), _scored(theirs))
        return row

    def _point(self, row: Row) -> tuple[float, float]:
        return row.values["bytes"][0], self.sign * row.values["score"][0]

    def _reference(self, measured: Sequence[Row]) -> tuple[float, float]:
        given = self.plan["reference"]
        sizes = [row.values["bytes"][0] for row in measured]
        floats = [row.values["bytes"][0] for row in measured if row.method == FLOAT]
        most = given["bytes"] if given["bytes"] is not None else floats[0] if floats else max(sizes)
        worst = min(self._point(row)[1] for row in measured) * self.sign
        return most, given["score"] if given["score"] is not None else worst

    def _volumes(self, reference: tuple[float, float]) -> dict[str, tuple[float, float | None]]:
        """By method: the hypervolume of each seed's points over the bytes of the reference, in units of the score."""
        corner = reference[0], self.sign * reference[1]
        found: dict[str, tuple[float, float | None]] = {}
        for method in dict.fromkeys(method for method, _ in self.groups):
            groups = [group for (name, _), group in self.good.items() if name == method and group]
            seeds = sorted({seed for group in groups for seed in group})
            complete = [seed for seed in seeds if all(seed in group for group in groups)]
            if method == FLOAT or not complete:
                continue
            points = [[(g[seed]["bytes"], self.sign * g[seed]["score"]) for g in groups] for seed in complete]
            found[method] = mean_and_deviation([hypervolume(p, corner) / reference[0] for p in points])
        return found

    def _add_published(self, rows: list[Row]) -> None:
        """Beside the measured row of the same method and budget, or in a row of its own."""
        for given in self.plan["published"]:
            if given["model"] != self.model:
                continue
            key = given["method"], given["budget"]
            row = next((row for row in rows if (row.method, row.budget) == key), None)
            if row is None:
                row = Row(model=self.model, method=given["method"], budget=given["budget"])
                rows.append(row)
            row.published.append({name: given[name] for name in ("score", "bytes", "source")})


def _scored(group: Mapping[int, Mapping[str, Any]]) -> dict[int, Scored]:
    return {
        seed: Scored(
            score=r["score"],
            samples=None if r["rows"] is None else unpack(r["rows"]),
            one=r["rows"]["one"] if r["rows"] is not None and r["rows"]["form"] == "bits" else None,
        )
        for seed, r in group.items()
    }
