"""Weights of `ops.learned_function` that compute a given function: what a network keeps when activations are replaced.

All are fitted by least squares on [-limit, limit], weighted as inputs lie whose deviation is a quarter of the limit.
Tables and cubic splines in one step, exactly where the function consists of such lines, as ReLU does; PSA by
quasi-Newton steps (L-BFGS) from several starts, the best of which counts. PSA meets a ReLU within 0.4% of the limit,
GELU and SiLU within 0.1%, Hardswish within 1%.
"""

import functools
from collections.abc import Callable

import torch
from torch import Tensor

from lilliput.ops.learned_function import PSA_LIMIT, grid_of, piecewise_linear_torch, psa

Function = Callable[[Tensor], Tensor]

TERMS = 8
STARTS = (2.0, 4.0)
"""How wide the centers of PSA lie at first, in units of a quarter of the limit."""
SAMPLES = 257
"""An odd number: one is at 0."""
STEPS = 100
BETWEEN, MANY_POINTS = 16, 257
"""Samples for each piece of a table; a table of more points takes the function's values at them."""
MIDDLE = 0.1
"""The nearest to 0 that a center starts."""


def fitted(function: Function, kind: str, limit: float, points: int, terms: int = TERMS) -> Tensor:
    """float32 [n]: the weight of one function."""
    bound = torch.tensor([limit], dtype=torch.float64)
    if kind in ("table", "cubic"):
        values = _points(function, bound, points)
        return (values if kind == "table" else _coefficients(values)).float()
    if kind == "lerp_psa":
        off = _points(function, bound, points) - function(grid_of(bound, points)[0])

        def moved(x: Tensor) -> Tensor:
            return function(x) + piecewise_linear_torch(x[None], off[None], bound, 0)[0]

        return _psa(moved, bound, terms).float()
    return _psa(function, bound, terms).float()


def _points(function: Function, limit: Tensor, points: int) -> Tensor:
    """The values at the points whose lines are nearest to the function between them (least squares)."""
    if points > MANY_POINTS:
        return function(grid_of(limit, points)[0])
    x = grid_of(limit, BETWEEN * (points - 1) + 1)
    hats = piecewise_linear_torch(x.expand(points, -1), torch.eye(points, dtype=torch.float64), limit, 0).T
    weighted = hats * _importance(PSA_LIMIT * x[0] / limit)[:, None]
    return torch.linalg.solve(hats.T @ weighted, weighted.T @ function(x[0]))


def _importance(z: Tensor) -> Tensor:
    """Of errors at the limit of PSA: as inputs lie whose deviation is a quarter of the limit."""
    return 0.1 + torch.exp(-(z**2) / 2)


def _coefficients(values: Tensor) -> Tensor:
    """Of the cubic spline through these values that is straight at both ends."""
    n = len(values)
    system = torch.zeros(n + 2, n + 2, dtype=torch.float64)
    inner = torch.arange(n)
    for shift, share in ((0, 1 / 6), (1, 4 / 6), (2, 1 / 6)):
        system[inner + 1, inner + shift] = share
    system[0, :3] = system[-1, -3:] = torch.tensor([1.0, -2.0, 1.0], dtype=torch.float64)
    zero = torch.zeros(1, dtype=torch.float64)
    return torch.linalg.solve(system, torch.cat([zero, values, zero]))


def _psa(function: Function, limit: Tensor, terms: int) -> Tensor:
    """Fitted at the limit of PSA itself: a ReLU is the same function at every limit, and fitted once."""
    factor = float(limit) / PSA_LIMIT
    wanted = (function(_inputs() * factor) / factor).float()
    return torch.tensor(_fitted_psa(tuple(wanted.tolist()), terms), dtype=torch.float64)


def _inputs() -> Tensor:
    return torch.linspace(-PSA_LIMIT, PSA_LIMIT, SAMPLES, dtype=torch.float64)


@functools.lru_cache(maxsize=64)
def _fitted_psa(values: tuple[float, ...], terms: int) -> tuple[float, ...]:
    wanted = torch.tensor(values, dtype=torch.float64)
    results = [_fit(wanted, _start(wanted, width, terms)) for width in STARTS]
    return tuple(min(results, key=lambda result: result[0])[1].tolist())


def _start(wanted: Tensor, width: float, terms: int) -> Tensor:
    """Lines that meet the function at the centers; beyond the samples it goes on straight."""
    b = width * torch.linspace(-2, 2, terms, dtype=torch.float64)
    b = torch.where(b.abs() < MIDDLE, MIDDLE, b)
    at_zero = wanted[SAMPLES // 2]
    limit = torch.tensor([PSA_LIMIT], dtype=torch.float64)
    v = (piecewise_linear_torch(b[None], wanted[None], limit, 0)[0] - at_zero) / b
    return torch.cat([v, torch.ones_like(b), b, torch.ones(1, dtype=torch.float64), at_zero[None]])


def _fit(wanted: Tensor, start: Tensor) -> tuple[float, Tensor]:
    """(loss, weight)."""
    z = _inputs()
    importance = _importance(z)
    weight = start[None].clone().requires_grad_()
    limit = torch.tensor([PSA_LIMIT], dtype=torch.float64)
    optimizer = torch.optim.LBFGS(
        [weight], max_iter=STEPS, history_size=20, line_search_fn="strong_wolfe", tolerance_change=1e-14
    )

    def loss() -> Tensor:
        optimizer.zero_grad()
        with torch.inference_mode(False), torch.enable_grad():
            found = (importance * (psa(z[None], weight, limit)[0] - wanted) ** 2).mean()
            found.backward()
        return found.detach()

    optimizer.step(loss)
    return float(loss()), weight.detach()[0]
