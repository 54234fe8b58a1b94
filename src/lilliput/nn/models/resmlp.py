"""ResMLP, a network of linear layers for small images: as published for CIFAR-10, input [n, 3, 32, 32], logits out.

Patches of 4x4 pixels become 64 tokens of 96 channels. Four blocks follow, each with a linear layer over the tokens and
two over the channels, each of the two parts beside a shortcut; the mean over the tokens, a linear layer.

Touvron et al. (2021), "ResMLP", https://arxiv.org/abs/2105.03404, in the form of the host of learned activations
(ACM TRETS, https://doi.org/10.1145/3705926): BatchNorm in front of each part, and with learned activations a second one
before the first of the two layers. We differ: values are kept as [n, channels, tokens], so layers over channels are
convolutions of one tap, and BatchNorm and scales need no transposition; the scale behind a block's last layer is part
of that layer from the start.

| hidden | 384 | 192 | 96 | 48 | 24 |
|---|---|---|---|---|---|
| multiply-accumulates | 20,767,680 | 11,330,496 | 6,611,904 | 4,252,608 | 3,072,960 |

24,576 of them are the scales of the four blocks.
"""

from collections.abc import Callable

from torch import Tensor, nn

from lilliput.core.learned_activation import LearnedActivation

SMALL = 0.1
"""What a block adds is multiplied with, at the start."""
ACTIVATIONS: dict[str, Callable[[int], nn.Module]] = {
    "relu": lambda _: nn.ReLU(),
    "gelu": lambda _: nn.GELU(),
    "spline": lambda n: LearnedActivation(n, kind="bspline", points=65, init="paper"),
    "psa": lambda n: LearnedActivation(n, kind="lerp_psa", points=65, init="paper"),
}
"""As published, over [-4, 4] (there PSA has 64 points)."""


class ResMLPBlock(nn.Module):
    """x + scale(over tokens(norm(x))), then x + project(activate(expand(norm(x)))); [n, channels, tokens].

    With `before`, an activation of `channels` channels stands before `expand` too.
    """

    def __init__(
        self, channels: int, tokens: int, hidden: int, activation: Callable[[int], nn.Module], *, before: bool
    ) -> None:
        super().__init__()
        self.token_norm = nn.BatchNorm1d(channels)
        self.over_tokens = nn.Linear(tokens, tokens)
        self.token_scale = nn.Conv1d(channels, channels, 1, groups=channels)
        nn.init.constant_(self.token_scale.weight, SMALL)
        self._zero_(self.token_scale)
        self.channel_norm = nn.BatchNorm1d(channels)
        self.first = activation(channels) if before else nn.Identity()
        self.expand = nn.Conv1d(channels, hidden, 1)
        self.activation = activation(hidden)
        self.project = nn.Conv1d(hidden, channels, 1)
        self.project.weight.data.mul_(SMALL)
        self._zero_(self.project)

    @staticmethod
    def _zero_(layer: nn.Conv1d) -> None:
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.token_scale(self.over_tokens(self.token_norm(x)))
        return x + self.project(self.activation(self.expand(self.first(self.channel_norm(x)))))


class ResMLP(nn.Module):
    """For square images. `activation`, one of `ACTIVATIONS` or a function of the channels, stands in each block.

    `before` (see `ResMLPBlock`) is as published if it is None: a learned activation stands there too.
    """

    def __init__(
        self,
        *,
        hidden: int = 384,
        activation: str | Callable[[int], nn.Module] = "relu",
        before: bool | None = None,
        channels: int = 96,
        blocks: int = 4,
        patch: int = 4,
        pixels: int = 32,
        colors: int = 3,
        n_classes: int = 10,
    ) -> None:
        super().__init__()
        if before is None:
            before = activation in ("spline", "psa")
        if isinstance(activation, str):
            activation = ACTIVATIONS[activation]
        self.embed = nn.Conv2d(colors, channels, patch, stride=patch)
        tokens = (pixels // patch) ** 2
        self.blocks = nn.Sequential(
            *(ResMLPBlock(channels, tokens, hidden, activation, before=before) for _ in range(blocks))
        )
        self.norm = nn.BatchNorm1d(channels)
        self.classifier = nn.Linear(channels, n_classes)

    def forward(self, images: Tensor) -> Tensor:
        return self.classifier(self.norm(self.blocks(self.embed(images).flatten(2))).mean(2))
