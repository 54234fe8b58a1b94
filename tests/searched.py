"""Tiny networks and tasks whose searches take seconds."""

import torch

from lilliput.core.artifact import Artifact
from lilliput.core.progress import Progress
from lilliput.core.task import Task
from lilliput.methods.tuning.fine_tune import FineTune
from lilliput.testing import tiny_model, tiny_task
from lilliput.training.fit import fit


class Lines(Progress):
    """Keeps the lines; raises KeyboardInterrupt when one begins with `stop`."""

    def __init__(self, stop=None):
        self.lines, self.stop = [], stop

    def say(self, text):
        self.lines.append(text)
        if self.stop is not None and text.startswith(self.stop):
            self.stop = None
            raise KeyboardInterrupt


def three_roles(samples=192):
    x, y = tiny_task(samples).data("train").batch(torch.arange(samples))
    a, b = samples // 2, 3 * samples // 4
    return Task.classification((x[:a], y[:a]), (x[a:b], y[a:b]), (x[b:], y[b:]))


def trained(name, task, epochs=20):
    """A tiny network that does its task."""
    net = Artifact.of(tiny_model(name), task.spec)
    fit(
        net,
        task,
        FineTune(epochs=epochs, learning_rate=1e-2).fit_settings({}),
        generator=torch.Generator().manual_seed(0),
    )
    return net.module
