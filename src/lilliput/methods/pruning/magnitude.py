"""Magnitude pruning: the smallest weights become exactly zero.

Global and per-layer thresholds: Han et al. (2015), https://arxiv.org/abs/1506.02626. LAMP scores: Lee et al. (2021),
"Layer-adaptive sparsity for the magnitude-based pruning", https://arxiv.org/abs/2010.07611, equation 1.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lilliput.core.artifact import Artifact
from lilliput.core.errors import RecipeError
from lilliput.core.method import Context, Pass, PassResult, check_choice, check_range


def lamp_scores(weight: Tensor) -> Tensor:
    """float64, the weight's shape: w^2 over the sum of all w^2 of the layer that are not smaller.

    The largest weight of every layer scores 1, so no layer loses all its weights before another's largest.
    """
    squares = weight.double().square().reshape(-1)
    order = torch.argsort(squares, stable=True)
    remaining = squares[order].flip(0).cumsum(0).flip(0)
    scores = torch.zeros_like(squares)
    scores[order] = torch.where(remaining > 0, squares[order] / remaining, 0.0)
    return scores.reshape(weight.shape)


def smallest(scores: Tensor, count: int) -> Tensor:
    """bool: exactly `count` entries, those of the lowest scores; of equal scores the first in the tensor."""
    drop = torch.zeros(scores.numel(), dtype=torch.bool, device=scores.device)
    drop[torch.argsort(scores.reshape(-1), stable=True)[:count]] = True
    return drop.reshape(scores.shape)


@dataclass(frozen=True, kw_only=True)
class MagnitudePruning(Pass):
    """Set the share `sparsity` of the selected weights to zero.

    Main arguments: `sparsity` (0..1, of all entries, those already zero by mask included) and `scope`: "lamp" and
    "global" compare weights across layers (LAMP after normalizing them), "layer" takes the same share of each.
    Overrides of `sparsity` go with "layer" only. Biases are never pruned.
    """

    name: ClassVar[str] = "magnitude_pruning"
    summary: ClassVar[str] = "set the smallest weights to zero (global, per layer, or LAMP)"
    citations: ClassVar[tuple[str, ...]] = ("https://arxiv.org/abs/1506.02626", "https://arxiv.org/abs/2010.07611")

    sparsity: float = 0.5
    scope: str = "lamp"

    def __post_init__(self) -> None:
        check_range("magnitude_pruning sparsity", self.sparsity, 0.0, 1.0, below=True)
        check_choice("magnitude_pruning scope", self.scope, ("global", "layer", "lamp"))
        super().__post_init__()
        if any("scope" in settings or self.scope != "layer" for settings in self.overrides.values()):
            raise RecipeError(
                "magnitude_pruning overrides",
                "scope counts for all layers" if self.scope == "layer" else f"scope {self.scope!r} compares all layers",
                "override sparsity with scope: layer, or use several passes with include",
            )

    def apply_(self, net: Artifact, context: Context) -> PassResult:
        chosen, skipped = self.pick(net)
        magnitudes = {w: _magnitudes(net, w) for w in chosen.values()}
        if self.scope == "layer":
            masks = masks_within(magnitudes, {w: self.for_layer(path).sparsity for path, w in chosen.items()})
        else:
            masks = masks_across(magnitudes, self.sparsity, self.scope)
        changed: dict[str, str] = {}
        for path, weight in chosen.items():
            encoding = net.encoding(weight)
            before = encoding.mask
            pruned = encoding.with_mask(masks[weight])
            if (
                pruned.mask is None
                or bool(pruned.mask.all())
                or (before is not None and torch.equal(pruned.mask, before))
            ):
                skipped[path] = "none of its weights is among the smallest"
                continue
            net.encode_(weight, pruned)
            changed[path] = f"{100 * (1 - pruned.mask.double().mean().item()):.1f}% zero"
        return PassResult(changed=changed, skipped=skipped)


def masks_across(magnitudes: Mapping[str, Tensor], sparsity: float, scope: str) -> dict[str, Tensor]:
    """bool, True = kept: without the share `sparsity` of all entries; "lamp" or "global".

    Magnitudes below 0 are of entries that are dropped already: they are the first to count.
    """
    if not magnitudes:
        return {}
    scores = dict(magnitudes)
    if scope == "lamp":
        scores = {w: _keep_dropped_lowest(lamp_scores(s.clamp(min=0)), s) for w, s in scores.items()}
    together = torch.cat([s.reshape(-1) for s in scores.values()])
    drop = smallest(together, round(sparsity * together.numel()))
    parts = torch.split(drop, [s.numel() for s in scores.values()])
    return {w: ~part.reshape(scores[w].shape) for (w, part) in zip(scores, parts, strict=True)}


def masks_within(magnitudes: Mapping[str, Tensor], sparsities: Mapping[str, float]) -> dict[str, Tensor]:
    """bool, True = kept: each tensor without its own share."""
    return {w: ~smallest(s, round(sparsities[w] * s.numel())) for w, s in magnitudes.items()}


def _magnitudes(net: Artifact, weight: str) -> Tensor:
    """float64 |w|; -1 where a mask has dropped the entry already, so that it is the first to count."""
    encoding = net.encoding(weight)
    values = encoding.decode().double().abs()
    return values if encoding.mask is None else torch.where(encoding.mask, values, -1.0)


def _keep_dropped_lowest(scores: Tensor, magnitudes: Tensor) -> Tensor:
    return torch.where(magnitudes < 0, -1.0, scores)
