"""What a compression method is: a `Pass` with settings, applied to an artifact inside a context."""

import difflib
import fnmatch
import inspect
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import nn

from lilliput.core.artifact import Artifact
from lilliput.core.device import as_device
from lilliput.core.edits import Edit, Fold
from lilliput.core.errors import MethodError, RecipeError
from lilliput.core.guard import FullForward
from lilliput.core.progress import SILENT, Progress
from lilliput.core.target import Target
from lilliput.core.task import Task

WEIGHTED = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.ConvTranspose1d, nn.ConvTranspose2d)
"""Layers whose weights methods compress."""


@dataclass(kw_only=True)
class Context:
    """What a pass may use: the task, randomness, progress, the target; `evaluator` looks at roles and counts it."""

    task: Task
    generator: torch.Generator
    evaluator: FullForward
    target: Target = field(default_factory=Target)
    progress: Progress = SILENT
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    batch_size: int = 256
    checkpoint: Path | None = None

    @staticmethod
    def of(
        task: Task,
        model: nn.Module,
        *,
        seed: int = 0,
        target: Target | None = None,
        progress: Progress = SILENT,
        device: str | torch.device = "cpu",
        batch_size: int = 256,
    ) -> "Context":
        """A context around the original `model`, the teacher: a copy, where passes change the network of the caller."""
        evaluator = FullForward(task, model, batch_size=batch_size, device=device, progress=progress)
        return Context(
            task=task,
            generator=torch.Generator().manual_seed(seed),
            evaluator=evaluator,
            target=target or Target(),
            progress=progress,
            device=as_device(device),
            batch_size=batch_size,
        )


@dataclass(frozen=True, kw_only=True)
class PassResult:
    """Every layer, either changed (what was done) or skipped (why not)."""

    changed: dict[str, str] = field(default_factory=dict[str, str])
    skipped: dict[str, str] = field(default_factory=dict[str, str])
    notes: tuple[str, ...] = ()
    statistics: Mapping[str, Any] | None = None
    """What a method wants kept beside the table: plain data for JSON. A run folder has it as a file."""

    @property
    def effect(self) -> bool:
        return bool(self.changed)

    def summary(self) -> str:
        if not self.effect:
            reasons = sorted(set(self.skipped.values()))
            return "no effect" + (f": {reasons[0]}" if len(reasons) == 1 else "")
        return f"{len(self.changed)} changed, {len(self.skipped)} skipped"


@dataclass(frozen=True, kw_only=True)
class Pass(ABC):
    """One method with its settings.

    `include` and `skip` are glob patterns of layer paths ("layer1.*"); `overrides` gives other settings to layers that
    match a pattern: {"fc": {"sparsity": 0.5}}, later patterns win. A pattern must match a layer of the network.
    Subclasses are frozen keyword-only dataclasses.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    citations: ClassVar[tuple[str, ...]] = ()
    names_layers: ClassVar[bool] = True
    """Do patterns name modules that own parameters? A pass that finds its places in the graph checks them itself."""

    include: tuple[str, ...] = ("*",)
    skip: tuple[str, ...] = ()
    overrides: Mapping[str, Mapping[str, Any]] = field(default_factory=dict[str, Mapping[str, Any]])

    def __init_subclass__(cls) -> None:
        if not inspect.isabstract(cls) and not ("name" in vars(cls) and "summary" in vars(cls)):
            raise MethodError(
                f"method {cls.__name__}", "no name or no summary", "set the class variables name and summary"
            )

    def __post_init__(self) -> None:
        for name in ("include", "skip"):
            value = getattr(self, name)
            value = (value,) if isinstance(value, str) else value
            if not isinstance(value, (tuple, list)) or not all(isinstance(pattern, str) for pattern in value):
                raise RecipeError(f"{self.name} {name}", f"{value!r}", "give patterns of layer paths: ['layer1.*']")
            object.__setattr__(self, name, tuple(value))
        for f in fields(self):
            if isinstance(f.default, bool):
                check_choice(f"{self.name} {f.name}", getattr(self, f.name), (True, False))
        if not isinstance(self.overrides, Mapping):  # pyright: ignore[reportUnnecessaryIsInstance]
            do = "give settings by layer: {'fc': {...}}"
            raise RecipeError(f"{self.name} overrides", f"{self.overrides!r}", do)
        known = {f.name for f in fields(self)} - {"include", "skip", "overrides"}
        for pattern, settings in self.overrides.items():
            if not isinstance(settings, Mapping):  # pyright: ignore[reportUnnecessaryIsInstance]
                raise RecipeError(
                    f"{self.name} override for {pattern!r}", f"{settings!r}", "give settings by name: {sparsity: 0.5}"
                )
            for key in settings:
                if key not in known:
                    raise RecipeError(
                        f"{self.name} override for {pattern!r}", f"unknown setting {key!r}", nearest(key, known)
                    )
        for settings in self.overrides.values():
            replace(self, overrides={}, **settings)  # checks the values

    def requires(self, net: Artifact) -> list[str]:
        """Reasons why this pass cannot run on `net` now; empty if it can. Each says what to do."""
        return []

    @abstractmethod
    def apply_(self, net: Artifact, context: Context) -> PassResult:
        """Change `net`; account for every layer of `layers(net)`."""

    def for_layer(self, path: str) -> Self:
        """The settings of one layer."""
        result = self
        for pattern, settings in self.overrides.items():
            if fnmatch.fnmatchcase(path, pattern):
                result = replace(result, overrides={}, **settings)
        return result

    def selects(self, path: str) -> bool:
        chosen = any(fnmatch.fnmatchcase(path, p) for p in self.include)
        return chosen and not any(fnmatch.fnmatchcase(path, p) for p in self.skip)

    def pick(self, net: Artifact) -> tuple[dict[str, str], dict[str, str]]:
        """({layer: name of its weight} that this pass should change, {other layer: why not}).

        A weight that several layers share is listed once, under its first layer.
        """
        chosen: dict[str, str] = {}
        skipped: dict[str, str] = {}
        owners: dict[str, str] = {}
        for path, module in layers(net).items():
            if not isinstance(module, WEIGHTED):
                skipped[path] = f"{type(module).__name__} has no weight to compress"
                continue
            weight = net.canonical(f"{path}.weight" if path else "weight")
            if not self.selects(path):
                skipped[path] = "not selected by include and skip"
            elif weight in owners:
                skipped[path] = f"shares its weight with {owners[weight]}"
            else:
                chosen[path] = weight
            owners.setdefault(weight, path)
        return chosen, skipped

    def settings(self) -> dict[str, Any]:
        """The settings that differ from the defaults, as plain data: a recipe needs no more."""
        result: dict[str, Any] = {}
        for f in fields(self):
            value = getattr(self, f.name)
            default = f.default_factory() if callable(f.default_factory) else f.default
            if value != default:
                result[f.name] = _plain(value)
        return result


def layers(net: Artifact) -> dict[str, nn.Module]:
    """The modules that own parameters, by path: what every pass accounts for."""
    return _owners(net.module)


def check_patterns(method: Pass, module: nn.Module, edits: Iterable[Edit] = ()) -> None:
    """Raises `RecipeError` for a pattern of include, skip or overrides that matches no layer of `module`.

    A layer that `edits` have taken away (a folded BatchNorm) still counts: a recipe may name it in every pass.
    """
    if method.names_layers:
        paths = [*_owners(module), *(e.norm if isinstance(e, Fold) else e.path for e in edits)]
        check_names(method, paths, "layer that has parameters")


def check_names(method: Pass, paths: list[str], what: str) -> None:
    """Raises `RecipeError` for a pattern of include, skip or overrides that matches none of these names."""
    given = [("include", p) for p in method.include if p != "*"] + [("skip", p) for p in method.skip]
    for word, pattern in [*given, *(("override for", p) for p in method.overrides)]:
        if not any(fnmatch.fnmatchcase(path, pattern) for path in paths):
            raise RecipeError(f"{method.name} {word} {pattern!r}", f"it matches no {what}", _similar(pattern, paths))


def _owners(module: nn.Module) -> dict[str, nn.Module]:
    return {path: m for path, m in module.named_modules() if any(True for _ in m.parameters(recurse=False))}


def _similar(pattern: str, paths: list[str]) -> str:
    """The layers inside of it, the layer that it is a parameter of, or the nearest name; else the first names."""
    above = pattern.rpartition(".")[0]
    if any(path.startswith(f"{pattern}.") for path in paths):
        return f"did you mean '{pattern}.*'?"
    match = [above] if above in paths else difflib.get_close_matches(pattern, paths, 1, cutoff=0.5)
    if match:
        return f"did you mean {match[0]!r}?"
    more = ", ..." if len(paths) > 8 else ""
    return f"its layers are {', '.join(paths[:8])}{more}" if paths else "the network has none"


def account(before: set[str], method: Pass, result: PassResult) -> None:
    """Raises `MethodError` unless each layer is in exactly one list."""
    both = set(result.changed) & set(result.skipped)
    missing = before - set(result.changed) - set(result.skipped)
    if both or missing:
        layer = min(both or missing)
        found = "is both changed and skipped" if both else "is neither changed nor skipped"
        raise MethodError(
            f"{method.name} on {layer!r}", f"the layer {found}", "return every layer with what happened to it"
        )


def apply_checked_(method: Pass, net: Artifact, context: Context) -> PassResult:
    """Apply a pass and hold it to the laws that can be checked on the spot.

    Raises `RecipeError` when its requirements are not met or a pattern matches no layer, `MethodError` when it broke a
    law.
    """
    reasons = method.requires(net)
    if reasons:
        what, _, do = reasons[0].partition("; ")
        raise RecipeError(f"{method.name}", what, do or "change the order of the passes")
    check_patterns(method, net.module, net.edits)
    before = set(layers(net))
    result = method.apply_(net, context)
    account(before, method, result)
    net.check()
    return result


def check_choice(asked: str, value: object, allowed: tuple[object, ...]) -> None:
    if value not in allowed:
        raise RecipeError(asked, f"{value!r}", f"use one of {', '.join(str(a) for a in allowed)}")


def check_range(asked: str, value: float, low: float, high: float, *, below: bool = False) -> None:
    """`below`: the upper limit itself is not allowed. Where `low` is an int, the value must be one."""
    whole = isinstance(low, int)
    right = isinstance(value, int if whole else (int, float)) and not isinstance(value, bool)
    if not right or not (low <= value < high if below else low <= value <= high):
        word = "whole number" if whole and not isinstance(value, int) else "number"
        raise RecipeError(asked, f"{value!r}", f"use a {word} from {low} {'to below' if below else 'to'} {high}")


def nearest(word: str, known: set[str]) -> str:
    match = difflib.get_close_matches(word, sorted(known), 1)
    return f"did you mean {match[0]!r}?" if match else f"known are {', '.join(sorted(known))}"


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (tuple, list)):
        return [_plain(v) for v in value]
    return value
