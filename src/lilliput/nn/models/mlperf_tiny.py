"""The four networks of MLPerf Tiny (Banbury et al., 2021, https://arxiv.org/abs/2106.07597), layer by layer.

| class | input | output | parameters | with BatchNorm's statistics | multiply-accumulates |
|---|---|---|---|---|---|
| `DSCNN` | [n, 1, 49, 10] | logits [n, 12] | 23,756 | 24,908 | 2,656,768 |
| `TinyResNet8` | [n, 3, 32, 32] | logits [n, 10] | 78,186 | 78,666 | 12,501,632 |
| `MobileNetV1` | [n, 3, 96, 96] | logits [n, 2] | 216,322 | 221,794 | 7,489,664 |
| `DenseAutoencoder` | [n, 640] | reconstruction [n, 640] | 267,928 | 269,992 | 264,192 |

The second count is the one that Keras prints for the published networks: it adds the mean and variance of every
BatchNorm to the parameters. To agree with it, convolutions and linear layers before a BatchNorm have the published
biases, which folding takes up; and BatchNorm has Keras's epsilon. `CifarResNet(depth=8, projections=True)` is another
network: no biases, but a BatchNorm in its two projections.

TensorFlow pads strided layers on the right and at the bottom more than on the left and at the top. `Conv2d` pads both
sides alike, so such a layer has its zeros from a `ZeroPad2d` before it: the published windows, exactly.
"""

from collections import OrderedDict
from itertools import pairwise

from torch import Tensor, nn

_EPSILON = 1e-3


class DSCNN(nn.Sequential):
    """Depthwise separable CNN for keywords (Zhang et al., 2017): 49 frames of 10 cepstrum coefficients.

    The mean is over all 25x5 positions.
    """

    def __init__(self, *, n_classes: int = 12, width: int = 64) -> None:
        layers: OrderedDict[str, nn.Module] = OrderedDict(
            stem=_conv(1, width, (10, 4), size=(49, 10), stride=2), dropout1=nn.Dropout(0.2)
        )
        for i in range(1, 5):
            layers[f"block{i}"] = _separable(width, width, size=(25, 5))
        layers["dropout2"] = nn.Dropout(0.4)
        super().__init__(_with_head(layers, width, n_classes))


class MobileNetV1(nn.Sequential):
    """MobileNet (Howard et al., 2017) with a quarter of the channels, for one of two classes; plain ReLU."""

    def __init__(self, *, n_classes: int = 2) -> None:
        layers: OrderedDict[str, nn.Module] = OrderedDict(stem=_conv(3, 8, (3, 3), size=(96, 96), stride=2))
        widths = [8, 16, 32, 32, 64, 64, *[128] * 6, 256, 256]
        size = 48
        for i, (a, b) in enumerate(pairwise(widths), 1):
            stride = 2 if b > a and i > 1 else 1
            layers[f"block{i}"] = _separable(a, b, size=(size, size), stride=stride)
            size //= stride
        super().__init__(_with_head(layers, widths[-1], n_classes))


class DenseAutoencoder(nn.Sequential):
    """640-128-128-128-128-8-128-128-128-128-640: five frames of 128 mel bands, and a code of 8 for normal sounds."""

    def __init__(self, *, n_features: int = 640) -> None:
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        widths = [n_features, *[128] * 4, 8, *[128] * 4]
        for i, (a, b) in enumerate(pairwise(widths), 1):
            layers[f"layer{i}"] = nn.Sequential(nn.Linear(a, b), nn.BatchNorm1d(b, eps=_EPSILON), nn.ReLU())
        layers["linear"] = nn.Linear(widths[-1], n_features)
        super().__init__(layers)


class TinyResNet8(nn.Module):
    """Three stages of one residual block; where the size halves, the shortcut is a 1x1 convolution alone."""

    def __init__(self, *, n_classes: int = 10) -> None:
        super().__init__()
        self.stem = _conv(3, 16, (3, 3), size=(32, 32))
        self.stage1, self.stage2, self.stage3 = _Block(16, 16, 32), _Block(16, 32, 32), _Block(32, 64, 16)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.linear = nn.Linear(64, n_classes)

    def forward(self, images: Tensor) -> Tensor:
        features = self.stage3(self.stage2(self.stage1(self.stem(images))))
        return self.linear(self.flatten(self.pool(features)))


class _Block(nn.Module):
    def __init__(self, in_channels: int, out_channels: int, size: int) -> None:
        super().__init__()
        stride = out_channels // in_channels
        self.first = _conv(in_channels, out_channels, (3, 3), size=(size, size), stride=stride)
        self.second = _conv(out_channels, out_channels, (3, 3), size=(size // stride, size // stride), relu=False)
        self.shortcut = nn.Conv2d(in_channels, out_channels, 1, stride=stride) if stride > 1 else nn.Identity()
        self.relu = nn.ReLU()

    def forward(self, features: Tensor) -> Tensor:
        return self.relu(self.second(self.first(features)) + self.shortcut(features))


def _conv(
    in_channels: int,
    out_channels: int,
    kernel: tuple[int, int],
    *,
    size: tuple[int, int],
    stride: int = 1,
    groups: int = 1,
    relu: bool = True,
) -> nn.Sequential:
    """A convolution of pictures of `size`, padded as TensorFlow's "same" does, with BatchNorm."""
    total = [max(0, ((n - 1) // stride) * stride + k - n) for n, k in zip(size, kernel, strict=True)]
    (top, left), (bottom, right) = [t // 2 for t in total], [t - t // 2 for t in total]
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    even = (top, left) == (bottom, right)
    if not even:
        layers["pad"] = nn.ZeroPad2d((left, right, top, bottom))
    padding = (top, left) if even else 0
    layers["conv"] = nn.Conv2d(in_channels, out_channels, kernel, stride=stride, padding=padding, groups=groups)
    layers["bn"] = nn.BatchNorm2d(out_channels, eps=_EPSILON)
    if relu:
        layers["relu"] = nn.ReLU()
    return nn.Sequential(layers)


def _separable(in_channels: int, out_channels: int, *, size: tuple[int, int], stride: int = 1) -> nn.Sequential:
    depthwise = _conv(in_channels, in_channels, (3, 3), size=size, stride=stride, groups=in_channels)
    return nn.Sequential(
        OrderedDict(depthwise=depthwise, pointwise=_conv(in_channels, out_channels, (1, 1), size=size))
    )


def _with_head(layers: OrderedDict[str, nn.Module], width: int, n_classes: int) -> OrderedDict[str, nn.Module]:
    layers.update(pool=nn.AdaptiveAvgPool2d(1), flatten=nn.Flatten(), linear=nn.Linear(width, n_classes))
    return layers
