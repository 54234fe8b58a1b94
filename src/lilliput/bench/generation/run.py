"""Run the grid of an experiment: in several processes, resumable, beside other machines, or one run alone."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lilliput.bench.crew import Crew
from lilliput.bench.generation.experiment import Experiment, Run
from lilliput.bench.generation.folder import RUNS, WHAT
from lilliput.bench.generation.one import fingerprint
from lilliput.bench.generation.solvers import EvolutionSettings
from lilliput.bench.generation.statistics import NAME, last_line
from lilliput.bench.generation.subject import open_subject
from lilliput.bench.processes import Process
from lilliput.bench.store import Store
from lilliput.core.errors import UsageError
from lilliput.core.progress import SILENT, Progress
from lilliput.methods.weight_generation.grid import grid_of
from lilliput.pipeline.run import threads

MODULE = "lilliput.bench.generation.worker"


@dataclass(frozen=True, kw_only=True)
class Planned:
    """The whole grid; runs to do and the jobs of workers, by the names of runs. `alone`: one run was asked for."""

    folder: Path
    grid: list[Run]
    runs: dict[str, Run]
    jobs: dict[str, dict[str, Any]]
    alone: bool

    def to_data(self) -> dict[str, Any]:
        titles = {run.name: {"title": run.title} for run in self.grid}
        return {"order": list(titles), "cells": titles}


def plan(
    experiment: Experiment,
    folder: Path,
    *,
    generations: int | None = None,
    only: int | None = None,
    data_root: Path | None = None,
) -> Planned:
    """Open the network and pose every problem: what cannot work is found now. `generations` in all."""
    grid = experiment.grid()
    if only is not None and not 0 <= only < len(grid):
        raise UsageError(f"run {only}", f"the experiment has {len(grid)} runs", f"use 0 to {len(grid) - 1}")
    root = None if data_root is None else str(data_root)
    runs = {run.name: run for run in grid if only in (None, run.index)}
    jobs: dict[str, dict[str, Any]] = {}
    with threads(1):  # as the workers: sums in another order would give other importances
        subject = open_subject(experiment, root)
        for name, run in runs.items():
            problem = subject.problem(run)
            if isinstance(run.solver, EvolutionSettings):
                grid_of(problem, run.solver, 0)
            jobs[name] = {
                "folder": str(folder.absolute()),
                "run": run.index,
                "generations": experiment.generations if generations is None else generations,
                "data_root": root,
                "fingerprint": fingerprint(problem, run),
            }
    return Planned(folder=folder, grid=grid, runs=runs, jobs=jobs, alone=only is not None)


def go(planned: Planned, *, jobs: int = 1, progress: Progress = SILENT) -> dict[str, dict[str, Any]]:
    """Do what is not done yet, and again what has failed; records of all runs that are done, by name.

    Runs that another process has claimed are left to it. Whatever ends this, each run is kept as far as it was saved.
    """
    store = Store(planned.folder, WHAT)
    store.begin(planned.to_data())
    done: dict[str, dict[str, Any]] = {}
    for name, record in store.records(planned.runs).items():
        if "error" in record or not (record.get("ready") or record["generation"] >= planned.jobs[name]["generations"]):
            store.drop(name)
        else:
            done[name] = record
    if done:
        progress.say(f"{len(done)} of {len(planned.runs)} runs are done already")
    waiting = [name for name in planned.runs if name not in done]
    processes = max(1, min(jobs, len(waiting)))
    each = max(1, jobs // processes)

    def watch(names: list[str]) -> None:
        for line in _standing(planned, names):
            progress.say(line)

    crew = Crew(
        store=store,
        jobs={name: {**planned.jobs[name], "processes": each} for name in waiting},
        waiting=list(waiting),
        progress=progress,
        start=_started,
        watch=watch,
    )

    def finished(name: str, record: dict[str, Any]) -> None:
        done[name] = record
        progress.say(f"[{len(done)}/{len(planned.runs)}] {line_of(planned.runs[name], record)}")

    crew.run(processes, finished)
    left = len(planned.runs) - len(done)
    if left and planned.alone:
        (run,) = planned.runs.values()
        raise UsageError(f"run {run.index} of {planned.folder}", "another process is at it", "wait until it has ended")
    if left:
        progress.say(f"{left} of {len(planned.runs)} runs are left to other processes, which have claimed them")
    return store.records(planned.runs)


def line_of(run: Run, record: Mapping[str, Any]) -> str:
    if "error" in record:
        return f"{run.index} {run.title}: FAILED: {record['error']}"
    at = f", generation {record['generation']:,}" if run.evolves else ""
    what = f"RMS error {record['rms']:.4g}, {record['gates']} gates, {record['energy_pj']:.3g} pJ"
    return f"{run.index} {run.title}: {what}{at}, {record['seconds']:.1f} s"


def _started() -> Process:
    return Process(MODULE, "run")


def _standing(planned: Planned, names: list[str]) -> list[str]:
    """What the runs that are under way have found last."""
    found: list[str] = []
    for name in names:
        row, run = last_line(planned.folder / RUNS / name / NAME), planned.runs[name]
        if row is not None:
            measures = f"error {row['error']}, {row['gate_count']} gates, {row['energy']} pJ"
            found.append(f"{run.index} {run.title}: {measures} since generation {row['generation']}")
    return found
