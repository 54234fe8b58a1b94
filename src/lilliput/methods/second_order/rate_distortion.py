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
from lilliput.core.encoding import Encoding
from lilliput.core.errors import RecipeError
from lilliput.core.guard import agreement, as_share, outputs_of
from lilliput.core.method import Context, PassResult, check_range
from lilliput.methods.second_order.layer_rounding import Rounding, Work
from lilliput.methods.second_order.layers import BATCH, Layers, SecondOrder, role_of, samples_of
from lilliput.methods.second_order.learned_blocks import Learning
from lilliput.methods.second_order.search import best_price
from lilliput.training.layer_targets import importance, walk

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
    squared input that holds weights where they are. `bias_bits` 0 leaves biases in float. With `learned_steps`, the
    rounding is learned in so many steps for each block, and kept where samples that were held out gain by it. Put it
    after fold_batchnorm, and before quantization of activations.
    """

    name: ClassVar[str] = "rate_distortion"
    summary: ClassVar[str] = "round weights at one price for a bit of the file, without training or labels"
    citations: ClassVar[tuple[str, ...]] = ("https://arxiv.org/abs/2210.17323", "https://arxiv.org/abs/1907.11900")

    max_bytes: int | None = None
    min_agreement: str | float | None = None
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
            share = as_share(self.min_agreement, "rate_distortion min_agreement")
            check_range("rate_distortion min_agreement", share, 0.0, 1.0, below=True)
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
        self.goal = next((name for name in GOALS if getattr(method, name) is not None), "min_agreement")
        held = HELD_OUT if self.goal == "min_agreement" else 0
        self.inputs, self.held = samples_of(net, context, method.samples, held)
        before = {name: t.detach().cpu().clone() for name, t in net.module.state_dict().items()}
        slopes = importance(layers.graph, self.inputs, before, layers.nodes, context.generator)
        self.rounding = Rounding(
            net=net, layers=layers, before=before, slopes=slopes, bits=method.weight_bits, settings=method.for_layer
        )
        self.found: dict[str, Encoding] = {}
        self.wanted: Tensor | None = None
        self.price, self.tries = 0.0, 0

    def result(self) -> PassResult:
        notes = list[str]()
        with self.context.progress.task("prices of a bit", None) as advance:
            if self.goal in ("weight_bits", "price"):
                self.price = self.method.price or 0.0
                self.found = self.at(self.price)
                advance(1)
            else:
                self._search_(advance)
        if self.method.learned_steps:
            notes.append(self._learn_())
        for name, encoding in self.found.items():
            self.net.encode_(name, encoding.to(self.net.device))
        if self.price:
            notes.append(f"price of a bit {self.price:.3g}, {max(1, self.tries)} tried")
        changed = {path: self.net.encoding(weight).describe() for path, weight in self.layers.names.items()}
        return PassResult(changed=changed, skipped=self.layers.skipped, notes=tuple(notes))

    def _search_(self, advance: Callable[[int], None]) -> None:
        kept: dict[float, dict[str, Encoding]] = {}
        by_bytes, limit = self.goal == "max_bytes", self.limit
        least = math.inf

        def measure(price: float) -> float:
            nonlocal least
            found = self.at(price)
            value = self.measured(found)
            least = min(least, value)
            if value <= limit:
                kept[price] = found
            self.tries += 1
            advance(1)
            return value

        best = best_price(measure, limit, self._start(), rising=not by_bytes, close=0.015 if by_bytes else 0.1)
        if best is None:
            raise self._unreached(least)
        self.price = best
        self.found = kept[min(kept, key=lambda p: abs(math.log(p / best)))]

    def _unreached(self, least: float) -> RecipeError:
        if self.method.max_bytes is not None:
            asked = f"rate_distortion max_bytes {self.method.max_bytes:,}"
            return RecipeError(asked, f"the smallest file reached has {int(least):,} bytes", "allow more bytes")
        asked = f"rate_distortion min_agreement {self.least_agreement}"
        found = f"the highest agreement reached, on {len(self.held):,} samples held out, is {1 - least:.4f}"
        return RecipeError(asked, found, "ask for less, or give more samples")

    @property
    def least_agreement(self) -> str | float:
        return AGREEMENT if self.method.min_agreement is None else self.method.min_agreement

    @property
    def limit(self) -> float:
        """What `measured` may be at most: bytes, or the share of answers that differ."""
        if self.method.max_bytes is not None:
            return float(self.method.max_bytes)
        return 1.0 - as_share(self.least_agreement, "rate_distortion min_agreement")

    def measured(self, found: Mapping[str, Encoding]) -> float:
        return float(self.bytes_of(found)) if self.goal == "max_bytes" else 1.0 - self.agreement(found)

    def _learn_(self) -> str:
        """Learn the rounding block by block; says what came of it."""
        learning = Learning(
            self.rounding,
            self.inputs,
            self.price,
            steps=self.method.learned_steps,
            generator=self.context.generator,
        )
        with self.context.progress.task("learned rounding", len(learning.blocks)) as advance:
            new = learning.run(advance).found
        if self.goal in ("max_bytes", "min_agreement") and self.measured(new) > self.limit:
            return f"learned rounding is left out: with it {self.goal} would not be kept"
        self.found = new
        return f"learned rounding kept in {learning.kept} of {len(learning.blocks)} blocks"

    def at(self, price: float) -> dict[str, Encoding]:
        """The encodings at this price (0: of `weight_bits` bits)."""
        work = Work(self.rounding, price)
        names = {node.name for node in self.layers.nodes}
        walk(self.layers.graph, self.inputs, self.rounding.before, work.state, names, work.visit)
        return work.found

    def bytes_of(self, found: Mapping[str, Encoding]) -> int:
        """Of the whole file with these encodings, without recipe and graph."""
        return len(container.dumps(self._with(found), strip=True))

    def agreement(self, found: Mapping[str, Encoding]) -> float:
        """With the answers of the network before, on samples held out, as the guard `MinAgreement` has it."""
        if self.wanted is None:
            self.wanted = self._answers(self.net)
        return agreement(self._answers(self._with(found)), self.wanted, self.context.task.kind)

    def _answers(self, net: Artifact) -> Tensor:
        task = self.context.task
        held = task.data(role_of(self.context)).subset(self.held)
        return outputs_of(net.module, task, held, BATCH, torch.device("cpu"))

    def _with(self, found: Mapping[str, Encoding]) -> Artifact:
        trial = self.net.copy()
        for name, encoding in found.items():
            trial.encode_(name, encoding.to(trial.device))
        return trial

    def _start(self) -> float:
        return first_price(self.layers, self.rounding.before, self.rounding.slopes)


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
