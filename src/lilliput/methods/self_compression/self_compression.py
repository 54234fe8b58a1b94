"""Self-compression: training in which each output channel learns its bits, and channels without any vanish.

Csefalvay and Imber (2023), "Self-compressing neural networks", https://arxiv.org/abs/2301.13142. We differ: levels are
whole (no sticking between two widths), exponents are whole at the end, the size may be that of the coded file and held
to a wanted number of bytes, channels leave the network while it trains (through residual sums too), and the integers
are tuned at the end.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from lilliput.core import container
from lilliput.core.artifact import Artifact
from lilliput.core.encoding import Encoding, Grid
from lilliput.core.errors import RecipeError
from lilliput.core.method import WEIGHTED, Context, PassResult, check_choice, check_range, layers
from lilliput.data.safety import safety_set
from lilliput.graph.layers import output_axis
from lilliput.graph.trace import StoredNetwork
from lilliput.methods.self_compression.safety import Safety, forgotten
from lilliput.methods.self_compression.size_term import Course, PriceOfBits, counts_of, entries
from lilliput.methods.self_compression.vanishing import coupling_of, remove_dead_
from lilliput.training.coded_rate import CodedRate
from lilliput.training.fit import FitResult, fit
from lilliput.training.learned_bits import BITS, EXPONENT, LearnedBits, Widths, after, memory_after
from lilliput.training.optimizer import Memory, sliced
from lilliput.training.settings import Factors, FitSettings
from lilliput.training.trained import TrainingPass, names_in, values_of

SIZES, RULES = ("coded", "bits"), ("best", "previous")
BIAS_BITS = 8
ZERO = Grid.per_tensor(1.0, 0, 1, signed=True)
CALM = 0.5
"""What the price is multiplied with where the safety set is lost."""


@dataclass(frozen=True, kw_only=True)
class SelfCompression(TrainingPass):
    """Train so that each output channel learns its bits, at a price for each; then tune the integers that are left.

    Of the `epochs` (or `steps`), the share `settle` tunes integers; before, in `rounds`, bits are learned, and after
    each round channels without bits leave the network. `gamma` is the price of a bit for each weight of the network;
    with `max_bytes` of the file (without recipe and graph) it is only the first, and is controlled from there on.
    `size` "coded" charges what the coder makes of the integers, "bits" the widths themselves with all that a channel
    takes along (the paper's equation 5). `per` "channel", "tensor", or a number of channels that share a width.

    A weight that is on a grid for each channel starts there, another one on `start_bits`. Bits and exponents have a
    learning rate of their own, `bit_rate`; weights have `learning_rate`, and `step_rate` (in steps of their grids) when
    integers are tuned. Fold BatchNorm before. Others as in `fine_tune`.

    With `safety`, so many samples of train (chosen as `lilliput safety-set` does, by `safety_methods`) are looked at
    after each round. Where more than the share `tolerance` of them, or of the worst class, is lost against the best so
    far, the share `restore` of the channels that have changed returns from the round before: those that gain most; the
    next round repairs nothing. Without `max_bytes` the price is halved too, and does not rise for a round; with it, the
    size is kept. `safety_rule` "previous" is the rule of the reference instead.
    """

    name: ClassVar[str] = "self_compression"
    summary: ClassVar[str] = "train at a price for each bit: channels learn their bit widths, and vanish at none"
    citations: ClassVar[tuple[str, ...]] = ("https://arxiv.org/abs/2301.13142",)

    max_bytes: int | None = None
    gamma: float = 0.05
    size: str = "coded"
    per: str | int = "channel"
    start_bits: float = 6.0
    bit_rate: float = 0.1
    steps: int | None = None
    rounds: int = 8
    settle: float = 0.3
    step_rate: float = 0.02
    schedule: str = "constant"
    safety: int = 0
    safety_methods: tuple[str, ...] | None = None
    safety_rule: str = "best"
    tolerance: float = 0.02
    restore: float = 0.1

    def __post_init__(self) -> None:
        if self.max_bytes is not None:
            check_range(f"{self.name} max_bytes", self.max_bytes, 1, 1 << 40)
        check_range(f"{self.name} gamma", self.gamma, 0.0, 1e6)
        check_choice(f"{self.name} size", self.size, SIZES)
        if isinstance(self.per, str):
            check_choice(f"{self.name} per", self.per, ("channel", "tensor"))
        else:
            check_range(f"{self.name} per", self.per, 1, 1_000_000)
        check_range(f"{self.name} start_bits", self.start_bits, 1.0, 16.0)
        check_range(f"{self.name} bit_rate", self.bit_rate, 0.0, 100.0)
        if self.steps is not None:
            check_range(f"{self.name} steps", self.steps, 2, 1_000_000_000)
        check_range(f"{self.name} rounds", self.rounds, 1, 10_000)
        check_range(f"{self.name} settle", self.settle, 0.0, 1.0, below=True)
        if self.max_bytes is not None and self.settle == 0:
            do = "give it a share of the steps: what is still too large goes there"
            raise RecipeError(f"{self.name} settle", "0 with max_bytes", do)
        check_range(f"{self.name} learning_rate", self.learning_rate, 1e-12, 1e6)
        check_range(f"{self.name} step_rate", self.step_rate, 1e-9, 1e3)
        check_range(f"{self.name} safety", self.safety, 0, 1_000_000)
        if self.safety_methods is not None:
            object.__setattr__(self, "safety_methods", tuple(self.safety_methods))
        check_choice(f"{self.name} safety_rule", self.safety_rule, RULES)
        check_range(f"{self.name} tolerance", self.tolerance, 0.0, 1.0)
        check_range(f"{self.name} restore", self.restore, 0.0, 1.0)
        super().__post_init__()

    def requires(self, net: Artifact) -> list[str]:
        if isinstance(net.module, StoredNetwork):
            return ["the network was loaded without its code; load the file into the model's class"]
        if net.activations:
            return [f"activations are already on integer grids; put {self.name} before quantization"]
        shared = [n for n, e in net.encodings.items() if e.sharing is not None]
        if shared:
            return [f"{shared[0]} has shared values, which bit widths would undo; leave that pass out"]
        return []

    def apply_(self, net: Artifact, context: Context) -> PassResult:
        stopped = self.untrainable(net, context)
        if stopped is not None:
            return stopped
        snapshot = net.copy()
        try:
            return _Run(self, net, context).result()
        except BaseException:
            net.restore_(snapshot)
            raise

    def owner(self, channels: int) -> Tensor:
        """int64 [channels]: which width each has."""
        size = channels if self.per == "tensor" else 1 if self.per == "channel" else int(self.per)
        return torch.arange(channels) // size


@dataclass(kw_only=True)
class _Trail:
    """What happened, a row for each round."""

    rounds: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    events: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])


@dataclass(kw_only=True)
class _Attach:
    """Makes the `LearnedBits` of a training, and keeps it."""

    widths: Mapping[str, Widths]
    whole_exponents: bool
    made: list[LearnedBits] = field(default_factory=list[LearnedBits])

    def __call__(self, net: Artifact, **more: Any) -> LearnedBits:
        self.made.append(LearnedBits(net, widths=self.widths, whole_exponents=self.whole_exponents, **more))
        return self.made[-1]


class _Run:
    def __init__(self, method: SelfCompression, net: Artifact, context: Context) -> None:
        self.method, self.net, self.context = method, net, context
        self.trail = _Trail()
        batches = -(-len(context.task.data("train")) // method.batch_size)
        total = method.steps or method.epochs * batches
        self.tuning = round(total * method.settle)
        self.each = max(1, (total - self.tuning) // method.rounds)
        chosen, self.skipped = method.pick(net)
        self.axes: dict[str, int] = {}
        for path, name in chosen.items():
            layer = net.module.get_submodule(path)
            axis = output_axis(layer) if isinstance(layer, WEIGHTED) else None
            if axis is None:
                self.skipped[path] = "a grouped transposed convolution has no channels of its own"
            elif net.parameter(name).requires_grad:
                self.axes[name] = axis
        if not self.axes:
            raise RecipeError(method.name, "no weight to train", "select layers with weights that require gradients")
        self.weights = sum(net.parameter(name).numel() for name in self.axes)
        self.before = values_of(net)

    def result(self) -> PassResult:
        method, net = self.method, self.net
        widths = {
            name: Widths.of(
                net.encoding(name),
                axis=axis,
                bits=method.start_bits,
                owner=method.owner(net.parameter(name).shape[axis]),
            )
            for name, axis in self.axes.items()
        }
        first = self._bytes(widths)
        course = None
        if method.max_bytes is not None:
            least = self._least()
            if least > method.max_bytes:
                asked = f"{method.name} max_bytes {method.max_bytes:,}"
                found = f"with a channel of each group left, and its integers 0, the file has {least:,} bytes"
                raise RecipeError(asked, found, "allow more bytes")
            arrive = int(0.8 * self.each * method.rounds)
            course = Course(start=float(first), goal=float(method.max_bytes), arrive=arrive)
        self.price = PriceOfBits(gamma=method.gamma, weights=self.weights, coded=method.size == "coded", course=course)
        widths = self._rounds_(widths)
        self._store_(widths)
        tuned = self._tune_() if self.tuning else None
        return self._account(first, tuned)

    # learning bits

    def _rounds_(self, widths: dict[str, Widths]) -> dict[str, Widths]:
        method, net, context = self.method, self.net, self.context
        memory: Memory = {}
        safety, snapshot, mended = self._safety(), widths, False
        for k in range(method.rounds):
            whole = k >= method.rounds // 2
            _, coupling = coupling_of(net)
            self.price.begin_(k * self.each, entries(net, coupling, self.axes), self._other(widths))
            attach = _Attach(widths=widths, whole_exponents=whole)
            result = self._fit(self._settings(k), f"round{k + 1}", rate=self.price, attach=attach, memory=memory)
            widths, memory = attach.made[-1].learned(), result.memory
            row = self._row(k, widths, result)
            broken = "" if safety is None else self._watch(safety, row)
            back: dict[str, list[int]] = {}
            if safety is not None and broken and not mended:
                widths, back = safety.repaired(net, widths, snapshot, context.generator)
            if back:
                mended = True
                memory = forgotten(memory, widths, back)
                if method.max_bytes is None:
                    self.price.calm_(CALM, (k + 2) * self.each)
                returned = {name: len(numbers) for name, numbers in back.items()}
                self.trail.events.append({"steps": row["steps"], "why": broken, "returned": returned})
                context.progress.say(f"safety: {broken}; {sum(returned.values())} channels return")
            else:
                mended = False
                done = len(net.edits)
                _, row["removed"] = remove_dead_(net, context.task.data("calibration"), method.selects)
                edits = net.edits[done:]
                memory = memory_after(sliced(memory, edits), widths, edits)
                widths = snapshot = after(widths, edits)
            self.trail.rounds.append(row)
            score = context.task.score
            context.progress.say(
                f"round {k + 1}/{method.rounds}: {row['bytes']:,.0f} bytes, {row['live']} channels, "
                f"{score.name} {score.format(row['score'])}"
            )
        return widths

    def _safety(self) -> Safety | None:
        method, context = self.method, self.context
        if not method.safety:
            return None
        original = context.evaluator.original
        seed = int(torch.randint(2**31, (), generator=context.generator))
        chosen = safety_set(
            context.task, original, size=method.safety, source="train", methods=method.safety_methods, seed=seed
        )
        data = chosen.data(context.task)
        return Safety(
            context.task,
            data,
            original,
            rule=method.safety_rule,
            tolerance=method.tolerance,
            share=method.restore,
        )

    def _watch(self, safety: Safety, row: dict[str, Any]) -> str:
        check = safety.look(self.net)
        row |= {"safety_accuracy": check.accuracy, "safety_worst": check.worst, "safety_worst_class": check.worst_class}
        return safety.broken(check)

    def _settings(self, k: int) -> FitSettings:
        method = self.method
        pace = method.bit_rate / method.learning_rate
        own = Factors(learning_rate=pace, weight_decay=0.0, epsilon=1e-3)
        groups = {f"*{BITS}": own, f"*{EXPONENT}": own, **method.frozen(self.net)}
        return replace(
            method.fit_settings(groups), epochs=1, epoch_steps=self.each, keep="last", part=(k, method.rounds)
        )

    def _fit(self, settings: FitSettings, word: str, **more: Any) -> FitResult:
        context, path = self.context, self.context.checkpoint
        return fit(
            self.net,
            context.task,
            settings,
            generator=context.generator,
            progress=context.progress,
            device=context.device,
            checkpoint=path and path.with_name(f"{path.stem}-{word}{path.suffix}"),
            teacher=context.evaluator.original if self.method.distillation > 0 else None,
            **more,
        )

    def _row(self, k: int, widths: Mapping[str, Widths], result: FitResult) -> dict[str, Any]:
        live: dict[str, int] = {}
        for name, w in widths.items():
            rows = self.net.parameter(name).detach().movedim(w.axis, 0).flatten(1)
            live[name] = int(rows.any(1).sum())
        bits = torch.cat([w.bits[w.owner].detach() for w in widths.values()])
        return {
            "steps": (k + 1) * self.each,
            "bytes": self._bytes(widths),
            "score": result.history[-1]["validation_score"],
            "loss": result.history[-1]["train_loss"],
            "gamma": self.price.gamma * self.price.factor,
            "live": sum(live.values()),
            "channels": live,
            "mean_bits": float(bits.mean()),
            "removed": {},
            "seconds_per_step": result.history[-1]["seconds"] / self.each,
        }

    def _least(self) -> int:
        """Bytes of the file if every channel that can go went, and all integers were 0."""
        trial = self.net.copy()
        for name in self.axes:
            trial.encode_(name, Encoding.of(torch.zeros_like(trial.parameter(name))))
        remove_dead_(trial, self.context.task.data("calibration"), self.method.selects)
        for name in self.axes:
            trial.encode_(name, Encoding.of(torch.zeros_like(trial.parameter(name))).with_grid(ZERO))
        store_biases_(trial, self.axes)
        return len(container.dumps(trial, strip=True))

    def _bytes(self, widths: Mapping[str, Widths]) -> int:
        """Of the file, with biases as they will be."""
        trial = self.net.copy()
        LearnedBits(trial, widths=widths).bake_(trial)
        store_biases_(trial, widths)
        return len(container.dumps(trial, strip=True))

    def _other(self, widths: Mapping[str, Widths]) -> float:
        """What the file holds beside coded weights."""
        attached = LearnedBits(self.net.copy(), widths=widths)
        return self._bytes(widths) - sum(c.bits for c in counts_of(attached).values()) / 8

    # integers

    def _store_(self, widths: Mapping[str, Widths]) -> None:
        """Integers on grids whose scales are powers of two, and biases on theirs."""
        LearnedBits(self.net, widths=widths, whole_exponents=True).bake_(self.net)
        store_biases_(self.net, widths)

    def _tune_(self) -> FitResult:
        """Train the integers on their grids, under the limit of bytes if there is one."""
        method, parts = self.method, 4
        settings = replace(
            method.fit_settings(method.frozen(self.net)),
            epochs=parts,
            epoch_steps=max(1, self.tuning // parts),
            step_rate=method.step_rate,
            schedule="cosine",
        )
        rate = None if method.max_bytes is None else CodedRate(self.net, method.max_bytes, price=self.price.of_a_bit)
        return self._fit(settings, "integers", rate=rate)

    def _account(self, first: int, tuned: FitResult | None) -> PassResult:
        method, net = self.method, self.net
        changed: dict[str, str] = {}
        skipped = dict(self.skipped)
        for path, module in layers(net).items():
            names = [net.canonical(n) for n in names_in(path, module)]
            weight = next((n for n in names if n in self.axes), None)
            if weight is not None:
                old, new = self.before[weight].shape, net.parameter(weight).shape
                sizes = f"{'x'.join(map(str, old))} -> {'x'.join(map(str, new))}; " if old != new else ""
                changed[path] = sizes + net.encoding(weight).describe()
                skipped.pop(path, None)
            elif path not in skipped:
                skipped[path] = "it has no weight of its own"
        size = len(container.dumps(net, strip=True))
        lost = sum(sum(row["removed"].values()) for row in self.trail.rounds)
        notes = [f"{size:,} bytes (at the start of training {first:,}), {lost} channels removed"]
        if method.max_bytes is not None and size > method.max_bytes:
            notes.append(f"more than the {method.max_bytes:,} wanted")
        statistics = {"rounds": self.trail.rounds, "events": self.trail.events}
        if tuned is not None:
            statistics["tuning"] = tuned.history
        return PassResult(changed=changed, skipped=skipped, notes=tuple(notes), statistics=statistics)


def store_biases_(net: Artifact, weights: Iterable[str]) -> None:
    """Biases of the layers with these weights on grids of their own; what has an encoding keeps it."""
    parameters = dict(net.module.named_parameters())
    for weight in weights:
        name = net.canonical(f"{weight.removesuffix('weight')}bias")
        if name in parameters and name not in net.encodings:
            net.encode_(name, Encoding.on_one_grid(parameters[name].detach(), BIAS_BITS))
