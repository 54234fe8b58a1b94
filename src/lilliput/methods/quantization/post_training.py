"""Post-training quantization: weights and activations on integer grids, without training.

Jacob et al. (2018), https://arxiv.org/abs/1712.05877 (affine grids, int32 biases and accumulators); Nagel et al.
(2021), "A white paper on neural network quantization", https://arxiv.org/abs/2106.08295, section 3 (choice of ranges).
We differ from both in the rounding: one half rounds up everywhere, as `ops.fixed_point` says. The range "output" is
described in `ops.output_error`, with its sources.
"""

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from lilliput.core.artifact import Artifact
from lilliput.core.encoding import Encoding, Grid
from lilliput.core.errors import RecipeError
from lilliput.core.method import Context, Pass, PassResult, check_choice, check_range, layers
from lilliput.graph.aligned import aligned
from lilliput.graph.function_tables import store_tables_
from lilliput.graph.integer import (
    LAYERS,
    TOO_LARGE,
    IntegerNet,
    accumulator_scale,
    grids_of,
    integer_bias,
    integer_values,
)
from lilliput.graph.knots import possible
from lilliput.graph.layers import output_axis
from lilliput.graph.shared_bias import bias_conflict, shared_grids
from lilliput.graph.trace import Graph, Node, graph_of
from lilliput.ops import affine
from lilliput.ops.output_error import Moments, fit, refine
from lilliput.training.calibrate import Observation, activation_grid, observe_ranges
from lilliput.training.lockstep import Lockstep, Turn
from lilliput.training.moments import moments

NARROW = 8
TABLES = ("points", "full")
REQUANTIZATIONS = ("multiplier", "power_of_two")
MOST_BEYOND = 0.01
"""Of what a learned function reads, the part that may saturate at its limit."""
LARGEST_BIAS, LARGEST_WIDE_BIAS = 2**20, 2**30
"""A bias may be this many steps of its accumulator: with it the sums of the zoo stay exact in float32.

The wide one is for weights or inputs of more than 8 bits, whose steps are smaller: half of what 32 bits hold.
"""


@dataclass(frozen=True, kw_only=True)
class Quantization(Pass):
    """Integer weights of `weight_bits` (2..16), integer activations of `activation_bits` (2..16; 0 for weights only).

    Main arguments: `weight_bits`, `activation_bits`. Others: `weight_per` "channel" or "tensor"; `symmetric` weights
    (zero point 0, -127..127) or affine; `weight_range` and `activation_range` "min_max", "percentile" (of `percentile`
    percent of the values) or "mse"; `signed` activations (None = what the target runs fastest). Activations of more
    than 8 bits are signed with zero point 0, unless `signed` is False: their sums must fit into 32 bits.

    `weight_range` "output" chooses the scales that change the layers' outputs least, layer by layer, for inputs that
    carry the errors of the layers before, and lets the biases take the difference of the means. `size_weight` then
    prefers integers that are small when coded: one bit a weight counts as much as this share of a layer's variance
    (0.01 suits 4 bits; 0 looks at the error alone). `rounding` "output" then moves integers away from the nearest, so
    that errors of one weight make up for those of others.

    Activations are calibrated on the calibration role. A layer with a bias that is called several times gets one grid
    for the inputs of all its calls. A layer whose weight shares values gets one scale for each table. Weights that are
    already on a grid keep it. What feeds only the output stays in accumulators.

    `tables` "points" makes learned functions of 2^k + 1 points (k from 3 to the bits of what they read, at most 8) that
    many integers with lines between them: what such a function alone reads is on a grid that its limit gives, if at
    most 1% of it is beyond the limit. Other functions, and all with "full", have an entry for each code of up to 8
    bits.

    `requantization` "power_of_two" is what FPGA designs want: all scales are powers of two, activations are signed with
    zero point 0, and so are the outputs of a last layer; biases are on the scale of their layer's output. Then every
    rescaling of a layer is a rounding right shift. "multiplier" has no such limits, and loses less.
    """

    name: ClassVar[str] = "quantization"
    summary: ClassVar[str] = "put weights and activations on integer grids without training"
    citations: ClassVar[tuple[str, ...]] = ("https://arxiv.org/abs/1712.05877", "https://arxiv.org/abs/2106.08295")

    weight_bits: int = 8
    activation_bits: int = 8
    weight_per: str = "channel"
    symmetric: bool = True
    weight_range: str = "min_max"
    activation_range: str = "mse"
    percentile: float = 99.99
    signed: bool | None = None
    size_weight: float = 0.0
    rounding: str = "nearest"
    tables: str = "points"
    requantization: str = "multiplier"

    def __post_init__(self) -> None:
        check_range("quantization weight_bits", self.weight_bits, 2, 16)
        if self.activation_bits != 0:
            check_range("quantization activation_bits", self.activation_bits, 2, 16)
        check_choice("quantization weight_per", self.weight_per, ("channel", "tensor"))
        check_choice("quantization weight_range", self.weight_range, ("min_max", "percentile", "mse", "output"))
        check_choice("quantization activation_range", self.activation_range, ("min_max", "percentile", "mse"))
        check_range("quantization percentile", self.percentile, 50.0, 100.0)
        check_choice("quantization tables", self.tables, TABLES)
        check_choice("quantization rounding", self.rounding, ("nearest", "output"))
        check_choice("quantization requantization", self.requantization, REQUANTIZATIONS)
        self._check_shifts()
        check_range("quantization size_weight", self.size_weight, 0.0, 10.0)
        for name in ("rounding", "size_weight"):
            if self.weight_range != "output" and getattr(self, name) not in ("nearest", 0):
                raise RecipeError(
                    f"quantization {name}", f"weight_range is {self.weight_range!r}", "use weight_range: output"
                )
        if self.weight_range == "output" and self.weight_bits > NARROW:
            raise RecipeError(
                "quantization weight_range", f"output with {self.weight_bits} bits", "use mse for more than 8 bits"
            )
        super().__post_init__()
        for pattern, settings in self.overrides.items():
            for name in ("activation_bits", "activation_range", "signed", "tables", "requantization"):
                if name in settings:
                    raise RecipeError(
                        f"quantization override for {pattern!r}",
                        f"{name} counts for the whole network",
                        "override settings of weights only",
                    )
            if "percentile" in settings and settings.get("weight_range", self.weight_range) != "percentile":
                raise RecipeError(
                    f"quantization override for {pattern!r}",
                    "a percentile without weight_range: percentile",
                    "override both",
                )

    def _check_shifts(self) -> None:
        """Which settings do not go with powers of two."""
        if not self.shifts:
            return
        asked = "quantization requantization: power_of_two"
        if self.weight_range == "output":
            raise RecipeError(asked, "weight_range: output, whose scales are no powers of two", "use mse or min_max")
        if not self.symmetric or self.signed is False:
            found = "symmetric: false" if not self.symmetric else "signed: false"
            raise RecipeError(asked, found, "leave it out: zero points are 0")

    @property
    def shifts(self) -> bool:
        return self.requantization == "power_of_two"

    def apply_(self, net: Artifact, context: Context) -> PassResult:
        result = self.round_(net, context)
        changed = result.changed | store_tables_(net, self.selects)
        return replace(result, changed=changed, skipped={p: r for p, r in result.skipped.items() if p not in changed})

    def round_(self, net: Artifact, context: Context) -> PassResult:
        """The same, with learned functions stored as they are: what trains afterwards starts from that."""
        chosen, skipped = self.pick(net)
        changed: dict[str, str] = {}
        fresh: dict[str, Encoding] = {}
        for path, weight in list(chosen.items()):
            encoding = net.encoding(weight)
            if encoding.grid is not None:
                skipped[path] = f"its weight is on a grid already ({encoding.describe()})"
                del chosen[path]
            else:
                fresh[weight] = encoding
        if any(self.for_layer(path).weight_range == "output" for path in chosen):
            self._outputs_(net, context, chosen)
        for path, weight in chosen.items():
            if weight not in net.encodings or net.encodings[weight].grid is None:
                axis = output_axis(net.module.get_submodule(path))
                net.encode_(weight, self.for_layer(path).encoded(fresh[weight], axis, context))
            changed[path] = net.encoding(weight).describe()
        notes: list[str] = []
        if self.activation_bits:
            self._activations_(net, context, fresh, changed, notes)
        return PassResult(
            changed=changed, skipped={p: r for p, r in skipped.items() if p not in changed}, notes=tuple(notes)
        )

    def encoded(
        self, encoding: Encoding, axis: int | None, context: Context, moments: Moments | None = None
    ) -> Encoding:
        """A weight on its grid; `axis` counts its output channels. "output" needs `moments`, and is "mse" without."""
        bits = self.weight_bits - (1 if context.target.reduce_range and self.weight_bits == 8 else 0)
        if encoding.sharing is not None:
            axis_used = axis if encoding.sharing.axis == axis else None
        else:
            axis_used = axis if self.weight_per == "channel" else None
        values = encoding.decode()
        by_output = moments is not None and axis == 0 and axis_used in (0, None)
        if moments is not None and by_output:
            found = fit(
                values.flatten(1).cpu(),
                moments,
                bit_width=bits,
                symmetric=self.symmetric,
                per_row=axis_used is not None,
                size_weight=self.size_weight,
            )
            scale, zero = found.search, found.zero_point
        else:
            found = None
            rows = (
                values.reshape(1, -1)
                if axis_used is None
                else values.movedim(axis_used, 0).reshape(values.shape[axis_used], -1)
            )
            choice = "mse" if self.weight_range == "output" else self.weight_range
            scale, zero = weight_grid(
                rows,
                bits,
                symmetric=self.symmetric,
                choice=choice,
                percentile=self.percentile,
                power_of_two=self.shifts,
            )
        width = torch.full_like(zero, bits)
        grid = Grid(scale=scale, zero_point=zero, bit_width=width, signed=True, narrow=self.symmetric, axis=axis_used)
        rounded = encoding.with_grid(grid.to(values.device))
        if found is None or moments is None or rounded.grid is None:
            return rounded
        codes, stored = rounded.values, found.scale
        if self.rounding == "output" and encoding.sharing is None:
            codes, stored = refine(
                codes.flatten(1).cpu(),
                moments,
                found,
                bit_width=bits,
                narrow=self.symmetric,
                size_weight=self.size_weight,
                free=None if encoding.mask is None else encoding.mask.flatten(1).cpu(),
            )
            codes = codes.reshape(values.shape).to(values.device)
        return replace(rounded, values=codes, grid=replace(rounded.grid, scale=stored.to(values.device)))

    def _outputs_(self, net: Artifact, context: Context, chosen: Mapping[str, str]) -> None:
        """Weights of range "output", in the order in which they run, and the biases of their layers.

        Other layers are quantized in their turn too, so that later ones read what they will read.
        """
        lockstep = Lockstep(net, copy.deepcopy(net.module), context, edited=False)

        def visit(turn: Turn) -> bool:
            path, weight = turn.node.module, net.canonical(turn.node.state.get("weight", ""))
            if chosen.get(path) != weight or (weight in net.encodings and net.encodings[weight].grid is not None):
                return False
            own, bias = self.for_layer(path), turn.node.state.get("bias")
            free = bias is not None and len(lockstep.graph.users_of(bias)) == 1 and bias not in net.encodings
            found = moments(turn, context.generator, centred=free) if own.weight_range == "output" else None
            axis = output_axis(net.module.get_submodule(path))
            net.encode_(weight, own.encoded(net.encoding(weight), axis, context, found))
            if bias is not None and free and found is not None:
                shift = turn.wanted_means()[0] - turn.means()[0]
                net.write_(bias, (net.parameter(bias).detach().double() + shift).float())
            advance(1)
            return True

        with context.progress.task("choose ranges", len(chosen)) as advance:
            lockstep.run(visit)

    def _activations_(
        self, net: Artifact, context: Context, fresh: dict[str, Encoding], changed: dict[str, str], notes: list[str]
    ) -> None:
        graph = graph_of(net)
        nodes = integer_values(graph)
        if self.shifts:
            nodes += [n for n in dict.fromkeys(graph.outputs) if graph[n].op in LAYERS and n not in nodes]
        wide = self.activation_bits > NARROW or self.shifts
        signed = (wide or context.target.preset.activations_signed) if self.signed is None else self.signed
        seen = observe_ranges(
            net,
            context.task,
            nodes,
            batch_size=context.batch_size,
            device=context.device,
            progress=context.progress,
            shared=shared_grids(graph),
        )
        net.activations = {
            node: activation_grid(
                seen[node],
                self.activation_range,
                percentile=self.percentile,
                bit_width=self.activation_bits,
                signed=signed,
                symmetric=wide and signed,
                power_of_two=self.shifts,
            ).to(net.device)
            for node in nodes
        }
        notes += self._points_(net, graph, seen)
        if self.shifts:
            net.activations = aligned(net, graph)
        notes.append(f"{len(nodes)} values on {self.activation_bits}-bit grids ({'signed' if signed else 'unsigned'})")
        grids = grids_of(graph, net.activations)
        modules = layers(net)
        layer_nodes = [n for n in graph.nodes if n.op in ("conv", "linear") and n.module in modules]
        for name, float_weight in fresh.items():
            _fit_weight_(net, name, float_weight, layer_nodes, grids, power_of_two=self.shifts)
        for node in layer_nodes:
            reason = _bias_(net, graph, node, grids, of_output=self.shifts)
            if reason:
                notes.append(f"{node.layer} stays in float: {reason}")
            else:
                weight = net.encoding(node.state["weight"])
                changed[node.module] = f"{weight.describe()}, {self.activation_bits}-bit inputs"
        reasons = IntegerNet(net, graph).floats
        notes += [f"{graph[name].layer} stays in float: {TOO_LARGE}" for name, r in reasons.items() if r == TOO_LARGE]

    def _points_(self, net: Artifact, graph: Graph, seen: Mapping[str, Observation]) -> list[str]:
        """Learned functions become points with lines between them where what they read can have the grid for it."""
        if self.tables == "full":
            return []
        found = possible(graph, net.module.state_dict(), self.activation_bits)
        others = dict(found.others)
        for name, grid in found.grids.items():
            if name not in net.activations:
                continue
            limit = float(grid.scale) * (1 << (self.activation_bits - 1))
            beyond = float(seen[name].counts[seen[name].means.abs() > limit].sum()) / seen[name].total
            why = ""
            if beyond > MOST_BEYOND:
                why = f"{100 * beyond:.2g}% of what it reads is beyond its limit"
            elif self.shifts and not torch.equal(affine.next_power_of_two(grid.scale), grid.scale):
                why = "its limit is no power of two; replace_activations takes limit: 4"
            if why:
                others |= dict.fromkeys(found.readers[name], why)
            else:
                net.activations[name] = grid.to(net.device)
        return [f"{graph[name].layer} has an entry for each code: {why}" for name, why in others.items()]


def weight_grid(
    rows: Tensor, bits: int, *, symmetric: bool, choice: str, percentile: float, power_of_two: bool = False
) -> tuple[Tensor, Tensor]:
    """(scale, zero_point) for each row of [rows, n]; signed, narrow when symmetric."""
    kind: dict[str, Any] = {
        "bit_width": bits,
        "signed": True,
        "symmetric": symmetric,
        "narrow": symmetric,
        "power_of_two": power_of_two,
    }
    if choice == "min_max":
        found = affine.min_max(rows)
    elif choice == "percentile":
        found = affine.percentile(rows, percentile)
    else:
        found = affine.mse(rows, **kind)
    return affine.affine_parameters(found.low, found.high, **kind)


def largest_bias(weight: Grid, source: Grid) -> int:
    """In steps of the accumulator."""
    narrow = max(int(weight.bit_width.max()), int(source.bit_width.max())) <= NARROW
    return LARGEST_BIAS if narrow else LARGEST_WIDE_BIAS


def fit_to_biases(weight: Grid, values: Tensor, needed: Tensor, *, power_of_two: bool = False) -> Grid:
    """A grid for `values` in which no bias is more than `largest_bias` steps of its accumulator.

    `needed` is the scale from which on that holds, for each channel. Channels of 8 bits that get a coarser scale for it
    have weights so small that the bias alone decides; they round to nearly 0. Wide ones use fewer of their bits. A
    channel of zeros gets the finest scale.
    """
    if weight.axis is None:
        needed, dead = needed.max().reshape(1), ~values.any().reshape(1)
    else:
        dead = ~values.movedim(weight.axis, 0).flatten(1).any(1)
    smallest = torch.finfo(torch.float32).tiny
    scale = torch.where(dead & (needed > 0), needed.clamp(min=smallest), torch.maximum(weight.scale, needed))
    if power_of_two:
        scale = affine.next_power_of_two(scale)
    return replace(weight, scale=scale)


def _fit_weight_(
    net: Artifact,
    name: str,
    float_weight: Encoding,
    nodes: list[Node],
    grids: Mapping[str, Grid],
    *,
    power_of_two: bool,
) -> None:
    """Adapt the scale of a weight that this pass has put on its grid to the biases of all layers that use it."""
    grid = net.encodings[name].grid
    if grid is None:
        return
    needed = [
        (
            net.encoding(node.state["bias"]).decode().abs().double()
            / (largest_bias(grid, source) * source.scale.double())
        )
        for node in nodes
        if net.canonical(node.state["weight"]) == name
        and "bias" in node.state
        and (source := grids.get(node.inputs[0])) is not None
    ]
    if needed:
        most = torch.stack(needed).amax(0).float()
        fitted = fit_to_biases(grid, float_weight.decode(), most, power_of_two=power_of_two)
        if not fitted.same(grid):
            old, new = net.encodings[name], float_weight.with_grid(fitted)
            if old.sharing is None:  # integers whose scale stays are kept: they need not be the nearest
                kept = grid.spread(fitted.scale == grid.scale, len(old.shape))
                new = replace(new, values=torch.where(kept, old.values, new.values))
            net.encode_(name, new)


def _bias_(net: Artifact, graph: Graph, node: Node, grids: Mapping[str, Grid], *, of_output: bool) -> str:
    """Put a layer's bias on its accumulator's scale; the reason why the layer cannot be integer, or "".

    With `of_output` on the scale of the layer's output, where one call reads it.
    """
    source = grids.get(node.inputs[0])
    weight = net.encodings.get(net.canonical(node.state["weight"]))
    if source is None:
        return "its input has no grid"
    if weight is None or weight.grid is None:
        return "its weight is not quantized"
    name = node.state.get("bias")
    if name is None:
        return ""
    conflict = bias_conflict(graph, name, net.canonical)
    if conflict:
        return conflict
    values = net.encoding(name).decode()
    largest = max(2**22, largest_bias(weight.grid, source))
    if bool((values.abs().double() > largest * accumulator_scale(source, weight.grid)).any()):
        return "its bias is too large for its weights' scale"
    output = grids.get(node.name) if of_output and len(graph.users_of(name)) == 1 else None
    net.encode_(name, integer_bias(values, source, weight.grid, output=output))
    return ""
