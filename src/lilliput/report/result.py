"""What compressing gives: the network, what was measured, what was done, and whether the budgets hold."""

import csv
import io
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from lilliput.core.artifact import Artifact
from lilliput.core.cost import format_quantity
from lilliput.core.errors import MissingExtraError, UsageError
from lilliput.core.files import write_atomically
from lilliput.core.score import Score
from lilliput.core.target import Target
from lilliput.core.task import Task
from lilliput.export import circuit_folder
from lilliput.export import onnx as onnx_export
from lilliput.export.c import project
from lilliput.export.c.interface import Interface
from lilliput.export.c.replay import replay, trouble
from lilliput.export.hls import header
from lilliput.export.onnx_check import check_with_runtime
from lilliput.graph import stored
from lilliput.graph.lower import lower
from lilliput.pipeline.recipe import Recipe
from lilliput.report.compare import Column, agreement, onnx_target, samples_of
from lilliput.report.html.page import fragment, page
from lilliput.report.html.source import Source, of_data
from lilliput.report.text import comparison

FORMATS = ("onnx", "c", "hls", "circuit")


@dataclass(frozen=True, kw_only=True)
class Violation:
    """A budget that is not met."""

    budget: str
    limit: float
    found: float
    text: str


@dataclass(frozen=True, kw_only=True)
class Budget:
    """A limit that was given, and what came out: bytes ("B"), or a drop in the score's unit ("pt" for percent)."""

    budget: str
    limit: float
    found: float
    unit: str
    met: bool
    text: str


@dataclass(kw_only=True, repr=False)
class Result:
    """`columns` compare the networks; `trail` says what each step did; `violations` is empty if every budget holds."""

    artifact: Artifact
    recipe: Recipe
    task: Task
    target: Target
    columns: list[Column] = field(default_factory=list[Column])
    trail: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    statistics: dict[str, Mapping[str, Any]] = field(default_factory=dict[str, Mapping[str, Any]])
    """What methods noted beside the trail (SIC: every candidate), by the name of its file in the run folder."""
    doubts: list[str] = field(default_factory=list[str])
    """What speaks against the data: validation that the network was trained on, samples in two roles."""
    violations: list[Violation] = field(default_factory=list[Violation])
    budgets: list[Budget] = field(default_factory=list[Budget])
    """Every budget that was given, met or not."""
    details: dict[str, Any] = field(default_factory=dict[str, Any])
    """What a page shows beside the table: layers, memory, changed answers (`report.details`)."""
    points: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    """Candidates of a search: {name, bytes, score, feasible}."""
    uses: dict[str, int] = field(default_factory=dict[str, int])
    trials: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    """The candidates of a search: name, settings, bytes, score (on validation), feasible, seconds, rung, refused."""
    folder: Path | None = None

    def __repr__(self) -> str:
        sizes = ", ".join(f"{c.name} {_bytes_of(c)}" for c in self.columns)
        budgets = f"{len(self.violations)} missed ({', '.join(v.budget for v in self.violations)})"
        return f"<Result: {sizes or 'nothing measured'}; budgets: {budgets if self.violations else 'none missed'}>"

    def __str__(self) -> str:
        return self.table()

    @property
    def feasible(self) -> bool:
        return not self.violations

    @property
    def mismatches(self) -> list[str]:
        """Exported files that computed something else than the network; empty if all agree."""
        return [f"{c.name}: {c.mismatch}" for c in self.columns if c.mismatch]

    @property
    def score(self) -> Score:
        return self.task.score

    def table(self) -> str:
        """The comparison as text, and below it each budget that is missed, and what speaks against the data."""
        text = comparison(self.columns, self.score.name)
        notes = [*(f"MISSED {v.text}" for v in self.violations), *(f"NOTE {doubt}" for doubt in self.doubts)]
        return "\n".join([text, *notes])

    def rows(self) -> list[dict[str, Any]]:
        """A row for each quantity: its unit and origin, and for each network the value and the ends of its spread."""
        return rows_of(self.columns)

    def to_csv(self) -> str:
        """`rows` as text for a spreadsheet: what `table.csv` of a run folder holds."""
        rows = self.rows()
        text = io.StringIO()
        writer = csv.DictWriter(text, list(rows[0]) if rows else ["quantity"], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        return text.getvalue()

    def to_frame(self) -> Any:
        """`rows` as a pandas DataFrame, by quantity."""
        try:
            import pandas as pd
        except ImportError as error:
            raise MissingExtraError(
                "a data frame", "pandas is not installed", "pip install 'lilliput[report]'"
            ) from error
        return pd.DataFrame(self.rows()).set_index("quantity")

    def html(self, path: str | os.PathLike[str]) -> int:
        """Write the report as one page that needs nothing else; returns its bytes."""
        data = page(self._source()).encode()
        write_atomically(path, data)
        return len(data)

    def _repr_html_(self) -> str:
        """Verdict and table, for notebooks."""
        return fragment(self._source())

    def _source(self) -> Source:
        data, found, text = self.to_data(), self.report_data(), self.recipe.to_yaml()
        return of_data(data, found, recipe=text, folder=self.folder, statistics=self.statistics)

    def save(self, path: str | os.PathLike[str], *, strip: bool = False, names: bool = True) -> int:
        """Write the `.lil` file; returns its bytes. `strip` leaves out the graph, recipe and labels.

        Without `names` it is the smallest file that runs: graph and tensors alone, for no module of another class.
        """
        return stored.save(self.artifact, path, strip=strip, names=names)

    def export(
        self,
        folder: str | os.PathLike[str],
        to: Sequence[str] = ("onnx",),
        *,
        name: str = "net",
        product_of_sums: bool = False,
    ) -> "Export":
        """Write deployable files into `folder`: `onnx` the file name.onnx, `c` the folder name-c, `hls` name-hls.

        `circuit` writes the circuits of weights into name-circuit. With `product_of_sums` the C adds inputs that meet
        one shared weight before it multiplies. Raises `ExportError` for what the format cannot hold.
        """
        for kind in to:
            if kind not in FORMATS:
                raise UsageError(f"export to {kind!r}", "not a format", f"use one of {', '.join(FORMATS)}")
        if product_of_sums and "c" not in to:
            raise UsageError("export with product of sums", f"formats {', '.join(to)}", 'give to=["c"]')
        place = made(folder)
        path = c = hls = circuit = None
        if "onnx" in to:
            path = place / f"{name}.onnx"
            onnx_export.export(self.artifact, path, target=onnx_target(self.target))
        if "c" in to:
            c = made(place / f"{name}-c")
            limits = {"flash": self.target.flash, "ram": self.target.ram}
            within = {key: value for key, value in limits.items() if isinstance(value, int)}
            program = lower(self.artifact, product_of_sums=product_of_sums)
            project.write(program, c, name=name, interface=Interface.of(self.artifact.input), **within)
        if "hls" in to:
            hls = made(place / f"{name}-hls")
            header.write(lower(self.artifact), hls, name=name)
        if "circuit" in to:
            circuit = made(place / f"{name}-circuit")
            circuit_folder.write(self.artifact, circuit)
        return Export(result=self, onnx=path, c=c, hls=hls, circuit=circuit)

    def to_data(self) -> dict[str, Any]:
        """Everything but the network, as plain data: what `result.json` holds."""
        return {
            "columns": [
                {"name": c.name, "measurements": [asdict(m) for m in c.measurements.values()], "notes": c.notes}
                for c in self.columns
            ],
            "recipe": self.recipe.to_data(),
            "trail": self.trail,
            "uses": self.uses,
            "trials": self.trials,
            "doubts": self.doubts,
            "roles": self.task.roles(),
            "feasible": self.feasible,
            "violations": [asdict(v) for v in self.violations],
            "environment": environment(),
        }

    def report_data(self) -> dict[str, Any]:
        """What a page needs beyond `to_data`: what `report.json` holds."""
        return {**self.details, "budgets": [asdict(b) for b in self.budgets], "points": self.points}


@dataclass(frozen=True, kw_only=True)
class Export:
    """Files that were written; `verify` runs them."""

    result: Result
    onnx: Path | None
    c: Path | None = None
    hls: Path | None = None
    circuit: Path | None = None

    def verify(self, samples: int = 1000) -> str:
        """Run the files and compare, ONNX on real samples, C on its golden vectors on every target of this machine.

        Functions of circuits on all inputs, or on many.

        Raises `VerificationError` where they differ.
        """
        found: list[str] = []
        if self.onnx is not None:
            found.append(self._verify_onnx(self.onnx, samples))
        if self.c is not None:
            golden, results = replay(self.c)
            wrong = trouble(self.c, results)
            if wrong is not None:
                raise wrong
            ran = [r.target for r in results if r.status == "equal"]
            found.append(f"C: {len(golden.inputs)} vectors equal on {', '.join(ran)}")
        if self.circuit is not None:
            found += [checked.text() for checked in circuit_folder.verify(self.circuit)]
        return "; ".join(found)

    def _verify_onnx(self, path: Path, samples: int) -> str:
        task = self.result.task
        x = samples_of(task, "test" if task.has("test") else "validation", samples)
        return agreement(check_with_runtime(path, self.result.artifact, x))


def rows_of(columns: Sequence[Column]) -> list[dict[str, Any]]:
    """A row for each quantity that a network has."""
    names = list(dict.fromkeys(name for c in columns for name in c.measurements))
    return [_row(name, columns) for name in names]


def _row(name: str, columns: Sequence[Column]) -> dict[str, Any]:
    known = next(c.measurements[name] for c in columns if name in c.measurements)
    row: dict[str, Any] = {"quantity": name, "unit": known.unit, "origin": known.origin}
    for column in columns:
        found = column.measurements.get(name)
        low, high = (None, None) if found is None or found.spread is None else found.spread
        value = None if found is None else found.value
        row |= {column.name: value, f"{column.name} low": low, f"{column.name} high": high}
    return row


def _bytes_of(column: Column) -> str:
    file = column.measurements.get("file")
    return "not measured" if file is None else format_quantity(file.value, file.unit)


def made(folder: str | os.PathLike[str]) -> Path:
    """The folder, made if it is not there."""
    path = Path(folder)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"write into {path}", error.strerror or str(error), "choose another folder") from error
    return path


def environment() -> dict[str, str]:
    """Where measurements were taken."""
    from importlib.metadata import PackageNotFoundError, version

    found: dict[str, str] = {
        "python": platform.python_version(),
        "machine": platform.machine(),
        "system": platform.system(),
        "torch": torch.__version__,
        "threads": str(torch.get_num_threads()),
    }
    for package in ("lilliput", "numpy", "onnx", "onnxruntime"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found
