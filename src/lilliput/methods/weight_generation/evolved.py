"""The same values by another circuit: evolution from the one that is there, for less energy."""

from dataclasses import replace

import numpy as np

from lilliput.methods.weight_generation.evolution import begin
from lilliput.methods.weight_generation.evolution_settings import EvolutionSettings
from lilliput.methods.weight_generation.solution import Solution

MARGIN = 4
"""Columns more than the circuit is deep."""


def evolved(solution: Solution, generations: int, *, seed: int) -> Solution:
    """After so many generations, from the constructive circuit for these values; as it was if nothing better was found.

    Better is less energy, or fewer packed bytes at the same energy; never more bytes.
    """
    problem = solution.problem
    values, places = np.unique(solution.made, return_inverse=True)
    shares = [
        np.bincount(places.reshape(-1), weights=w.astype(np.float64)) for w in (problem.counts, problem.importance)
    ]
    few = replace(problem, wanted=values, counts=shares[0].astype(np.int64), importance=np.maximum(shares[1], 1e-300))
    rows = max(len(values), len(solution.netlist.gates), 1)
    settings = EvolutionSettings(rows=rows, columns=solution.netlist.depth() + MARGIN, seed=seed, keep=1)
    best, best_rank = solution, _rank(solution)
    for found in begin(few, settings).advanced(generations).top:
        whole = Solution(problem=problem, netlist=found.netlist, outputs=found.outputs[places.reshape(-1)])
        rank = _rank(whole)
        if np.array_equal(whole.made, solution.made) and rank < best_rank and rank[1] <= _rank(solution)[1]:
            best, best_rank = whole, rank
    return best


def _rank(solution: Solution) -> tuple[float, int]:
    return solution.cost().circuit.energy_pj, len(solution.netlist.pack())
