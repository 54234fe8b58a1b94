"""`lilliput train`."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from lilliput.auto.compress import threads_for
from lilliput.core.artifact import Artifact
from lilliput.core.errors import UsageError
from lilliput.core.files import locked
from lilliput.core.progress import Progress
from lilliput.graph import stored
from lilliput.pipeline.run import threads
from lilliput.training.fit import fit
from lilliput.training.settings import FitSettings
from lilliput.zoo.registry import ZOO, entry, open_model


def train_model(
    model: str,
    path: Path,
    *,
    epochs: int | None,
    learning_rate: float | None,
    batch_size: int | None,
    weights: Path | None,
    data: str | None,
    data_root: Path | None,
    download: bool,
    seed: int,
    device: str,
    progress: Progress,
) -> dict[str, Any]:
    """Train and write `path`; beside it a checkpoint while it goes on, from which an interrupted training resumes.

    The score is that of the weights that are written.
    """
    if path.suffix != ".lil":
        raise UsageError(f"train --out {path}", "the file is a .lil", f"name it {path.with_suffix('.lil').name}")
    torch.manual_seed(seed)  # the command owns its process: initial weights follow the seed
    net, task = open_model(
        model,
        weights=weights,
        data=data,
        data_root=data_root,
        download=download,
        trained=False,
        fresh=weights is None,
        progress=progress,
    )
    base = entry(model).training if model in ZOO else FitSettings(epochs=20, learning_rate=2e-3, schedule="one_cycle")
    given = {"epochs": epochs, "learning_rate": learning_rate, "batch_size": batch_size}
    settings = replace(base, **{k: v for k, v in given.items() if v is not None})
    for line in task.roles():
        progress.say(line)
    artifact = Artifact.of(net, task.spec)
    checkpoint = path.with_suffix(".checkpoint")
    lock = locked(path.with_name(f".{path.stem}.lock"), f"train {path}")
    with lock, threads(threads_for(net)):
        result = fit(
            artifact,
            task,
            settings,
            generator=torch.Generator().manual_seed(seed),
            progress=progress,
            device=device,
            checkpoint=checkpoint,
        )
        size = stored.save(artifact, path)
        checkpoint.unlink(missing_ok=True)
    best = settings.keep == "best"
    return {
        "file": str(path),
        "bytes": size,
        "epochs": result.epochs_run,
        "epoch kept": result.best_epoch if best else result.epochs_run,
        f"validation {task.score.name}": result.best_score if best else result.history[-1]["validation_score"],
    }
