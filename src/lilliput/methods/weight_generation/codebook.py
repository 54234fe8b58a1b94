"""Few values instead of many, then a circuit for these: each weight keeps the index of its value."""

from dataclasses import replace

import numpy as np
import numpy.typing as npt

from lilliput.core.errors import UsageError
from lilliput.methods.weight_generation.constructive import generate, reachable
from lilliput.methods.weight_generation.problem import Problem
from lilliput.methods.weight_generation.solution import Solution
from lilliput.ops.clustering import optimal_1d

Ints = npt.NDArray[np.int64]


def exact(problem: Problem) -> Solution:
    """Every wanted value as it is."""
    return for_values(problem, problem.wanted)


def clustered(problem: Problem, n_values: int) -> Solution:
    """At most `n_values` integers of the least error: optimal clusters, weighted by importance, rounded.

    Values that nothing depends on (importance 0) count a little, so that they do not go astray.
    """
    _check_count(n_values)
    floor = max(float(problem.importance.max()), 1e-30) * 1e-9
    weights = np.maximum(problem.importance, floor)
    centroids = optimal_1d(problem.wanted.astype(np.float64), n_values, weights).centroids
    return for_values(problem, np.unique(np.floor(centroids + 0.5).astype(np.int64)))


def free(problem: Problem, n_values: int | None = None, *, most_pj: float = 0.0) -> Solution:
    """Values that gates of no energy make of the given ones and of constants: for each wanted one the nearest.

    With `n_values`, at most so many of them: those of the least error. With `most_pj`, values count that a chain of so
    much energy makes, each for itself.
    """
    prices = problem.gates.energy_pj
    values = reachable(problem.given.tolist(), bits=problem.bits, prices=prices, most=most_pj)
    if problem.low is not None:
        values = values[values >= problem.low]
    if n_values is not None:
        _check_count(n_values)
        values = best_of(problem, values, n_values)
    return for_values(problem, values)


def best_of(problem: Problem, values: Ints, n_values: int) -> Ints:
    """The at most `n_values` of ascending `values` that give the least error, by a dynamic program over neighbours."""
    wanted, weights = problem.wanted.astype(np.float64), problem.importance
    squares = weights * (values[:, None].astype(np.float64) - wanted) ** 2  # [values, wanted]
    below, above = wanted < values[:, None], wanted >= values[:, None]
    least = np.where(below, squares, 0.0).sum(1)  # with value j as the lowest
    rest = np.where(above, squares, 0.0).sum(1)  # with value j as the highest
    between = np.full((len(values), len(values)), np.inf)
    for j in range(len(values)):
        closer = np.minimum(squares[:j], squares[j])
        between[:j, j] = np.where(above[:j] & below[j], closer, 0.0).sum(1)
    steps: list[Ints] = []
    for _ in range(min(n_values, len(values)) - 1):
        through = least[:, None] + between
        before = through.argmin(0)
        better = through[before, np.arange(len(values))]
        steps.append(np.where(better < least, before, -1))
        least = np.minimum(better, least)
    chosen = [int((least + rest).argmin())]
    for step in reversed(steps):
        if step[chosen[-1]] >= 0:
            chosen.append(int(step[chosen[-1]]))
    return values[np.sort(chosen)]


def _check_count(n_values: int) -> None:
    if n_values < 1:
        raise UsageError("a codebook", f"{n_values} values", "use at least 1")


def for_values(problem: Problem, values: Ints) -> Solution:
    """For each wanted value the nearest of `values` (ascending, distinct), and a circuit for those that are used."""
    used, outputs = np.unique(nearest_index(problem.wanted, values), return_inverse=True)
    prices = problem.gates.energy_pj
    net = generate(problem.given.tolist(), values[used].tolist(), bits=problem.bits, prices=prices)
    order = np.argsort(net.outputs)  # outputs in the order of their pins take fewer bits
    net = replace(net, outputs=tuple(net.outputs[i] for i in order))
    return Solution(problem=problem, netlist=net, outputs=np.argsort(order)[outputs.reshape(-1)].astype(np.int64))


def nearest_index(wanted: Ints, values: Ints) -> Ints:
    """[wanted] into ascending `values`; the lower of two that are equally near."""
    after = np.searchsorted(values, wanted).clip(0, len(values) - 1)
    before = np.maximum(after - 1, 0)
    return np.where(wanted - values[before] <= np.abs(values[after] - wanted), before, after)
