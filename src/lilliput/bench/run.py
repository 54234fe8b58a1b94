"""Run the cells of a grid: one after another or several processes at once, resumable, beside other machines."""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lilliput.auto.search.journal import check_installed
from lilliput.bench.cell import open_subject
from lilliput.bench.crew import Crew
from lilliput.bench.grid import Cell, Grid, is_search
from lilliput.bench.processes import Process
from lilliput.bench.store import Store
from lilliput.core.method import check_patterns
from lilliput.core.progress import SILENT, Progress
from lilliput.pipeline.folder import json_text
from lilliput.pipeline.recipe import from_data

FORMAT = 1
"""Of a record; part of a cell's name."""


@dataclass(frozen=True, kw_only=True)
class Planned:
    """A grid with the networks and data that it is about: `cells` and the jobs of workers, by the names of cells."""

    grid: Grid
    cells: dict[str, Cell]
    jobs: dict[str, dict[str, Any]]

    def to_data(self) -> dict[str, Any]:
        """What the tables need to know; cells are in the order of the grid."""
        keys = ("model", "method", "budget", "seed")
        grid = self.grid
        return {
            "role": grid.role,
            "baseline": grid.baseline,
            "reference": asdict(grid.reference),
            "limits": asdict(grid.limits),
            "published": [asdict(row) for row in grid.published],
            "order": list(self.cells),
            "cells": {name: {key: getattr(cell, key) for key in keys} for name, cell in self.cells.items()},
        }


def plan(grid: Grid, *, data_root: str | None = None) -> Planned:
    """Open every model; recipes whose patterns match no layer are found now. A cell's name follows from all it is."""
    cells: dict[str, Cell] = {}
    jobs: dict[str, dict[str, Any]] = {}
    subjects = {name: open_subject(source, grid.role, data_root) for name, source in grid.sources().items()}
    for cell in grid.cells():
        subject = subjects[cell.model]
        if is_search(cell.recipe):
            check_installed()
        for step in () if is_search(cell.recipe) else from_data(cell.recipe).steps:
            for method in step.passes:
                check_patterns(method, subject.model)
        job = {
            "source": asdict(grid.sources()[cell.model]),
            "data_root": data_root,
            "identity": subject.identity,
            "recipe": cell.recipe,
            "limits": asdict(grid.limits),
            "role": grid.role,
        }
        about = {key: job[key] for key in ("identity", "recipe", "limits", "role")}
        about |= {"format": FORMAT, "names": [cell.model, cell.method, cell.budget]}
        name = _name(cell, hashlib.blake2b(json_text(about).encode(), digest_size=5).hexdigest())
        cells[name], jobs[name] = cell, job
    return Planned(grid=grid, cells=cells, jobs=jobs)


def run_cells(
    planned: Planned, folder: Path, *, jobs: int = 1, retry: bool = False, progress: Progress = SILENT
) -> dict[str, dict[str, Any]]:
    """Run what is not done yet; the records of all finished cells by name. With `retry`, failed ones run again.

    Cells that another process has claimed are left to it. Whatever ends this, finished cells are kept.
    """
    store = Store(folder)
    store.begin(planned.to_data())
    done = store.records(planned.cells)
    if retry:
        for name in [name for name, record in done.items() if "error" in record]:
            store.drop(name)
            del done[name]
    if done:
        progress.say(f"{len(done)} of {len(planned.cells)} cells are done already")
    waiting = [name for name in planned.cells if name not in done]
    crew = Crew(store=store, jobs=planned.jobs, waiting=waiting, progress=progress, start=Process)

    def finished(name: str, record: dict[str, Any]) -> None:
        done[name] = record
        left = [*crew.waiting, *crew.busy]
        seconds = predicted(left, planned.cells, done) / processes
        more = f"; about {_duration(seconds)} left" if left else ""
        progress.say(f"[{len(done)}/{len(planned.cells)}] {_line(planned.cells[name], record)}{more}")

    processes = max(1, min(jobs, len(waiting)))
    crew.run(processes, finished)
    done = store.records(planned.cells)
    if len(done) < len(planned.cells):
        progress.say(f"{len(planned.cells) - len(done)} cells are left to other processes that have claimed them")
    return done


def _line(cell: Cell, record: Mapping[str, Any]) -> str:
    if "error" in record:
        return f"{cell.title}: FAILED: {record['error']}"
    scored = record["scored"]
    return f"{cell.title}: {record['score']:.4g}{scored['unit']}, {record['bytes']:,} bytes, {record['seconds']:.1f} s"


def predicted(left: list[str], cells: Mapping[str, Cell], done: Mapping[str, Mapping[str, Any]]) -> float:
    """Seconds of the cells that are left: as the method took on this model, else as a cell takes on average."""
    seconds: dict[tuple[str, str], list[float]] = {}
    for name, record in done.items():
        if "seconds" in record:
            seconds.setdefault((cells[name].model, cells[name].method), []).append(record["seconds"])
    known = {key: sum(values) / len(values) for key, values in seconds.items()}
    average = sum(known.values()) / len(known) if known else 0.0
    return sum(known.get((cells[name].model, cells[name].method), average) for name in left)


def _duration(seconds: float) -> str:
    return (
        f"{seconds:.0f} s"
        if seconds < 90
        else f"{seconds / 60:.0f} min"
        if seconds < 5400
        else f"{seconds / 3600:.1f} h"
    )


def _name(cell: Cell, digest: str) -> str:
    words = re.sub(r"[^A-Za-z0-9.]+", "-", f"{cell.model} {cell.method} {cell.budget}").strip("-")
    return f"{words[:80]}-{cell.seed}-{digest}"
