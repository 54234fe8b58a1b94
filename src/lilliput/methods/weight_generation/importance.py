"""How much errors of weights cost: the diagonal of the empirical Fisher information; losses."""

import copy
from collections.abc import Sequence

import torch
from torch import Tensor

from lilliput.core.artifact import Artifact
from lilliput.core.errors import DataError
from lilliput.core.task import Role, Task

BATCH = 256


def fisher(
    net: Artifact, task: Task, names: Sequence[str], *, role: Role = "calibration", samples: int = 128
) -> dict[str, Tensor]:
    """float64 of each parameter's shape: the mean over samples of the squared slope of the loss.

    The loss is the task's, with labels where it needs them, one sample after the other in evaluation mode; at most the
    first `samples`. Half of it times a squared error estimates what that costs in loss, near a minimum.
    """
    data = task.data(role)
    count = min(samples, len(data))
    if count < 1:
        raise DataError("importance of weights", "no samples", "give at least one")
    module = copy.deepcopy(net.module).eval()
    parameters = [module.get_parameter(name).requires_grad_() for name in names]
    found = [torch.zeros_like(p, dtype=torch.float64) for p in parameters]
    device = net.device
    for i in range(count):
        x, y = data.batch(torch.tensor([i]))
        batch = (x.to(device), y.to(device) if isinstance(y, Tensor) else y)
        with torch.enable_grad():
            loss = task.loss(task.forward(module, batch), task.target(batch)).mean()
            slopes = torch.autograd.grad(loss, parameters, allow_unused=True)
        for total, slope in zip(found, slopes, strict=True):
            if slope is not None:  # pyright: ignore[reportUnnecessaryComparison]
                total.add_(slope.double() ** 2 / count)
    return dict(zip(names, found, strict=True))


def mean_loss(net: Artifact, task: Task, *, role: Role = "calibration", samples: int = 128) -> float:
    """The mean of the task's loss over the first `samples` of the role."""
    data, total = task.data(role), 0.0
    count = min(samples, len(data))
    for picks in torch.arange(count).split(BATCH):
        x, y = data.batch(picks)
        batch = (x.to(net.device), y.to(net.device) if isinstance(y, Tensor) else y)
        with torch.no_grad():
            loss = task.loss(task.forward(net.module.eval(), batch), task.target(batch)).mean()
        total += float(loss) * len(picks) / count
    return total
