"""Facts about layers that several methods need."""

from torch import nn


def output_axis(layer: nn.Module) -> int | None:
    """The dimension of the weight that counts output channels: 1 for transposed convolutions, else 0.

    None for grouped transposed convolutions, where each slice serves a channel of every group.
    """
    if isinstance(layer, (nn.ConvTranspose1d, nn.ConvTranspose2d)):
        return None if layer.groups > 1 else 1
    return 0
