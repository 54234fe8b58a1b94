"""Mixed precision: a bit width for each layer, so that the file fits a budget and the outputs move least.

Each candidate (a layer at a bit width) is encoded as the file would hold it, so its cost is its coded bytes. Its loss
is measured: the network's outputs on calibration samples with this layer alone quantized, against those of the float
network, as in Cai et al. (2020), "ZeroQ", https://arxiv.org/abs/2001.00281, section 3.2. Losses are taken to add up,
and the choice is exact (`ops.knapsack`). Coded bytes in place of bits are ours.
"""

import glob
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor
from torch.utils._pytree import tree_leaves

from lilliput.core import container
from lilliput.core.artifact import Artifact
from lilliput.core.encoding import Encoding
from lilliput.core.errors import RecipeError
from lilliput.core.method import Context, Pass, PassResult, check_range
from lilliput.core.streams import size_bits
from lilliput.graph.layers import output_axis
from lilliput.methods.quantization.post_training import Quantization
from lilliput.ops.knapsack import choose
from lilliput.training.distillation import distillation_loss
from lilliput.training.lockstep import Lockstep, Turn, channel_dim, moments_of
from lilliput.training.moments import moments

ROUNDS = 4
"""Times that the choice is made again because the file came out larger or smaller than its parts said."""
DEFAULT_BITS = 4.0
CLOSE = 0.004
"""What of the budget may be left over."""


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One layer's weight at one width: its coded bits, and how far the outputs move."""

    weight_bits: int
    size_weight: float
    coded_bits: int
    loss: float


@dataclass(frozen=True, kw_only=True)
class MixedPrecision(Pass):
    """`quantization` with its own `weight_bits` for each layer, out of `choices`.

    One budget: `max_bytes` of the whole `.lil` file (without recipe, trail and labels), or `average_bits`, coded bits a
    weight (4 if neither is given). `size_weights` are tried for each width (see `quantization`). `samples` calibration
    samples measure the losses: one run of the network behind a layer for each candidate. The other settings are those
    of `quantization`; `size_weights` and `rounding` count for the range "output" only.
    """

    name: ClassVar[str] = "mixed_precision"
    summary: ClassVar[str] = "give each layer the bit width that serves a budget of coded bytes best"
    citations: ClassVar[tuple[str, ...]] = ("https://arxiv.org/abs/2001.00281",)

    max_bytes: int | None = None
    average_bits: float | None = None
    choices: tuple[int, ...] = (2, 3, 4, 5, 6, 7, 8)
    size_weights: tuple[float, ...] = (0.0, 0.01, 0.03)
    samples: int = 128
    weight_per: str = "channel"
    symmetric: bool = True
    weight_range: str = "output"
    rounding: str = "output"
    activation_bits: int = 8
    activation_range: str = "mse"
    signed: bool | None = None

    def __post_init__(self) -> None:
        for name in ("choices", "size_weights"):
            value = getattr(self, name)
            object.__setattr__(self, name, tuple(value) if isinstance(value, (list, tuple)) else (value,))
        if self.weight_range != "output":
            object.__setattr__(self, "size_weights", (0.0,))
        if self.max_bytes is not None and self.average_bits is not None:
            raise RecipeError("mixed_precision", "both budgets", "give max_bytes or average_bits")
        if self.max_bytes is not None:
            check_range("mixed_precision max_bytes", self.max_bytes, 1, 2**40)
        if self.average_bits is not None:
            check_range("mixed_precision average_bits", self.average_bits, 0.0, 32.0)
        check_range("mixed_precision samples", self.samples, 1, 10**9)
        if not self.choices or not self.size_weights:
            raise RecipeError("mixed_precision", "no choices", "give bit widths such as [2, 3, 4, 6, 8]")
        super().__post_init__()
        if self.overrides:
            raise RecipeError("mixed_precision overrides", "layers get their own widths", "use include and skip")
        for bits in self.choices:
            for weight in self.size_weights:
                self.quantization(weight_bits=bits, size_weight=weight)  # checks the values

    def quantization(self, **more: Any) -> Quantization:
        """The pass that this one decides on."""
        return Quantization(
            include=self.include,
            skip=self.skip,
            weight_per=self.weight_per,
            symmetric=self.symmetric,
            weight_range=self.weight_range,
            rounding=self.rounding if self.weight_range == "output" else "nearest",
            activation_bits=self.activation_bits,
            activation_range=self.activation_range,
            signed=self.signed,
            **more,
        )

    def apply_(self, net: Artifact, context: Context) -> PassResult:
        chosen, _ = self.pick(net)
        free = {path: weight for path, weight in chosen.items() if net.encoding(weight).grid is None}
        table = self._candidates(net, context, free)
        if not table:
            return self.quantization().apply_(net, context)
        count = sum(_entries(net, weight) for weight in free.values())
        limit = (
            8 * self.max_bytes
            if self.max_bytes is not None
            else int(count * (DEFAULT_BITS if self.average_bits is None else self.average_bits))
        )
        least = sum(min(c.coded_bits for c in row) for row in table.values())
        budget = limit - self._size(net, free) + sum(size_bits(net.encoding(free[path])) for path in table)
        before, seed = net.copy(), context.generator.get_state()
        best: tuple[float, Artifact, PassResult, dict[str, Candidate], int] | None = None
        smallest = 0
        for _ in range(ROUNDS):
            picked = _choose(table, max(budget, least))
            context.generator.set_state(seed)
            net.restore_(before)
            overrides = {
                glob.escape(path): {"weight_bits": c.weight_bits, "size_weight": c.size_weight}
                for path, c in picked.items()
            }
            result = self.quantization(overrides=overrides).apply_(net, context)
            size, loss = self._size(net, free), sum(c.loss for c in picked.values())
            smallest = min(size, smallest or size)
            if size <= limit and (best is None or loss < best[0]):
                best = loss, net.copy(), result, picked, size
            done = 0 <= limit - size <= CLOSE * limit or (size > limit and budget <= least)
            after = max(budget, least) + limit - size
            if done or _choose(table, max(after, least)) == picked:
                break
            budget = after
        if best is None:
            net.restore_(before)
            found = f"{smallest / 8:,.0f} bytes" if self.max_bytes else f"{smallest / count:.2f} coded bits a weight"
            raise RecipeError(
                "mixed_precision budget",
                f"the smallest choice has {found}",
                "give more, or allow fewer bits in choices",
            )
        loss, kept, result, picked, size = best
        net.restore_(kept)
        changed = result.changed | {
            path: f"{result.changed[path]}: {size_bits(net.encoding(free[path])) // 8:,} bytes, loss {c.loss:.2g}"
            for path, c in picked.items()
        }
        total = f"{size // 8:,} bytes in all" if self.max_bytes else f"{size / count:.2f} coded bits a weight"
        notes = (*result.notes, f"{total}; sum of measured losses {loss:.3g}")
        return PassResult(changed=changed, skipped=result.skipped, notes=notes)

    def _size(self, net: Artifact, free: Mapping[str, str]) -> int:
        """Bits that the budget counts: of the file, or of the weights."""
        if self.max_bytes is not None:
            return 8 * len(container.dumps(net, strip=True))
        return sum(size_bits(net.encoding(weight)) for weight in free.values())

    def _candidates(self, net: Artifact, context: Context, free: Mapping[str, str]) -> dict[str, list[Candidate]]:
        """For each layer that runs its candidates, measured with every other layer in float."""
        settings = [
            self.quantization(weight_bits=b, size_weight=s)
            for b in sorted(set(self.choices))
            for s in self.size_weights
        ]
        ready: dict[str, list[Encoding]] = {}
        table: dict[str, list[Candidate]] = {}

        def encode(turn: Turn) -> bool:
            path = turn.node.module
            if path in free and path not in ready and net.canonical(turn.node.state["weight"]) == free[path]:
                centred = "bias" in turn.node.state
                found = moments(turn, context.generator, centred=centred) if self.weight_range == "output" else None
                axis = output_axis(net.module.get_submodule(path))
                ready[path] = [q.encoded(net.encoding(free[path]), axis, context, found) for q in settings]
                advance(1)
            return False

        def measure(turn: Turn) -> bool:
            path = turn.node.module
            if path in ready and path not in table:
                exact = list(turn.rest({}))
                table[path] = [
                    Candidate(
                        weight_bits=q.weight_bits,
                        size_weight=q.size_weight,
                        coded_bits=size_bits(encoding),
                        loss=_loss(turn, encoding.decode(), exact, context.task.kind),
                    )
                    for q, encoding in zip(settings, ready[path], strict=True)
                ]
                advance(1)
            return False

        with context.progress.task("measure bit widths", 2 * len(free)) as advance:
            Lockstep(net, net.module, context, edited=False).run(encode)
            Lockstep(net, net.module, context, edited=False, samples=self.samples).run(measure)
        return table


def _choose(table: Mapping[str, list[Candidate]], budget: int) -> dict[str, Candidate]:
    rows = list(table.values())
    options = choose([[c.coded_bits for c in row] for row in rows], [[c.loss for c in row] for row in rows], budget)
    return {path: row[i] for (path, row), i in zip(table.items(), options, strict=True)}


def _loss(turn: Turn, weight: Tensor, exact: list[Any], kind: str) -> float:
    """How far the network's outputs move with another weight here, and a bias that takes the means' difference."""
    state = {turn.node.state["weight"]: weight}
    bias = turn.node.state.get("bias")
    if bias is not None:
        now = moments_of(turn.outputs(state), channel_dim(turn.node))[0]
        state[bias] = (turn.state[bias].double() + turn.wanted_means()[0] - now).float()
    losses = [_distance(a, b, kind) for a, b in zip(turn.rest(state), exact, strict=True)]
    return sum(losses) / len(losses)


def _distance(outputs: Any, exact: Any, kind: str) -> float:
    pairs = zip(tree_leaves(outputs), tree_leaves(exact), strict=True)
    return sum(float(distillation_loss(a, b, kind=kind, temperature=1.0)) for a, b in pairs if isinstance(a, Tensor))


def _entries(net: Artifact, weight: str) -> int:
    return math.prod(net.encoding(weight).shape)
