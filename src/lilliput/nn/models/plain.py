"""Networks without shortcuts for CIFAR-10: input [n, 3, 32, 32], output logits [n, n_classes].

| class | layers | parameters | multiply-accumulates |
|---|---|---|---|
| `VGG` | 8 convolutions with BatchNorm, one linear | 9,228,362 | 605,754,368 |
| `MojoCIFARCNN` | 5 convolutions, one linear, no biases | 403,850 | 332,324,900 |

Convolutions and linear layers are counted. The published figures of this VGG (sconce's results, 9.23 M parameters and
606 M) are these, rounded. Its file of 36.949 MB is 36,935,528 bytes of tensors (BatchNorm's statistics included) and
the names and padding of a state dict.

Sources: Simonyan and Zisserman, "Very deep convolutional networks for large-scale image recognition" (2015), in the
form behind those figures: pooling after the second, fourth, sixth and eighth
convolution, then the mean over the last 2x2 pixels. Weights published for it expect pixels in [0, 1], not normalized;
its parameter names are kept. `MojoCIFARCNN`: layer sizes and parameter names of the published SIC code, which has
neither weights nor figures for it.
"""

from collections import OrderedDict

from torch import Tensor, nn

_VGG_STAGES = ((64, 128), (256, 256), (512, 512), (512, 512))


class VGG(nn.Module):
    """Four stages of two 3x3 convolutions and max pooling, the mean over what is left, a linear layer."""

    def __init__(self, *, n_classes: int = 10) -> None:
        super().__init__()
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        in_channels, n_convs = 3, 0
        for i, widths in enumerate(_VGG_STAGES):
            for width in widths:
                layers[f"conv{n_convs}"] = nn.Conv2d(in_channels, width, 3, padding=1, bias=False)
                layers[f"bn{n_convs}"] = nn.BatchNorm2d(width)
                layers[f"relu{n_convs}"] = nn.ReLU()
                in_channels, n_convs = width, n_convs + 1
            layers[f"pool{i}"] = nn.MaxPool2d(2)
        self.backbone = nn.Sequential(layers)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.classifier = nn.Linear(in_channels, n_classes)

    def forward(self, images: Tensor) -> Tensor:
        return self.classifier(self.flatten(self.pool(self.backbone(images))))


class MojoCIFARCNN(nn.Sequential):
    """A 3x3 and four 2x2 convolutions at almost full resolution (32, then 31 to 28 pixels), then the mean over them."""

    def __init__(self, *, n_classes: int = 10) -> None:
        layers: OrderedDict[str, nn.Module] = OrderedDict(conv1=nn.Conv2d(3, 50, 3, padding=1, bias=False))
        layers["act1"] = nn.ReLU()
        for i in range(2, 6):
            layers[f"conv{i}"] = nn.Conv2d(50 * (i - 1), 50 * i, 2, bias=False)
            layers[f"act{i}"] = nn.ReLU()
        layers["global_pool"] = nn.AdaptiveAvgPool2d(1)
        layers["flatten"] = nn.Flatten()
        layers["fc"] = nn.Linear(250, n_classes, bias=False)
        super().__init__(layers)
