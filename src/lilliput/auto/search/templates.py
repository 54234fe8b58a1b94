"""Which passes, in which order, are tried: a short table. A new order is one entry in `TEMPLATES`.

A template has a strength from 0 (mild) to 1 (the smallest file), and at most four other knobs. Within one template a
stronger setting gives a smaller file: the search leans on that.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from lilliput.core.method import Pass
from lilliput.methods.clustering.weight_clustering import WeightClustering
from lilliput.methods.normalization.batchnorm import FoldBatchNorm
from lilliput.methods.pruning.channel import ChannelPruning
from lilliput.methods.pruning.magnitude import MagnitudePruning
from lilliput.methods.quantization.aware_training import QuantizationAwareTraining
from lilliput.methods.quantization.mixed_precision import MixedPrecision
from lilliput.methods.quantization.post_training import Quantization
from lilliput.methods.second_order.pruning import SecondOrderPruning
from lilliput.methods.second_order.rate_distortion import RateDistortion
from lilliput.methods.tuning.fine_tune import FineTune

DECADES = 6.0
"""Of prices of a bit, around the usual one, that strengths 0 to 1 span."""
SIZES = 64.0
"""From the largest to the smallest size that strengths 0 to 1 span."""
SIZE_LEFT = 0.005
"""Of a size that rounding leaves free."""
STRENGTH = "strength"
LEARNING_RATE = 2e-3


@dataclass(frozen=True, kw_only=True)
class Knob:
    """A number from `low` to `high` (whole numbers for ints); `usual` is what the first tries take."""

    name: str
    low: float
    high: float
    usual: float
    log: bool = False


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What a template makes passes from: values of its knobs, and what is the same for all candidates."""

    values: Mapping[str, float]
    epochs: int = 0
    """Of each training; 0 leaves trainings out."""
    price: float = 1.0
    integer_activations: bool = True
    shared_values: int = 256
    """Of a layer at strength 0."""
    size: float = 0.0
    """Of a file without recipe and graph: what templates that hold a size aim at with strength 0.5."""

    def __getitem__(self, name: str) -> float:
        return self.values[name]

    def between(self, mild: float, strong: float) -> float:
        """From `mild` to `strong` with the strength, by equal factors."""
        return short(mild * (strong / mild) ** self.values[STRENGTH])

    def rate(self) -> Pass:
        """Rate-distortion rounding at a price that follows from the strength."""
        exponent = DECADES * (self.values[STRENGTH] - 0.5)
        return RateDistortion(price=short(self.price * 10**exponent), step=short(self.values.get("step", 1.2)))

    @property
    def learning_rate(self) -> float:
        return short(self.values.get("learning_rate", LEARNING_RATE))

    def tune(self) -> list[FineTune]:
        return [FineTune(epochs=self.epochs, learning_rate=self.learning_rate)] if self.epochs else []

    def held(self) -> list[Pass]:
        """Rounded to a size that follows from the strength, and trained at that size."""
        size = self.size * SIZES ** (0.5 - self.values[STRENGTH])
        rounded = RateDistortion(max_bytes=max(round((1 - SIZE_LEFT) * size), 1), step=short(self["step"]))
        return [rounded, *(replace(tune, max_bytes=round(size)) for tune in self.tune())]

    def tune_integers(self) -> list[Pass]:
        """The forward is that of the integer program."""
        return [QuantizationAwareTraining(epochs=self.epochs, learning_rate=self.learning_rate)] if self.epochs else []

    def ends(self) -> list[Pass]:
        """Activations, and weights that are not on a grid yet, on integer grids."""
        return [Quantization()] if self.integer_activations else []

    def weights(self) -> list[Pass]:
        """The same for a network whose weights are not on grids: weights alone where activations must stay."""
        return [Quantization(activation_bits=8 if self.integer_activations else 0)]


@dataclass(frozen=True, kw_only=True)
class Template:
    """`passes` makes the recipe's; `trains`, `reads_graph` and `removes_channels` say what it needs."""

    name: str
    passes: Callable[[Setting], list[Pass]]
    knobs: tuple[Knob, ...] = ()
    start: float = 0.5
    """The first strength that is tried."""
    trains: bool = False
    reads_graph: bool = False
    removes_channels: bool = False
    work: float = 1.0
    """How long its methods that read the graph take, in those of rate-distortion rounding: for the first prediction."""
    priced: bool = False
    """Whether its strength is a price of a bit, which means much the same in all templates that have one."""
    sized: bool = False
    """Whether it holds the size of the file."""
    slope: float = -4.0
    """d log(bytes) / d strength, until two tries tell it."""


def short(value: float) -> float:
    """Three significant digits: recipes are read, and stored in files."""
    return float(f"{value:.3g}")


STEP = Knob(name="step", low=0.9, high=1.6, usual=1.2)
SPARSITY = Knob(name="sparsity", low=0.3, high=0.9, usual=0.6)
MACS = Knob(name="macs", low=0.3, high=0.9, usual=0.6)
SCALED = Knob(name="learning_rate", low=2e-4, high=4e-3, usual=1e-3, log=True)
RATE = Knob(name="learning_rate", low=5e-4, high=8e-3, usual=LEARNING_RATE, log=True)


def _bits(s: Setting) -> MixedPrecision:
    return MixedPrecision(average_bits=s.between(8, 2), activation_bits=8 if s.integer_activations else 0)


def _channels(s: Setting) -> ChannelPruning:
    return ChannelPruning(macs=short(s["macs"]))


def _clustered(s: Setting) -> list[Pass]:
    return [WeightClustering(n_clusters=round(s.between(s.shared_values, 3))), *s.tune(), *s.weights()]


TEMPLATES: tuple[Template, ...] = (
    Template(
        name="rate_distortion",
        passes=lambda s: [FoldBatchNorm(), s.rate(), *s.ends()],
        knobs=(STEP,),
        reads_graph=True,
        priced=True,
    ),
    Template(
        name="quantize",
        passes=lambda s: [FoldBatchNorm(), _bits(s)],
        reads_graph=True,
        slope=-1.4,
    ),
    Template(
        name="prune_magnitude+tune+rate_distortion",
        passes=lambda s: [
            FoldBatchNorm(),
            MagnitudePruning(sparsity=short(s["sparsity"])),
            *s.tune(),
            s.rate(),
            *s.ends(),
        ],
        knobs=(SPARSITY, STEP, RATE),
        trains=True,
        reads_graph=True,
        priced=True,
    ),
    Template(
        name="rate_distortion+tune",
        passes=lambda s: [FoldBatchNorm(), *s.held(), *s.ends()],
        knobs=(STEP, SCALED),
        trains=True,
        reads_graph=True,
        sized=True,
    ),
    Template(
        name="prune_second_order+rate_distortion",
        passes=lambda s: [FoldBatchNorm(), SecondOrderPruning(sparsity=short(s["sparsity"])), s.rate(), *s.ends()],
        knobs=(SPARSITY, STEP),
        work=5.0,
        reads_graph=True,
        priced=True,
    ),
    Template(
        name="channels+rate_distortion",
        passes=lambda s: [_channels(s), FoldBatchNorm(), s.rate(), *s.ends()],
        knobs=(MACS, STEP),
        reads_graph=True,
        priced=True,
        removes_channels=True,
    ),
    Template(
        name="cluster+tune",
        passes=lambda s: [FoldBatchNorm(), *_clustered(s)],
        knobs=(RATE,),
        trains=True,
        slope=-2.0,
    ),
    Template(
        name="prune_magnitude+tune+cluster+tune",
        passes=lambda s: [
            FoldBatchNorm(),
            MagnitudePruning(sparsity=short(s["sparsity"])),
            *s.tune(),
            *_clustered(s),
        ],
        knobs=(SPARSITY, RATE),
        trains=True,
        slope=-2.0,
    ),
    Template(
        name="channels+tune+rate_distortion",
        passes=lambda s: [_channels(s), *s.tune(), FoldBatchNorm(), s.rate(), *s.ends()],
        knobs=(MACS, STEP, RATE),
        trains=True,
        reads_graph=True,
        priced=True,
        removes_channels=True,
    ),
    Template(
        name="quantize+tune",
        passes=lambda s: [FoldBatchNorm(), _bits(s), *s.tune_integers()],
        knobs=(SCALED,),
        trains=True,
        reads_graph=True,
        slope=-1.4,
    ),
)
