"""One layer's rounding: fitted anew to what it should give, steps from the price, integers, and its means again.

Compensated rounding: Frantar et al. (2023), GPTQ, https://arxiv.org/abs/2210.17323. Bits in the choice of integers:
Wiedemann et al. (2020), DeepCABAC, https://arxiv.org/abs/1907.11900.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from lilliput.core.artifact import Artifact
from lilliput.core.encoding import Encoding, Grid
from lilliput.graph.trace import Node
from lilliput.methods.second_order.layers import Layers, damped, refitted, wanted_cross
from lilliput.ops.affine import mse, short
from lilliput.ops.rate_rounding import Shape, inverse_factor, rounded
from lilliput.training.layer_targets import Products, Wanted

MOST_PLACES = 2**17
OUTPUT_DAMPING = 0.01
LARGEST = 127


class LayerSettings(Protocol):
    """Of `RateDistortion`, what overrides may change."""

    @property
    def step(self) -> float: ...
    @property
    def damping(self) -> float: ...
    @property
    def bias_bits(self) -> int: ...


@dataclass(frozen=True, kw_only=True, eq=False)
class Rounded:
    """One layer: its weights before they were rounded, [channels, inputs], and what an error of one step costs."""

    node: Node
    fitted: Tensor
    curvature: Tensor
    encoding: Encoding
    most: int

    def integers(self) -> Tensor:
        return self.encoding.values.flatten(1)


@dataclass(frozen=True, kw_only=True, eq=False)
class Rounding:
    """What does not depend on the price: the network, its state `before`, and how errors of layers count (`slopes`).

    `bits`: integers of so many, where there is no price.
    """

    net: Artifact
    layers: Layers
    before: Mapping[str, Tensor]
    slopes: Mapping[str, Tensor]
    bits: int | None
    settings: Callable[[str], LayerSettings]

    @property
    def most(self) -> int:
        return LARGEST if self.bits is None else 2 ** (self.bits - 1) - 1

    def layer(self, node: Node, seen: Products, bias: str | None, price: float) -> Rounded:
        """Rounded at this price; `bias` will take the means."""
        weight = self.net.canonical(node.state["weight"])
        old, own = self.net.encoding(weight).to(torch.device("cpu")), self.settings(node.module)
        kept_bias = None if bias is not None or "bias" not in node.state else self.before[node.state["bias"]]
        system = damped(seen.inner, own.damping)
        fitted = refitted(old.decode().flatten(1), seen, wanted_cross(seen, kept_bias), system)
        keep = torch.ones_like(fitted, dtype=torch.bool) if old.mask is None else old.mask.flatten(1)
        slopes = self.slopes[node.name]
        slopes = slopes + torch.diag((OUTPUT_DAMPING * slopes.diagonal()).clamp(min=1e-9 * float(slopes.max()) + 1e-30))
        groups, each = len(system), len(fitted) // len(system)
        steps, codes = torch.empty(len(fitted), dtype=torch.float64), torch.empty(fitted.shape, dtype=torch.int64)
        for group in range(groups):
            part = slice(group * each, (group + 1) * each)
            rows, inner, outputs = fitted[part], system[group], slopes[part, part].contiguous()
            priced = steps_at(rows, inner, outputs, price, own.step) if price else steps_of_bits(rows, self.bits)
            steps[part] = priced
            q = rounded(
                rows.numpy(), inner.numpy(), outputs.numpy(), steps[part].numpy(), price,
                Shape.of(old.shape), keep=keep[part].numpy(), most=self.most,
            )  # fmt: skip
            codes[part] = torch.from_numpy(q)
        inputs = system.diagonal(dim1=-2, dim2=-1).repeat_interleave(each, 0)
        grid = grid_of(steps, self.bits or max(2, int(codes.abs().max()).bit_length() + 1))
        return Rounded(
            node=node,
            fitted=fitted,
            curvature=slopes.diagonal()[:, None] * inputs,
            encoding=old.with_grid(grid, codes.reshape(old.shape)),
            most=self.most,
        )


class Work:
    """The network while its layers are rounded: `state` as it is now, what was `found`, and each layer's rounding."""

    def __init__(self, rounding: Rounding, price: float) -> None:
        self.rounding, self.price = rounding, price
        self.state, self.found = dict(rounding.before), dict[str, Encoding]()
        self.rounded: dict[str, Rounded] = {}

    def visit(self, node: Node, products: Wanted) -> None:
        """Round a layer, and give its outputs their means again."""
        bias = self.free_bias(node)
        seen = products(centred=bias is not None, most=MOST_PLACES)
        self.rounded[node.name] = self.rounding.layer(node, seen, bias, self.price)
        self.put_(node, self.rounded[node.name].encoding)
        self._correct_(node, seen)

    def correct(self, node: Node, products: Wanted) -> None:
        """The means alone."""
        if self.free_bias(node) is not None:
            self._correct_(node, products(centred=True, most=MOST_PLACES))

    def free_bias(self, node: Node) -> str | None:
        return self.rounding.layers.free_bias(self.rounding.net, node)

    def put_(self, node: Node, encoding: Encoding) -> None:
        weight = self.rounding.net.canonical(node.state["weight"])
        self.found[weight] = encoding
        self.state[node.state["weight"]] = self.state[weight] = encoding.decode()

    def _correct_(self, node: Node, seen: Products) -> None:
        bias = self.free_bias(node)
        if bias is None:
            return
        rows = self.state[node.state["weight"]].flatten(1).double()
        moved = (seen.wanted - (rows * seen.of_channels(seen.mean)).sum(1)).float()
        stored = Encoding.on_one_grid(moved, self.rounding.settings(node.module).bias_bits)
        self.found[bias] = stored
        self.state[node.state["bias"]] = self.state[bias] = stored.decode()


def grid_of(steps: Tensor, bits: int) -> Grid:
    """One step for each channel."""
    return Grid(
        scale=steps.float(),
        zero_point=torch.zeros(len(steps), dtype=torch.int64),
        bit_width=torch.full((len(steps),), bits),
        signed=True,
        narrow=True,
        axis=0,
    )


def steps_at(rows: Tensor, inner: Tensor, outputs: Tensor, price: float, factor: float) -> Tensor:
    """float64 [n]: where a finer step would save less error than its bits cost, by the high-rate approximation.

    Of a uniform quantizer, error importance x variance x step^2 / 24 and bits - log2(step). The variance is what is
    left of an input when later ones make up for it, in the geometric mean.
    """
    variance = torch.from_numpy(inverse_factor(inner.numpy())).diagonal().pow(-2).log().mean().exp()
    weight = torch.from_numpy(inverse_factor(outputs.numpy())).diagonal().pow(-2)
    steps = factor * torch.sqrt(12 * price / (math.log(2) * weight * variance))
    largest = rows.abs().amax(1)
    floor = (largest / LARGEST).clamp(min=1e-30)
    return short(torch.minimum(torch.maximum(steps, floor), (4 * largest).clamp(min=1e-30)))


def steps_of_bits(rows: Tensor, bits: int | None) -> Tensor:
    """float64 [n]: symmetric grids of so many bits with the least squared error of the rows."""
    width = bits or 8
    found = mse(rows.float(), bit_width=width, signed=True, symmetric=True, narrow=True)
    reach = torch.maximum(found.high, -found.low).double() / (2 ** (width - 1) - 1)
    return reach.clamp(min=1e-30).float().double()
