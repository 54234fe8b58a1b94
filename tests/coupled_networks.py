"""Networks whose channels are coupled in every way that is known, for inputs of shape (3, 8, 8)."""

# pyright: reportAttributeAccessIssue=false

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

SHAPE = (3, 8, 8)


class Net(nn.Module):
    """Functional code around named layers."""

    def __init__(self, code: Callable[..., Tensor], **layers: nn.Module) -> None:
        super().__init__()
        self.code = code
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, x: Tensor) -> Tensor:
        return self.code(self, x)


def conv(a: int, b: int, kernel: int = 3, **settings) -> nn.Conv2d:
    return nn.Conv2d(a, b, kernel, padding=kernel // 2, **settings)


def head(x: Tensor, layer: nn.Module) -> Tensor:
    return layer(x.mean((2, 3)))


def residual() -> nn.Module:
    def code(n, x):
        x = F.relu(n.bn(n.a(x)))
        x = F.relu(x + n.bn2(n.c(F.relu(n.b(x)))))
        return head(x, n.fc)

    return Net(code, a=conv(3, 8, bias=False), bn=nn.BatchNorm2d(8), b=conv(8, 6), c=conv(6, 8, bias=False),
               bn2=nn.BatchNorm2d(8), fc=nn.Linear(8, 5))  # fmt: skip


def option_a() -> nn.Module:
    """Strided slices and zero channels, as in residual networks for small images."""

    def code(n, x):
        x = F.relu(n.bn(n.a(x)))
        x = F.relu(n.c(F.relu(n.b(x))) + F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 2, 2)))
        return head(x, n.fc)

    return Net(code, a=conv(3, 4, bias=False), bn=nn.BatchNorm2d(4), b=conv(4, 6, stride=2), c=conv(6, 8),
               fc=nn.Linear(8, 5))  # fmt: skip


def depthwise() -> nn.Module:
    layers = [conv(3, 8), nn.SiLU(), conv(8, 8, groups=8), nn.BatchNorm2d(8), nn.SiLU(), conv(8, 4, 1),
              conv(4, 12, groups=4), nn.Hardswish(), conv(12, 6, 1), nn.Flatten(), nn.Linear(6 * 64, 5)]  # fmt: skip
    return nn.Sequential(*layers)


def grouped() -> nn.Module:
    layers = [conv(3, 8), nn.ReLU(), conv(8, 12, groups=2), nn.ReLU(), conv(12, 6, groups=3), nn.Sigmoid()]
    return nn.Sequential(*layers, nn.MaxPool2d(2), nn.Flatten(), nn.Linear(6 * 16, 5))


def concat() -> nn.Module:
    def code(n, x):
        x = F.relu(n.a(x))
        x = torch.cat([x, F.relu(n.b(x))], 1)
        x = torch.cat([x, n.act(n.c(n.bn(x)))], 1)
        return head(F.avg_pool2d(x, 2), n.fc)

    return Net(code, a=conv(3, 4), b=conv(4, 5), bn=nn.BatchNorm2d(9), c=conv(9, 6), act=nn.PReLU(6),
               fc=nn.Linear(15, 5))  # fmt: skip


def excitation() -> nn.Module:
    """Channels times what is computed of their means."""

    def code(n, x):
        x = F.relu(n.a(x))
        gate = torch.sigmoid(3 * n.up(torch.tanh(n.down(x.mean((2, 3), keepdim=True)))))
        return head(x * gate, n.fc)

    return Net(code, a=conv(3, 8), down=conv(8, 4, 1), up=conv(4, 8, 1), fc=nn.Linear(8, 5))


def spatial() -> nn.Module:
    """Channels times one map, which is spread over them."""

    def code(n, x):
        x = F.relu(n.a(x))
        return head(n.b(x * torch.sigmoid(n.map(x))), n.fc)

    return Net(code, a=conv(3, 8), map=conv(8, 1), b=conv(8, 4), fc=nn.Linear(4, 5))


def series() -> nn.Module:
    layers = [nn.Flatten(2), nn.Conv1d(3, 8, 5, stride=2), nn.BatchNorm1d(8), nn.ReLU(), nn.Conv1d(8, 6, 3, padding=1)]
    return nn.Sequential(*layers, nn.MaxPool1d(2), nn.Tanh(), nn.Flatten(), nn.Linear(6 * 15, 5))


def transposed() -> nn.Module:
    turned = nn.ConvTranspose2d
    layers = [
        conv(3, 8, stride=2),
        nn.ReLU(),
        turned(8, 6, 2, 2),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        turned(6, 6, 3, groups=6),
    ]
    return nn.Sequential(
        *layers, nn.ReLU(), turned(6, 8, 3, groups=2), nn.ReLU(), nn.Upsample(scale_factor=2), conv(8, 2)
    )


def scaled() -> nn.Module:
    """Parameters of functional code, one for each channel."""

    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.fc = conv(3, 6), nn.Linear(6, 5)
            self.factor = nn.Parameter(torch.rand(6, 1, 1) + 0.5)

        def forward(self, x: Tensor) -> Tensor:
            return head(F.relu(self.a(x)) * self.factor, self.fc)

    return Scaled()


def twice() -> nn.Module:
    """One module called twice, and a layer tied to its weight."""

    def code(n, x):
        x = F.relu(n.enter(x.flatten(1)))
        x = F.relu(n.middle(F.relu(n.middle(x))))
        return n.out(F.relu(n.tied(x)))

    net = Net(code, enter=nn.Linear(192, 8), middle=nn.Linear(8, 8), tied=nn.Linear(8, 8), out=nn.Linear(8, 5))
    net.tied.weight = net.middle.weight
    return net


def deep() -> nn.Module:
    """61 layers."""

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = conv(4, 6), conv(6, 4)
            with torch.no_grad():
                self.b.weight.mul_(0.1)

        def forward(self, x: Tensor) -> Tensor:
            return x + self.b(F.relu(self.a(x)))

    return nn.Sequential(conv(3, 4), *(Block() for _ in range(29)), nn.Flatten(), nn.Linear(4 * 64, 5))


NETS: dict[str, Callable[[], nn.Module]] = {
    "two layers": lambda: nn.Sequential(nn.Flatten(), nn.Linear(192, 8), nn.ReLU(), nn.Linear(8, 5)),
    "residual": residual, "option A": option_a, "depthwise": depthwise, "grouped": grouped, "concat": concat,
    "excitation": excitation, "spatial": spatial, "series": series, "transposed": transposed, "scaled": scaled,
    "twice": twice, "61 layers": deep,
}  # fmt: skip


def network(name: str, seed: int = 0) -> nn.Module:
    """With weights and statistics that follow from the seed, in evaluation mode."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = NETS[name]()
        for module in model.modules():
            if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
                state = dict(module.named_buffers())
                state["running_mean"].normal_(0, 0.3)
                state["running_var"].uniform_(0.5, 2)
                module.weight.data.uniform_(0.5, 1.5)
                module.bias.data.normal_(0, 0.3)
            if isinstance(module, nn.PReLU):
                module.weight.data.uniform_(0, 1)
    return model.eval()
