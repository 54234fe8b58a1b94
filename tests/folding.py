"""Networks with BatchNorm that has seen data."""

import torch
from torch import nn

from lilliput.core.artifact import Artifact, InputSpec
from lilliput.graph.trace import trace


def fill_(model, seed, *, negative=True):
    """Statistics and scales of a norm that has seen data: large and nearly dead channels too, and negative ones."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
            n = module.num_features
            if module.running_mean is not None and module.running_var is not None:
                module.running_mean.copy_(torch.randn(n, generator=generator))
                module.running_var.copy_(10 ** (4 * torch.rand(n, generator=generator) - 2))
            if module.affine:
                with torch.no_grad():
                    weight = torch.randn(n, generator=generator)
                    module.weight.copy_(weight if negative else weight.abs())
                    module.bias.copy_(torch.randn(n, generator=generator))
    return model.eval()


def net_of(model, shape):
    net = Artifact.of(model, InputSpec(shape=shape))
    return net, trace(net.module, net.input.example(2))
