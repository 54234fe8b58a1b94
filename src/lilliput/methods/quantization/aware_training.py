"""Quantization-aware training: what trains is what the integer program computes, with learned step sizes.

Esser et al. (2020), "Learned step size quantization", https://arxiv.org/abs/1902.08153, in the integer arithmetic of
Jacob et al. (2018), https://arxiv.org/abs/1712.05877. We differ from the first in where training starts (grids chosen
by `quantization`, not by the mean of weights), and in the bits: first and last layers have those of the others.
"""

from dataclasses import dataclass
from typing import ClassVar

from lilliput.core.artifact import Artifact
from lilliput.core.errors import RecipeError
from lilliput.core.method import Context, PassResult, check_choice, check_range
from lilliput.graph.function_tables import free_tables_, store_tables_
from lilliput.graph.trace import graph_of
from lilliput.methods.quantization.post_training import REQUANTIZATIONS, TABLES, Quantization
from lilliput.training.learned_steps import SUFFIX, LearnedSteps
from lilliput.training.power_of_two_steps import PowersOfTwo, on_powers_of_two
from lilliput.training.settings import Factors
from lilliput.training.trained import TrainingPass, values_of


@dataclass(frozen=True, kw_only=True)
class QuantizationAwareTraining(TrainingPass):
    """Train with weights and activations rounded as the integer program rounds them, the scales of their grids too.

    After `quantization`, and for whatever is on a grid already, training starts from the grids that are there; else it
    makes grids of `weight_bits` and `activation_bits` (0: weights only), as `quantization` with ranges of least squared
    error does. Weights that have no grid where others have one train in float.

    Main arguments: `epochs`, `learning_rate`, `weight_bits`, `activation_bits`. `scale_rate` multiplies the learning
    rate of the scales, relative to their size (0: scales stay). `weight_per` "channel" or "tensor". `requantization`
    "power_of_two" makes grids for right shifts, as `quantization` does, or starts from such grids; scales are then the
    powers of two nearest to what is learned. Others as in `fine_tune`. Fold BatchNorm before: with activations on
    grids, what is left of it uses its running statistics, and dropout does nothing. The end is never worse on
    validation than the rounded network was before (`keep` "best").
    """

    name: ClassVar[str] = "quantization_aware_training"
    summary: ClassVar[str] = "train with integer weights and activations in the loop, and learn their scales"
    citations: ClassVar[tuple[str, ...]] = ("https://arxiv.org/abs/1902.08153", "https://arxiv.org/abs/1712.05877")

    weight_bits: int = 4
    activation_bits: int = 8
    weight_per: str = "channel"
    scale_rate: float = 1.0
    tables: str = "points"
    requantization: str = "multiplier"

    def __post_init__(self) -> None:
        check_range(f"{self.name} weight_bits", self.weight_bits, 2, 16)
        if self.activation_bits != 0:
            check_range(f"{self.name} activation_bits", self.activation_bits, 2, 16)
        check_choice(f"{self.name} weight_per", self.weight_per, ("channel", "tensor"))
        check_choice(f"{self.name} tables", self.tables, TABLES)
        check_range(f"{self.name} scale_rate", self.scale_rate, 0.0, 1e6)
        check_choice(f"{self.name} requantization", self.requantization, REQUANTIZATIONS)
        if self.precision != "float32":
            do = "leave it out: rounding is that of the integer program, bit by bit"
            raise RecipeError(f"{self.name} precision", self.precision, do)
        super().__post_init__()

    def apply_(self, net: Artifact, context: Context) -> PassResult:
        stopped = self.untrainable(net, context)
        if stopped is not None:
            return stopped
        notes: list[str] = []
        placed: dict[str, str] = {}
        if not net.activations and not any(e.grid for e in net.encodings.values()):
            first = self.rounding().round_(net, context)
            placed, notes = first.changed, list(first.notes)
        elif self.requantization == "power_of_two" and not on_powers_of_two(net):
            do = "give quantization before it the same setting, or leave quantization out"
            raise RecipeError(f"{self.name} requantization: power_of_two", "grids of other scales", do)
        free_tables_(net, self.selects)
        before, grids = values_of(net), dict(net.activations)
        trains = any(e.grid is not None and net.parameter(n).requires_grad for n, e in net.encodings.items())
        if not trains and not grids:
            raise RecipeError(self.name, "nothing is on a grid", "select layers with weights, or use fine_tune")
        steps = {f"*{SUFFIX}": Factors(learning_rate=self.scale_rate, weight_decay=0.0)}
        attach = LearnedSteps if self.requantization == "multiplier" else PowersOfTwo
        result = self.train_(net, context, steps, attach=attach)
        changed, skipped = self.account(net, before, result.epochs_run)
        placed |= store_tables_(net, self.selects)
        for path, done in placed.items():
            changed[path] = f"{done}; {changed[path]}" if path in changed else done
            skipped.pop(path, None)
        if grids:
            moved = sum(not net.activations[name].same(grid) for name, grid in grids.items())
            notes.append(f"scales of {moved} of {len(grids)} values learned")
            norms = [n.layer for n in graph_of(net).nodes if n.op == "batch_norm"]
            if norms:
                notes.append(f"{norms[0]} is not folded: its statistics did not train; put fold_batchnorm before")
        elif self.activation_bits:
            notes.append("activations stay in float, as weights were on grids already; put quantization before")
        return PassResult(changed=changed, skipped=skipped, notes=tuple(notes))

    def rounding(self) -> Quantization:
        """What makes the grids."""
        return Quantization(
            weight_bits=self.weight_bits,
            activation_bits=self.activation_bits,
            weight_per=self.weight_per,
            weight_range="mse",
            tables=self.tables,
            requantization=self.requantization,
            include=self.include,
            skip=self.skip,
        )
