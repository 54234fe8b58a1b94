"""Networks for tests of the integer program and its back-ends."""

import torch
from torch import nn
from torch.nn import functional as F

from coupled_networks import SHAPE, network
from lilliput.core.artifact import Artifact
from lilliput.core.edits import Slice
from lilliput.core.method import Context, apply_checked_
from lilliput.core.task import Task
from lilliput.methods.normalization.batchnorm import FoldBatchNorm
from lilliput.methods.quantization.post_training import Quantization
from lilliput.methods.self_compression.self_compression import SelfCompression
from lilliput.testing import tiny_model, tiny_task


def quantized(model, task, *passes):
    """Folded, changed by the passes and quantized."""
    net = Artifact.of(model, task.spec)
    last = () if passes and isinstance(passes[-1], Quantization) else (Quantization(),)
    for method in (FoldBatchNorm(), *passes, *last):
        apply_checked_(method, net, Context.of(task, model))
    return net


def quantized_tiny(name, *passes):
    return quantized(tiny_model(name), tiny_task(), *passes)


def task_of(shape, classes=3, samples=48):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn((samples, *shape), generator=generator)
    return Task.classification(
        train=(x, torch.arange(samples) % classes), validation=(x, torch.arange(samples) % classes)
    )


def calibrated_on(x):
    """A task with these samples and no others: for tests of integers, which any ranges serve."""
    data = x, torch.arange(len(x)) % 2
    return Task.classification(train=data, validation=data)


def self_compressed(name):
    """(the original, its task, the network): one of `coupled_networks` whose channels have vanished by themselves."""
    model, task = network(name), task_of(SHAPE, classes=5)
    net = Artifact.of(model, task.spec)
    method = SelfCompression(
        steps=60, batch_size=16, rounds=6, settle=0.2, learning_rate=1e-2, bit_rate=0.3, gamma=100.0
    )
    for each in (FoldBatchNorm(), method):
        apply_checked_(each, net, Context.of(task, model))
    assert any(isinstance(edit, Slice) for edit in net.edits)
    return model, task, net


class Operations(nn.Module):
    """One of each operation with an integer rule."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = (
            nn.Conv2d(2, 4, 3, padding="same"),
            nn.Conv2d(4, 4, (3, 1), stride=(2, 1), dilation=(1, 2), padding=(1, 0)),
        )
        self.up = nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, output_padding=1, groups=2)
        self.down, self.head = nn.Conv2d(6, 4, 1), nn.Linear(7, 5)

    def forward(self, x):
        x = F.pad(self.a(x), (1, 0, 2, 1), value=0.25)
        y = self.up(F.relu6(self.b(x)))
        y = F.interpolate(F.max_pool2d(F.gelu(self.down(y)), 3, 2, 1), scale_factor=2, mode="nearest")
        y = torch.cat([y[:, ::2], torch.sigmoid(y[:, 1:3]) * y[:, 1:3], F.avg_pool2d(y, 3, 1, 1)], 1)
        y = (y - 0.5).transpose(2, 3)
        y = torch.tanh(y - F.elu(y)).mean((2, 3))[:, :7]
        return self.head(F.hardswish(y).unsqueeze(1).flatten(1))
