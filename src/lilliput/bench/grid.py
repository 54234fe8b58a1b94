"""A benchmark grid: models x methods x budgets x seeds, under equal limits.

    {bench: 1, models: [digits-cnn], seeds: [0, 1, 2], limits: {epochs: 12}, baseline: prune,
     methods: {prune: [fold_batchnorm, [magnitude_pruning: {sparsity: $sparsity}, fine_tune: {epochs: $epochs}]]},
     budgets: [{name: small, sparsity: 0.9}, {name: large, sparsity: 0.5}]}

A method may be a search: `{search: {max_bytes: $bytes, trials: 20}}`.
Values of a budget, and limits, take the place of `$name` in recipes. A method runs once for each budget that has all of
its placeholders; one without placeholders of a budget runs once.
`float`, the network as it came, is always there.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, cast

from lilliput.bench.placeholders import fill, names_in
from lilliput.bench.searched import KEY, Searched
from lilliput.core.errors import LilliputError, RecipeError
from lilliput.core.method import nearest
from lilliput.pipeline.recipe import Recipe, checked, from_data, read_yaml
from lilliput.zoo.registry import entry

VERSION = 1
FLOAT = "float"
NO_BUDGET = ""


@dataclass(frozen=True, kw_only=True)
class ModelSource:
    """`source`: a name of the zoo or file.py:make. `weights` and `data` as of `lilliput compress`."""

    source: str
    name: str = ""
    weights: str | None = None
    data: str | None = None


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Of each cell: epochs that its recipe may ask for, optimizer steps, CPU seconds of the compression."""

    epochs: int | None = None
    steps: int | None = None
    seconds: float | None = None

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if value is not None and value < 0:
                raise RecipeError(f"grid limits {name}", f"{value!r}", "give a number from 0 up, or leave it out")


@dataclass(frozen=True, kw_only=True)
class Published:
    """A figure from elsewhere, with its source. It stands beside the measured ones, and enters none of them."""

    model: str
    method: str
    source: str
    budget: str = NO_BUDGET
    score: float | None = None
    bytes: int | None = None


@dataclass(frozen=True, kw_only=True)
class Reference:
    """The corner from which hypervolumes are measured. None: bytes of the float network, the worst measured score."""

    bytes: float | None = None
    score: float | None = None


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One compression: what to run (`recipe` is plain data), under which names it is found in the tables."""

    model: str
    method: str
    budget: str
    seed: int
    recipe: dict[str, Any]

    @property
    def title(self) -> str:
        return " ".join(filter(None, (self.model, self.method, self.budget, f"seed {self.seed}")))


@dataclass(frozen=True, kw_only=True)
class Grid:
    """As written in the file; `methods` hold placeholders still. `cells()` is what is run, in this order."""

    models: list[str | dict[str, Any]]
    methods: dict[str, Any]
    budgets: list[Any] = field(default_factory=list[Any])
    seeds: list[int] = field(default_factory=lambda: [0])
    limits: Limits = field(default_factory=Limits)
    published: list[Published] = field(default_factory=list[Published])
    role: Literal["test", "validation"] = "test"
    baseline: str = FLOAT
    reference: Reference = field(default_factory=Reference)
    bench: int = VERSION

    def sources(self) -> dict[str, ModelSource]:
        """The models by name."""
        found: dict[str, ModelSource] = {}
        for data in self.models:
            given = {"source": data} if isinstance(data, str) else data
            model = checked(ModelSource, given, "grid models")
            name = model.name or model.source.rpartition("/")[2].replace(".py:", "-")
            if name in found:
                raise RecipeError("grid models", f"two are named {name!r}", "give one of them another name")
            found[name] = replace(model, name=name)
        return found

    def values(self) -> dict[str, dict[str, Any]]:
        """The budgets by name, each with the values of its placeholders."""
        found: dict[str, dict[str, Any]] = {}
        for data in self.budgets:
            given = dict(cast(Mapping[str, Any], data)) if isinstance(data, Mapping) else {"budget": data}
            shown = ", ".join(f"{v}" if k == "budget" else f"{k} {v}" for k, v in given.items())
            name = str(given.pop("name", shown))
            if name in found or not given:
                what = f"two are named {name!r}" if name in found else f"{data!r} has no values"
                raise RecipeError("grid budgets", what, "write a number each, or {name: small, sparsity: 0.9}")
            found[name] = given
        return found

    def cells(self) -> list[Cell]:
        """Every cell, with its recipe filled in and checked; raises `RecipeError` naming the method."""
        runs: list[tuple[str, str, Recipe | Searched]] = [(FLOAT, NO_BUDGET, from_data([]))]
        for method in self.methods:
            runs += [(method, budget, recipe) for budget, recipe in self._recipes(method).items()]
        found: list[Cell] = []
        for model in self.sources():
            for method, budget, recipe in runs:
                for seed in self.seeds if method != FLOAT else self.seeds[:1]:
                    searched = isinstance(recipe, Searched)
                    data = recipe.to_data(seed) if searched else replace(recipe, seed=seed, threads=1).to_data()
                    found.append(Cell(model=model, method=method, budget=budget, seed=seed, recipe=data))
        return found

    def _recipes(self, method: str) -> dict[str, Recipe | Searched]:
        """By budget; a budget that lacks a placeholder of the method is left out."""
        data, where = self.methods[method], f"method {method!r}"
        budgets = self.values()
        given = {key: value for key, value in asdict(self.limits).items() if value is not None}
        known = {name for values in budgets.values() for name in values}
        wanted = names_in(data)
        for name in sorted(wanted - known - set(given)):
            raise RecipeError(
                where, f"${name} has no value in any budget and in no limit", nearest(name, known | set(given))
            )
        if not wanted & known:
            return {NO_BUDGET: self._recipe(fill(data, given, where), where)}
        return {
            budget: self._recipe(fill(data, given | values, where), where)
            for budget, values in budgets.items()
            if wanted <= set(values) | set(given)
        }

    def _recipe(self, data: Any, where: str) -> Recipe | Searched:
        try:
            if is_search(data):
                return checked(Searched, data[KEY], KEY)
            recipe = from_data(data)
        except LilliputError as error:
            raise RecipeError(f"{where}: {error.asked}", error.found, error.do) from error
        epochs = sum(getattr(p, "epochs", 0) for step in recipe.steps for p in step.passes)
        if self.limits.epochs is not None and epochs > self.limits.epochs:
            raise RecipeError(
                where,
                f"it trains for {epochs} epochs, the limit is {self.limits.epochs}",
                "share them out, or raise it",
            )
        return recipe


def is_search(data: Any) -> bool:
    """Whether a method, or a cell's plain data, is a search and no recipe."""
    return isinstance(data, Mapping) and KEY in data


def load(path: str | Path) -> Grid:
    """A grid from a YAML file. Recipes, weights and file.py:make are looked for beside it."""
    path = Path(path)
    data = read_yaml(path, "grid")
    grid = checked(Grid, _parts(data), "grid")
    if grid.bench != VERSION:
        raise RecipeError("grid bench", f"version {grid.bench!r}", f"write version {VERSION}, or update Lilliput")
    if FLOAT in grid.methods:
        raise RecipeError("grid methods", f"a method named {FLOAT!r}", "that is the network as it came: choose another")
    for name, values in (("models", grid.models), ("methods", grid.methods), ("seeds", grid.seeds)):
        if not values:
            raise RecipeError(f"grid {name}", "none", "give at least one")
    if len(set(grid.seeds)) < len(grid.seeds) or min(grid.seeds) < 0:
        raise RecipeError("grid seeds", f"{grid.seeds}", "give different whole numbers from 0 up")
    methods = {name: _method(value, name, path.parent) for name, value in grid.methods.items()}
    models = [asdict(beside(model, path.parent)) for model in grid.sources().values()]
    grid = replace(grid, methods=methods, models=models)
    if grid.baseline not in {FLOAT, *methods}:
        raise RecipeError("grid baseline", f"{grid.baseline!r}", nearest(grid.baseline, {FLOAT, *methods}))
    for row in grid.published:
        if row.model not in grid.sources():
            raise RecipeError("grid published", f"model {row.model!r}", nearest(row.model, set(grid.sources())))
        if row.budget and row.budget not in grid.values():
            raise RecipeError("grid published", f"budget {row.budget!r}", nearest(row.budget, set(grid.values())))
    grid.cells()
    return grid


def _parts(data: Any) -> Any:
    """The mappings within the grid, checked each for itself: what is wrong in one is named by it."""
    if not isinstance(data, Mapping):
        return data
    given = dict(cast(Mapping[str, Any], data))
    for key, cls in (("limits", Limits), ("reference", Reference)):
        if key in given:
            given[key] = checked(cls, given[key], f"grid {key}")
    if isinstance(given.get("published"), list):
        given["published"] = [checked(Published, row, "grid published") for row in given["published"]]
    return given


def _method(data: Any, name: str, folder: Path) -> Any:
    """Passes or a recipe as plain data, from the file that is named if one is."""
    if isinstance(data, str):
        data = read_yaml(folder / data, f"method {name!r}: recipe")
    if is_search(data) and len(cast(Mapping[str, Any], data)) > 1:
        others = ", ".join(sorted(map(str, set(cast(Mapping[str, Any], data)) - {KEY})))
        raise RecipeError(f"method {name!r}", f"{others} beside {KEY}", f"write {{{KEY}: {{...}}}} alone")
    if not isinstance(data, (Mapping, Sequence)) or isinstance(data, str):
        raise RecipeError(f"method {name!r}", f"{data!r}", "write a list of passes, a recipe, or the path of one")
    return cast(Any, data)


def beside(model: ModelSource, folder: Path) -> ModelSource:
    """With the paths of files counted from this folder. A name that is not in the zoo is an error."""
    weights = None if model.weights is None else str(folder / model.weights)
    if ":" not in model.source:
        entry(model.source)
        return replace(model, weights=weights)
    place, _, function = model.source.rpartition(":")
    source = f"{folder / place}:{function}" if place.endswith(".py") else model.source
    return replace(model, source=source, weights=weights)
