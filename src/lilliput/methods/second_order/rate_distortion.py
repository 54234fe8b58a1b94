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
from typing import Any, ClassVar

import torch
from torch import Tensor

from lilliput.core import container
from lilliput.core.artifact import Artifact
from lilliput.core.encoding import Encoding, Grid
from lilliput.core.errors import RecipeError
from lilliput.core.method import Context, PassResult, check_range
from lilliput.graph.blocks import Block, blocks_of
from lilliput.graph.trace import Node, run
from lilliput.methods.second_order.layers import (
    Layers,
    SecondOrder,
    damped,
    refitted,
    samples_of,
    wanted_cross,
)
from lilliput.methods.second_order.learned_rounding import Examples, Rounded, coded_bits, learned
from lilliput.methods.second_order.search import best_price
from lilliput.ops.affine import mse
from lilliput.ops.rate_rounding import Shape, inverse_factor, rounded
from lilliput.training.layer_targets import Products, Wanted, importance, walk
from lilliput.training.lockstep import channel_dim

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
    squared input that holds weights where they are. `bias_bits` 0 leaves biases in float. With `learned_steps`, what was
    rounded is learned anew in so many steps for each block, and kept where samples that were held out gain by it. Put
    it after fold_batchnorm, and before quantization of activations.
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
    learned_steps: int = 0

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
        check_range("rate_distortion learned_steps", self.learned_steps, 0, 1_000_000)
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
        if method.learned_steps:
            notes.append(self._learn_())
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

    def _learn_(self) -> str:
        """Learn the rounding block by block; says what came of it."""
        blocks = blocks_of(self.layers.graph, self.layers.nodes)
        with self.context.progress.task("learned rounding", len(blocks)) as advance:
            learning = _Learning(self, blocks)
            new = learning.run(advance)
        size, limit = self.bytes_of(new), self.method.max_bytes
        if limit is not None and size > limit:
            return f"learned rounding is left out: the file would have {size:,} bytes"
        self.found = new
        return f"learned rounding kept in {learning.kept} of {len(blocks)} blocks"

    def bytes_of(self, found: Mapping[str, Encoding]) -> int:
        """Of the whole file with these encodings, without recipe and graph."""
        trial = self.net.copy()
        for name, encoding in found.items():
            trial.encode_(name, encoding.to(trial.device))
        return len(container.dumps(trial, strip=True))

    def _start(self) -> float:
        """A tenth of what a weight that goes costs, in the geometric mean over channels."""
        costs: list[Tensor] = []
        for node in self.layers.nodes:
            weight = self.before[node.state["weight"]].flatten(1).double()
            costs.append(self.slopes[node.name].diagonal() * weight.square().mean(1))
        every = torch.cat(costs)
        alive = every[every > 0]
        return 0.05 * float(alive.log().mean().exp()) if len(alive) else 1.0

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
        work = _Work(self, price)
        walk(self.layers.graph, self.inputs, self.before, work.state, {n.name for n in self.layers.nodes}, work.visit)
        return work.found

    def layer(self, node: Node, weight: str, seen: Products, bias: str | None, price: float) -> Rounded:
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
        inputs = system.diagonal(dim1=-2, dim2=-1).repeat_interleave(each, 0)
        return Rounded(
            node=node,
            fitted=fitted,
            curvature=slopes.diagonal()[:, None] * inputs,
            encoding=old.with_grid(grid, codes.reshape(old.shape)),
            most=self._most(),
        )

    def _most(self) -> int:
        return LARGEST if self.method.weight_bits is None else 2 ** (self.method.weight_bits - 1) - 1


class _Work:
    """The network while its layers are rounded: `state` as it is now, what was `found`, and each layer's rounding."""

    def __init__(self, run: _Run, price: float) -> None:
        self.run, self.price = run, price
        self.state, self.found = dict(run.before), dict[str, Encoding]()
        self.rounded: dict[str, Rounded] = {}

    def visit(self, node: Node, products: Wanted) -> None:
        """Round a layer, and give its outputs their means again."""
        run = self.run
        bias = run.layers.free_bias(run.net, node)
        seen = products(centred=bias is not None, most=MOST_PLACES)
        rounded = self.rounded[node.name] = run.layer(
            node, run.net.canonical(node.state["weight"]), seen, bias, self.price
        )
        self.put_(node, rounded.encoding)
        self._correct_(node, seen)

    def correct(self, node: Node, products: Wanted) -> None:
        """The means alone."""
        if self.run.layers.free_bias(self.run.net, node) is not None:
            self._correct_(node, products(centred=True, most=MOST_PLACES))

    def put_(self, node: Node, encoding: Encoding) -> None:
        weight = self.run.net.canonical(node.state["weight"])
        self.found[weight] = encoding
        self.state[node.state["weight"]] = self.state[weight] = encoding.decode()

    def _correct_(self, node: Node, seen: Products) -> None:
        bias = self.run.layers.free_bias(self.run.net, node)
        if bias is None:
            return
        rows = self.state[node.state["weight"]].flatten(1).double()
        moved = (seen.wanted - (rows * seen.of_channels(seen.mean)).sum(1)).float()
        stored = on_one_grid(moved, self.run.method.for_layer(node.module).bias_bits)
        self.found[bias] = stored
        self.state[node.state["bias"]] = self.state[bias] = stored.decode()


class _Learning:
    """Block by block: rounded as without learning, then learned; the better one on batches held out stays."""

    def __init__(self, run: _Run, blocks: list[Block]) -> None:
        self.run_, self.blocks, self.kept = run, blocks, 0
        ends = {b.graph.outputs[-1]: _channels(b) for b in blocks[:-1]}
        graph = run.layers.graph
        nodes, generator = [graph[name] for name in ends], run.context.generator
        self.slopes = importance(graph, run.inputs, run.before, nodes, generator, ends) if nodes else {}
        self.work = _Work(run, run.price)

    def run(self, advance: Callable[[int], None]) -> dict[str, Encoding]:
        now, then = list(self.run_.inputs), list(self.run_.inputs)
        for block in self.blocks:
            self._round_(block, now, then, self.work.visit)
            wanted = self._after(block, self.run_.before, then)
            self._learn_(block, now, then, wanted)
            now, then = self._after(block, self.work.state, now), wanted
            advance(1)
        return self.work.found

    def _learn_(
        self,
        block: Block,
        now: list[tuple[Tensor, ...]],
        then: list[tuple[Tensor, ...]],
        wanted: list[tuple[Tensor, ...]],
    ) -> None:
        run, work = self.run_, self.work
        end = block.graph.outputs[-1]
        outputs = self.slopes[end].float() if end in self.slopes else None
        examples = Examples(inputs=now, wanted=wanted, outputs=outputs, dim=_channels(block))
        if not examples.split()[1]:
            return
        layers = [work.rounded[node.name] for node in block.layers]
        before = self._cost(block, examples), dict(work.state), dict(work.found)
        new = learned(
            block,
            layers,
            examples,
            work.state,
            biases=[n.state["bias"] for n in block.layers if run.layers.free_bias(run.net, n) is not None],
            price=work.price,
            steps=run.method.learned_steps,
            generator=run.context.generator,
        )
        for node, encoding in zip(block.layers, new, strict=True):
            work.put_(node, encoding)
        self._round_(block, now, then, work.correct)
        if self._cost(block, examples) < before[0]:
            self.kept += 1
        else:
            _, work.state, work.found = before

    def _cost(self, block: Block, examples: Examples) -> float:
        work, names = self.work, [self.run_.net.canonical(n.state["weight"]) for n in block.layers]
        bits = sum(coded_bits(work.found[name]) for name in names) if work.price else 0.0
        return examples.judged(block, work.state) / len(examples.split()[1]) + work.price * bits

    def _round_(
        self,
        block: Block,
        now: list[tuple[Tensor, ...]],
        then: list[tuple[Tensor, ...]],
        visit: Callable[[Node, Wanted], None],
    ) -> None:
        names = {node.name for node in block.layers}
        walk(block.graph, now, self.run_.before, self.work.state, names, visit, unchanged=then)

    def _after(
        self, block: Block, state: Mapping[str, Tensor], inputs: list[tuple[Tensor, ...]]
    ) -> list[tuple[Tensor, ...]]:
        with torch.no_grad():
            return [_as_tuple(run(block.graph, state, *args)) for args in inputs]


def _channels(block: Block) -> int:
    """The dimension of a block's output that counts channels."""
    layer, end = block.layers[-1], block.graph[block.graph.outputs[-1]]
    return channel_dim(layer) if len(end.shape) == len(layer.shape) else -1


def _as_tuple(value: Any) -> tuple[Any, ...]:
    return value if isinstance(value, tuple) else (value,)


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
