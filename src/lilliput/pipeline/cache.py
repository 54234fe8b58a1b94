"""Steps that several recipes begin with are computed once: kept by what they follow from."""

import hashlib
import json
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from lilliput.core import container
from lilliput.core.artifact import Artifact, InputSpec
from lilliput.core.edits import fingerprint
from lilliput.core.errors import ArtifactError
from lilliput.core.files import write_atomically
from lilliput.core.task import Task
from lilliput.pipeline.folder import json_text
from lilliput.pipeline.recipe import Recipe

MOST_BYTES = 500_000_000


@dataclass(frozen=True, kw_only=True)
class Beginning:
    """The network after the first steps, and what they left in the trail and beside it."""

    artifact: Artifact
    trail: list[dict[str, Any]]
    statistics: dict[str, Mapping[str, Any]]


class StepCache:
    """The network after each but the last step of a recipe, as files named by all that they follow from.

    That is the model, its weights, the data, how batches are made, and the recipe up to there with its seed. Several
    processes may use one folder: a file is written whole, and whoever writes it writes the same.

    The folder holds about `most_bytes`: what was used last stays, and what the recipes in `needed` begin with.
    """

    def __init__(self, folder: Path, identity: Mapping[str, Any], *, most_bytes: int = MOST_BYTES) -> None:
        self.folder, self.identity = folder, json_text(identity)
        self.most_bytes = most_bytes
        self.needed: list[Recipe] = []
        self.hits = 0

    def after(self, recipe: Recipe, steps: int) -> Path:
        """Where the network after so many steps is, if it is there."""
        start = replace(recipe, steps=recipe.steps[:steps], name="").to_data()
        key = hashlib.blake2b((self.identity + json_text(start)).encode(), digest_size=16).hexdigest()
        return self.folder / f"{key}.lil"

    def longest(self, recipe: Recipe, model: nn.Module, spec: InputSpec) -> "Beginning | None":
        """The most steps that need not be run again."""
        for steps in range(len(recipe.steps) - 1, 0, -1):
            path = self.after(recipe, steps)
            try:
                data = path.read_bytes()
                notes = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
                module = Artifact.of(model, spec).module
                found = container.loads(data, source=str(path)).replay(module)
            except (OSError, ValueError, ArtifactError):
                continue
            found.input = spec
            self.hits += 1
            for used in (path, path.with_suffix(".json")):
                with suppress(OSError):  # another process has removed it meanwhile
                    os.utime(used)
            return Beginning(artifact=found, **notes)
        return None

    def keep(
        self,
        recipe: Recipe,
        artifact: Artifact,
        trail: list[dict[str, Any]],
        statistics: Mapping[str, Mapping[str, Any]],
    ) -> None:
        """After a step; the last one is nobody's beginning."""
        if len(trail) < len(recipe.steps):
            path = self.after(recipe, len(trail))
            if not path.exists():
                notes = {"trail": trail, "statistics": statistics}
                write_atomically(path.with_suffix(".json"), json_text(notes).encode())
                write_atomically(path, container.dumps(artifact))
                self.prune_()

    def steps_of(self, recipe: Recipe) -> int:
        """How many of its steps are kept in a row."""
        most = len(recipe.steps) - 1
        return next((n for n in range(most) if not self.after(recipe, n + 1).exists()), most)

    def prune_(self) -> None:
        """What was not used for longest goes, until the rest is small enough."""
        stay = {self.after(recipe, n).stem for recipe in self.needed for n in range(1, len(recipe.steps))}
        files: list[tuple[float, int, Path]] = []
        for path in self.folder.iterdir():
            with suppress(OSError):
                found = path.stat()
                files.append((found.st_mtime, found.st_size, path))
        size = sum(size for _, size, _ in files)
        for _, taken, path in sorted(files):
            if size <= self.most_bytes:
                return
            if path.stem not in stay:
                with suppress(OSError):
                    path.unlink()
                size -= taken


def identity_of(model: nn.Module, task: Task, weights: str) -> dict[str, Any]:
    """What a run is about, beside its recipe."""
    return {
        "model": fingerprint(model),
        "weights": weights,
        "data": {r: task.data(r).fingerprint() for r in ("train", "validation") if task.has(r)},
    }
