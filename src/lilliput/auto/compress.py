"""The front door: one call from a network and its task to the smallest file that still does the job."""

import math
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from lilliput.auto.search.budget import Latency
from lilliput.auto.search.find import DEFAULT_TRIALS, TRIALS, Finder, Wish, is_search, misses
from lilliput.auto.search.journal import check_installed
from lilliput.auto.unlabelled import unlabelled
from lilliput.core.artifact import Artifact
from lilliput.core.errors import DataError, UsageError
from lilliput.core.guard import MaxDrop
from lilliput.core.method import Pass, check_patterns
from lilliput.core.progress import SILENT, Progress
from lilliput.core.score import parse_drop
from lilliput.core.target import Target, parse_bytes
from lilliput.core.task import Role, Task
from lilliput.graph import stored
from lilliput.graph.integer import runnable
from lilliput.methods.clustering.weight_clustering import WeightClustering
from lilliput.methods.normalization.batchnorm import FoldBatchNorm
from lilliput.methods.pruning.magnitude import MagnitudePruning
from lilliput.methods.quantization.post_training import Quantization
from lilliput.methods.tuning.fine_tune import FineTune
from lilliput.pipeline.folder import RunFolder
from lilliput.pipeline.recipe import Recipe, Step, from_data, load, to_step
from lilliput.pipeline.run import Outcome, run, threads
from lilliput.report.compare import compare
from lilliput.report.details import details
from lilliput.report.honesty import doubts, roles_of
from lilliput.report.result import Budget, Result, Violation

DEFAULT_DROP = "1pt"
DEFAULT_RELATIVE_DROP = "2%"
SMALL_NETWORK = 100_000
FEWEST_SAMPLES = 5
SAMPLES_SEEN, MOST_EPOCHS = 60_000, 12
"""The default recipe fine-tunes for at most this many epochs, and fewer where the training set is large."""
AnyTask = Task | tuple[Any, Any] | Tensor | np.ndarray
AnyRecipe = Recipe | Pass | str | Path | Sequence[Any] | dict[str, Any]


def default_recipe(
    task: Task, target: Target | None = None, *, max_drop: str | float | None = None, seed: int = 0
) -> Recipe:
    """Half, then three quarters of the weights zero, 16 shared values a layer, 8-bit integers; each step guarded.

    What damages the network is fine-tuned at once. Without training data the steps are milder, and nothing is tuned.
    """
    if max_drop is None:
        max_drop = DEFAULT_DROP if task.score.unit == "%" else DEFAULT_RELATIVE_DROP
    guard = MaxDrop(max_drop=max_drop)
    if task.train is None:
        steps = [(FoldBatchNorm(),), (WeightClustering(n_clusters=64),), (Quantization(),)]
    else:
        tune = FineTune(epochs=epochs_for(task), learning_rate=2e-3)
        values = 15 if target is not None and target.preset.file == "flash" else 16  # and zero: 4 bits each in C
        steps = [
            (FoldBatchNorm(),),
            (MagnitudePruning(sparsity=0.5), tune),
            (MagnitudePruning(sparsity=0.75), tune),
            (WeightClustering(n_clusters=values), tune),
            (Quantization(),),
        ]
    return Recipe(steps=tuple(Step(passes=s, guard=guard) for s in steps), seed=seed, target=target or Target())


def epochs_for(task: Task) -> int:
    """Of one fine-tuning: fewer where the training set is large."""
    return min(max(round(SAMPLES_SEEN / len(task.data("train"))), 1), MOST_EPOCHS) if task.train is not None else 1


def threads_for(model: nn.Module) -> int | None:
    """One thread for small networks, which more threads only slow down; else what torch takes."""
    return 1 if sum(p.numel() for p in model.parameters()) < SMALL_NETWORK else None


def plain_int8(target: Target, seed: int = 0) -> Recipe:
    """What every toolkit does: fold, then 8-bit weights and activations. The middle column of the comparison."""
    steps = (Step(passes=(FoldBatchNorm(),)), Step(passes=(Quantization(),)))
    return Recipe(steps=steps, seed=seed, target=target)


def compress(
    model: nn.Module,
    task: AnyTask,
    target: Target | str | None = None,
    *,
    max_drop: str | float | None = None,
    max_bytes: str | int | None = None,
    max_flash: str | int | None = None,
    max_ram: str | int | None = None,
    max_latency: str | float | None = None,
    time: str | float | None = None,
    trials: int | None = None,
    recipe: AnyRecipe | None = None,
    seed: int | None = None,
    folder: str | Path | None = None,
    join: bool = False,
    progress: Progress = SILENT,
    device: str | torch.device = "cpu",
    batch_size: int = 256,
) -> Result:
    """Compress a copy of `model`, measure it beside the float network and plain int8, and check the budgets.

    Main arguments: `task` (a `Task`; or (X, y): classification for integer y, else regression; or X alone: agreement
    with the network itself; validation and test are then split off), `target`, `max_drop` ("0.5pt", "1%"; also the
    guard of the default recipe), `max_bytes` of the `.lil` file. Others: `recipe` (a Recipe, a YAML file, or passes) in
    place of the default; `target` and `seed` then override the recipe's. `folder` is a run folder: an existing one is
    gone on with, for a new path "runs/name" the next numbered one ("runs/0003-name") is made.

    With `time` ("20min") or `trials`, or where the default recipe misses a budget, recipes are searched for
    (docs/search.md): the smallest network within `max_drop`, or without it the best within the other budgets.
    `max_latency` is "0.5x" of the float network's in ONNX Runtime, or "2ms". `join` works on the search of another
    process in `folder`. What misses a budget in the end is in `result.violations`. Ctrl-C gives the best so far.
    """
    if not isinstance(model, nn.Module):  # pyright: ignore[reportUnnecessaryIsInstance] - a class, easily
        found = f"the class {model.__name__}" if isinstance(model, type) else f"a {type(model).__name__} as model"
        raise UsageError("compress", found, "give an nn.Module")
    task = unlabelled(model, task) if isinstance(task, (Tensor, np.ndarray)) else as_task(task)
    most_bytes = None if max_bytes is None else parse_bytes(max_bytes)
    if max_drop is not None:
        parse_drop(max_drop, task.score, 0.0)  # a budget that cannot be read is found now, not after hours
    latency = None if max_latency is None else Latency.of(max_latency)
    budgets = Budgets(max_drop=max_drop, max_bytes=most_bytes, latency=latency)
    how: dict[str, Any] = {"progress": progress, "device": device, "batch_size": batch_size}
    wish = None
    if recipe is None:
        chosen = as_target(target, max_flash, max_ram)
        plan = default_recipe(task, chosen, max_drop=max_drop, seed=seed or 0)
        plan = replace(plan, threads=plan.threads or threads_for(model))
        wish = wish_for(task, plan, budgets, max_latency=max_latency, time=time, trials=trials, join=join)
    elif time is not None or trials is not None or join:
        raise UsageError("compress with a recipe", "time, trials or join", "leave out the recipe to search for one")
    else:
        plan = as_recipe(recipe, seed)
        plan = replace(plan, target=as_target(target or plan.target, max_flash, max_ram))
        check_recipe(plan, model)
        plan = replace(plan, threads=plan.threads or threads_for(model))
    if time is not None or trials is not None or join:
        check_installed()
    if join and folder is None:
        raise UsageError("join", "no folder", "give the run folder of a search")
    where = None if folder is None else RunFolder.open(folder) if join else RunFolder.at(folder)
    with where.held() if where is not None and not join else nullcontext():
        outcome, tried = made(model, task, plan, wish, where, how)
        if wish is not None and tried:
            budgets = replace(budgets, max_drop=wish.max_drop)
        where = None if join else where  # the folder's files are those of the process that has begun
        if where is not None:
            where.write("net.lil", stored.dumps(outcome.artifact))  # first: no later failure loses the network
            if reason := stored.why_no_graph(outcome.artifact):
                progress.say(f"net.lil holds no graph, so that it needs the model's code: {reason}")
        result = measured(model, task, outcome, folder=where, progress=progress)
        result.trials = tried
        result.points = [
            {key: trial[key] for key in ("name", "bytes", "score", "feasible")}
            for trial in tried
            if trial.get("bytes") and trial.get("score") is not None
        ]
        result.budgets = _budgets(result, outcome, budgets)
        result.violations += [
            Violation(budget=b.budget, limit=b.limit, found=b.found, text=b.text) for b in result.budgets if not b.met
        ]
        result.doubts = _doubts(task, outcome, judged=budgets.max_drop is not None or bool(tried))
        for doubt in result.doubts:
            progress.say(doubt)
        result.uses = dict(outcome.context.evaluator.uses)
        if where is not None:
            finish(result, where)
    return result


@dataclass(frozen=True, kw_only=True)
class Budgets:
    """Those that are not of the target, as they were given or read."""

    max_drop: str | float | None
    max_bytes: int | None
    latency: Latency | None


def wish_for(
    task: Task,
    plan: Recipe,
    budgets: Budgets,
    *,
    max_latency: str | float | None,
    time: str | float | None,
    trials: int | None,
    join: bool = False,
) -> Wish | None:
    """What a search would be asked for; None if nothing that can be missed is asked for, and no time is given.

    Without any budget the score may drop as far as it may in the default recipe.
    """
    limits = (budgets.max_drop, budgets.max_bytes, budgets.latency, plan.target.flash, plan.target.ram)
    asked = any(limit is not None for limit in limits)
    if not (asked or time is not None or trials is not None or join):
        return None
    usual = DEFAULT_DROP if task.score.unit == "%" else DEFAULT_RELATIVE_DROP
    return Wish(
        max_drop=budgets.max_drop if asked else usual,
        max_bytes=budgets.max_bytes,
        max_latency=max_latency,
        time=time,
        trials=trials,
        epochs=epochs_for(task),
        seed=plan.seed,
        threads=plan.threads,
        join=join,
    )


def search_plan(
    model: nn.Module,
    task: Task,
    target: Target,
    *,
    max_drop: str | float | None = None,
    max_bytes: int | None = None,
    max_latency: str | float | None = None,
    time: str | float | None = None,
    trials: int | None = None,
    seed: int | None = None,
    device: str | torch.device = "cpu",
) -> str:
    """What a search would do: templates that fit, those that do not and why, predicted minutes."""
    plan = default_recipe(task, target, max_drop=max_drop, seed=seed or 0)
    plan = replace(plan, threads=plan.threads or threads_for(model))
    latency = None if max_latency is None else Latency.of(max_latency)
    budgets = Budgets(max_drop=max_drop, max_bytes=max_bytes, latency=latency)
    trials = DEFAULT_TRIALS if time is None and trials is None else trials
    wish = cast(Wish, wish_for(task, plan, budgets, max_latency=max_latency, time=time, trials=trials))
    return Finder(model=model, task=task, target=target, wish=wish, device=device).plan()


def made(
    model: nn.Module,
    task: Task,
    plan: Recipe,
    wish: Wish | None,
    where: RunFolder | None,
    how: dict[str, Any],
) -> tuple[Outcome, list[dict[str, Any]]]:
    """By the recipe, or by a search if there is a wish that the recipe does not fulfil; then with what was tried."""
    finder = (
        None if wish is None else Finder(model=model, task=task, target=plan.target, wish=wish, folder=where, **how)
    )
    at_once = wish is not None and (wish.time is not None or wish.trials is not None or wish.join or is_search(where))
    if at_once and where is not None and not is_search(where) and (where.path / "result.json").is_file():
        raise UsageError(f"search in {where.path}", "the finished run of a recipe", "search in a folder of its own")
    if not at_once:
        outcome = run(model, task, plan, folder=where, **how)
        if finder is None or not misses(outcome, finder):
            return outcome, []
        if find_spec("optuna") is None:
            how["progress"].say(
                "the default recipe misses a budget; pip install 'lilliput[search]' to search for another"
            )
            return outcome, []
        how["progress"].say("the default recipe misses a budget: searching for one that does not")
        finder.default = outcome
    found = cast(Finder, finder).find()
    return found.outcome, found.trials


def apply(model: nn.Module, task: AnyTask, recipe: AnyRecipe, **more: Any) -> Result:
    """Run exactly this recipe: the same recipe, seed and machine give the same bytes."""
    return compress(model, task, recipe=recipe, **more)


def measured(
    model: nn.Module, task: Task, outcome: Outcome, *, folder: RunFolder | None = None, progress: Progress = SILENT
) -> Result:
    """Compare float, plain int8 and the outcome on the test role (validation if there is no test)."""
    role: Role = "test" if task.has("test") else "validation"
    target, context = outcome.recipe.target, outcome.context
    progress.say("plain int8 for comparison ...")
    int8 = replace(plain_int8(target, outcome.recipe.seed), threads=outcome.recipe.threads)
    plain = run(model, task, int8, device=context.device, batch_size=context.batch_size, like=outcome.artifact)
    original = Artifact.of(model, task.spec)
    original.memo = outcome.artifact.memo
    artifacts = {"float": original, "plain int8": plain.artifact, "ours": outcome.artifact}
    kept = [s for s, e in zip(outcome.recipe.steps, outcome.trail, strict=True) if e["verdict"]["accepted"]]
    with threads(outcome.recipe.threads), TemporaryDirectory() as temporary:
        place = Path(temporary) if folder is None else folder.path
        columns = compare(
            artifacts,
            model,
            task,
            target=target,
            evaluator=context.evaluator,
            role=role,
            folder=place,
            progress=progress,
            left_out={"ours": partial(left_out, [p for s in kept for p in s.passes])},
        )
        if folder is None:
            for column in columns:
                column.onnx = None
        found = details(columns, task, role)
    return Result(
        artifact=outcome.artifact,
        recipe=outcome.recipe,
        task=task,
        target=target,
        columns=columns,
        trail=outcome.trail,
        statistics=outcome.statistics,
        details=found,
        folder=None if folder is None else folder.path,
    )


def finish(result: Result, folder: RunFolder) -> None:
    """Write what a run leaves behind beside `.lil` and ONNX files: the recipe, the table, and what a page shows."""
    folder.write("recipe.yaml", result.recipe.to_yaml())
    folder.write_json("result.json", result.to_data())
    folder.write_json("report.json", result.report_data())
    folder.write("table.csv", result.to_csv())
    folder.write("table.txt", result.table() + "\n")
    if result.trials:
        folder.write_json(TRIALS, result.trials)


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


def left_out(passes: Sequence[Pass], layer: str) -> str:
    """The last of the passes that was told to leave a layer alone, as a reason; "" if none was."""
    names = [p.name for p in passes if not p.selects(layer)]
    return f"skipped by the recipe (include and skip of {names[-1]})" if names else ""


def _doubts(task: Task, outcome: Outcome, *, judged: bool) -> list[str]:
    """What speaks against validation, if it has chosen anything."""
    judged = judged or any(step.guard is not None and step.guard.role == "validation" for step in outcome.recipe.steps)
    evaluator = outcome.context.evaluator
    return doubts(task, {role: evaluator.reference(role) for role in roles_of(task, judged=judged)})


def _budgets(result: Result, outcome: Outcome, budgets: Budgets) -> list[Budget]:
    """Every budget that was given. Looks at validation if a drop of the score is among them."""
    found: list[Budget] = []
    max_drop = budgets.max_drop
    ours = result.columns[-1].measurements
    limits: list[tuple[str, float | None, str]] = [
        ("max_bytes", budgets.max_bytes, "file"),
        ("max_flash", cast(Any, result.target.flash), "planned flash"),
        ("max_ram", cast(Any, result.target.ram), "planned RAM"),
    ]
    for name, limit, row in limits:
        if limit is not None:
            value = ours[row].value
            text = f"{name}: {value:,.0f} bytes, at most {limit:,.0f} wanted"
            found.append(Budget(budget=name, limit=limit, found=value, unit="B", met=value <= limit, text=text))
    if budgets.latency is not None:
        row, unit = ("latency ratio", "x") if budgets.latency.quantity == "ratio" else ("latency", "ms")
        value, limit = ours[row].value if row in ours else math.inf, budgets.latency.limit
        asked = f"max_latency: {value:.3g} {unit}, at most {limit:.3g} wanted"
        text = asked if row in ours else "max_latency: not measured"
        found.append(Budget(budget="max_latency", limit=limit, found=value, unit=unit, met=value <= limit, text=text))
    if max_drop is not None:
        context, score = outcome.context, result.score
        reference = context.evaluator.reference("validation")
        candidate = context.evaluator(runnable(outcome.artifact), "validation")
        verdict = MaxDrop(max_drop=max_drop).judge(result.task, candidate, reference)
        found.append(
            Budget(
                budget="max_drop",
                limit=parse_drop(max_drop, score, score.value(reference.rows)),
                found=float(verdict.evidence["drop"]),
                unit="pt" if score.unit == "%" else score.unit,
                met=verdict.accepted,
                text=f"max_drop: {verdict.reason}",
            )
        )
    return found
