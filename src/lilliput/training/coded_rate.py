"""What the integers of a network take once coded, as a part of what its training minimizes.

The bits of an integer depend on the sizes around it, as in the coder (`ops.rate_rounding`); their slopes are added to
the gradients of the real numbers that are rounded. The price of a bit is controlled: it rises while the estimated size
is above its goal and falls below it, so that a training ends at a wanted size.

Entropy as a term of the loss: Wiedemann et al. (2018), "Entropy-constrained training of deep neural networks",
https://arxiv.org/abs/1812.07520, section III; they count each value by its share alone, at a fixed price.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lilliput.core import container
from lilliput.core.artifact import Artifact
from lilliput.core.encoding import Encoding
from lilliput.core.errors import RecipeError
from lilliput.ops.rate_rounding import Bits, Shape
from lilliput.training.attach import Attached
from lilliput.training.hooks import SizeTerm

EVERY = 5
"""Steps between two counts."""
PACE, RISE, FALL = 1.0, 0.1, 0.3
"""How fast the log of the price follows the relative excess, and the most it rises and falls at a count."""
FIRST = 0.002
"""The price at the start, in mean slopes of the loss for a mean slope of the bits."""
SHAVES, LEAST = 40, 0.05
"""Rounds of making a file smaller in the end; the bits that a smaller integer counts as saving at least."""
MARGIN = 0.003
"""Of the size that is left free: estimates are not exact."""


def countable(encoding: Encoding) -> bool:
    """Whether the entries are integers of their own around zero, of at least two dimensions."""
    grid = encoding.grid
    if grid is None or encoding.sharing is not None or encoding.bank is not None or len(encoding.shape) < 2:
        return False
    return grid.signed and not bool(grid.zero_point.any())


@dataclass(kw_only=True)
class Counted:
    """`slopes` of the bits; `saved` by the next integer towards zero; `bits` of all."""

    slopes: Tensor
    saved: Tensor
    bits: float


class CodedTerm(SizeTerm):
    """Adds what the integers take once coded, at a price that stands.

    `price`: what a bit adds to the loss at first; by default little, next to the slopes of the loss.
    """

    def __init__(self, net: Artifact, *, price: float | None = None) -> None:
        self.net, self.price = net, price
        self.other = 0.0
        self.slopes: dict[str, Tensor] = {}

    def bytes_of(self, attached: Attached) -> int:
        """Of the file that the network would be stored in now; the rest of it is what estimates leave out.

        The next step counts anew: so a training that is resumed after a measurement goes on as if it had not stopped.
        """
        trial = self.net.copy()
        attached.bake_(trial)
        size = len(container.dumps(trial, strip=True))
        self.other = size - sum(c.bits for c in self._count(attached).values()) / 8
        self.slopes = {}
        return size

    def add_(self, attached: Attached, step: int) -> None:
        """Add price x slopes of the bits to the gradients of what trains."""
        if step % EVERY == 0 or not self.slopes:
            found = self._count(attached)
            self.slopes = {name: c.slopes for name, c in found.items()}
            self._follow(sum(c.bits for c in found.values()) / 8 + self.other)
        if self.price is None:
            self.price = self._first(attached)
        for name, raw, _ in attached.latents():
            if name in self.slopes and raw.grad is not None:
                raw.grad += self.price * self.slopes[name].to(raw.device)

    def describe(self) -> str:
        return f"{self.price}"

    def state_dict(self) -> dict[str, Any]:
        return {"price": self.price or 0.0, "other": self.other}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.price, self.other = state["price"] or None, state["other"]

    def _follow(self, size: float) -> None:
        """Move the price; the file has `size` bytes, as far as is known."""

    def _first(self, attached: Attached) -> float:
        pairs = [(raw.grad, self.slopes[n]) for n, raw, _ in attached.latents() if n in self.slopes]
        loss = sum(float(g.abs().sum()) for g, _ in pairs if g is not None)
        bits = sum(float(s.abs().sum()) for _, s in pairs)
        return FIRST * loss / bits if bits > 0 and loss > 0 else 1e-9

    def _count(self, attached: Attached) -> dict[str, Counted]:
        return {n: counted(e, raw.detach().cpu()) for n, raw, e in attached.latents() if countable(e)}


class CodedRate(CodedTerm):
    """Holds a network that trains at `max_bytes` of its file (without recipe and graph).

    Raises `RecipeError` if the file would be larger with nothing but zeros in what is counted.
    """

    def __init__(self, net: Artifact, max_bytes: int, *, price: float | None = None) -> None:
        least = smallest(net)
        if least > max_bytes:
            raise RecipeError(
                f"max_bytes {max_bytes:,}", f"with all its integers 0 the file has {least:,} bytes", "allow more bytes"
            )
        super().__init__(net, price=price)
        self.max_bytes = max_bytes

    def over(self, attached: Attached, score: float) -> float:
        return float(max(0, self.bytes_of(attached) - self.max_bytes))

    def shave_(self, attached: Attached) -> None:
        """Make the file small enough: integers go one down, those first that are nearest to it for the bits saved."""
        for _ in range(SHAVES):
            excess = self.bytes_of(attached) - self.max_bytes
            offers = self._offers(attached)
            costs = torch.cat([cost.reshape(-1) for _, cost, _ in offers])
            saved = torch.cat([bits.reshape(-1) for _, _, bits in offers])
            order = torch.argsort(costs, stable=True)
            order = order[torch.isfinite(costs[order])]
            if excess <= 0 or not len(order):
                return
            enough = int((saved[order].cumsum(0) < 8 * excess).sum())
            dearest = costs[order[min(enough, len(order) - 1)]]
            for raw, cost, _ in offers:
                raw.copy_(torch.where(cost <= dearest, raw.sign() * (_sizes(raw) - 1), raw))
            attached.project_()

    def _offers(self, attached: Attached) -> list[tuple[Tensor, Tensor, Tensor]]:
        """(raw copies, what one integer less costs in squared distance for each bit, bits saved); zeros are dear."""
        raws = {name: raw.detach() for name, raw, _ in attached.latents()}
        found: list[tuple[Tensor, Tensor, Tensor]] = []
        for name, counts in self._count(attached).items():
            raw = raws[name]
            saved = counts.saved.clamp(min=LEAST).to(raw.device)
            above = (raw.abs() - (_sizes(raw) - 0.5)).clamp(min=0)
            found.append((raw, torch.where(_sizes(raw) > 0, (above.square() + 1e-6) / saved, math.inf), saved))
        return found

    def describe(self) -> str:
        return f"{self.max_bytes} {super().describe()}"

    def _follow(self, size: float) -> None:
        if self.price is not None:
            excess = size / (self.max_bytes * (1 - MARGIN)) - 1
            self.price *= math.exp(min(max(PACE * excess, -FALL), RISE))


def smallest(net: Artifact) -> int:
    """Bytes of the file if all that is counted were 0."""
    trial = net.copy()
    for name, encoding in net.encodings.items():
        if encoding.grid is not None and countable(encoding):
            trial.encode_(name, encoding.with_grid(encoding.grid, torch.zeros_like(encoding.values)))
    return len(container.dumps(trial, strip=True))


def _sizes(raw: Tensor) -> Tensor:
    """Of the integers that these are rounded to."""
    return torch.floor(raw + 0.5).abs()


def counted(encoding: Encoding, latent: Tensor) -> Counted:
    """`latent`: real numbers in steps of the grid. The slopes are those of the bits, from one integer to the next.

    Where the integer is 0 they are those to the next one, in proportion to the distance on either side.
    """
    shape, real = Shape.of(encoding.shape), latent.flatten(1).numpy()
    grid = encoding.grid
    low, high = (-127, 127) if grid is None else grid.common()[:2]
    q = np.clip(np.floor(real + 0.5), low, high).astype(np.int64)
    if encoding.mask is not None:
        q = q * encoding.mask.cpu().flatten(1).numpy()
    sizes, bits = np.abs(q), Bits.of(q, shape)
    here = bits.of_each(q, shape)
    more = bits.of_each(q, shape, instead=sizes + 1) - here
    less = here - bits.of_each(q, shape, instead=np.maximum(sizes - 1, 0))
    at_zero = more * np.clip(2 * real, -1, 1)
    slopes = np.where(q == 0, at_zero, 0.5 * (more + less) * np.sign(q))
    return Counted(
        slopes=torch.from_numpy(slopes).float().reshape(latent.shape),
        saved=torch.from_numpy(less).float().reshape(latent.shape),
        bits=float(here.sum()),
    )
