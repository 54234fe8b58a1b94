"""Solutions read from their texts, measured again from the network on, and compared with what is recorded of them."""

import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from lilliput.bench.generation.experiment import Run
from lilliput.bench.generation.folder import RUNS, opened
from lilliput.bench.generation.one import ABOUT
from lilliput.bench.generation.record import (
    SOLUTIONS,
    WEIGHTS,
    differences,
    measures,
    read_measures,
    read_text,
    solution_from,
    solution_paths,
    weights_of,
)
from lilliput.bench.generation.subject import Subject, open_subject
from lilliput.core.artifact import Artifact
from lilliput.core.errors import LilliputError, UsageError
from lilliput.core.files import explained
from lilliput.methods.weight_generation.solution import Solution
from lilliput.pipeline.run import threads

Damaged = Callable[[Run, Path, LilliputError], None]


@dataclass(frozen=True, kw_only=True, eq=False)
class Loaded:
    """A solution of a run. `net`: the integers that its problem is made of."""

    run: Run
    path: Path
    solution: Solution
    net: Artifact

    @property
    def number(self) -> str:
        return self.path.stem


def evaluate(path: Path, *, of: Path | None = None, data_root: Path | None = None) -> list[dict[str, Any]]:
    """Of a folder's solutions, or of a circuit's text: measures, and what differs from what is recorded.

    A text that is in no run's folder is measured for the problem of the run folder `of`; nothing is recorded of it.
    Of a damaged file in a folder the row has no measures, and what is wrong as its difference.
    """
    rows: list[dict[str, Any]] = []

    def damaged(run: Run, text: Path, error: LilliputError) -> None:
        rows.append({**_about(run, text), "recorded": True, "differences": [str(error)]})

    several = damaged if path.is_dir() else None
    for loaded in solutions(path, of=of, data_root=data_root, damaged=several)[1]:
        found = measures(loaded.solution)
        recorded = loaded.path.with_suffix(".json")
        try:
            differ = differences(read_measures(recorded), found) if recorded.is_file() else None
        except LilliputError as error:
            if several is None:
                raise
            differ = [str(error)]
        if differ is not None and loaded.number == "01":
            differ += _weights(loaded)
        more = {"recorded": differ is not None, "differences": differ or []}
        rows.append({**_about(loaded.run, loaded.path), **found, **more})
    return rows


def _about(run: Run, text: Path) -> dict[str, Any]:
    return {"run": run.index, "title": run.title, "solution": text.stem, "file": str(text)}


def solutions(
    path: Path,
    *,
    of: Path | None = None,
    data_root: Path | None = None,
    top: int | None = None,
    damaged: Damaged | None = None,
) -> tuple[Subject, Iterator[Loaded]]:
    """The network, and the first `top` solutions of a folder of an experiment or of a run, or the one of a text.

    With `damaged`, a text that is no circuit for its problem goes there, in place of an error.
    """
    if path.is_dir() or path.suffix != ".txt":
        experiment, folder, number = opened(path)
        chosen = [run for run in experiment.grid() if number in (None, run.index)]
        texts = {run.index: solution_paths(folder / RUNS / run.name)[:top] for run in chosen}
        if not any(texts.values()):
            raise UsageError(f"solutions of {path}", "there are none yet", f"go on: lilliput cgp continue {folder}")
    else:
        place = of or (path.absolute().parents[1] if path.absolute().parent.name == SOLUTIONS else None)
        if place is None or not (place / ABOUT).is_file():
            found = "it is in no folder of a run"
            raise UsageError(f"evaluate {path}", found, "name one whose problem it is for: --of")
        experiment, folder, number = opened(place)
        chosen = [run for run in experiment.grid() if run.index == number]
        texts = {run.index: [path] for run in chosen}
    with threads(1):
        subject = open_subject(experiment, data_root)
    return subject, _loaded(subject, [run for run in chosen if texts[run.index]], texts, damaged)


def _loaded(
    subject: Subject, runs: list[Run], texts: dict[int, list[Path]], damaged: Damaged | None
) -> Iterator[Loaded]:
    for run in runs:
        with threads(1):
            net = subject.quantized(run)
            problem = subject.problem(run, net)
        for path in texts[run.index]:
            try:
                solution = solution_from(read_text(path), problem, f"solution {path}")
            except LilliputError as error:
                if damaged is None:
                    raise
                damaged(run, path, error)
                continue
            yield Loaded(run=run, path=path, solution=solution, net=net)


def _weights(loaded: Loaded) -> list[str]:
    """Whether the weights beside the best solution are those that it makes."""
    path = loaded.path.parents[1] / WEIGHTS
    wanted = weights_of(loaded.net, loaded.solution)
    with explained(f"read {path}"):
        data = path.read_bytes() if path.is_file() and path.stat().st_size <= 2 * len(wanted) else b""
    if data == wanted:
        return []
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as found, np.load(io.BytesIO(wanted)) as ours:
            same = set(found) == set(ours) and all(np.array_equal(found[name], ours[name]) for name in ours)
    except (ValueError, OSError, EOFError, BadZipFile, KeyError):
        same = False
    return [] if same else [f"{WEIGHTS} has other weights"]
