"""Gradual pruning: weights become zero a few at a time while the network trains.

The schedule is that of Zhu and Gupta (2017), "To prune, or not to prune", https://arxiv.org/abs/1710.01878, equation 1.
Which weights: by magnitude over all layers, by LAMP scores (Lee et al., 2021, https://arxiv.org/abs/2010.07611), which
give each layer its own share, or the same share of each layer. Masks only grow, unlike in rigging the lottery.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

from torch import Tensor

from lilliput.core.artifact import Artifact
from lilliput.core.method import Context, PassResult, check_choice, check_range
from lilliput.methods.pruning.magnitude import masks_across, masks_within
from lilliput.training.growing_masks import GrowingMasks, Ramp
from lilliput.training.trained import TrainingPass, values_of


@dataclass(frozen=True, kw_only=True)
class GradualPruning(TrainingPass):
    """Train for `epochs` while the share of zeros rises to `sparsity`, fast at first and ever slower.

    Main arguments: `sparsity` (0..1, of all entries of the selected weights, those already zero by mask included),
    `epochs`, and `scope`: "lamp" and "global" compare weights across layers (LAMP after normalizing them), "uniform"
    takes the same share of each. Zeros come every `every` steps, from the share `start` of the training on until the
    share `end`; what is left of it repairs the network. Others as in `fine_tune`; `keep` "best" is the best of the
    epochs that have all the zeros. Biases are never pruned. Values shared by clusters and weights on grids stay so.
    """

    name: ClassVar[str] = "gradual_pruning"
    summary: ClassVar[str] = "set more and more of the smallest weights to zero while training"
    citations: ClassVar[tuple[str, ...]] = ("https://arxiv.org/abs/1710.01878", "https://arxiv.org/abs/2010.07611")

    sparsity: float = 0.8
    scope: str = "lamp"
    start: float = 0.0
    end: float = 0.7
    every: int = 10

    def __post_init__(self) -> None:
        check_range("gradual_pruning sparsity", self.sparsity, 0.0, 1.0, below=True)
        check_choice("gradual_pruning scope", self.scope, ("global", "lamp", "uniform"))
        self.ramp.check("gradual_pruning")
        super().__post_init__()

    @property
    def ramp(self) -> Ramp:
        return Ramp(start=self.start, end=self.end, every=self.every)

    def requires(self, net: Artifact) -> list[str]:
        if net.activations:
            return ["activations are already on integer grids; put gradual_pruning before quantization"]
        return []

    def apply_(self, net: Artifact, context: Context) -> PassResult:
        stopped = self.untrainable(net, context)
        if stopped is not None:
            return stopped
        chosen, _ = self.pick(net)
        names = [weight for weight in chosen.values() if net.parameter(weight).requires_grad]
        if not names:
            return PassResult(skipped=self.account(net, values_of(net), 0)[1])
        before = values_of(net)
        already = {name: 0.0 if (m := net.encoding(name).mask) is None else _zeros(m) for name in names}
        attach = partial(
            GrowingMasks,
            names=names,
            ramp=self.ramp,
            choose=partial(self.choose, already),
            text=f"{self.scope} {self.sparsity}",
        )
        result = self.train_(net, context, attach=attach)
        changed, skipped = self.account(net, before, result.epochs_run)
        for path, weight in chosen.items():
            mask = net.encoding(weight).mask
            if path in changed and mask is not None:
                changed[path] = f"{100 * _zeros(mask):.1f}% zero, {changed[path]}"
        return PassResult(changed=changed, skipped=skipped)

    def choose(self, already: Mapping[str, float], magnitudes: Mapping[str, Tensor], gone: float) -> dict[str, Tensor]:
        """What is kept when the part `gone` of the way from the zeros that were there to all of them is gone."""
        sizes = {name: m.numel() for name, m in magnitudes.items()}
        if self.scope == "uniform":
            return masks_within(magnitudes, {n: _between(already[n], self.sparsity, gone) for n in magnitudes})
        overall = sum(already[n] * size for n, size in sizes.items()) / sum(sizes.values())
        return masks_across(magnitudes, _between(overall, self.sparsity, gone), self.scope)


def _between(first: float, last: float, gone: float) -> float:
    return first + max(0.0, last - first) * gone


def _zeros(mask: Tensor) -> float:
    return 1 - mask.double().mean().item()
