"""Small networks that have learned patterns in noise, and their task."""

# pyright: reportAttributeAccessIssue=false

import torch
from torch import nn
from torch.nn import functional as F

from lilliput.core.task import Task
from lilliput.testing import Residual


class Convolutions(nn.Module):
    """Strided, padded, grouped and depthwise convolutions, BatchNorm, a residual sum."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm = nn.Conv2d(1, 4, 3, padding=1, stride=2), nn.BatchNorm2d(4)
        self.b, self.depth = nn.Conv2d(4, 4, 3, padding=1, groups=2), nn.Conv2d(4, 4, 3, padding=1, groups=4)
        self.head = nn.Linear(16, 3)

    def forward(self, x):
        x = F.relu(self.norm(self.a(x)))
        x = torch.tanh(self.depth(F.elu(self.b(x)))) + x
        return self.head(F.max_pool2d(x, 2).flatten(1))


class Twice(nn.Module):
    """A layer that is called twice, and a transposed convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.up = nn.Conv2d(1, 3, 3, stride=2), nn.ConvTranspose2d(3, 2, 3, stride=2)
        self.again, self.head = nn.Linear(18, 18), nn.Linear(18, 3)

    def forward(self, x):
        x = F.avg_pool2d(F.relu(self.up(F.relu(self.a(x)))), 2).flatten(1)
        return self.head(torch.tanh(self.again(torch.tanh(self.again(x)))))


MODELS = {
    "mlp": lambda: nn.Sequential(
        nn.Flatten(), nn.Linear(64, 12), nn.Tanh(), nn.Linear(12, 8), nn.GELU(), nn.Linear(8, 3)
    ),
    "convolutions": Convolutions,
    "residual": Residual,
    "twice": Twice,
}


def trained(name, samples=160):
    """A network that has learned patterns in noise, and its task."""
    generator = torch.Generator().manual_seed(1)
    side = 4 if name == "residual" else 8
    patterns = torch.randn((3, 1, side, side), generator=generator)
    y = torch.arange(samples) % 3
    x = patterns[y] + 1.2 * torch.randn((samples, 1, side, side), generator=generator)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = MODELS[name]()
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
        for _ in range(60):
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
    return model.eval(), Task.classification(train=(x, y), validation=(x[:30], y[:30]))
