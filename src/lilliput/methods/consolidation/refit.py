"""Shared values and bias of each neuron anew, its clusters as they are, so that the layer's outputs change least.

With the clusters given, the least squares solution is that of as many equations as there are values: the products of
inputs that the clusters add up. Inputs of the layer are those that it has now, after what was changed before it; the
outputs to keep are those that it had: so each layer makes up for the errors of the layers before it.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from lilliput.graph.trace import Node
from lilliput.methods.consolidation.inputs import patches

RIDGE = 1e-3
"""Of the mean squared input: holds values that the samples say little about where they are."""
WIDEST = 4096
"""Weights of a neuron: beyond, their products take too much memory."""
CHUNK = 64


@dataclass(frozen=True, kw_only=True)
class Products:
    """Sums over places of [inputs now, 1] x [inputs now, 1] and x [inputs before, 1]: [groups, fan-in + 1, same]."""

    now: Tensor
    across: Tensor

    @staticmethod
    def of(before: list[Tensor], now: list[Tensor], node: Node, batch: int = 250) -> "Products":
        """Of the inputs of each call of the layer."""
        sums: list[Tensor] = []
        count = 0
        for old, new in zip(before, now, strict=True):
            for start in range(0, len(new), batch):
                a, b = (_with_one(patches(x[start : start + batch], node)) for x in (new, old))
                found = [(a.mT @ a).double(), (a.mT @ b).double()]
                sums = [s + f for s, f in zip(sums, found, strict=True)] if sums else found
                count += a.shape[1]
        return Products(now=sums[0] / count, across=sums[1] / count)


def refit(original: Tensor, weight: Tensor, bias: Tensor | None, products: Products) -> tuple[Tensor, Tensor | None]:
    """(weight [neurons, ...] with new shared values, bias) for the clusters of `weight`, which are its equal entries.

    `original` is what the layer's weight was; the bias stays where there is none. Zeros stay zero.
    """
    neurons = len(weight)
    groups = len(products.now)
    rows = weight.reshape(neurons, -1)
    fan_in = rows.shape[1]
    each = neurons // groups
    out = rows.clone()
    new_bias = None if bias is None else bias.clone()
    for group in range(groups):
        now, across = products.now[group], products.across[group]
        for first in range(group * each, (group + 1) * each, CHUNK):
            part = slice(first, min(first + CHUNK, (group + 1) * each))
            labels, values, live = _clusters(rows[part])
            slots = values.shape[1]
            members = torch.nn.functional.one_hot(labels, slots + 1)[..., :slots].double()  # [neurons, fan_in, slots]
            wanted = original.reshape(neurons, -1)[part].double() @ across[:, :fan_in].mT
            design, mean = now[:fan_in, :fan_in] @ members, None
            gram = members.mT @ design
            right = (wanted[:, None, :fan_in] @ members)[:, 0]
            start = values
            if bias is not None:
                old = bias[part].double()
                wanted = wanted + old[:, None] * across[:, fan_in]
                right = (wanted[:, None, :fan_in] @ members)[:, 0]
                mean = now[fan_in, :fan_in] @ members  # [neurons, slots]
                gram = torch.nn.functional.pad(gram, (0, 1, 0, 1))
                gram[:, :slots, slots] = gram[:, slots, :slots] = mean
                gram[:, slots, slots] = now[fan_in, fan_in]
                right = torch.cat([right, wanted[:, fan_in:]], 1)
                start = torch.cat([values, old[:, None]], 1)
                live = torch.nn.functional.pad(live, (0, 1), value=True)
            found = _solved(gram, right, start, live)
            out[part] = torch.nn.functional.pad(found[:, :slots], (0, 1)).gather(1, labels).float()
            if new_bias is not None:
                new_bias[part] = found[:, slots].float()
    return out.reshape(weight.shape), new_bias


def _solved(gram: Tensor, right: Tensor, start: Tensor, live: Tensor) -> Tensor:
    """The least squares solution, drawn to `start` where the samples say little; 0 where not `live`."""
    diagonal = torch.diagonal(gram, dim1=1, dim2=2)
    ridge = RIDGE * (diagonal * live).sum(1, keepdim=True) / live.sum(1, keepdim=True).clamp(min=1)
    ridge = ridge.clamp(min=torch.finfo(torch.float32).tiny).expand_as(start)
    system = gram + torch.diag_embed(torch.where(live, ridge, 1.0))
    return torch.linalg.solve(system, torch.where(live, right + ridge * start, 0.0))


def _clusters(rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(labels [neurons, fan_in], float64 values [neurons, slots], whether the slot is used); label `slots` is zero."""
    own = [torch.unique(row[row != 0]) for row in rows]
    slots = max(1, *(len(v) for v in own)) if own else 1
    labels = torch.full(rows.shape, slots, dtype=torch.int64)
    values = torch.zeros((len(rows), slots), dtype=torch.float64)
    live = torch.zeros((len(rows), slots), dtype=torch.bool)
    for i, (row, found) in enumerate(zip(rows, own, strict=True)):
        kept = row != 0
        labels[i, kept] = torch.searchsorted(found, row[kept].contiguous())
        values[i, : len(found)] = found.double()
        live[i, : len(found)] = True
    return labels, values, live


def _with_one(x: Tensor) -> Tensor:
    return torch.nn.functional.pad(x, (0, 1), value=1.0)
