"""Learned step sizes that are powers of two, for networks that rescale by right shifts.

What the optimizer moves is a scale as in `learned_steps`; what computes is the power of two that is nearest by ratio,
as in the shifts of PSA-Compress (ACM TRETS, https://doi.org/10.1145/3705926); the gradient goes straight through.
"""

import math
from dataclasses import replace

import torch

from lilliput.core.artifact import Artifact
from lilliput.core.encoding import Grid
from lilliput.graph.aligned import aligned
from lilliput.graph.integer import LAYERS
from lilliput.graph.shared_bias import owners_of_grids
from lilliput.graph.trace import graph_of
from lilliput.training.learned_steps import LearnedSteps, Step

MIDDLE = math.sqrt(0.5)
"""Of mantissas from 1/2 to 1: as many times 1/2 as 1 is of it."""


class PowersOfTwo(LearnedSteps):
    """`LearnedSteps` on powers of two, with biases on the scale of their layer's output."""

    def _activations_(self) -> None:
        self._graph = graph_of(self._view)
        super()._activations_()
        owners = owners_of_grids(self._graph)
        for node in self._graph.nodes:
            bias = node.state.get("bias") if node.op in LAYERS else None
            if bias is None or owners[node.name] not in self._view.activations:
                continue
            if self._view.canonical(bias) in self._biases and len(self._graph.users_of(bias)) == 1:
                self._outputs[self._view.canonical(bias)] = owners[node.name]

    def _now(self, step: Step) -> Grid:
        grid = step.now()
        mantissa = torch.frexp(grid.scale).mantissa
        above = grid.scale / mantissa  # exact
        return replace(grid, scale=torch.where(mantissa < MIDDLE, above / 2, above))

    def _join_(self) -> None:
        if self._fake is not None:
            self._view.activations.update(aligned(self._view, self._graph))


def on_powers_of_two(net: Artifact) -> bool:
    """Are all scales powers of two, and all zero points of activations 0?"""
    stored = [e.grid for e in net.encodings.values() if e.grid is not None]
    scales = [grid.scale for grid in (*stored, *net.activations.values())]
    exact = all(bool((torch.frexp(scale).mantissa == 0.5).all()) for scale in scales)
    return exact and not any(bool(grid.zero_point.any()) for grid in net.activations.values())
