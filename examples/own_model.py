"""A network and a task of your own, as the command line wants them: a function that returns both.

    lilliput check    examples/own_model.py:make
    lilliput compress examples/own_model.py:make

`make()` is called each time a command needs the network, so let it be quick and let it always return the same. This one
trains for a second; yours would load weights, or leave them to `--weights mine.pt`.
"""

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F

import lilliput as ll


class Reader(nn.Module):
    """Two convolutions with BatchNorm and a linear layer, for 8x8 images."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(1, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16)
        self.conv2, self.norm2 = nn.Conv2d(16, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32)
        self.linear = nn.Linear(32 * 2 * 2, 10)

    def forward(self, images: Tensor) -> Tensor:
        features = F.max_pool2d(F.relu(self.norm1(self.conv1(images))), 2)
        features = F.max_pool2d(F.relu(self.norm2(self.conv2(features))), 2)
        return self.linear(features.flatten(1))


def make() -> tuple[nn.Module, ll.Task]:
    torch.manual_seed(0)
    digits = load_digits()
    x = torch.tensor(digits.images).float().unsqueeze(1) / 16  # type: ignore[attr-defined]
    y = torch.tensor(digits.target)  # type: ignore[attr-defined]
    train, validation, test = torch.randperm(len(y)).split([1000, 400, 397])
    task = ll.Task.classification(
        train=(x[train], y[train]), validation=(x[validation], y[validation]), test=(x[test], y[test])
    )
    model = Reader()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for batch in torch.cat([train[torch.randperm(1000)] for _ in range(6)]).split(100):
        optimizer.zero_grad()
        F.cross_entropy(model(x[batch]), y[batch]).backward()
        optimizer.step()
    return model.eval(), task
