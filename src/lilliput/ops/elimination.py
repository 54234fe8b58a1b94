"""Optimal brain surgery: weights of a row go one by one, each time the one whose loss the others make up for best.

With H the products of the inputs, the error d' H d / 2 grows by w_j^2 / (2 [H^-1]_jj) when weight j goes, and the
others move by -w_j / [H^-1]_jj times column j. Hassibi and Stork (1993); row by row, on the inverse without what is
gone: Frantar et al. (2022), https://arxiv.org/abs/2208.11580.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
TOGETHER = 8
"""Rows that are solved together."""


class Eliminated(NamedTuple):
    """`order` [n, most]: which entries of each row go, first to last; `costs` [n, most]: the error each adds."""

    order: npt.NDArray[np.int64]
    costs: Floats


def eliminated(weights: Floats, products: Floats, gone: Bools, most: int) -> Eliminated:
    """`most` entries of each row of `weights` [n, f], those of `gone` first; `products` [f, f] positive definite."""
    from lilliput.ops.elimination_kernels import eliminate

    inverse = torch.cholesky_inverse(torch.linalg.cholesky(torch.from_numpy(products))).contiguous().numpy()
    order, costs = np.empty((len(weights), most), np.int64), np.empty((len(weights), most))
    eliminate(weights, inverse, gone, most, order, costs)
    return Eliminated(order, costs)


def least_squares(right: Tensor, products: Tensor, keep: Tensor) -> Tensor:
    """float64 [n, f]: rows w with w' H w / 2 - w' right least, 0 where not `keep`.

    Rows that keep about as many are solved together, on what they keep alone.
    """
    found = torch.zeros_like(right)
    kept = keep.sum(1)
    order = torch.argsort(kept, stable=True)
    for rows in order.split(TOGETHER):
        most = int(kept[rows].max())
        if most == 0:
            continue
        index = torch.argsort(~keep[rows], dim=1, stable=True)[:, :most]
        own = keep[rows].gather(1, index).double()
        system = products[index[:, :, None], index[:, None, :]] * own[:, :, None] * own[:, None, :]
        system.diagonal(dim1=1, dim2=2).add_(1.0 - own)
        factor = torch.linalg.cholesky(system)
        solved = torch.cholesky_solve((right[rows].gather(1, index) * own)[..., None], factor)[..., 0] * own
        found[rows] = torch.zeros_like(found[rows]).scatter(1, index, solved)
    return found
