"""What a caller may give for a task, a target and a recipe, made into these."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lilliput.core.errors import DataError, UsageError
from lilliput.core.method import Pass, check_patterns
from lilliput.core.target import Target
from lilliput.core.task import Task
from lilliput.pipeline.recipe import Recipe, from_data, load, to_step

FEWEST_SAMPLES = 5
AnyTask = Task | tuple[Any, Any] | Tensor | np.ndarray
AnyRecipe = Recipe | Pass | str | Path | Sequence[Any] | dict[str, Any]


def as_task(task: AnyTask) -> Task:
    """A `Task`, or (X, y) split 60/20/20 with seed 0: classes for integer y, numbers for the rest."""
    if isinstance(task, Task):
        return task
    if not (isinstance(task, tuple) and len(task) == 2):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise UsageError("task", f"a {type(task).__name__}", "give a lilliput.Task, or (X, y)")
    x, y = (_tensor(v) for v in task)
    if len(x) != len(y) or len(x) < FEWEST_SAMPLES:
        raise DataError(
            "task (X, y)",
            f"{len(x)} inputs and {len(y)} targets",
            f"give one target for each input, and at least {FEWEST_SAMPLES}",
        )
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    cuts = round(0.6 * len(x)), round(0.8 * len(x))
    parts = {"train": order[: cuts[0]], "validation": order[cuts[0] : cuts[1]], "test": order[cuts[1] :]}
    roles: dict[str, Any] = {role: (x[rows], y[rows]) for role, rows in parts.items()}
    return Task.regression(**roles) if y.is_floating_point() else Task.classification(**roles)


def _tensor(values: Any) -> Tensor:
    if isinstance(values, Tensor):
        tensor = values
    else:
        array = np.ascontiguousarray(values)
        if array.dtype.kind not in "fiub":
            raise DataError("task (X, y)", f"an array of {array.dtype}", "give numbers; classes as 0, 1, 2, ...")
        tensor = torch.from_numpy(array)
    if tensor.dim() == 0:
        raise DataError("task (X, y)", f"the single value {tensor.item()}", "give one row for each sample")
    return tensor


def as_target(target: Target | str | None, flash: str | int | None, ram: str | int | None) -> Target:
    base = target if isinstance(target, Target) else Target(target or "onnx-x86")
    if flash is None and ram is None:
        return base
    return Target(
        base.name,
        flash=base.flash if flash is None else flash,
        ram=base.ram if ram is None else ram,
        reduce_range=base.reduce_range,
    )


def as_recipe(recipe: AnyRecipe, seed: int | None = None) -> Recipe:
    """`seed` None = the recipe's own."""
    if isinstance(recipe, Recipe):
        found = recipe
    elif isinstance(recipe, Pass):
        found = Recipe(steps=(to_step(recipe),))
    elif isinstance(recipe, (str, Path)):
        found = load(recipe)
    elif isinstance(recipe, dict):
        found = from_data(recipe)
    else:
        found = Recipe(steps=tuple(to_step(item) for item in recipe))
    return found if seed is None else replace(found, seed=seed)


def check_recipe(recipe: Recipe, model: nn.Module) -> None:
    """Raises `RecipeError` where a pattern of a pass matches no layer of the model: no data are needed to see it."""
    for step in recipe.steps:
        for method in step.passes:
            check_patterns(method, model)
