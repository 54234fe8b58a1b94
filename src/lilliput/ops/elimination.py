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
AT_ONCE = 2**24
"""Numbers in the systems that are solved together."""


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
    """float64 [n, f]: rows w with w' H w / 2 - w' right least, 0 where not `keep`."""
    found = torch.zeros_like(right)
    step = max(1, AT_ONCE // products.numel())
    for start in range(0, len(right), step):
        kept = keep[start : start + step].double()
        system = products * kept[:, :, None] * kept[:, None, :] + torch.diag_embed(1.0 - kept)
        factor = torch.linalg.cholesky(system)
        solved = torch.cholesky_solve((right[start : start + step] * kept)[..., None], factor)
        found[start : start + step] = solved[..., 0] * kept
    return found
