"""Learned rounding: which of two neighbouring integers each weight of a block becomes, from what the whole block gives.

Between the two a weight is free while it learns, and is pulled to the nearer one more and more. Nagel et al. (2020),
"AdaRound", https://arxiv.org/abs/2004.10568, section 3.3; block by block, errors weighed by what they do to the
network's outputs: Li et al. (2021), "BRECQ", https://arxiv.org/abs/2102.05426, section 3.2. We start from compensated
rounding instead of the nearest integers, scale the pull by the curvature of each weight, count the bits of a coder, and
keep what was learned only where batches that were not learned from say so.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from lilliput.core.encoding import Encoding
from lilliput.graph.blocks import Block
from lilliput.graph.trace import run
from lilliput.methods.second_order.layer_rounding import Rounded
from lilliput.ops.rate_rounding import Bits, Shape
from lilliput.training.layer_targets import Inputs

PACE, BIAS_PACE = 0.02, 2e-4
"""Learning rates (Adam), in steps of the grid and of biases."""
PULL, FREE = 100.0, 0.2
"""Largest pull to an integer, in units of a weight's curvature; the share of the steps without it."""
HELD = 8
"""One batch of so many, at least one, only judges."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Examples:
    """What a block is called with, what it should give, and the products [c, c] by which errors of its output count.

    Of the last block all outputs count alike, `outputs` is None.
    """

    inputs: Inputs
    wanted: Inputs
    outputs: Tensor | None
    dim: int

    def cost(self, block: Block, state: Mapping[str, Tensor], batch: int) -> Tensor:
        """Mean over samples."""
        found = _tensors(run(block.graph, state, *self.inputs[batch]))
        total = torch.zeros(())
        for a, b in zip(found, _tensors(self.wanted[batch]), strict=True):
            if a.is_floating_point():
                error = (a - b).movedim(self.dim, -1)
                total = total + ((error if self.outputs is None else error @ self.outputs) * error).sum() / len(a)
        return 0.5 * total

    def split(self) -> tuple[list[int], list[int]]:
        """Batches to learn from, and those that judge; nothing to judge where there is one batch."""
        count = len(self.inputs)
        held = max(1, count // HELD) if count > 1 else 0
        return list(range(count - held)), list(range(count - held, count))

    def judged(self, block: Block, state: Mapping[str, Tensor]) -> float:
        with torch.no_grad():
            return math.fsum(float(self.cost(block, state, i)) for i in self.split()[1])


class _Choice:
    """Of one layer: the lower of the two integers, and how far each weight is from it (0..1)."""

    def __init__(self, layer: Rounded, price: float) -> None:
        q = layer.integers().double()
        steps = _steps(layer.encoding, len(q))
        real = layer.fitted / steps
        up = torch.where(q.abs() >= layer.most, q < 0, real > q)
        self.layer, self.low = layer, torch.where(up, q, q - 1)
        self.steps = steps.float()
        mask = layer.encoding.mask
        self.free = torch.ones_like(q) if mask is None else mask.flatten(1).double()
        self.share = (q - self.low).float().requires_grad_()
        self.curvature = (layer.curvature * steps.square() * self.free).float()
        self.rate = price * _more_bits(layer, self.low) * self.free if price else torch.zeros_like(q)

    def weight(self) -> Tensor:
        value = (self.low.float() + self.share) * self.steps
        return (value * self.free.float()).reshape(self.layer.encoding.shape)

    def pull_(self, strength: float) -> None:
        """Add the slopes of the bits, and of strength x curvature x share (1 - share) / 2."""
        if self.share.grad is not None:
            pulled = 0.5 * strength * self.curvature * (1 - 2 * self.share.detach())
            self.share.grad += (self.rate + pulled).float()

    def encoding(self) -> Encoding:
        new = (self.low + (self.share.detach() > 0.5)).long() * self.free.long()
        old = self.layer.encoding
        grid = old.grid
        if grid is None:
            return old
        width = max(int(grid.bit_width.max()), int(new.abs().max()).bit_length() + 1)
        return old.with_grid(replace(grid, bit_width=torch.full_like(grid.bit_width, width)), new.reshape(old.shape))


def learned(
    block: Block,
    layers: Sequence[Rounded],
    examples: Examples,
    state: Mapping[str, Tensor],
    *,
    biases: Sequence[str],
    price: float,
    steps: int,
    generator: torch.Generator,
) -> list[Encoding]:
    """New encodings of the layers' weights; `biases` move with them, and are to be corrected afterwards."""
    choices = [_Choice(layer, price) for layer in layers]
    moved = {name: state[name].clone().requires_grad_() for name in biases}
    groups = [
        {"params": [c.share for c in choices], "lr": PACE, "pace": PACE},
        {"params": list(moved.values()), "lr": BIAS_PACE, "pace": BIAS_PACE},
    ]
    optimizer = torch.optim.Adam(groups)
    order: list[int] = []
    for step in range(steps):
        order = order or _shuffled(examples.split()[0], generator)
        done = step / steps
        for group in optimizer.param_groups:
            group["lr"] = group["pace"] * max(0.1, 0.5 * (1 + math.cos(math.pi * done)))
        with torch.enable_grad():
            now = {**state, **moved, **{c.layer.node.state["weight"]: c.weight() for c in choices}}
            loss = examples.cost(block, now, order.pop())
            optimizer.zero_grad()
            loss.backward()
        for choice in choices:
            choice.pull_(PULL * max(0.0, (done - FREE) / (1 - FREE)))
        optimizer.step()
        with torch.no_grad():
            for choice in choices:
                choice.share.clamp_(0, 1)
    return [choice.encoding() for choice in choices]


def coded_bits(encoding: Encoding) -> float:
    """Of the integers, by the tables of `ops.rate_rounding`."""
    q, shape = encoding.values.flatten(1).numpy(), Shape.of(encoding.shape)
    return float(Bits.of(q, shape).of_each(q, shape).sum())


def _more_bits(layer: Rounded, low: Tensor) -> Tensor:
    """What the upper of two integers takes more than the lower, where the others are as they are."""
    q, shape = layer.integers().numpy(), Shape.of(layer.encoding.shape)
    bits = Bits.of(q, shape)
    lower, upper = (bits.of_each(q, shape, instead=v) for v in (low.long().numpy(), low.long().numpy() + 1))
    return torch.from_numpy(np.asarray(upper - lower))


def _steps(encoding: Encoding, rows: int) -> Tensor:
    grid = encoding.grid
    return torch.ones(rows, 1, dtype=torch.float64) if grid is None else grid.scale.double().reshape(-1, 1)


def _shuffled(batches: list[int], generator: torch.Generator) -> list[int]:
    return [batches[i] for i in torch.randperm(len(batches), generator=generator).tolist()]


def _tensors(outputs: object) -> tuple[Tensor, ...]:
    return tuple(x for x in tree_leaves(outputs) if isinstance(x, Tensor))
