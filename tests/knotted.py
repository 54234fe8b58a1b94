"""Networks whose learned functions can have their points on codes."""

import torch
from torch import nn

from lilliput.core.artifact import Artifact
from lilliput.core.learned_activation import LearnedActivation
from lilliput.core.method import Context, apply_checked_
from lilliput.methods.quantization.post_training import Quantization
from lowered import task_of

TASK = task_of((4,), classes=2)


def functions(points, kind="table", channels=3, limit=4.0, **more):
    """Of random values, some of them far out of what a grid will hold."""
    act = LearnedActivation(channels, kind=kind, points=points, limit=limit, **more)
    generator = torch.Generator().manual_seed(points)
    with torch.no_grad():
        act.weight.add_(torch.randn(act.weight.shape, generator=generator))
    return act


def chain(*activations):
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(4, 3), *activations, nn.Linear(3, 2)).eval()


def quantized(model, task=TASK, **settings):
    net = Artifact.of(model, task.spec)
    result = apply_checked_(Quantization(**settings), net, Context.of(task, model))
    return net, result


def rounded(model, task=TASK, **settings):
    """With functions stored as they are."""
    net = Artifact.of(model, task.spec)
    Quantization(**settings).round_(net, Context.of(task, model))
    return net


def learned(module, path="1"):
    act = module.get_submodule(path)
    assert isinstance(act, LearnedActivation)
    return act
