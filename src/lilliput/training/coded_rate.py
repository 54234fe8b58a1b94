"""What the integers of a network take once coded, as a part of what its training minimizes.

The bits of an integer depend on the sizes around it, as in the coder (`ops.rate_rounding`); their slopes are added to
the gradients of the real numbers that are rounded. The price of a bit is controlled: it rises while the estimated size
is above its goal and falls below it, so that a training ends at a wanted size. Entropy as a term of the loss:
Wiedemann et al. (2021), "ECQx", https://arxiv.org/abs/2109.04236; their price is fixed.
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
from lilliput.ops.rate_rounding import Bits, Shape
from lilliput.training.attach import Attached

EVERY = 5
"""Steps between two counts."""
PACE, FASTEST = 1.0, 0.1
"""How fast the log of the price follows the relative excess, and the most it moves at a count."""
FIRST = 0.002
"""The price at the start, in mean slopes of the loss for a mean slope of the bits."""
SHAVES, LEAST = 40, 0.05
"""Rounds of making a file smaller in the end; the bits that a smaller integer counts as saving at least."""
MARGIN = 0.003
"""Of the size that is left free: estimates are not exact."""


def countable(encoding: Encoding) -> bool:
    """Whether the entries are integers of their own around zero, of at least two dimensions."""
    grid = encoding.grid
    if grid is None or encoding.sharing is not None or len(encoding.shape) < 2:
        return False
    return grid.signed and not bool(grid.zero_point.any())


@dataclass(kw_only=True)
class Counted:
    """`slopes` of the bits; `saved` by the next integer towards zero; `bits` of all."""

    slopes: Tensor
    saved: Tensor
    bits: float


class CodedRate:
    """Holds a network that trains at `max_bytes` of its file (without recipe and graph)."""

    def __init__(self, net: Artifact, max_bytes: int) -> None:
        self.net, self.max_bytes = net, max_bytes
        self.price: float | None = None
        self.other = 0.0
        self.slopes: dict[str, Tensor] = {}

    def bytes_of(self, attached: Attached) -> int:
        """Of the file that the network would be stored in now; the rest of it is what estimates leave out."""
        trial = self.net.copy()
        attached.bake_(trial)
        size = len(container.dumps(trial, strip=True))
        found = self._count(attached)
        self.other = size - sum(c.bits for c in found.values()) / 8
        return size

    def add_(self, attached: Attached, step: int) -> None:
        """Add price x slopes of the bits to the gradients of what trains."""
        if step % EVERY == 0 or not self.slopes:
            if not self.other:
                self.bytes_of(attached)
            found = self._count(attached)
            self.slopes = {name: c.slopes for name, c in found.items()}
            self._follow(sum(c.bits for c in found.values()) / 8 + self.other)
        if self.price is None:
            self.price = self._first(attached)
        for name, raw, _ in attached.latents():
            if name in self.slopes and raw.grad is not None:
                raw.grad += self.price * self.slopes[name].to(raw.device)

    def shave_(self, attached: Attached) -> None:
        """Make the file small enough: integers go one down, those first that are nearest to it for the bits saved."""
        for _ in range(SHAVES):
            excess = self.bytes_of(attached) - self.max_bytes
            if excess <= 0:
                return
            offers: list[tuple[Tensor, Tensor, Tensor]] = []
            for name, found in self._count(attached).items():
                raw = next(raw for n, raw, _ in attached.latents() if n == name).detach()
                size = torch.floor(raw + 0.5).abs()
                above = (raw.abs() - (size - 0.5)).clamp(min=0)
                saved = found.saved.clamp(min=LEAST)
                offers.append((raw, torch.where(size > 0, (above.square() + 1e-6) / saved, math.inf), saved))
            together = torch.cat([order.reshape(-1) for _, order, _ in offers])
            saved = torch.cat([v.reshape(-1) for _, _, v in offers])
            first = torch.argsort(together, stable=True)
            first = first[torch.isfinite(together[first])]
            count = int((saved[first].cumsum(0) < 8 * excess).sum()) + 1
            if not len(first):
                return
            last = together[first[min(count, len(first)) - 1]]
            for raw, order, _ in offers:
                size = torch.floor(raw + 0.5).abs()
                raw.copy_(torch.where(order <= last, raw.sign() * (size - 1), raw))
            attached.project_()

    def state_dict(self) -> dict[str, Any]:
        return {"price": self.price or 0.0, "other": self.other}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.price, self.other = state["price"] or None, state["other"]

    def _follow(self, size: float) -> None:
        if self.price is not None:
            excess = size / (self.max_bytes * (1 - MARGIN)) - 1
            self.price *= math.exp(min(max(PACE * excess, -FASTEST), FASTEST))

    def _first(self, attached: Attached) -> float:
        pairs = [(raw.grad, self.slopes[n]) for n, raw, _ in attached.latents() if n in self.slopes]
        loss = sum(float(g.abs().sum()) for g, _ in pairs if g is not None)
        bits = sum(float(s.abs().sum()) for _, s in pairs)
        return FIRST * loss / bits if bits > 0 and loss > 0 else 1e-9

    def _count(self, attached: Attached) -> dict[str, Counted]:
        return {n: counted(e, raw.detach().cpu()) for n, raw, e in attached.latents() if countable(e)}


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
    saved = np.where(q == 0, 0.0, less)
    both = (torch.from_numpy(v).float().reshape(latent.shape) for v in (slopes, saved))
    return Counted(slopes=next(both), saved=next(both), bits=float(here.sum()))
