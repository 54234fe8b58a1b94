"""Self-compression: training in which each output channel learns its bits, and channels without any vanish.

Csefalvay and Imber (2023), "Self-compressing neural networks", https://arxiv.org/abs/2301.13142. We differ: levels are
whole (no sticking between two widths), exponents are whole at the end, the size may be that of the coded file and held
to a wanted number of bytes, channels leave the network while it trains (through residual sums too), and the integers
are tuned at the end.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

from lilliput.core import container
from lilliput.core.artifact import Artifact
from lilliput.core.errors import RecipeError
from lilliput.core.method import WEIGHTED, Context, PassResult, layers
from lilliput.core.score import parse_drop
from lilliput.graph.layers import output_axis
from lilliput.methods.self_compression.integers import CheapestKept, file_bytes, least_bytes, store_
from lilliput.methods.self_compression.price import Bound, Course, Price, PriceForScore, PriceForSize, RampedPrice
from lilliput.methods.self_compression.rounds import Rounds
from lilliput.methods.self_compression.settings import Settings
from lilliput.methods.self_compression.size_term import PriceOfBits
from lilliput.training.coded_rate import CodedRate
from lilliput.training.fit import FitResult
from lilliput.training.learned_bits import Widths
from lilliput.training.trained import names_in, values_of

PARTS, LOOKS = 4, 8
"""Epochs in which integers are tuned, and as many where each of them looks whether the score is kept."""
ARRIVE = 0.8
"""The share of the rounds after which the wanted size is reached."""


@dataclass(frozen=True, kw_only=True)
class SelfCompression(Settings):
    """Train so that each output channel learns its bits, at a price for each; then tune the integers that are left.

    Of the `epochs` (or `steps`), the share `settle` tunes integers; before, in `rounds`, bits are learned, and after
    each round channels without bits leave the network. `gamma` is the price of a bit for each weight of the network:
    fixed; reached in a line from 0, after the share `ramp` of the rounds; or only the first one, where the run shall
    end at `max_bytes` of the file (without recipe and graph), or at the smallest file whose validation score is at
    most `max_drop` ("0.5pt", "1%", or a number) worse than the original's.
    `size` "coded" charges what the coder makes of the integers, "bits" the widths themselves with all that a channel
    takes along (the paper's equation 5). `per` "channel", "tensor", or a number of channels that share a width.

    A weight that is on a grid for each channel starts there, another one on `start_bits`. Bits and exponents have a
    learning rate of their own, `bit_rate`; weights have `learning_rate`, and `step_rate` (in steps of their grids) when
    integers are tuned, and where they were on a grid before. `exponents` "whole" ends with scales that are powers of
    two, "short" with scales of 3 bits of mantissa, which are nearer to a grid that was found with care. Fold BatchNorm
    before. Others as in `fine_tune`.

    With `safety`, so many samples of train (chosen as `lilliput safety-set` does, by `safety_methods`) are looked at
    after each round. Where more than the share `tolerance` of them, or of the worst class, is lost against the best so
    far, the share `restore` of the channels that have changed returns from the round before: those that gain most; the
    next round repairs nothing. Without `max_bytes` the price is halved too, and does not rise for a round; with it, the
    size is kept. `safety_rule` "previous" is the rule of the reference instead.
    """

    name: ClassVar[str] = "self_compression"
    summary: ClassVar[str] = "train at a price for each bit: channels learn their bit widths, and vanish at none"
    citations: ClassVar[tuple[str, ...]] = ("https://arxiv.org/abs/2301.13142",)

    def apply_(self, net: Artifact, context: Context) -> PassResult:
        stopped = self.untrainable(net, context)
        if stopped is not None:
            return stopped
        snapshot = net.copy()
        try:
            return self._compressed_(net, context)
        except BaseException:
            net.restore_(snapshot)
            raise

    def _compressed_(self, net: Artifact, context: Context) -> PassResult:
        axes, skipped = self._axes(net)
        before = {name: tuple(p.shape) for name, p in values_of(net).items()}
        weights = sum(net.parameter(name).numel() for name in axes)
        total = self.steps or self.epochs * -(-len(context.task.data("train")) // self.batch_size)
        tuning = round(total * self.settle)
        each = max(1, (total - tuning) // self.rounds)
        widths = {
            name: Widths.of(
                net.encoding(name),
                axis=axis,
                bits=self.start_bits,
                owner=self.owner(net.parameter(name).shape[axis]),
                dither=context.generator,
            )
            for name, axis in axes.items()
        }
        first, missed = file_bytes(net, widths, self.counted), list[str]()
        price = self._price(net, context, list(axes), first, each * self.rounds)
        cost = PriceOfBits(price, weights=weights, coded=self.size == "coded")
        train = partial(self.part_, net, context)
        rounds = Rounds(settings=self, net=net, context=context, axes=axes, steps=each, cost=cost, train=train)
        store_(net, rounds.run(widths), self.exponents)
        statistics: dict[str, Any] = {"rounds": rounds.rows, "events": rounds.events}
        if tuning:
            tuned = self._tune_(net, price, weights, tuning, partial(train, word="integers"))
            if isinstance(price, PriceForScore) and not price.bound.keeps(tuned.best_score) and rounds.kept is not None:
                last, kept, price.factor = rounds.kept
                net.restore_(last)
                store_(net, kept, self.exponents)
                tuned = self._tune_(net, price, weights, tuning, partial(train, word="integers-again"))
            statistics["tuning"] = tuned.history
            if isinstance(price, PriceForScore) and not price.bound.keeps(tuned.best_score):
                score = context.task.score
                found = f"{score.name} {score.format(tuned.best_score)} on validation"
                wanted = f"at most {self.max_drop} worse than {score.format(price.bound.reference)}"
                missed.append(f"{found}; {wanted} was wanted")
        changed, skipped = self._layers(net, before, axes, skipped)
        size = len(container.dumps(net, strip=True))
        lost = sum(sum(row["removed"].values()) for row in rounds.rows)
        notes = [f"{size:,} bytes (at the start of training {first:,}), {lost} channels removed"]
        if self.max_bytes is not None and size > self.max_bytes:
            notes.append(f"more than the {self.max_bytes:,} wanted")
        return PassResult(changed=changed, skipped=skipped, notes=(*notes, *missed), statistics=statistics)

    def _axes(self, net: Artifact) -> tuple[dict[str, int], dict[str, str]]:
        """The weights that learn bits, with the dimension of their channels, and the layers that do not."""
        chosen, skipped = self.pick(net)
        axes: dict[str, int] = {}
        for path, name in chosen.items():
            layer = net.module.get_submodule(path)
            axis = output_axis(layer) if isinstance(layer, WEIGHTED) else None
            if axis is None:
                skipped[path] = "a grouped transposed convolution has no channels of its own"
            elif net.parameter(name).requires_grad:
                axes[name] = axis
        if not axes:
            raise RecipeError(self.name, "no weight to train", "select layers with weights that require gradients")
        return axes, skipped

    def _price(self, net: Artifact, context: Context, weights: list[str], first: int, steps: int) -> Price:
        """What moves the price, in so many steps of all rounds; the file has `first` bytes now."""
        if self.max_bytes is not None:
            least = least_bytes(net, weights, context.task.data("calibration"), self)
            if least > self.max_bytes:
                asked = f"{self.name} max_bytes {self.max_bytes:,}"
                found = f"with a channel of each group left, and its integers 0, the file has {least:,} bytes"
                raise RecipeError(asked, found, "allow more bytes")
            course = Course(start=float(first), goal=float(self.max_bytes), arrive=int(ARRIVE * steps))
            return PriceForSize(self.gamma, course)
        if self.max_drop is not None:
            score = context.task.score
            reference = score.value(context.evaluator.reference("validation").rows)
            limit = parse_drop(self.max_drop, score, reference)
            bound = Bound(reference=reference, limit=limit, higher_is_better=score.higher_is_better)
            return PriceForScore(self.gamma, bound)
        return RampedPrice(self.gamma, int(self.ramp * steps)) if self.ramp > 0 else Price(self.gamma)

    def _tune_(
        self, net: Artifact, price: Price, weights: int, steps: int, train: Callable[..., FitResult]
    ) -> FitResult:
        """Train the integers on their grids: under the limit of bytes, or for the fewest that keep the score."""
        parts = LOOKS if isinstance(price, PriceForScore) else PARTS
        settings = self.tuning(net, parts, max(1, steps // parts))
        if isinstance(price, PriceForScore):
            cheapest = CheapestKept(net, price, weights)
            return train(settings, rate=cheapest, hooks=[cheapest])
        rate = None if self.max_bytes is None else CodedRate(net, self.max_bytes, price=price.now / weights)
        return train(settings, rate=rate)

    def _layers(
        self, net: Artifact, before: Mapping[str, tuple[int, ...]], axes: Mapping[str, int], skipped: Mapping[str, str]
    ) -> tuple[dict[str, str], dict[str, str]]:
        """(changed, skipped); `before` are the shapes of the parameters as they were."""
        changed, left = dict[str, str](), dict(skipped)
        for path, module in layers(net).items():
            names = [net.canonical(n) for n in names_in(path, module)]
            weight = next((n for n in names if n in axes), None)
            if weight is not None:
                old, new = before[weight], tuple(net.parameter(weight).shape)
                sizes = f"{'x'.join(map(str, old))} -> {'x'.join(map(str, new))}; " if old != new else ""
                changed[path] = sizes + net.encoding(weight).describe()
                left.pop(path, None)
            elif path not in left:
                left[path] = "it has no weight of its own"
        return changed, left
