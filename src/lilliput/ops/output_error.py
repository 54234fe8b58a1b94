"""How wrong a layer's output gets when its weights are rounded, and the affine grids that make it least wrong.

The output of a channel is y = w x + b. With the second moments of x, the squared error of other weights v is a
quadratic form: E (y - v x)^2 = var(y) - 2 v c + v A v, with A = cov(x) and c = cov(x, y); the bias takes the difference
of the means. So calibration data are read once, however many grids are tried. For grids q * scale the best scale of
given integers q is (q c) / (q A q).

Minimizing the error of the output instead of that of the weights: Nagel et al. (2020), https://arxiv.org/abs/2004.10568,
section 3. Least-squares scales for given integers: Rastegari et al. (2016), https://arxiv.org/abs/1603.05279, section
3.1. The size of the coded integers as a part of what is minimized is the rate-distortion choice of video coders:
Sullivan and Wiegand (1998), https://doi.org/10.1109/79.733497.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from lilliput.ops.affine import affine_parameters, min_max, quantize_rows
from lilliput.ops.fixed_point import integer_range

WIDEST, NARROWEST, STEPS = 2.0, 0.2, 64
DAMPING = 1e-3
SWEEPS = 4


@dataclass(frozen=True, kw_only=True, eq=False)
class Moments:
    """Of what a layer reads and should give, in float64.

    `covariance` [groups, n, n] of the inputs of one output, or [groups, n] where only its diagonal is known; `cross`
    [channels, n] with the wanted output; `variance` [channels] of that. Channel i belongs to group i // (channels /
    groups).
    """

    covariance: Tensor
    cross: Tensor
    variance: Tensor

    def times(self, rows: Tensor) -> Tensor:
        """[channels, n]: each row times the covariance of its group."""
        groups = len(self.covariance)
        split = rows.reshape(groups, -1, rows.shape[1])
        if self.covariance.dim() == 2:
            return (split * self.covariance[:, None, :]).reshape(rows.shape)
        return torch.bmm(split, self.covariance).reshape(rows.shape)

    def error(self, rows: Tensor) -> Tensor:
        """[channels]: mean squared error of the output with these weights and the best bias."""
        return (self.variance - 2 * (rows * self.cross).sum(1) + (rows * self.times(rows)).sum(1)).clamp(min=0)


def _code_bits(codes: Tensor, low: int, high: int) -> Tensor:
    """float64 [rows, levels]: what each code costs in its row, -log2 of its share; unused codes as if used once."""
    counts = _counts(codes, low, high).clamp(min=1).double()
    return torch.log2(counts.sum(1, keepdim=True)) - torch.log2(counts)


def _best_scale(centred: Tensor, moments: Moments, now: Tensor) -> Tensor:
    """float64, like `now`: the scale with the least error for given integers; `now` where there is none."""
    energy = (centred * moments.times(centred)).sum(1)
    match = (centred * moments.cross).sum(1)
    if now.numel() == 1:
        energy, match = energy.sum().reshape(1), match.sum().reshape(1)
    usable = (energy > 0) & (match > 0)
    found = torch.where(usable, match / torch.where(usable, energy, 1.0), now.double())
    small = torch.finfo(torch.float32).tiny
    return torch.where((found >= small) & (found < 1e30), found, now.double())


def _level(moments: Moments) -> float:
    level = float(moments.variance.mean())
    return level if level > 0 else 1.0


@dataclass(frozen=True, kw_only=True, eq=False)
class Fit:
    """A grid for each row, or one for all: round to (`search`, `zero_point`), then store `scale` as the scale."""

    search: Tensor
    scale: Tensor
    zero_point: Tensor
    error: Tensor  # float64 [channels]: squared error of the output, as a share of the wanted variance of the layer


def fit(
    rows: Tensor,
    moments: Moments,
    *,
    bit_width: int,
    symmetric: bool,
    per_row: bool,
    size_weight: float = 0.0,
) -> Fit:
    """The best of 64 ranges, 2 to 0.2 times `min_max`, for each of `rows` [channels, n] or for all together.

    Minimized is the error of the output, as a share of the layer's mean wanted variance, plus `size_weight` times the
    entropy of the integers in bits a weight. Ranges wider than all weights use fewer integers: they are smaller when
    coded. The wider of equal ones wins. Rows of zeros get the scale of a range of only 0.
    """
    rows = rows.double()
    level = _level(moments)
    low_code, high_code = integer_range(bit_width, signed=True, narrow=symmetric)
    ends = min_max(rows if per_row else rows.reshape(1, -1))
    count = len(ends.low)
    best = torch.full((count,), math.inf, dtype=torch.float64)
    search = scale = error = torch.zeros(0)
    zero_point = torch.zeros(0, dtype=torch.int64)
    shares = torch.logspace(math.log10(WIDEST), math.log10(NARROWEST), STEPS, dtype=torch.float64)[:, None]
    grids = affine_parameters(
        ends.low * shares, ends.high * shares, bit_width=bit_width, signed=True, symmetric=symmetric, narrow=symmetric
    )
    for tried, zero in zip(*grids, strict=True):
        spread, offset = (v.expand(len(rows)) for v in (tried, zero))
        codes = quantize_rows(rows, spread, offset, low_code, high_code)
        centred = (codes - offset[:, None]).double()
        stored = _best_scale(centred, moments, tried).float()
        errors = moments.error(centred * stored.double().expand(len(rows))[:, None]) / level
        value = errors if per_row else errors.mean().reshape(1)
        if size_weight:
            value = value + size_weight * entropy(codes if per_row else codes.reshape(1, -1), low_code, high_code)
        better = value < best
        if not search.numel():
            search, scale, zero_point, error = tried, stored, zero, errors
        else:
            search, scale = torch.where(better, tried, search), torch.where(better, stored, scale)
            zero_point, error = torch.where(better, zero, zero_point), torch.where(better, errors, error)
        best = torch.where(better, value, best)
    return Fit(search=search, scale=scale, zero_point=zero_point, error=error)


def refine(
    codes: Tensor,
    moments: Moments,
    fit: Fit,
    *,
    bit_width: int,
    narrow: bool,
    size_weight: float = 0.0,
    free: Tensor | None = None,
    sweeps: int = SWEEPS,
) -> tuple[Tensor, Tensor]:
    """Better roundings than the nearest: (int64 codes [channels, n], float32 scales like `fit.scale`).

    Coordinate descent, one input after the other and all channels at once: each code moves to the best of the integers
    around its optimum given the other codes, so errors of one weight are made up for by the next; after each sweep the
    scales are fitted again. With `size_weight`, codes that are rare in their row cost more, as in `fit`. `free` says
    which may move. Never worse than what it starts from, where `size_weight` is 0.

    Behdin et al. (2023), "QuantEase", https://arxiv.org/abs/2309.01885, section 3; we keep scales in the descent.
    """
    low, high = integer_range(bit_width, signed=True, narrow=narrow)
    count, width = codes.shape
    level = _level(moments)
    scale = fit.scale.double()
    codes, single = codes.clone(), scale.numel() == 1
    offset = fit.zero_point.expand(count)
    groups = len(moments.covariance)
    of_row = torch.arange(count) // (count // groups)
    for _ in range(sweeps):
        step = scale.expand(count)
        weights = (codes - offset[:, None]).double() * step[:, None]
        gradient = moments.cross - moments.times(weights)
        bits = (
            _code_bits(codes.reshape(1, -1) if single else codes, low, high).expand(count, -1) if size_weight else None
        )
        for j in range(width):
            curve = moments.covariance[:, j] if moments.covariance.dim() == 2 else moments.covariance[:, j, j]
            curve = curve[of_row]
            best = codes[:, j] + gradient[:, j] / (curve * step).clamp(min=1e-300)
            best = torch.where(curve > 0, best, codes[:, j].double()).clamp(low - 1, high + 1)
            nearest = torch.floor(best + 0.5)
            if bits is None:
                chosen = nearest.clamp(low, high).long()
            else:
                around = torch.stack([nearest - 1, nearest, nearest + 1], 1).clamp(low, high).long()
                price = (around - best[:, None]).square() * (curve * step.square())[:, None] / level
                price = price + size_weight / width * bits.gather(1, around - low)
                chosen = around.gather(1, price.argmin(1, keepdim=True))[:, 0]
            if free is not None:
                chosen = torch.where(free[:, j], chosen, codes[:, j])
            moved = (chosen - codes[:, j]).double() * step
            codes[:, j] = chosen
            if moments.covariance.dim() == 2:
                gradient[:, j] -= moved * curve
            else:
                gradient -= moved[:, None] * moments.covariance[:, j][of_row]
        scale = _best_scale((codes - offset[:, None]).double(), moments, scale)
    return codes, scale.float()


def entropy(codes: Tensor, low: int, high: int) -> Tensor:
    """float64 [rows]: bits a symbol of each row's own distribution."""
    share = _counts(codes, low, high).double() / codes.shape[1]
    return -(share * torch.log2(share.clamp(min=1e-300))).sum(1)


def _counts(codes: Tensor, low: int, high: int) -> Tensor:
    """int64 [rows, levels]."""
    levels = high - low + 1
    place = torch.arange(len(codes), device=codes.device)[:, None] * levels
    return torch.bincount((codes - low + place).reshape(-1), minlength=len(codes) * levels).reshape(-1, levels)
