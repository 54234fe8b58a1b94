"""Channel pruning in rounds: some channels go, training goes on, and so forth, until few enough MACs are left.

Alternating removal and fine-tuning is that of Molchanov et al. (2017), https://arxiv.org/abs/1611.06440, section 2.
What the optimizer remembers of the channels that stay is carried through each removal.
"""

from dataclasses import dataclass, replace
from typing import Any, ClassVar

from lilliput.core.artifact import Artifact
from lilliput.core.errors import RecipeError
from lilliput.core.method import Context, PassResult, check_range, layers
from lilliput.graph.trace import StoredNetwork, graph_of
from lilliput.measure.macs import count_macs
from lilliput.methods.pruning.channel import ChannelPruning
from lilliput.training.optimizer import Memory, sliced
from lilliput.training.trained import TrainingPass, names_in, values_of


@dataclass(frozen=True, kw_only=True)
class GradualChannelPruning(TrainingPass):
    """Remove channels in `rounds`, train for `round_epochs` after each but the last, then for `epochs`.

    How much: `macs` (share of the MACs that is left) or `max_macs` (a number); each round takes the same share of what
    is there. `criterion`, `multiple`, `lanes` and `compensate` as in `channel_pruning`; no group loses more than the
    share `most` of its channels in one round, but the last takes what is missing. The learning rate is constant in the
    rounds, and follows `schedule` after the last. Others as in `fine_tune`; `keep` counts for the last training.
    """

    name: ClassVar[str] = "gradual_channel_pruning"
    summary: ClassVar[str] = "remove channels in rounds, and train after each"
    citations: ClassVar[tuple[str, ...]] = ("https://arxiv.org/abs/1611.06440",)

    macs: float = 0.5
    max_macs: int | None = None
    rounds: int = 4
    round_epochs: int = 1
    criterion: str = "taylor"
    most: float = 0.5
    multiple: int = 1
    lanes: int = 1
    compensate: bool = True

    def __post_init__(self) -> None:
        check_range(f"{self.name} macs", self.macs, 0.0, 1.0)
        check_range(f"{self.name} rounds", self.rounds, 1, 1000)
        check_range(f"{self.name} round_epochs", self.round_epochs, 1, 1_000_000)
        check_range(f"{self.name} most", self.most, 0.0, 1.0)
        try:
            self.removal(1 if self.max_macs is None else self.max_macs, self.most)  # checks the others
        except RecipeError as error:
            raise RecipeError(error.asked.replace(ChannelPruning.name, self.name), error.found, error.do) from None
        super().__post_init__()

    def removal(self, max_macs: int, most: float) -> ChannelPruning:
        return ChannelPruning(
            criterion=self.criterion,
            max_macs=max_macs,
            most=most,
            multiple=self.multiple,
            lanes=self.lanes,
            compensate=self.compensate,
            include=self.include,
            skip=self.skip,
        )

    def requires(self, net: Artifact) -> list[str]:
        if isinstance(net.module, StoredNetwork):
            return ["the network was loaded without its code; load the file into the model's class"]
        if net.activations:
            return [f"activations are already on integer grids; put {self.name} before quantization"]
        return []

    def apply_(self, net: Artifact, context: Context) -> PassResult:
        stopped = self.untrainable(net, context)
        if stopped is not None:
            return stopped
        first = _macs(net)
        target = int(self.macs * first) if self.max_macs is None else self.max_macs
        reach = self._removed_(net.copy(), context, target, self.together)  # an error comes before hours of training
        if not reach.effect:
            return reach
        snapshot = net.copy()
        try:
            return self._rounds_(net, context, first, target)
        except BaseException:
            net.restore_(snapshot)
            raise

    def _rounds_(self, net: Artifact, context: Context, first: int, target: int) -> PassResult:
        before, start = values_of(net), len(net.edits)
        memory: Memory = {}
        macs = [first]
        epochs = 0
        for k in range(1, self.rounds + 1):
            last = k == self.rounds
            aim = target if last else max(target, int(first * (target / first) ** (k / self.rounds)))
            done = len(net.edits)
            self._removed_(net, context, aim, self.together if last else self.most, needed=last)
            macs.append(_macs(net))
            own = self if last else replace(self, epochs=self.round_epochs, schedule="constant", keep="last")
            path = context.checkpoint
            place = path and path.with_name(f"{path.stem}-round{k}{path.suffix}")
            result = own.train_(net, replace(context, checkpoint=place), memory=sliced(memory, net.edits[done:]))
            memory, epochs = result.memory, epochs + result.epochs_run
            context.progress.say(f"round {k}/{self.rounds}: {macs[-1]:,} of {first:,} MACs")
        if len(net.edits) == start or macs[-1] > target:
            raise RecipeError(
                self.name, f"{macs[-1]:,} MACs left, {target:,} wanted", "raise most, or take more rounds"
            )
        changed, skipped = self.account(net, before, epochs)
        for path in changed:
            for name in names_in(path, layers(net)[path]):
                old, new = before[net.canonical(name)].shape, net.parameter(name).shape
                if old != new:
                    changed[path] = f"{name.rpartition('.')[2]} {_sizes(old)} -> {_sizes(new)}; {changed[path]}"
                    break
        notes = (f"MACs: {first:,} -> {macs[-1]:,} in {self.rounds} rounds",)
        return PassResult(changed=changed, skipped=skipped, notes=notes, statistics={"macs": macs})

    @property
    def together(self) -> float:
        """The share of its channels that a group may lose in all rounds."""
        return 1 - (1 - self.most) ** self.rounds

    def _removed_(
        self, net: Artifact, context: Context, max_macs: int, most: float, *, needed: bool = True
    ) -> PassResult:
        """Without `needed`, nothing goes where so few MACs cannot be reached: a later round takes more."""
        try:
            return self.removal(max(1, max_macs), most).apply_(net, context)
        except RecipeError as error:
            if not needed:
                return PassResult()
            raise RecipeError(self.name, error.found, error.do) from error


def _macs(net: Artifact) -> int:
    return int(count_macs(graph_of(net), net).total("macs").value)


def _sizes(shape: Any) -> str:
    return "x".join(str(size) for size in shape)
