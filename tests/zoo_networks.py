"""Networks of the zoo for tests of the integer program: random weights, and BatchNorm that folding must get right."""

import torch
from torch import nn

from lilliput.methods.normalization.batchnorm import FoldBatchNorm
from lilliput.methods.quantization.post_training import Quantization
from lilliput.zoo.registry import ZOO
from lowered import calibrated_on, quantized

SMALL_RESMLP = ("resmlp-24", "resmlp-24-psa")
LARGE = (
    *("resnet32", "resnet56", "vgg", "mojo-cifar"),
    *(name for name in ZOO if name.startswith("resmlp") and name not in SMALL_RESMLP),
)
"""Those that take seconds for each sample in plain integers."""


def randomize_(model, seed=0):
    """Means, variances and affine parameters as training might leave them: none is 0 or 1."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            n = module.num_features
            mean, weight, bias = (torch.randn(n, generator=generator) for _ in range(3))
            with torch.no_grad():
                module.get_buffer("running_mean").copy_(0.3 * mean)
                module.get_buffer("running_var").copy_(0.2 + 2 * torch.rand(n, generator=generator))
                if module.affine:
                    module.weight.copy_((0.5 + torch.rand(n, generator=generator)) * weight.sign())
                    module.bias.copy_(0.3 * bias)
    return model


def samples_of(name, count, seed=1):
    return torch.randn((count, *ZOO[name].shape), generator=torch.Generator().manual_seed(seed))


def random_network(name, *, calibration=16, signed=True):
    """A network of the zoo, folded and quantized to 8 bits; nothing that it computes means anything."""
    torch.manual_seed(0)
    model, x = randomize_(ZOO[name].model()).eval(), samples_of(name, calibration)
    return quantized(model, calibrated_on(x), FoldBatchNorm(rest="layer"), Quantization(signed=signed))
