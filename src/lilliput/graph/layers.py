"""Facts about layers that several methods need."""

from torch import nn


def output_axis(layer: nn.Module) -> int:
    """The dimension of the weight that counts output channels: 1 for transposed convolutions, else 0."""
    return 1 if isinstance(layer, (nn.ConvTranspose1d, nn.ConvTranspose2d)) else 0
