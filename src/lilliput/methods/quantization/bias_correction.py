"""Bias correction: after compression, each output channel again has the mean that it has in the original network.

Nagel et al. (2019), "Data-free quantization through weight equalization and bias correction",
https://arxiv.org/abs/1906.04721, section 4.2, in the empirical form of its appendix D. The spread of the channels too:
Banner, Nahshan and Soudry (2019), https://arxiv.org/abs/1810.05723, section 3; we match that of the outputs, not that
of the weights.
"""

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from lilliput.core.artifact import Artifact
from lilliput.core.encoding import Encoding, Grid
from lilliput.core.errors import RecipeError
from lilliput.core.method import Context, Pass, PassResult, check_choice
from lilliput.graph.integer import accumulator_scale, grids_of, integer_bias
from lilliput.graph.layers import output_axis
from lilliput.methods.quantization.post_training import NARROW
from lilliput.training.lockstep import Lockstep, Turn

MOST_STRETCH = 2.0
"""A channel's spread is changed by this factor at most: a channel that is nearly gone stays so."""
LARGEST, LARGEST_WIDE = 2**22, 2**30
"""Steps of its accumulator that a bias may have, for codes of up to 8 bits and for wider ones."""
SMALL = 1e-5
"""Differences below this share of a channel's spread are left alone."""


@dataclass(frozen=True, kw_only=True)
class BiasCorrection(Pass):
    """Layer by layer, on the calibration role, with the layers before it already compressed and corrected.

    `match` "mean" moves biases. "mean_and_spread" (the default) also stretches the weights of each output channel, so
    that its standard deviation is the original's: the scales of grids and the values of shared tables change, integers
    and masks do not. A table or grid of a whole layer gets one factor. Comes after pruning, clustering or quantization;
    of an integer network, the biases stay on their accumulators' scales.
    """

    name: ClassVar[str] = "bias_correction"
    summary: ClassVar[str] = "give every channel the mean and spread of the original network again, without training"
    citations: ClassVar[tuple[str, ...]] = ("https://arxiv.org/abs/1906.04721", "https://arxiv.org/abs/1810.05723")

    match: str = "mean_and_spread"

    def __post_init__(self) -> None:
        check_choice("bias_correction match", self.match, ("mean", "mean_and_spread"))
        super().__post_init__()
        if any("include" in s or "skip" in s for s in self.overrides.values()):
            raise RecipeError("bias_correction overrides", "include or skip", "set them for the whole pass")

    def apply_(self, net: Artifact, context: Context) -> PassResult:
        chosen, skipped = self.pick(net)
        skipped |= dict.fromkeys(chosen, "it is not run")
        changed: dict[str, str] = {}
        lockstep = Lockstep(net, context.evaluator.original, context, edited=True)
        grids = grids_of(lockstep.graph, net.activations)

        def visit(turn: Turn) -> bool:
            path = turn.node.module
            if path not in chosen or path in changed:
                return False
            uses = [len(lockstep.graph.users_of(name)) for name in turn.node.state.values()]
            reason = turn.missing or ("it is called more than once, or shares its weight" if max(uses) > 1 else "")
            if not reason:
                source = grids.get(turn.node.inputs[0])
                reason, done = correct_(net, turn, source, spread=self.for_layer(path).match == "mean_and_spread")
                if done:
                    changed[path] = done
            skipped[path] = reason
            return path in changed

        with context.progress.task("correct biases", len(chosen)) as advance:
            lockstep.run(visit)
            advance(len(chosen))
        return PassResult(changed=changed, skipped={p: r for p, r in skipped.items() if p not in changed})


def correct_(net: Artifact, turn: Turn, source: Grid | None, *, spread: bool) -> tuple[str, str]:
    """Correct one layer. Returns (why not, what was done); one of the two is empty."""
    name = turn.node.state.get("bias")
    if name is None:
        return "it has no bias: fold_batchnorm gives it one where a BatchNorm follows", ""
    weight_name = turn.node.state["weight"]
    old = net.encoding(weight_name)
    wanted_mean, wanted_variance = turn.wanted_means()
    mean, variance = turn.means()
    size = wanted_variance.sqrt().clamp(min=1e-12)
    factor = stretch(old, variance, wanted_variance, output_axis(net.module.get_submodule(turn.node.module)))
    if not spread or factor is None or bool(((factor - 1).abs() < SMALL).all()):
        factor = None
    if factor is None and bool(((wanted_mean - mean).abs() < SMALL * size).all()):
        return "its outputs have the original's means already", ""
    bias = net.encoding(name).decode().double()
    pure = mean - bias  # the mean without the bias
    weight = old if factor is None else stretched(old, factor, output_axis(net.module.get_submodule(turn.node.module)))
    new = (wanted_mean - pure * (1.0 if factor is None else factor.reshape(-1))).float()
    stored: Encoding | None = None
    if net.canonical(name) in net.encodings:
        if source is None or weight.grid is None or net.encoding(name).grid is None:
            return "its bias is stored in an encoding: correct before", ""
        widest = max(int(weight.grid.bit_width.max()), int(source.bit_width.max()))
        largest = LARGEST if widest <= NARROW else LARGEST_WIDE
        if bool((new.abs().double() > largest * accumulator_scale(source, weight.grid)).any()):
            return "its bias would be too large for its weights' scale", ""
        stored = integer_bias(new, source, weight.grid)
    moved = float(((new.double() - bias).abs() / size).mean())
    if factor is not None:
        net.encode_(weight_name, weight) if not weight.is_plain else net.write_(weight_name, weight.values)
    if stored is None:
        net.write_(name, new)
    else:
        net.encode_(name, stored)
    words = f"biases moved by {moved:.2g} standard deviations"
    return "", words if factor is None else f"{words}, weights x {float(factor.min()):.3g}..{float(factor.max()):.3g}"


def stretch(encoding: Encoding, now: Tensor, wanted: Tensor, axis: int | None) -> Tensor | None:
    """float64 [channels], or [1] where one table or grid serves all: what gives the outputs their spread back."""
    if not per_channel(encoding, axis):
        now, wanted = now.sum().reshape(1), wanted.sum().reshape(1)
    ratio = torch.where((now > 0) & (wanted > 0), wanted / now.clamp(min=1e-300), 1.0).sqrt()
    return ratio.clamp(1 / MOST_STRETCH, MOST_STRETCH)


def per_channel(encoding: Encoding, axis: int | None) -> bool:
    """Can each output channel have a factor of its own?"""
    shared = encoding.sharing is not None and encoding.sharing.axis != axis
    return axis is not None and not shared and (encoding.grid is None or encoding.grid.axis == axis)


def stretched(encoding: Encoding, factor: Tensor, axis: int | None) -> Encoding:
    """The encoding of the weights times `factor`, in the same slots: integers, indices and masks stay."""
    if encoding.grid is not None:
        return replace(encoding, grid=replace(encoding.grid, scale=(encoding.grid.scale.double() * factor).float()))
    if encoding.sharing is not None:
        rows = factor if factor.numel() == 1 else torch.repeat_interleave(factor, encoding.sharing.sizes)
        return replace(encoding, values=(encoding.values.double() * rows).float())
    rank = len(encoding.shape)
    spread = factor.reshape([-1 if d == axis else 1 for d in range(rank)]) if factor.numel() > 1 else factor
    return replace(encoding, values=(encoding.values.double() * spread).float())
