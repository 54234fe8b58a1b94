"""Rounding that weighs the error of a layer's outputs against the bits that a context coder will take.

For weights W [n, f], products of inputs H and of the slopes of outputs G: integers Q of steps s, with E = W - s Q and
a small trace(G E H E') / 2 + price x bits(Q). First in order, each error made up for by the entries of its row and by
the rows that follow (Frantar et al., 2023, https://arxiv.org/abs/2210.17323; for both sides Tseng et al., 2025,
https://arxiv.org/abs/2505.22988), then by coordinate descent. The bits of an integer are those of tables by the sizes
around it, counted from the rounding before: close to what `ops.context_coding` takes.
"""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

LEVEL_BOUNDS = (0.1, 0.2, 0.35, 0.5, 0.7, 0.9, 1.1, 1.4, 1.8, 2.5, 3.5)
"""Of the mean size of a tensor's integers."""
SHRINK = 16.0
"""Symbols that the table of all levels counts for in that of each."""


@dataclass(frozen=True, kw_only=True)
class Shape:
    """How the inputs of a row lie: `plane` entries of a channel, `row` of a line of the kernel (0: no kernel)."""

    plane: int
    row: int

    @staticmethod
    def of(shape: tuple[int, ...]) -> "Shape":
        kernel = math.prod(shape[2:])
        return Shape(plane=kernel, row=shape[-1] if kernel > 1 and len(shape) > 3 else 0)


@dataclass(frozen=True, kw_only=True)
class Bits:
    """What integers cost: `table` [levels, |q|], the levels' `bounds`, and the `typical` size before any is known."""

    table: Floats
    bounds: Floats
    typical: float

    @staticmethod
    def of(q: Ints, shape: Shape) -> "Bits":
        """Counted from these integers [n, f]; sizes above the table's count as its last."""
        from lilliput.ops.rate_rounding_kernels import LEVELS, MOST, levels_of

        typical = max(float(np.abs(q).mean()), 1e-3)
        bounds = typical * np.array(LEVEL_BOUNDS)
        levels = np.empty(q.shape, np.int64)
        levels_of(q, shape.plane, shape.row, typical, bounds, levels)
        sizes = np.minimum(np.abs(q), MOST)
        tail = 0.5 ** (np.arange(MOST + 1) / (1 + typical))  # never seen: less likely the larger
        counts = np.bincount((levels * (MOST + 1) + sizes).reshape(-1), minlength=LEVELS * (MOST + 1))
        counts = counts.reshape(LEVELS, MOST + 1).astype(np.float64)
        whole = counts.sum(0) + tail / tail.sum()
        whole /= whole.sum()
        share = counts + SHRINK * whole
        share /= share.sum(1, keepdims=True)
        signs = np.ones(MOST + 1)
        signs[0] = 0.0
        return Bits(table=-np.log2(share) + signs, bounds=bounds, typical=typical)

    def of_each(self, q: Ints, shape: Shape, instead: Ints | None = None) -> Floats:
        """[n, f]: what each of these integers takes, or what another one would take `instead` of it."""
        from lilliput.ops.rate_rounding_kernels import MOST, levels_of

        levels = np.empty(q.shape, np.int64)
        levels_of(q, shape.plane, shape.row, self.typical, self.bounds, levels)
        return self.table[levels, np.minimum(np.abs(q if instead is None else instead), MOST)]


def rounded(
    weights: Floats,
    products: Floats,
    outputs: Floats,
    steps: Floats,
    price: float,
    shape: Shape,
    *,
    keep: Bools | None = None,
    most: int = 127,
    rounds: int = 3,
    descents: int = 2,
) -> Ints:
    """int64 [n, f], -most..most, for `weights` [n, f], `steps` [n], positive definite `products` and `outputs`.

    `products` [f, f] are those of the inputs, `outputs` [n, n] say what errors of the outputs cost together.

    With a price of 0 it is compensated rounding. `keep`: the entries that may differ from zero.
    """
    from lilliput.ops.rate_rounding_kernels import descend, round_in_order

    allowed = np.ones(weights.shape, np.bool_) if keep is None else keep
    factor, spread = inverse_factor(products), inverse_factor(outputs)
    q = np.clip(np.floor(weights / steps[:, None] + 0.5), -most, most).astype(np.int64) * allowed
    for _ in range(rounds if price > 0 else min(rounds, 1)):
        bits = Bits.of(q, shape)
        round_in_order(
            weights, factor, spread, steps, price, allowed,
            bits.table, bits.bounds, bits.typical, shape.plane, shape.row, most, q,
        )  # fmt: skip
    for _ in range(descents):
        bits = Bits.of(q, shape)
        descend(
            weights, products, outputs, steps, price, allowed,
            bits.table, bits.bounds, bits.typical, shape.plane, shape.row, most, q,
        )  # fmt: skip
    return q


def inverse_factor(products: Floats) -> Floats:
    """Upper triangular U with U' U = the inverse of `products`.

    1 / U[j, j]^2 is what is left of the square of j when the later ones make up for it.
    """
    flipped = torch.from_numpy(products).flip(0, 1)
    upper = torch.linalg.cholesky(flipped).flip(0, 1)  # products = upper upper'
    unit = torch.eye(len(upper), dtype=torch.float64)
    return torch.linalg.solve_triangular(upper, unit, upper=True).contiguous().numpy()
