"""A task from inputs alone: the answers that are wanted are those of the network itself."""

from typing import Any

import torch
from torch import Tensor, nn

from lilliput.core.artifact import Artifact, InputSpec
from lilliput.core.errors import DataError, UsageError
from lilliput.core.guard import outputs_of
from lilliput.core.score import Score, accuracy
from lilliput.core.task import Data, Task

BATCH = 256
FEWEST = 5


def unlabelled(model: nn.Module, inputs: Any) -> Task:
    """60/20/20 of the inputs (seed 0) as train, validation and test; the score is the agreement with `model`.

    Where the network has one row of at least two numbers for a sample these are taken for classes: the share of equal
    answers. Otherwise it is the share of the outputs' variance that is kept.
    """
    data = Data.of((inputs, torch.zeros(len(inputs), dtype=torch.int64)), role="inputs")
    if len(data) < FEWEST:
        raise DataError("inputs without labels", f"{len(data)} samples", f"give at least {FEWEST}")
    example = data.batch(torch.tensor([0]))[0]
    original = Artifact.of(model, InputSpec(shape=tuple(example.shape[1:]))).module
    asking = Task.regression(validation=(data.batch(torch.arange(len(data)))[0], torch.zeros(len(data))))
    outputs = outputs_of(original, asking, data, BATCH, torch.device("cpu"))
    classes = outputs.dim() == 2 and outputs.shape[1] > 1
    y = outputs.argmax(1) if classes else outputs.flatten(1)
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(0))
    cuts = (0, round(0.6 * len(data)), round(0.8 * len(data)), len(data))
    x = data.inputs
    roles: dict[str, Any] = {
        role: (x[rows], y[rows])
        for role, rows in zip(
            ("train", "validation", "test"), (order[cuts[i] : cuts[i + 1]] for i in range(3)), strict=True
        )
    }
    if classes:
        score = accuracy()
        return Task.classification(
            **roles, score=Score(name="agreement", unit="%", statistics=score.statistics, binary=True)
        )
    return Task.regression(**roles, score=Score(name="agreement", unit="%", statistics=_squares, reduce=_kept))


def _squares(outputs: Tensor, targets: object) -> Tensor:
    """float64 [n, 1 + d]: the squared difference, then what is wanted."""
    if not isinstance(targets, Tensor):
        raise UsageError("agreement", f"targets of type {type(targets).__name__}", "give tensors")
    wanted = targets.reshape(len(outputs), -1).double()
    return torch.cat([(outputs.reshape(len(outputs), -1).double() - wanted).square().sum(1, keepdim=True), wanted], 1)


def _kept(rows: Tensor) -> float:
    spread = float((rows[:, 1:] - rows[:, 1:].mean(0)).square().sum(1).mean())
    moved = float(rows[:, 0].mean())
    return 1.0 if moved == 0 else max(0.0, 1.0 - moved / max(spread, 1e-30))
