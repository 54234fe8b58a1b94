"""Residual networks for CIFAR and SVHN: input [n, 3, 32, 32], output logits [n, n_classes].

| `depth` | 8 | 14 | 20 | 32 | 56 |
|---|---|---|---|---|---|
| parameters, BatchNorm's affine included | 75,290 | 172,506 | 269,722 | 464,154 | 853,018 |
| with `projections` | 78,042 | 175,258 | 272,474 | 466,906 | 855,770 |

Source: He, Zhang, Ren and Sun, "Deep residual learning for image recognition" (2016), section 4.2: three stages of
16, 32 and 64 channels, shortcuts of option A or, with `projections`, option B. Parameter names are those of the
published CIFAR weights by Idelbayev (pytorch_resnet_cifar10), which load here; they expect ImageNet's mean and
standard deviation.

The "ResNet-16" of the published SIC code is depth 14 with `projections`, two blocks in each stage: its name counts the
two projections as layers. Its "ResNet-8" has one block in each stage, and projections too. The code has no weights of
them, and takes grey images of SVHN; here they are in colour.
"""

from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn

from lilliput.core.errors import UsageError


class PadShortcut(nn.Module):
    """Option A: every second pixel, new channels zero, half of them before the old ones and half after; no weights."""

    def __init__(self, *, new_channels: int) -> None:
        super().__init__()
        self.before, self.after = new_channels // 2, new_channels - new_channels // 2

    def forward(self, features: Tensor) -> Tensor:
        return F.pad(features[:, :, ::2, ::2], (0, 0, 0, 0, self.before, self.after))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions around a shortcut; halves the size where the channels grow."""

    def __init__(self, in_channels: int, out_channels: int, *, projections: bool = False) -> None:
        super().__init__()
        grows = out_channels > in_channels
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride=2 if grows else 1, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.shortcut = _shortcut(in_channels, out_channels, projections=projections) if grows else nn.Identity()
        self.relu2 = nn.ReLU()

    def forward(self, features: Tensor) -> Tensor:
        change = self.bn2(self.conv2(self.relu1(self.bn1(self.conv1(features)))))
        return self.relu2(change + self.shortcut(features))


class CifarResNet(nn.Module):
    """`depth` = 6 k + 2 layers with weights, projections not counted; k blocks in each stage; He initialization."""

    def __init__(self, *, depth: int = 20, n_classes: int = 10, projections: bool = False) -> None:
        if depth < 8 or depth % 6 != 2:
            raise UsageError("CifarResNet", f"depth={depth}", "give 6 k + 2 with k >= 1, such as 8, 20, 32 or 56")
        super().__init__()
        n_blocks = (depth - 2) // 6
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.relu = nn.ReLU()
        self.layer1 = _stage(16, 16, n_blocks, projections=projections)
        self.layer2 = _stage(16, 32, n_blocks, projections=projections)
        self.layer3 = _stage(32, 64, n_blocks, projections=projections)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.linear = nn.Linear(64, n_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight)

    def forward(self, images: Tensor) -> Tensor:
        features = self.relu(self.bn1(self.conv1(images)))
        features = self.layer3(self.layer2(self.layer1(features)))
        return self.linear(self.flatten(self.pool(features)))


def _stage(in_channels: int, out_channels: int, n_blocks: int, *, projections: bool) -> nn.Sequential:
    widths = [in_channels] + [out_channels] * n_blocks
    return nn.Sequential(*(BasicBlock(a, b, projections=projections) for a, b in pairwise(widths)))


def _shortcut(in_channels: int, out_channels: int, *, projections: bool) -> nn.Module:
    if not projections:
        return PadShortcut(new_channels=out_channels - in_channels)
    return nn.Sequential(nn.Conv2d(in_channels, out_channels, 1, stride=2, bias=False), nn.BatchNorm2d(out_channels))
