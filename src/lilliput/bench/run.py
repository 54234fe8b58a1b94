"""Run the cells of a grid: one after another or several processes at once, resumable, beside other machines."""

import hashlib
import re
import selectors
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from lilliput.auto.search.journal import check_installed
from lilliput.bench.cell import open_subject
from lilliput.bench.grid import Cell, Grid, is_search
from lilliput.bench.processes import Process
from lilliput.bench.store import Store
from lilliput.core.method import check_patterns
from lilliput.core.progress import SILENT, Progress
from lilliput.pipeline.folder import json_text
from lilliput.pipeline.recipe import from_data

RENEW_SECONDS = 30.0
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
    crew = _Crew(planned=planned, store=store, waiting=waiting, done=done, progress=progress)
    with progress.task("cells", len(waiting)) as advance:
        crew.run(max(1, min(jobs, len(waiting))), advance)
    done = store.records(planned.cells)
    if len(done) < len(planned.cells):
        progress.say(f"{len(planned.cells) - len(done)} cells are left to other processes that have claimed them")
    return done


@dataclass(kw_only=True)
class _Crew:
    planned: Planned
    store: Store
    waiting: list[str]
    done: dict[str, dict[str, Any]]
    progress: Progress
    busy: dict[str, Process] = field(default_factory=dict[str, Process])
    idle: list[Process] = field(default_factory=list[Process])

    def run(self, jobs: int, advance: Any) -> None:
        renewed = time.monotonic()
        try:
            while True:
                while len(self.busy) < jobs and self._start():
                    pass
                if not self.busy:
                    return
                for name in self._ready():
                    if self._finish(name, jobs):
                        advance(1)
                if time.monotonic() - renewed > RENEW_SECONDS:
                    renewed = time.monotonic()
                    for name in self.busy:
                        self.store.renew(name)
        finally:
            for process in [*self.busy.values(), *self.idle]:
                process.end()
            for name in self.busy:
                self.store.release(name)

    def _start(self) -> bool:
        """Begin the next cell that nobody has; False if there is none."""
        while self.waiting:
            name = self.waiting.pop(0)
            if self.store.claim(name):
                process = self.idle.pop() if self.idle else Process()
                self.busy[name] = process
                process.give(self.planned.jobs[name])
                return True
        return False

    def _ready(self) -> list[str]:
        with selectors.DefaultSelector() as selector:
            for name, process in self.busy.items():
                selector.register(process, selectors.EVENT_READ, name)
            return [key.data for key, _ in selector.select(timeout=1.0)]

    def _finish(self, name: str, jobs: int) -> bool:
        process = self.busy[name]
        record = process.answer()
        if record is None:
            return False
        self.store.write(name, record)
        del self.busy[name]
        self.store.release(name)
        if record.pop("died", False):
            process.end()
        else:
            self.idle.append(process)
        self.done[name] = record
        self.progress.say(f"[{len(self.done)}/{len(self.planned.cells)}] {self._line(name)}{self._left(jobs)}")
        return True

    def _line(self, name: str) -> str:
        record, title = self.done[name], self.planned.cells[name].title
        if "error" in record:
            return f"{title}: FAILED: {record['error']}"
        scored = record["scored"]
        return f"{title}: {record['score']:.4g}{scored['unit']}, {record['bytes']:,} bytes, {record['seconds']:.1f} s"

    def _left(self, jobs: int) -> str:
        left = [*self.waiting, *self.busy]
        seconds = predicted(left, self.planned.cells, self.done) / jobs
        return f"; about {_duration(seconds)} left" if left else ""


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
