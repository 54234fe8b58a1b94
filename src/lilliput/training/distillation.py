"""Learning from a teacher: how far outputs are from its outputs."""

import torch.nn.functional as F
from torch import Tensor

from lilliput.core.errors import DataError

CLASSES = ("classification", "segmentation")


def distillation_loss(outputs: Tensor, taught: Tensor, *, kind: str, temperature: float) -> Tensor:
    """Mean over samples of T^2 KL(softmax(taught / T) || softmax(outputs / T)); without classes, of the squared error.

    Classes are dimension 1. The factor T^2 keeps the size of the gradients when T changes.
    For segmentation the mean is over pixels too.
    Source: Hinton, Vinyals and Dean (2015), "Distilling the knowledge in a neural network".
    """
    if outputs.shape != taught.shape:
        raise DataError(
            "distillation",
            f"outputs {tuple(outputs.shape)}, the teacher's {tuple(taught.shape)}",
            "give a teacher with the same outputs",
        )
    if kind not in CLASSES:
        return F.mse_loss(outputs, taught)
    ours, theirs = (F.log_softmax(v / temperature, 1) for v in (outputs, taught))
    divergence = F.kl_div(ours, theirs, reduction="none", log_target=True).sum(1)
    return divergence.mean() * temperature**2
