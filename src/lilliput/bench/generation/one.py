"""One run of an experiment, in its folder: from its start or from where it was left, to a number of generations."""

import hashlib
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lilliput.bench.generation.experiment import Run
from lilliput.bench.generation.record import solution_from, text_of, write_solutions
from lilliput.bench.generation.solvers import Direct
from lilliput.bench.generation.statistics import NAME, Statistics
from lilliput.bench.generation.subject import Subject
from lilliput.core.artifact import Artifact
from lilliput.core.errors import ArtifactError, DataError
from lilliput.core.files import explained
from lilliput.methods.weight_generation.evolution import Evolution, EvolutionSettings, begin, unpacked
from lilliput.methods.weight_generation.problem import Problem
from lilliput.methods.weight_generation.solution import Solution
from lilliput.pipeline.folder import RunFolder, json_text

ABOUT, STATE, EXPERIMENT = "run.json", "state.bin", "experiment.yaml"
CHECKPOINT_SECONDS = 1.0
MOST_STATE_BYTES = 1 << 30


def fingerprint(problem: Problem, run: Run) -> str:
    """16 hex digits of what is solved, and how."""
    about = {
        "bits": problem.bits,
        "given": [problem.given_count, problem.own_inputs, *problem.given.tolist()],
        "wanted": problem.wanted.tolist(),
        "counts": problem.counts.tolist(),
        "importance": problem.importance.tolist(),
        "gates": [problem.gates.energy_pj, problem.gates.delay_ns, problem.gates.area],
        "solver": [run.kind, asdict(run.solver)],
    }
    return hashlib.blake2b(json_text(about).encode(), digest_size=8).hexdigest()


def about(subject: Subject, run: Run) -> dict[str, Any]:
    """What `run.json` says."""
    return {"run": run.index, "title": run.title, "fingerprint": fingerprint(subject.problem(run), run)}


def work(
    subject: Subject,
    run: Run,
    path: Path,
    *,
    generations: int,
    processes: int = 1,
    stop: Callable[[Evolution], bool] = lambda evolution: False,
) -> dict[str, Any]:
    """Go on to `generations` in all; what the benchmark's folder keeps of it. `stop` sees the end of each round.

    Raises `ArtifactError` where the folder is that of another run, `UsageError` where a process is at it already.
    """
    folder = RunFolder(path)
    with folder.held():
        folder.tidy()
        said = about(subject, run)
        if (path / ABOUT).exists() and folder.read_json(ABOUT) != said:
            found = "it is of another problem or of other settings"
            raise ArtifactError(f"continue {path}", found, "give the model and data it was begun with, or a new folder")
        folder.write_json(ABOUT, said)
        folder.write(EXPERIMENT, subject.experiment.alone(run).to_yaml())
        started, cpu = time.perf_counter(), time.process_time()
        net = subject.quantized(run)
        problem = subject.problem(run, net)
        if isinstance(run.solver, EvolutionSettings):
            found = _evolve(folder, run.solver, run.index, problem, net, generations, processes, stop)
        else:
            found = _solve(folder, run.solver, run.index, problem, net)
        seconds = {"seconds": time.perf_counter() - started, "cpu_seconds": time.process_time() - cpu}
        return {**found, **{key: round(value, 3) for key, value in seconds.items()}}


def _solve(folder: RunFolder, solver: Direct, index: int, problem: Problem, net: Artifact) -> dict[str, Any]:
    """At once: generation 0 of a search that is ready."""
    statistics = Statistics.at(folder.path / NAME, index, None)
    solution = solver.solve(problem)
    cost = solution.cost().circuit
    statistics.note(
        {
            "generation": 0,
            "error": solution.error,
            "quantized_energy": "",
            "energy": cost.energy_pj,
            "area": cost.area,
            "quantized_delay": "",
            "delay": cost.delay_ns,
            "depth": cost.depth,
            "gate_count": cost.gates,
            "chromosome": text_of(solution),
        }
    )
    return _record(write_solutions(folder.path, [solution], net), generation=0, ready=True)


def _evolve(
    folder: RunFolder,
    settings: EvolutionSettings,
    index: int,
    problem: Problem,
    net: Artifact,
    generations: int,
    processes: int,
    stop: Callable[[Evolution], bool],
) -> dict[str, Any]:
    before = _state(folder.path / STATE, problem, settings)
    evolution = begin(problem, settings) if before is None else before
    known = None if before is None else before.generation
    statistics = Statistics.at(folder.path / NAME, index, known, settings.round_generations)
    saved, kept = time.monotonic(), ()

    def at_round(now: Evolution) -> bool:
        nonlocal saved, kept
        _note(statistics, now)
        if time.monotonic() - saved > CHECKPOINT_SECONDS:
            folder.write(STATE, now.packed())
            found = _distinct(now)
            if tuple(found) != kept:
                write_solutions(folder.path, list(found.values()), net)
            saved, kept = time.monotonic(), tuple(found)
        return stop(now)

    if before is None:
        _note(statistics, evolution)
        folder.write(STATE, evolution.packed())
        write_solutions(folder.path, list(_distinct(evolution).values()), net)
    if evolution.generation < generations and not evolution.ready:
        left = generations - evolution.generation
        evolution = evolution.advanced(left, processes=processes, watch=at_round)
        _note(statistics, evolution)
    folder.write(STATE, evolution.packed())
    best = write_solutions(folder.path, list(_distinct(evolution).values()), net)
    return _record(best, generation=evolution.generation, ready=evolution.ready)


def _distinct(evolution: Evolution) -> dict[str, Solution]:
    """The best solutions by their texts: tidied, two may be the same."""
    found: dict[str, Solution] = {}
    for solution in evolution.top:
        found.setdefault(text_of(solution), solution)
    return found


def _note(statistics: Statistics, evolution: Evolution) -> None:
    """With the chromosome of the gates that are used: that of a whole grid takes 0.2 MB."""
    found = evolution.statistics()
    if statistics.is_news(found):
        problem = evolution.problem
        solution = solution_from(str(found["chromosome"]), problem, "circuit of an evolution")
        statistics.note({**found, "chromosome": text_of(solution)})


def _state(path: Path, problem: Problem, settings: EvolutionSettings) -> Evolution | None:
    """Where a run was left; None if it has not begun."""
    if not path.exists():
        return None
    with explained(f"read {path}"):
        size = path.stat().st_size
        data = path.read_bytes() if size <= MOST_STATE_BYTES else b""
    try:
        return unpacked(problem, settings, data)
    except DataError as error:
        do = "remove it, then continue: the run begins anew"
        raise ArtifactError(f"continue from {path}", error.found, do) from error


def _record(best: dict[str, Any], *, generation: int, ready: bool) -> dict[str, Any]:
    """`score` is the error: a record with the key `error` is that of a failure."""
    names = ("squared_error", "rms", "gates", "energy_pj", "stored_bits", "plain_bits", "verdict")
    measures = {"score": best["error"], **{name: best[name] for name in names}}
    return {**measures, "generation": generation, "ready": ready}
