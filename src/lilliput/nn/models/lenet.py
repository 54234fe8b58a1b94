"""Networks for 28x28 grey images (MNIST, Fashion-MNIST): input [n, 1, 28, 28], output logits [n, n_classes].

| class | layers | parameters | multiply-accumulates |
|---|---|---|---|
| `SmallMNISTCNN` | 784-128-10 | 101,770 | 101,632 |
| `LeNet5Tanh`, `LeNet5ELU` | convolutions 20 and 50, linear 500 and 10 | 431,080 | 2,293,000 |
| `LeNet5Seed` | convolutions 20 and 50; output: 800 features | 25,570 | 1,888,000 |
| `SeedCNN` | convolutions 6 and 50, linear 10 | 19,494 | 179,136 |
| `LeNet5` | convolutions 6 and 16, linear 120, 84 and 10 | 61,706 | 416,520 |
| `MNISTCNN` | convolutions 32, 32, 64 and 64 with BatchNorm, linear 10 | 87,466 | 13,213,312 |

Sources: LeCun, Bottou, Bengio and Haffner, "Gradient-based learning applied to document recognition" (1998) for
`LeNet5`; Caffe's example network for the layer widths 20-50-500-10; the others, with these names, layer sizes and
parameter names, are those of the published SIC code. Its weights of `SmallMNISTCNN` and `LeNet5Tanh` load here and
expect pixels in [0, 1], not normalized; for `LeNet5Seed` and `SeedCNN` it has neither weights nor figures. `MNISTCNN`
is the network of self-compression's code for MNIST.
"""

from collections import OrderedDict

from torch import nn


class SmallMNISTCNN(nn.Sequential):
    """Two linear layers and a ReLU: there is no convolution, whatever its published name says."""

    def __init__(self, *, n_classes: int = 10) -> None:
        super().__init__(
            OrderedDict[str, nn.Module](
                flatten=nn.Flatten(), fc1=nn.Linear(784, 128), act1=nn.ReLU(), fc2=nn.Linear(128, n_classes)
            )
        )


class LeNet5Tanh(nn.Sequential):
    """The "lenet5-caffe" layers with tanh and average pooling."""

    def __init__(self, *, n_classes: int = 10) -> None:
        super().__init__(_caffe_layers(nn.Tanh, n_classes))


class LeNet5ELU(nn.Sequential):
    """The "lenet5-caffe" layers with ELU (alpha 1) and average pooling."""

    def __init__(self, *, n_classes: int = 10) -> None:
        super().__init__(_caffe_layers(nn.ELU, n_classes))


class LeNet5Seed(nn.Sequential):
    """The convolutions of `LeNet5Tanh`: features [n, 800], as published, or logits with a linear layer on top.

    The layer for `n_classes` is ours: without it there is nothing that labels could train or judge.
    """

    def __init__(self, *, n_classes: int | None = None) -> None:
        super().__init__(_caffe_features(nn.Tanh))
        if n_classes is not None:
            self.add_module("classifier", nn.Linear(50 * 4 * 4, n_classes))


class SeedCNN(nn.Sequential):
    """Two strided 7x7 convolutions with ReLU instead of pooling, and a linear layer; no biases."""

    def __init__(self, *, n_classes: int = 10) -> None:
        super().__init__(
            OrderedDict[str, nn.Module](
                conv1=nn.Conv2d(1, 6, 7, stride=2, padding=1, bias=False),
                act1=nn.ReLU(),
                conv2=nn.Conv2d(6, 50, 7, stride=4, padding=2, bias=False),
                act2=nn.ReLU(),
                flatten=nn.Flatten(),
                classifier=nn.Linear(50 * 3 * 3, n_classes, bias=False),
            )
        )


class LeNet5(nn.Sequential):
    """The classic, as it is built today.

    Differs from the paper: 28x28 padded by two instead of 32x32 input, plain average pooling and tanh, the second
    convolution sees all six maps, and a linear output instead of radial basis functions.
    """

    def __init__(self, *, n_classes: int = 10) -> None:
        super().__init__(
            OrderedDict[str, nn.Module](
                conv1=nn.Conv2d(1, 6, 5, padding=2),
                act1=nn.Tanh(),
                pool1=nn.AvgPool2d(2),
                conv2=nn.Conv2d(6, 16, 5),
                act2=nn.Tanh(),
                pool2=nn.AvgPool2d(2),
                flatten=nn.Flatten(),
                fc1=nn.Linear(16 * 5 * 5, 120),
                act3=nn.Tanh(),
                fc2=nn.Linear(120, 84),
                act4=nn.Tanh(),
                fc3=nn.Linear(84, n_classes),
            )
        )


class MNISTCNN(nn.Sequential):
    """Four convolutions without bias, in pairs of a ReLU each; BatchNorm without scale and shift before each pooling.

    Differs from the published code: its BatchNorm keeps no running statistics, and uses those of each batch.
    """

    def __init__(self, *, n_classes: int = 10) -> None:
        super().__init__(
            OrderedDict[str, nn.Module](
                conv1=nn.Conv2d(1, 32, 5, bias=False),
                act1=nn.ReLU(),
                conv2=nn.Conv2d(32, 32, 5, bias=False),
                act2=nn.ReLU(),
                norm1=nn.BatchNorm2d(32, affine=False),
                pool1=nn.MaxPool2d(2),
                conv3=nn.Conv2d(32, 64, 3, bias=False),
                act3=nn.ReLU(),
                conv4=nn.Conv2d(64, 64, 3, bias=False),
                act4=nn.ReLU(),
                norm2=nn.BatchNorm2d(64, affine=False),
                pool2=nn.MaxPool2d(2),
                flatten=nn.Flatten(),
                classifier=nn.Linear(64 * 3 * 3, n_classes),
            )
        )


def _caffe_layers(activation: type[nn.Module], n_classes: int) -> OrderedDict[str, nn.Module]:
    layers = _caffe_features(activation)
    layers.update(fc1=nn.Linear(50 * 4 * 4, 500), act3=activation(), fc2=nn.Linear(500, n_classes))
    return layers


def _caffe_features(activation: type[nn.Module]) -> OrderedDict[str, nn.Module]:
    return OrderedDict(
        conv1=nn.Conv2d(1, 20, 5),
        act1=activation(),
        pool1=nn.AvgPool2d(2),
        conv2=nn.Conv2d(20, 50, 5),
        act2=activation(),
        pool2=nn.AvgPool2d(2),
        flatten=nn.Flatten(),
    )
