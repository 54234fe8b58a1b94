# /// script
# dependencies = ["torch==2.13.0", "numpy==2.4.6"]
# ///
"""Magnitude and Wanda, the plain ways to prune without training, as their papers define them.

The same share of each layer's weights goes: the smallest of the layer (magnitude), or in each row those with the least
|weight| x norm of their input, layer by layer on what the pruned layers before give (Wanda, Sun et al. (2023),
https://arxiv.org/abs/2306.11695). "with BN": BatchNorm statistics are then taken anew on the calibration images, as
these methods' users do. The file: one bit for each weight, what is left in float32, the rest in float32.
"""

import numpy as np
import torch
from exchange import Made, Row, fold_, images, network, reestimate_, run, weights_of
from torch import nn
from torch.nn import functional as F


def layers(model):
    return [m for m in model.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]


def magnitude_(model, share, _calibration):
    for layer in layers(model):
        flat = layer.weight.data.abs().reshape(-1)
        gone = flat.argsort()[: round(share * len(flat))]
        layer.weight.data.view(-1)[gone] = 0


def input_norms(model, layer, calibration):
    """[inputs of a row]: over all images and places."""
    squares = []

    def see(module, args):
        x = args[0]
        columns = F.unfold(x, module.kernel_size, 1, module.padding, module.stride) if x.dim() == 4 else x[:, :, None]
        squares.append(columns.double().square().sum((0, 2)))

    hook = layer.register_forward_pre_hook(see)
    for batch in calibration.split(64):
        model(batch)
    hook.remove()
    return torch.stack(squares).sum(0).sqrt()


def wanda_(model, share, calibration):
    for layer in layers(model):
        rows = layer.weight.data.flatten(1)
        scores = rows.abs() * input_norms(model, layer, calibration)
        gone = scores.argsort(1)[:, : round(share * rows.shape[1])]
        layer.weight.data.copy_(rows.scatter(1, gone, 0.0).reshape(layer.weight.shape))


def packed(weights):
    parts = []
    for values in weights.values():
        if values.ndim > 1:
            parts.append(np.packbits(values.reshape(-1) != 0).tobytes())
        parts.append(values[values != 0].tobytes() if values.ndim > 1 else values.tobytes())
    return b"".join(parts)


@torch.no_grad()
def made(prune_, share, *, again=False):
    model, calibration = network("network"), torch.from_numpy(images("calibration"))
    prune_(model, share, calibration)
    if again:
        reestimate_(model, calibration)
    weights = weights_of(fold_(model))
    return Made(artifact=packed(weights), weights=weights)


if __name__ == "__main__":
    found = []
    for share in (0.5, 0.7):
        for title, prune_ in (("magnitude", magnitude_), ("Wanda", wanda_)):
            for again in (False, True):
                name = f"{title}, {round(100 * share)}% zero{', with BN' if again else ''}"
                found.append(
                    Row(group="sparse", name=name, make=lambda p=prune_, s=share, a=again: made(p, s, again=a))
                )
    run(found, ("torch", "numpy"))
