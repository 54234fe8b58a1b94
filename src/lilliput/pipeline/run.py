"""Run a recipe: each step on a copy, under its guard, into the trail, resumable."""

import hashlib
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from lilliput.core import container
from lilliput.core.artifact import Artifact
from lilliput.core.device import as_device
from lilliput.core.errors import ArtifactError
from lilliput.core.files import explained
from lilliput.core.guard import Guard, MinAgreement, Verdict
from lilliput.core.method import Context, Pass, PassResult, apply_checked_
from lilliput.core.progress import SILENT, Progress
from lilliput.core.score import parse_drop
from lilliput.core.task import Task
from lilliput.graph.integer import runnable
from lilliput.pipeline.cache import StepCache, identity_of
from lilliput.pipeline.folder import RunFolder
from lilliput.pipeline.recipe import Recipe, Step


@dataclass(kw_only=True)
class Outcome:
    """What a run gives: the network, the recipe as it was run, what each step did, and the context (use counts)."""

    artifact: Artifact
    recipe: Recipe
    trail: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    statistics: dict[str, Mapping[str, Any]] = field(default_factory=dict[str, Mapping[str, Any]])
    """What methods noted beside the trail, by the name of its file in the run folder."""
    context: Context


def run(
    model: nn.Module,
    task: Task,
    recipe: Recipe,
    *,
    folder: RunFolder | None = None,
    progress: Progress = SILENT,
    device: str | torch.device = "cpu",
    batch_size: int = 256,
    like: Artifact | None = None,
    cache: StepCache | None = None,
) -> Outcome:
    """Apply the recipe to a copy of `model`. The caller's model is never changed.

    With a folder, finished steps are saved; if the folder already holds finished steps of the same recipe, model and
    data, the run goes on after them and ends in the same bytes as an uninterrupted one. `like` is an artifact of the
    same model: its traces serve this run too. `cache` has the beginnings of other runs, and keeps those of this one.
    """
    place = as_device(device)
    for step in recipe.steps:  # a guard that cannot be judged is found before the first step, not after it
        if step.guard is not None:
            _check_guard(step.guard, task)
    with folder.held() if folder is not None else nullcontext(), threads(recipe.threads) as used:
        recipe = replace(recipe, threads=used)
        net = Artifact.of(model, task.spec)
        if like is not None:
            net.memo = like.memo
        original = net.copy().module.to(place)
        context = Context.of(
            task,
            original,
            seed=recipe.seed,
            target=recipe.target,
            progress=progress,
            device=place,
            batch_size=batch_size,
        )
        outcome = Outcome(artifact=net, recipe=recipe, context=context)
        done = _begin(folder, model, task, recipe, outcome) if folder is not None else 0
        if cache is not None and not done:
            begun = cache.longest(recipe, model, task.spec)
            if begun is not None:
                begun.artifact.memo = net.memo
                outcome.artifact, outcome.trail, outcome.statistics = begun.artifact, begun.trail, begun.statistics
                done = len(begun.trail)
        for index, step in enumerate(recipe.steps):
            if index < done:
                continue
            entry = _step_(outcome, step, index, folder)
            outcome.trail.append(entry)
            if folder is not None:
                data = container.dumps(outcome.artifact)
                entry["snapshot"] = hashlib.blake2b(data, digest_size=16).hexdigest()
                folder.write(f"step-{index:02d}.lil", data)
                folder.append(entry)
                _drop_checkpoints(folder, index)  # not before: whatever fails up to here, no training is lost
            if cache is not None:
                cache.keep(recipe, outcome.artifact, outcome.trail, outcome.statistics)
        data = {key: value for key, value in recipe.to_data().items() if key != "lilliput"}  # the file has a version
        outcome.artifact.to_("cpu").recipe = [{"recipe": data}]
        return outcome


def _step_(outcome: Outcome, step: Step, index: int, folder: RunFolder | None) -> dict[str, Any]:
    """One step on a copy; the outcome takes the copy if the guard accepts it."""
    started = time.perf_counter()
    context = outcome.context
    net = outcome.artifact.copy()
    net.to_(context.device)
    results: list[PassResult] = []
    for i, method in enumerate(step.passes):
        context.progress.say(f"{step.passes[i].name} ...")
        context.generator = torch.Generator().manual_seed(_seed(outcome.recipe.seed, index, i))
        context.checkpoint = None if folder is None else _checkpoint(folder, index, i)
        results.append(apply_checked_(method, net, context))
    files = [_noted(outcome, index, i, m, r, folder) for i, (m, r) in enumerate(zip(step.passes, results, strict=True))]
    entry: dict[str, Any] = {
        "step": index,
        "name": step.name,
        "passes": [
            {
                "name": m.name,
                "settings": m.settings(),
                "changed": r.changed,
                "skipped": r.skipped,
                "notes": list(r.notes),
                **({"statistics": file} if file else {}),
            }
            for m, r, file in zip(step.passes, results, files, strict=True)
        ],
    }
    effect = any(r.effect for r in results)
    verdict = _judge(step, net, context) if effect else Verdict(accepted=True, reason="no effect")
    if verdict.accepted and effect:
        outcome.artifact = net
    entry |= {
        "effect": effect,
        "verdict": asdict(verdict),
        "bytes": len(container.dumps(outcome.artifact, strip=True)),
        "uses": dict(context.evaluator.uses),
        "seconds": round(time.perf_counter() - started, 3),
    }
    summary = "; ".join(f"{m.name}: {r.summary()}" for m, r in zip(step.passes, results, strict=True))
    context.progress.say(
        f"{'kept' if verdict.accepted else 'REFUSED'}: {summary} ({verdict.reason}) -> {entry['bytes']:,} bytes"
    )
    for m, r in zip(step.passes, results, strict=True):
        for note in r.notes:
            context.progress.say(f"  {m.name}: {note}")
    return entry


def _noted(
    outcome: Outcome, step: int, part: int, method: Pass, result: PassResult, folder: RunFolder | None
) -> str | None:
    """The name under which the statistics of a method are kept, if it has any."""
    if result.statistics is None:
        return None
    name = f"statistics-{step:02d}-{part}-{method.name}.json"
    outcome.statistics[name] = result.statistics
    if folder is not None:
        folder.write_json(name, result.statistics)
    return name


def _judge(step: Step, net: Artifact, context: Context) -> Verdict:
    if step.guard is None:
        return Verdict(accepted=True, reason="no guard")
    return step.guard.decide(context.evaluator, runnable(net))


def _check_guard(guard: Guard, task: Task) -> None:
    if isinstance(guard, MinAgreement):
        guard.share()
    else:
        parse_drop(guard.max_drop, task.score, 0.0)


def _begin(folder: RunFolder, model: nn.Module, task: Task, recipe: Recipe, outcome: Outcome) -> int:
    """Note what the run is about; take up finished steps. Returns their number."""
    identity = {"recipe": recipe.to_data(), **identity_of(model, task, weights_hash(model))}
    folder.tidy()
    if not (folder.path / "run.json").exists():
        folder.cut_trail(0)
        folder.write("recipe.yaml", recipe.to_yaml())
        folder.write_json("run.json", identity)
        return 0
    before = folder.read_json("run.json")
    for key, value in identity.items():
        if before.get(key) != value:
            raise ArtifactError(
                f"resume {folder.path}",
                f"{key} not as in the run{_where(before.get(key), value)}",
                "resume with the same model, data and recipe, or start a new run",
            )
    trail = [entry for i, entry in enumerate(folder.trail()) if entry.get("step") == i]
    for count, entry in zip(range(len(trail), 0, -1), reversed(trail), strict=True):
        snapshot = folder.path / f"step-{entry['step']:02d}.lil"
        try:
            data = snapshot.read_bytes()
        except OSError:
            continue
        if hashlib.blake2b(data, digest_size=16).hexdigest() != entry.get("snapshot"):
            continue
        fresh = Artifact.of(model, task.spec).module
        outcome.artifact = container.loads(data, source=str(snapshot)).replay(fresh)
        outcome.artifact.input = task.spec
        outcome.trail = trail[:count]
        names = [p["statistics"] for e in outcome.trail for p in e["passes"] if "statistics" in p]
        outcome.statistics = {name: folder.read_json(name) for name in names}
        folder.cut_trail(count)
        for step in range(count):
            _drop_checkpoints(folder, step)
        outcome.context.evaluator.uses.update(entry.get("uses", {}))
        outcome.context.progress.say(f"resumed after step {entry['step']}: {entry['name']}")
        return count
    folder.cut_trail(0)
    return 0


def _checkpoint(folder: RunFolder, step: int, part: int | str) -> Path:
    return folder.path / f"step-{step:02d}-{part}.checkpoint"


def _drop_checkpoints(folder: RunFolder, step: int) -> None:
    for path in folder.path.glob(_checkpoint(folder, step, "*").name):
        with explained(f"remove {path}"):
            path.unlink(missing_ok=True)


def _where(before: Any, now: Any) -> str:
    """The first entry in which two mappings differ, in brackets: "(seed: 1, now 0)"."""
    if not (isinstance(before, dict) and isinstance(now, dict)):
        return ""
    old, new = cast(dict[str, Any], before), cast(dict[str, Any], now)
    differ = [key for key in {**old, **new} if old.get(key) != new.get(key)]
    return f" ({differ[0]}: {old.get(differ[0])}, now {new.get(differ[0])})" if differ else ""


def weights_hash(model: nn.Module) -> str:
    """16 hex digits of all parameters and buffers."""
    digest = hashlib.blake2b(digest_size=8)
    for name, tensor in model.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


@contextmanager
def threads(wanted: int | None) -> Iterator[int]:
    """torch with this many threads; as before afterwards."""
    before = torch.get_num_threads()
    if wanted is not None:
        torch.set_num_threads(wanted)
    try:
        yield torch.get_num_threads()
    finally:
        torch.set_num_threads(before)


def _seed(seed: int, step: int, part: int) -> int:
    """A seed for each pass of its own, so that resuming needs no state of the generator."""
    digest = hashlib.blake2b(f"{seed}/{step}/{part}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1
