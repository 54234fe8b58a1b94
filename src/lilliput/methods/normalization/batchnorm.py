"""BatchNorm folding and re-estimation.

Folding into the layer before: Jacob et al. (2018), https://arxiv.org/abs/1712.05877, section 3.2. Re-estimation of
statistics after a change of weights: Wu and Johnson (2021), "Rethinking 'Batch' in BatchNorm",
https://arxiv.org/abs/2105.07576, section 3.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from lilliput.core.artifact import Artifact
from lilliput.core.device import moved
from lilliput.core.errors import RecipeError
from lilliput.core.method import Context, Pass, PassResult, check_choice, check_range, layers
from lilliput.graph.fold import NORMS, fold_, foldable, separable, separate_
from lilliput.graph.trace import graph_of


@dataclass(frozen=True, kw_only=True)
class FoldBatchNorm(Pass):
    """Move each BatchNorm into the convolution or linear layer before it. The network computes the same function.

    Where something else is before it, into the one that reads it: through dropout, reshapes, average pooling, and max
    pooling if no channel's factor is negative. Convolutions that pad with zeros cannot take in what is before them.
    What no layer can take in stays as it is, or with `rest` "layer" becomes a convolution of one tap for each channel,
    which can be quantized and runs in integers.
    """

    name: ClassVar[str] = "fold_batchnorm"
    summary: ClassVar[str] = "move BatchNorm into the layer before it, or behind it (same function, fewer operations)"
    citations: ClassVar[tuple[str, ...]] = ("https://arxiv.org/abs/1712.05877",)

    rest: str = "keep"

    def __post_init__(self) -> None:
        check_choice("fold_batchnorm rest", self.rest, ("keep", "layer"))
        super().__post_init__()

    def apply_(self, net: Artifact, context: Context) -> PassResult:
        known = layers(net)
        skipped = dict.fromkeys(known, "not a BatchNorm, and none goes into it")
        changed: dict[str, str] = {}
        if not any(isinstance(m, NORMS) for m in net.module.modules()):
            return PassResult(skipped=dict.fromkeys(known, "there is no BatchNorm"))
        pairs, refused = foldable(net, graph_of(net))
        skipped |= refused
        for pair in pairs:
            if not (self.selects(pair.norm) and self.selects(pair.layer)):
                skipped[pair.norm] = "not selected by include and skip"
            elif net.activations:
                skipped[pair.norm] = "activations are already quantized: fold first"
            else:
                fold_(net, pair)
                changed |= {pair.layer: f"took in {pair.norm}", pair.norm: f"folded into {pair.layer}"}
        if self.rest == "layer" and not net.activations:
            for path in separable(net, graph_of(net)):
                if self.selects(path):
                    separate_(net, path)
                    changed[path] = "a convolution of one tap for each channel"
        return PassResult(changed=changed, skipped={p: r for p, r in skipped.items() if p not in changed})


@dataclass(frozen=True, kw_only=True)
class ReestimateBatchNorm(Pass):
    """New running statistics from training samples (`samples` of them, in batches), for weights that have changed.

    Statistics are averaged over the batches with equal weight. On few samples this is noisy: the guard decides. The
    samples go through the task's augmentation, as those did that the statistics were measured on in training: of images
    that were never cropped, statistics are others.
    """

    name: ClassVar[str] = "reestimate_batchnorm"
    summary: ClassVar[str] = "measure BatchNorm statistics again after the weights have changed"
    citations: ClassVar[tuple[str, ...]] = ("https://arxiv.org/abs/2105.07576",)

    samples: int = 2048
    batch_size: int = 128

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("reestimate_batchnorm samples", self.samples, 2, 10**9)
        check_range("reestimate_batchnorm batch_size", self.batch_size, 2, 10**6)
        if self.overrides:
            raise RecipeError(
                "reestimate_batchnorm overrides", "all layers are measured together", "use include and skip"
            )

    def apply_(self, net: Artifact, context: Context) -> PassResult:
        norms: dict[str, nn.BatchNorm1d | nn.BatchNorm2d] = {}
        skipped: dict[str, str] = {}
        for path, module in layers(net).items():
            if isinstance(module, NORMS) and module.track_running_stats and self.selects(path):
                norms[path] = module
            else:
                skipped[path] = "not selected by include and skip" if isinstance(module, NORMS) else "not a BatchNorm"
        if norms:
            self._measure_(net.module, list(norms.values()), context)
        return PassResult(
            changed=dict.fromkeys(norms, f"statistics of {self.samples} samples at most"), skipped=skipped
        )

    def _measure_(self, module: nn.Module, norms: list[nn.BatchNorm1d | nn.BatchNorm2d], context: Context) -> None:
        role = "train" if context.task.train is not None else "validation"
        data = context.task.data(role)
        augment = context.task.augment if role == "train" else None
        order = torch.randperm(len(data), generator=context.generator)[: self.samples]
        order = (
            order[: max(2, len(order) // self.batch_size * self.batch_size)] if len(order) > self.batch_size else order
        )
        momenta = [norm.momentum for norm in norms]
        module.eval().to(context.device)
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # cumulative average
            norm.train()
        try:
            with torch.no_grad(), context.progress.task("re-estimate BatchNorm", len(order)) as advance:
                for x, y in data.batches(self.batch_size, order):
                    seen = x if augment is None else augment(x, context.generator)
                    context.task.forward(module, moved((seen, y), context.device))
                    advance(len(x))
        finally:
            for norm, momentum in zip(norms, momenta, strict=True):
                norm.momentum = momentum
            module.eval()
