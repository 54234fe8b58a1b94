"""A narrower network of the same form: what learned activations are to make up for."""

from dataclasses import dataclass
from typing import ClassVar

from lilliput.core.artifact import Artifact
from lilliput.core.errors import RecipeError
from lilliput.core.method import Context, Pass, PassResult, check_range
from lilliput.methods.pruning.channel import ChannelPruning


@dataclass(frozen=True, kw_only=True)
class Narrow(Pass):
    """Keep the share `factor` of the channels of each group, at least one: those that cost most to lose.

    It is `channel_pruning` by `amount`, with the same share for all groups whose layers are selected. To narrow the
    hidden layers of blocks alone, select the blocks: what comes in and goes out of them is read by others too. Train
    behind it, with `distill`.
    """

    name: ClassVar[str] = "narrow"
    summary: ClassVar[str] = "keep a share of the channels of every group: the same network, narrower"

    factor: float = 0.5
    criterion: str = "taylor"
    multiple: int = 1
    compensate: bool = True

    def __post_init__(self) -> None:
        check_range("narrow factor", self.factor, 0.0, 1.0)
        if self.factor == 0:
            raise RecipeError("narrow factor", "0", "keep something: 0.5 is half of the channels")
        super().__post_init__()
        self._pruning()

    def requires(self, net: Artifact) -> list[str]:
        return self._pruning().requires(net)

    def apply_(self, net: Artifact, context: Context) -> PassResult:
        return self._pruning().apply_(net, context)

    def _pruning(self) -> ChannelPruning:
        overrides = {
            pattern: {"amount" if key == "factor" else key: 1 - v if key == "factor" else v for key, v in own.items()}
            for pattern, own in self.overrides.items()
        }
        return ChannelPruning(
            criterion=self.criterion,
            amount=1 - self.factor,
            most=1.0,
            multiple=self.multiple,
            compensate=self.compensate,
            include=self.include,
            skip=self.skip,
            overrides=overrides,
        )
