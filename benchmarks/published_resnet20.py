"""ResNet-20 for CIFAR-10 as its published checkpoint expects it, written as users write it.

He et al. (2016), https://arxiv.org/abs/1512.03385, section 4.2, with option-A shortcuts in a lambda (stride slice and
zero padding of channels) and functional relu, addition and pooling. `make()` reads the weights and the data from the
folder in LILLIPUT_TEST_DATA: `lilliput compress benchmarks/published_resnet20.py:make`.
"""

import os
import sys
from pathlib import Path

from torch import nn
from torch.nn import functional as F


class LambdaLayer(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


class BasicBlock(nn.Module):
    def __init__(self, channels_in, channels, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.shortcut = nn.Sequential()
        if stride != 1 or channels_in != channels:
            more = channels // 4
            self.shortcut = LambdaLayer(lambda x: F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, more, more), "constant", 0))

    def forward(self, x):
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += self.shortcut(x)
        return F.relu(out)


class ResNet(nn.Module):
    def __init__(self, blocks=(3, 3, 3), n_classes=10):
        super().__init__()
        self.in_planes = 16
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = self._stage(16, blocks[0], 1)
        self.layer2 = self._stage(32, blocks[1], 2)
        self.layer3 = self._stage(64, blocks[2], 2)
        self.linear = nn.Linear(64, n_classes)

    def _stage(self, channels, count, stride):
        layers = []
        for s in [stride, *[1] * (count - 1)]:
            layers.append(BasicBlock(self.in_planes, channels, s))
            self.in_planes = channels
        return nn.Sequential(*layers)

    def forward(self, x):
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.layer3(self.layer2(self.layer1(out)))
        out = F.avg_pool2d(out, out.size()[3])
        out = out.view(out.size(0), -1)
        return self.linear(out)


def data_folder():
    folder = os.environ.get("LILLIPUT_TEST_DATA", "")
    if not (Path(folder) / "models" / "resnet20_cifar10.safetensors").is_file():
        sys.exit("LILLIPUT_TEST_DATA must hold models/resnet20_cifar10.safetensors and cifar-10-batches-bin/")
    return Path(folder)


def make():
    from safetensors.torch import load_file

    from lilliput.zoo.tasks import CIFAR_MEAN, CIFAR_STD, image_classification  # other tools run the network without it

    folder = data_folder()
    model = ResNet()
    model.load_state_dict(load_file(folder / "models" / "resnet20_cifar10.safetensors"), strict=False)
    return model.eval(), image_classification("cifar10", mean=CIFAR_MEAN, std=CIFAR_STD)(folder)
