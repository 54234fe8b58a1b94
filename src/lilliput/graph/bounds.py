"""Which codes a value can have, before anything is computed: what proofs of 32-bit sums start from."""

from collections.abc import Mapping

import numpy as np
import torch

from lilliput.core.encoding import Grid
from lilliput.core.program import Ints
from lilliput.graph.functions import CLIPS, clip_codes
from lilliput.graph.operators import MOVES
from lilliput.graph.trace import Graph, Node

NON_NEGATIVE = ("relu", "sigmoid", "hard_sigmoid", "softplus", "abs", "square", "sqrt", "exp")
KEEP_SIGN = ("avg_pool", "mean", "add", "mul", "concat")
"""Of values that are not negative they make one that is not."""


def code_bounds(graph: Graph, grids: Mapping[str, Grid], fused: Mapping[str, str]) -> dict[str, tuple[int, int]]:
    """Between which codes each value on a grid lies: its range, less what a relu or clamp or its inputs rule out."""
    bounds: dict[str, tuple[int, int]] = {}
    for node in graph.nodes:
        grid = grids.get(node.name)
        if grid is None:
            continue
        low, high = (int(end) for end in grid.range())
        zero = int(grid.zero_point)
        clip = graph[fused.get(node.name, node.name)]
        sources = [n for n in node.inputs if n in bounds]
        if clip.op in CLIPS:
            low, high = clip_codes(clip, grid)
        elif node.op in NON_NEGATIVE:
            low = zero
        elif node.op in MOVES and sources:
            low, high = bounds[sources[0]]
            if node.op == "pad":
                code = int(grid.quantize(torch.tensor([node.attributes["value"]], device=grid.scale.device)))
                low, high = min(low, code), max(high, code)
        elif node.op in KEEP_SIGN and len(sources) == len(node.inputs):
            non_negative = all(bounds[n][0] >= int(grids[n].zero_point) for n in sources)
            low = zero if non_negative else low
        bounds[node.name] = low, high
    return bounds


def output_rows(q: Ints, node: Node) -> Ints:
    """[outputs, terms]: the weights that each output of a layer may meet."""
    if node.attributes.get("transposed"):  # [in, out / groups, ...] -> [out, in / groups, ...]
        q = np.concatenate([part.swapaxes(0, 1) for part in np.split(q, node.attributes["groups"])])
    return q.reshape(len(q), -1)
