"""Coarse grids: where training in integers starts for the smallest files.

One step for each tensor, in proportion to the mean size of its weights (Esser et al., 2020, section 2.1, start at about
such steps), and biases on grids of few bits. Nothing is fitted and no data is read: much accuracy is lost here, and
`fine_tune` wins it back.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lilliput.core.artifact import Artifact
from lilliput.core.encoding import Grid
from lilliput.core.method import Context, Pass, PassResult, check_range
from lilliput.ops.affine import short

LEAST = 1e-12
"""A step of short mantissa can be stored from about 1e-14."""


@dataclass(frozen=True, kw_only=True)
class CoarseGrids(Pass):
    """Weights on integers of `weight_bits` whose step is `step` x the mean size of the tensor's weights.

    The larger `step`, the more integers are 0 and the smaller the file: 0.5 gives about 3 bits each once coded, 1 about
    2. `bias_bits` 0 leaves biases in float. All scales take a byte in the file. Weights that are on a grid keep it, and
    so do those that share values. Fold BatchNorm before, and put `fine_tune` with a `step_rate` behind.
    """

    name: ClassVar[str] = "coarse_grids"
    summary: ClassVar[str] = "put weights on one coarse grid for each tensor, for training in integers from there"
    citations: ClassVar[tuple[str, ...]] = ("https://arxiv.org/abs/1902.08153",)

    step: float = 0.5
    weight_bits: int = 4
    bias_bits: int = 6

    def __post_init__(self) -> None:
        check_range("coarse_grids step", self.step, 0.01, 10.0)
        check_range("coarse_grids weight_bits", self.weight_bits, 2, 8)
        if self.bias_bits != 0:
            check_range("coarse_grids bias_bits", self.bias_bits, 2, 16)
        super().__post_init__()

    def apply_(self, net: Artifact, context: Context) -> PassResult:
        chosen, skipped = self.pick(net)
        changed: dict[str, str] = {}
        for path, weight in chosen.items():
            own, encoding = self.for_layer(path), net.encoding(weight)
            if encoding.grid is not None or encoding.sharing is not None:
                skipped[path] = f"its weight has a stored form already ({encoding.describe()})"
                continue
            values = encoding.decode()
            kept = values if encoding.mask is None else values[encoding.mask]
            step = own.step * kept.abs().double().mean() if kept.numel() else torch.tensor(0.0)
            net.encode_(weight, encoding.with_grid(_grid(step, own.weight_bits).to(values.device)))
            changed[path] = net.encoding(weight).describe()
            self._bias_(net, weight.removesuffix("weight") + "bias", own.bias_bits)
        return PassResult(changed=changed, skipped=skipped)

    def _bias_(self, net: Artifact, name: str, bits: int) -> None:
        parameters = dict(net.module.named_parameters(remove_duplicate=False))
        if bits == 0 or name not in parameters or net.canonical(name) in net.encodings:
            return
        bias = net.encoding(net.canonical(name))
        largest = bias.decode().abs().max().double()
        net.encode_(net.canonical(name), bias.with_grid(_grid(largest / (2 ** (bits - 1) - 1), bits).to(net.device)))


def _grid(step: Tensor, bits: int) -> Grid:
    return Grid.per_tensor(float(short(step.cpu().clamp(min=LEAST))), 0, bits, signed=True, narrow=True)
