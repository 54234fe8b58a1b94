"""Rate-distortion rounding: weights on integer grids, at one price for a bit over the whole network; no training.

Layer by layer, on the inputs that the layer has now: the weights are fitted anew to what the layer should give, then
rounded so that the error of the network's outputs + price x bits is least (`ops.rate_rounding`). The error of a layer's
outputs counts by the mean squared slope of the network's outputs. Steps follow from the price, so layers and channels
share bits out among them. Labels are not read.

Compensated rounding: Frantar et al. (2023), GPTQ, https://arxiv.org/abs/2210.17323. Bits in the choice of integers:
Wiedemann et al. (2020), DeepCABAC, https://arxiv.org/abs/1907.11900.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lilliput.core import container
from lilliput.core.artifact import Artifact
from lilliput.core.encoding import Encoding, Grid
from lilliput.core.errors import RecipeError
from lilliput.core.method import Context, PassResult, check_range
from lilliput.graph.trace import Node, run
from lilliput.methods.second_order.layers import (
    Layers,
    SecondOrder,
    damped,
    refitted,
    samples_of,
    wanted_cross,
)
from lilliput.methods.second_order.search import best_price
from lilliput.ops.affine import mse
from lilliput.ops.rate_rounding import Shape, inverse_factor, rounded
from lilliput.training.layer_targets import Products, Wanted, importance, walk

MOST_PLACES = 2**17
OUTPUT_DAMPING = 0.01
LARGEST = 127
SCALE_BITS = 2
"""Of the mantissa of a step: the least error is flat around it, and short mantissas take fewer bytes."""
AGREEMENT = 0.99
HELD_OUT = 2048
GOALS = ("price", "max_bytes", "min_agreement", "weight_bits")


@dataclass(frozen=True, kw_only=True)
class RateDistortion(SecondOrder):
    """Round weights and biases so that the file is small and the outputs move little.

    One of four goals: `max_bytes` of the file (without recipe and graph), `min_agreement` with the network before on
    held-out unlabelled samples (the default, 0.99), a `price` for a bit, or `weight_bits`: integers of so many bits,
    compensated, whatever they take when coded. Agreement is the share of equal answers where the task has classes, else
    the share of the outputs' variance that is kept.

    `samples` of train are looked at; `step` scales the grids' steps (more: coarser); `damping` is the share of the mean
    squared input that holds weights where they are. `bias_bits` 0 leaves biases in float. Put it after fold_batchnorm,
    and before quantization of activations.
    """

    name: ClassVar[str] = "rate_distortion"
    summary: ClassVar[str] = "round weights at one price for a bit of the file, without training or labels"
    citations: ClassVar[tuple[str, ...]] = ("https://arxiv.org/abs/2210.17323", "https://arxiv.org/abs/1907.11900")

    max_bytes: int | None = None
    min_agreement: float | None = None
    price: float | None = None
    weight_bits: int | None = None
    samples: int = 1024
    step: float = 1.2
    damping: float = 0.01
    bias_bits: int = 8

    def __post_init__(self) -> None:
        given = [name for name in GOALS if getattr(self, name) is not None]
        if len(given) > 1:
            raise RecipeError("rate_distortion", " and ".join(given), f"give one of {', '.join(GOALS)}")
        if self.max_bytes is not None:
            check_range("rate_distortion max_bytes", self.max_bytes, 1, 1 << 40)
        if self.min_agreement is not None:
            check_range("rate_distortion min_agreement", self.min_agreement, 0.0, 1.0, below=True)
        if self.price is not None:
            check_range("rate_distortion price", self.price, 1e-30, 1e30)
        if self.weight_bits is not None:
            check_range("rate_distortion weight_bits", self.weight_bits, 2, 8)
        check_range("rate_distortion samples", self.samples, 1, 1_000_000)
        check_range("rate_distortion step", self.step, 0.1, 10.0)
        check_range("rate_distortion damping", self.damping, 1e-6, 10.0)
        if self.bias_bits != 0:
            check_range("rate_distortion bias_bits", self.bias_bits, 4, 16)
        super().__post_init__()
        for pattern, settings in self.overrides.items():
            for name in settings:
                if name not in ("step", "damping", "bias_bits", "include", "skip"):
                    raise RecipeError(
                        f"rate_distortion override for {pattern!r}",
                        f"{name} counts for the whole network",
                        "override step, damping or bias_bits",
                    )

    def change_(self, net: Artifact, context: Context, layers: Layers) -> PassResult:
        return _Run(self, net, context, layers).result()


class _Run:
    """One application: the network as it was, and what does not depend on the price."""

    def __init__(self, method: RateDistortion, net: Artifact, context: Context, layers: Layers) -> None:
        self.method, self.net, self.context, self.layers = method, net, context, layers
        goal = next((name for name in GOALS if getattr(method, name) is not None), "min_agreement")
        self.goal = goal
        self.inputs, self.held = samples_of(net, context, method.samples, HELD_OUT if goal == "min_agreement" else 0)
        self.before = {name: t.detach().cpu().clone() for name, t in net.module.state_dict().items()}
        self.slopes: dict[str, Tensor] = {}
        self.found: dict[str, Encoding] = {}
        self.price = 0.0
        self.tries = 0

    def result(self) -> PassResult:
        method, notes = self.method, list[str]()
        self.slopes = importance(self.layers.graph, self.inputs, self.before, self.layers.nodes, self.context.generator)
        with self.context.progress.task("prices of a bit", None) as advance:
            if self.goal == "weight_bits":
                self.found = self.at(0.0)
                advance(1)
            elif self.goal == "price" and method.price is not None:
                self.price, self.found = method.price, self.at(method.price)
                advance(1)
            else:
                self._search_(advance)
        for name, encoding in self.found.items():
            self.net.encode_(name, encoding.to(self.net.device))
        if self.price:
            notes.append(f"price of a bit {self.price:.3g}, {max(1, self.tries)} tried")
        changed = {path: self.net.encoding(weight).describe() for path, weight in self.layers.names.items()}
        return PassResult(changed=changed, skipped=self.layers.skipped, notes=tuple(notes))

    def _search_(self, advance: Callable[[int], None]) -> None:
        method = self.method
        kept: dict[float, dict[str, Encoding]] = {}
        by_bytes = method.max_bytes is not None
        limit = float(method.max_bytes or 0) or 1.0 - (method.min_agreement or AGREEMENT)
        least = math.inf
        wanted = [] if by_bytes else self._outputs(self.before)

        def measure(price: float) -> float:
            nonlocal least
            found = self.at(price)
            value = float(self.bytes_of(found)) if by_bytes else self._disagreement(found, wanted)
            least = min(least, value)
            if value <= limit:
                kept[price] = found
            self.tries += 1
            advance(1)
            return value

        best = best_price(measure, limit, self._start(), rising=not by_bytes, close=0.015 if by_bytes else 0.1)
        if best is None:
            word = f"{int(least):,} bytes" if by_bytes else f"an agreement of {1 - least:.4f}"
            raise RecipeError("rate_distortion", f"the nearest to the limit is {word}", "choose a wider limit")
        self.price = best
        self.found = kept[min(kept, key=lambda p: abs(math.log(p / best)))]

    def bytes_of(self, found: Mapping[str, Encoding]) -> int:
        """Of the whole file with these encodings, without recipe and graph."""
        trial = self.net.copy()
        for name, encoding in found.items():
            trial.encode_(name, encoding.to(trial.device))
        return len(container.dumps(trial, strip=True))

    def _start(self) -> float:
        return first_price(self.layers, self.before, self.slopes)

    def _outputs(self, state: Mapping[str, Tensor]) -> list[Tensor]:
        with torch.no_grad():
            return [_tensor(run(self.layers.graph, state, *args)) for args in self.held or self.inputs]

    def _disagreement(self, found: Mapping[str, Encoding], wanted: list[Tensor]) -> float:
        outputs = self._outputs({**self.before, **{name: e.decode() for name, e in found.items()}})
        if self.context.task.kind in ("classification", "segmentation"):
            pairs = [(a.argmax(1) != b.argmax(1)).double() for a, b in zip(outputs, wanted, strict=True)]
            return float(torch.cat([p.reshape(-1) for p in pairs]).mean())
        now, then = torch.cat(outputs).double(), torch.cat(wanted).double()
        spread = (then - then.mean(0)).square().sum()
        return float((now - then).square().sum() / spread.clamp(min=1e-30))

    def at(self, price: float) -> dict[str, Encoding]:
        """The encodings at this price (0: of `weight_bits` bits)."""
        state, found = dict(self.before), dict[str, Encoding]()

        def visit(node: Node, products: Wanted) -> None:
            bias = self.layers.free_bias(self.net, node)
            seen = products(centred=bias is not None, most=MOST_PLACES)
            weight = self.net.canonical(node.state["weight"])
            new = found[weight] = self._layer(node, weight, seen, bias, price)
            state[node.state["weight"]] = state[weight] = new.decode()
            if bias is not None:
                moved = (seen.wanted - (new.decode().flatten(1).double() * seen.of_channels(seen.mean)).sum(1)).float()
                stored = on_one_grid(moved, self.method.for_layer(node.module).bias_bits)
                found[bias] = stored
                state[node.state["bias"]] = state[bias] = stored.decode()

        walk(self.layers.graph, self.inputs, self.before, state, {n.name for n in self.layers.nodes}, visit)
        return found

    def _layer(self, node: Node, weight: str, seen: Products, bias: str | None, price: float) -> Encoding:
        old, own = self.net.encoding(weight).to(torch.device("cpu")), self.method.for_layer(node.module)
        kept_bias = None if bias is not None or "bias" not in node.state else self.before[node.state["bias"]]
        system = damped(seen.inner, own.damping)
        fitted = refitted(old.decode().flatten(1), seen, wanted_cross(seen, kept_bias), system)
        keep = torch.ones_like(fitted, dtype=torch.bool) if old.mask is None else old.mask.flatten(1)
        slopes = self.slopes[node.name]
        slopes = slopes + torch.diag((OUTPUT_DAMPING * slopes.diagonal()).clamp(min=1e-9 * float(slopes.max()) + 1e-30))
        groups = len(system)
        each = len(fitted) // groups
        steps, codes = torch.empty(len(fitted), dtype=torch.float64), torch.empty(fitted.shape, dtype=torch.int64)
        for group in range(groups):
            part = slice(group * each, (group + 1) * each)
            rows, inner, outputs = fitted[part], system[group], slopes[part, part].contiguous()
            steps[part] = (
                steps_at(rows, inner, outputs, price, own.step)
                if price
                else steps_of_bits(rows, self.method.weight_bits)
            )
            q = rounded(
                rows.numpy(), inner.numpy(), outputs.numpy(), steps[part].numpy(), price,
                Shape.of(old.shape), keep=keep[part].numpy(), most=self._most(),
            )  # fmt: skip
            codes[part] = torch.from_numpy(q)
        bits = self.method.weight_bits or max(2, int(codes.abs().max()).bit_length() + 1)
        grid = Grid(
            scale=steps.float(),
            zero_point=torch.zeros(len(fitted), dtype=torch.int64),
            bit_width=torch.full((len(fitted),), bits),
            signed=True,
            narrow=True,
            axis=0,
        )
        return old.with_grid(grid, codes.reshape(old.shape))

    def _most(self) -> int:
        return LARGEST if self.method.weight_bits is None else 2 ** (self.method.weight_bits - 1) - 1


def usual_price(net: Artifact, context: Context, samples: int = 256) -> float:
    """The price from which a search for one starts, 1 where there is nothing to price."""
    layers = Layers.of(RateDistortion(), net)
    if not layers.nodes:
        return 1.0
    inputs, _ = samples_of(net, context, samples)
    before = {name: t.detach().cpu() for name, t in net.module.state_dict().items()}
    return first_price(layers, before, importance(layers.graph, inputs, before, layers.nodes, context.generator))


def first_price(layers: Layers, before: Mapping[str, Tensor], slopes: Mapping[str, Tensor]) -> float:
    """A tenth of what a weight that goes costs, in the geometric mean over channels."""
    costs: list[Tensor] = []
    for node in layers.nodes:
        weight = before[node.state["weight"]].flatten(1).double()
        costs.append(slopes[node.name].diagonal() * weight.square().mean(1))
    every = torch.cat(costs)
    alive = every[every > 0]
    return 0.05 * float(alive.log().mean().exp()) if len(alive) else 1.0


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


def short(steps: Tensor) -> Tensor:
    """With `SCALE_BITS` bits of mantissa after the first, rounded."""
    mantissa, exponent = torch.frexp(steps)
    unit = 2.0 ** (SCALE_BITS + 1)
    return torch.ldexp(torch.round(mantissa * unit) / unit, exponent)


def on_one_grid(bias: Tensor, bits: int) -> Encoding:
    """A bias on one symmetric grid; as it is with 0 bits."""
    plain = Encoding.of(bias)
    largest = float(bias.abs().max())
    if bits == 0 or largest == 0.0:
        return plain
    scale = float(torch.tensor(largest / (2 ** (bits - 1) - 1), dtype=torch.float32).clamp(min=1e-30))
    return plain.with_grid(Grid.per_tensor(scale, 0, bits, signed=True, narrow=True))


def _tensor(outputs: object) -> Tensor:
    if isinstance(outputs, Tensor):
        return outputs
    parts = [p for p in outputs if isinstance(p, Tensor)] if isinstance(outputs, (tuple, list)) else []
    return torch.cat([p.flatten(1) for p in parts], 1)
