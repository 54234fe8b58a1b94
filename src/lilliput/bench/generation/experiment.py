"""An experiment in generating weights: a network, problems, a solver, and lists that make a grid of runs.

    cgp: 1
    model: digits-cnn
    problems:
      bypass: {experiment: layer_bypass, layers: [stem.0, residual.0]}
      nothing: {given: [], wanted: [stem.0, residual.0], importance: [none, fisher]}
    solver: {kind: evolution, threshold: [0, 5]}
    generations: 100000
    runs: 3

A list in the place of a setting means one run for each of its entries, with every entry of the other lists.
"""

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, cast, get_args

from lilliput.bench.generation.published import Published
from lilliput.bench.generation.solvers import EVOLUTION, KINDS, Solver, kind_of
from lilliput.bench.grid import ModelSource, beside
from lilliput.core.errors import RecipeError
from lilliput.pipeline.recipe import checked, read_yaml, yaml_text

VERSION = 1
Importance = Literal["none", "fisher"]
Scales = Literal["layer", "channel"]
LEAST_BITS, MOST_BITS = 2, 12


@dataclass(frozen=True, kw_only=True)
class Sides:
    """Expressions of the selection language."""

    given: str | list[str] = field(default_factory=list[str])
    wanted: str | list[str] = "given"


@dataclass(frozen=True, kw_only=True)
class Run:
    """One of the grid: what is made of what, and how. `problem` is its name; `title` says what tells it from others."""

    index: int
    title: str
    problem: str
    sides: Sides
    importance: Importance
    bits: int | None
    solver: Solver
    kind: str

    @property
    def name(self) -> str:
        """Of its folder."""
        words = re.sub(r"[^A-Za-z0-9.]+", "-", self.title).strip("-.")
        return f"{self.index:04d}-{words[:60].strip('-.')}"

    @property
    def evolves(self) -> bool:
        return self.kind == EVOLUTION


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """As written in the file, with the paths of files counted from there. `runs` is how many seeds an evolution has.

    `bits` and `scales` are of weights that have no grid yet: those of a network in float. `into`: as elsewhere, the
    model that a .lil was made from.
    """

    model: str
    problems: dict[str, dict[str, Any]]
    solver: Any
    weights: str | None = None
    data: str | None = None
    into: str | None = None
    bits: int | list[int] | None = None
    scales: Scales = "layer"
    gates: str | None = None
    generations: int = 100_000
    runs: int = 1
    keep: int = 10
    cgp: int = VERSION

    def __post_init__(self) -> None:
        for name in ("generations", "runs", "keep"):
            if getattr(self, name) < 1:
                raise RecipeError(f"experiment {name}", f"{getattr(self, name)}", "give a whole number from 1 up")
        for bits in self.bits if isinstance(self.bits, list) else [self.bits]:
            if bits is not None and not LEAST_BITS <= bits <= MOST_BITS:
                raise RecipeError("experiment bits", f"{bits}", f"give {LEAST_BITS} to {MOST_BITS}")

    def grid(self) -> list[Run]:
        """Every run: problems, their importances, bits, solvers, settings, seeds; the last of them goes first."""
        rows: list[tuple[dict[str, Any], Run]] = []
        widths = _entries(self.bits, "experiment bits")
        solvers = list(self._solvers())
        for (name, sides, importance), bits, (kind, settings) in itertools.product(self._problems(), widths, solvers):
            about = {"problem": name, "importance": importance, "bits": bits, "solver": kind, **settings}
            run = Run(
                index=len(rows),
                title=name,
                problem=name,
                sides=sides,
                importance=importance,
                bits=bits,
                solver=self._solver(kind, settings),
                kind=kind,
            )
            if any(about == other for other, _ in rows):
                raise RecipeError("experiment", f"run {run.index} is there already: {about}", "write each value once")
            rows.append((about, run))
        keys = dict.fromkeys(key for about, _ in rows for key in about)
        varying = [k for k in keys if k != "problem" and len({repr(about[k]) for about, _ in rows if k in about}) > 1]
        return [replace(run, title=_title(about, varying)) for about, run in rows]

    def alone(self, run: Run) -> "Experiment":
        """The experiment with this run and no other."""
        settings = {key: value for key, value in asdict(run.solver).items() if value is not None and key != "keep"}
        problem = {**asdict(run.sides), "importance": run.importance}
        solver = {"kind": run.kind, **settings}
        return replace(self, problems={run.problem: problem}, solver=solver, bits=run.bits, runs=1)

    def to_yaml(self) -> str:
        """What `load` reads."""
        return yaml_text({key: value for key, value in asdict(self).items() if value is not None})

    def _problems(self) -> Iterator[tuple[str, Sides, Importance]]:
        for name, data in self.problems.items():
            where, given = f"problem {name!r}", dict(data)
            importances = _entries(given.pop("importance", "none"), f"{where} importance")
            form = Published if "experiment" in given else Sides
            read = checked(form, given, where)
            given, wanted = read.sides() if isinstance(read, Published) else (read.given, read.wanted)
            for importance in importances:
                if importance not in get_args(Importance):
                    do = f"use {' or '.join(get_args(Importance))}"
                    raise RecipeError(f"{where} importance", f"{importance!r}", do)
                yield name, Sides(given=given, wanted=wanted), importance

    def _solvers(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Each with one value for each setting; an evolution with all its seeds."""
        given = self.solver if isinstance(self.solver, list) else [self.solver]
        if not given:
            raise RecipeError("experiment solver", "an empty list", f"give at least one of {', '.join(KINDS)}")
        for data in ({"kind": one} if isinstance(one, str) else one for one in given):
            if not isinstance(data, Mapping):
                raise RecipeError("experiment solver", f"{data!r}", "write {kind: evolution, threshold: 5}, or exact")
            kind, settings = kind_of(cast(Mapping[str, Any], data))
            if kind == EVOLUTION and self.runs > 1:
                first = settings.pop("seed", 0)
                if not isinstance(first, int):
                    raise RecipeError("experiment runs", f"{self.runs}, and seeds {first!r}", "give one of them")
                settings["seed"] = list(range(first, first + self.runs))
            axes = [_entries(value, f"solver {name}") for name, value in settings.items()]
            for values in itertools.product(*axes):
                yield kind, dict(zip(settings, values, strict=True))

    def _solver(self, kind: str, settings: Mapping[str, Any]) -> Solver:
        kept = {"keep": self.keep} if kind == EVOLUTION else {}
        return checked(KINDS[kind], {**settings, **kept}, f"solver {kind}")


def load(path: str | Path) -> Experiment:
    """An experiment from a YAML file. Networks, weights and tables of gates are looked for beside it."""
    path = Path(path)
    found = checked(Experiment, read_yaml(path, "experiment"), "experiment")
    if found.cgp != VERSION:
        raise RecipeError("experiment cgp", f"version {found.cgp!r}", f"write version {VERSION}, or update Lilliput")
    folder = path.parent.absolute()
    is_file = found.model.endswith(".lil")
    source = ModelSource(source="" if is_file else found.model, weights=found.weights)
    source = source if is_file else beside(source, folder)
    if is_file and found.weights is not None:
        raise RecipeError("experiment weights", f"{found.weights}, and the model is a .lil", "leave weights out")
    if is_file and found.into is None:  # layers are those of a module: a graph has none
        raise RecipeError("experiment", "a .lil without into", "name the model that it was made from: into: digits-cnn")
    if not is_file and found.into is not None:
        raise RecipeError("experiment into", f"{found.into!r}, and the model is no .lil", "leave into out")
    found = replace(
        found,
        model=str(folder / found.model) if is_file else source.source,
        weights=source.weights,
        into=None if found.into is None else beside(ModelSource(source=found.into), folder).source,
        gates=None if found.gates is None else str(folder / found.gates),
    )
    if not found.grid():
        raise RecipeError("experiment problems", "none", "give at least one")
    return found


def _entries(value: Any, where: str) -> list[Any]:
    """The entries of a list, or the one value."""
    if not isinstance(value, list):
        return [value]
    if not value:
        raise RecipeError(where, "an empty list", "give at least one value, or leave it out")
    return cast(list[Any], value)


def _title(about: Mapping[str, Any], varying: Sequence[str]) -> str:
    shown = {key: about[key] for key in varying if about.get(key) not in (None, "none")}
    kind = shown.pop("solver", None)
    return ", ".join([about["problem"], *([kind] if kind else []), *(f"{key} {shown[key]}" for key in shown)])
