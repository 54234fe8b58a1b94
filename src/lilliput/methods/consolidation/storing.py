"""Neurons as a file can hold them: tables of shared values for each, on the grid that their weights are on."""

from dataclasses import replace

import torch
from torch import Tensor

from lilliput.core.encoding import Encoding, Grid, Sharing


def encoded(weight: Tensor, axis: int, before: Encoding) -> Encoding:
    """The neurons as they are, slices of `axis`: zeros masked, each one's other values as its table.

    On the grid that it is on `before`, if there is one.
    """
    grid = before.grid
    stored = weight if grid is None else grid.quantize(weight)
    rows, live = (t.movedim(axis, 0).flatten(1) for t in (stored, weight != 0))
    tables: list[Tensor] = []
    indices = torch.zeros(rows.shape, dtype=torch.int64, device=weight.device)
    for i, row in enumerate(rows):
        values, labels = torch.unique(row[live[i]], return_inverse=True)
        indices[i, live[i]] = labels
        tables.append(values if len(values) else rows.new_zeros(1))
    sizes = torch.tensor([len(t) for t in tables], device=weight.device)
    shape = weight.movedim(axis, 0).shape
    sharing = Sharing(indices=indices.reshape(shape).movedim(0, axis).contiguous(), sizes=sizes, axis=axis)
    base = Encoding.of(weight) if grid is None else Encoding.of(weight).with_grid(grid, stored)
    whole = base if bool((weight != 0).all()) else base.with_mask(weight != 0)
    return whole.with_sharing(sharing, torch.cat(tables))


def snapped(rows: Tensor, grid: Grid, neurons: list[int]) -> Tensor:
    """`rows` [n, ...] of these neurons, each value the nearest of the grid."""
    own = grid if grid.axis is None else replace(grid.select(grid.axis, torch.tensor(neurons)), axis=0)
    own = own.to(rows.device)
    return own.dequantize(own.quantize(rows))


def short(values: Tensor) -> Tensor:
    """With 11 bits of mantissa, where that keeps them finite and not zero."""
    rounded = values.half().float()
    return torch.where((rounded != 0) & rounded.isfinite(), rounded, values)
