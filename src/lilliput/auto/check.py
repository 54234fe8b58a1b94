"""Can this network be compressed and exported, and what would it need? Answered without reading any data."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from lilliput.auto.compress import left_out
from lilliput.auto.given import AnyRecipe, as_recipe, as_task, check_recipe
from lilliput.core.artifact import Artifact, InputSpec
from lilliput.core.cost import Measurement, format_quantity
from lilliput.core.encoding import Grid
from lilliput.core.method import WEIGHTED, Pass, layers
from lilliput.core.target import Target
from lilliput.core.task import Task
from lilliput.export import onnx as onnx_export
from lilliput.export.c.plan import planned
from lilliput.graph.fold import fold_, foldable
from lilliput.graph.integer import LAYERS, IntegerNet, grids_of, integer_bias, integer_values
from lilliput.graph.layers import output_axis
from lilliput.graph.lower import Refusal, refusals
from lilliput.graph.shared_bias import bias_conflict
from lilliput.graph.trace import Graph, Node, graph_of
from lilliput.measure.macs import count_macs
from lilliput.measure.memory import MemoryPlan, plan_memory
from lilliput.methods.normalization.batchnorm import FoldBatchNorm
from lilliput.methods.quantization.post_training import NARROW, Quantization, weight_grid


@dataclass(frozen=True, kw_only=True)
class Check:
    """What runs (`operators`), what 8-bit compression leaves in float and why (`untouched`), what cannot be exported.

    `unsupported` has no form in ONNX; `not_integer` none in the integer program, and so none in C. `plan` is that of
    the 8-bit network, `ram` and `flash` what the target would need for it; `bits` are more where a recipe wants more.
    """

    model: str
    target: Target
    parameters: int
    macs: int
    operators: dict[str, int]
    untouched: dict[str, str]
    unsupported: dict[str, str]
    not_integer: tuple[Refusal, ...]
    plan: MemoryPlan
    ram: Measurement
    flash: Measurement
    float_plan: MemoryPlan
    misses: tuple[str, ...] = field(default=())
    bits: int = 8

    @property
    def supported(self) -> bool:
        return not self.unsupported

    def to_data(self) -> dict[str, Any]:
        return {
            "model": self.model,
            "target": self.target.name,
            "parameters": self.parameters,
            "macs": self.macs,
            "operators": self.operators,
            "untouched": self.untouched,
            "unsupported": self.unsupported,
            "not_integer": [vars(refusal) for refusal in self.not_integer],
            "planned_ram_bytes": int(self.ram.value),
            "planned_flash_bytes": int(self.flash.value),
            "float_ram_bytes": self.float_plan.ram_bytes,
            "misses": list(self.misses),
            "supported": self.supported,
        }

    def __str__(self) -> str:
        ram, flash = (format_quantity(m.value, "B") for m in (self.ram, self.flash))
        plan = f"{self.bits}-bit plan for {self.target.name} (planned)"
        lines = [
            f"{self.model}: {format_quantity(self.parameters)} parameters, {format_quantity(self.macs)} MACs (counted)",
            "operators: " + ", ".join(f"{op} x{n}" for op, n in sorted(self.operators.items())),
            f"{plan}: RAM {ram}, peak at {self.plan.peak_step}; flash {flash}",
            f"  RAM: {self.ram.note}",
            f"  flash: {self.flash.note}",
            f"float RAM (planned): {format_quantity(self.float_plan.ram_bytes, 'B')}",
        ]
        lines += [f"left in float: {name}: {reason}" for name, reason in self.untouched.items()]
        lines += [f"UNSUPPORTED: {name}: {reason}" for name, reason in self.unsupported.items()]
        lines += [f"not an integer program: {refusal}" for refusal in self.not_integer]
        lines += [f"OVER BUDGET: {text}" for text in self.misses]
        lines.append("export: supported" if self.supported else "export: not supported as it is")
        return "\n".join(lines)


def check(
    model: nn.Module,
    task: Task | InputSpec | tuple[Any, ...],
    target: Target | str | None = None,
    *,
    recipe: AnyRecipe | None = None,
) -> Check:
    """Trace the network, list what runs, and plan its 8-bit form with made-up ranges.

    `task` gives the input's shape: a task, (X, y), or the shape of one sample. A `recipe` is held against the network:
    what its folding and quantization passes leave alone stays in float here too; without a target, its own counts.
    Raises `UnsupportedError` where tracing fails, `RecipeError` where a pattern of the recipe matches no layer.
    """
    spec = _spec(task)
    plan = None if recipe is None else as_recipe(recipe)
    if target is None and plan is not None:
        target = plan.target
    chosen = target if isinstance(target, Target) else Target(target or "onnx-x86")
    net = Artifact.of(model, spec).to_("cpu")
    passes: list[Pass] = []
    if plan is not None:
        check_recipe(plan, net.module)
        passes = [method for step in plan.steps for method in step.passes]
    folding = [p for p in passes if isinstance(p, FoldBatchNorm)]
    quantizing = [p for p in passes if isinstance(p, Quantization)]
    parameters = sum(p.numel() for p in net.module.parameters())
    before = graph_of(net)
    table = count_macs(before, net)
    float_plan = plan_memory(before, net)
    unsupported = {node.name: reason for node, reason in onnx_export.unsupported(before)}
    pairs, refused = foldable(net, before)
    for pair in pairs:
        if _chosen(folding, pair.norm):
            fold_(net, pair)
        else:
            refused[pair.norm] = left_out(folding, pair.norm)
    graph = graph_of(net)
    untouched = {f"{name} (BatchNorm)": reason for name, reason in refused.items()}
    bits = max([8, *(p.activation_bits for p in quantizing)])
    untouched |= _pretend_integers_(net, graph, chosen, quantizing, bits)
    plan = plan_memory(graph, net)
    ram, flash, _ = planned(net, graph, chosen)
    misses = [
        f"{name}: {found.value:,.0f} bytes planned, at most {limit:,} wanted"
        for name, found, limit in (("RAM", ram, chosen.ram), ("flash", flash, chosen.flash))
        if isinstance(limit, int) and found.value > limit
    ]
    return Check(
        model=type(model).__name__,
        target=chosen,
        parameters=parameters,
        macs=int(table.total("macs").value) if "macs" in table.names() else 0,
        operators=dict(Counter(_word(n) for n in before.nodes if n.op not in ("input", "size"))),
        untouched=untouched,
        unsupported=unsupported,
        not_integer=refusals(net, graph),
        plan=plan,
        ram=ram,
        flash=flash,
        float_plan=float_plan,
        misses=tuple(misses),
        bits=bits,
    )


def _spec(task: Task | InputSpec | tuple[Any, ...]) -> InputSpec:
    if isinstance(task, InputSpec):
        return task
    if isinstance(task, tuple) and task and all(isinstance(size, int) for size in task):
        return InputSpec(shape=task)
    return as_task(task).spec


def _word(node: Node) -> str:
    return node.target if node.op in ("other", "several", "scalar") else node.op


def _chosen(passes: Sequence[Pass], layer: str) -> bool:
    """Does one of the passes take the layer? Without passes every layer is taken."""
    return not passes or any(p.selects(layer) for p in passes)


def _pretend_integers_(
    net: Artifact, graph: Graph, target: Target, quantizing: Sequence[Quantization], bits: int
) -> dict[str, str]:
    """Put what is chosen on grids with made-up scales: enough to plan, and to see what stays in float.

    Weights get 8 bits, or as many more as their pass wants.
    """
    for path, module in layers(net).items():
        if isinstance(module, WEIGHTED) and _chosen(quantizing, path):
            weight = net.encoding(f"{path}.weight" if path else "weight")
            axis = output_axis(module)
            values = weight.decode()
            rows = values.reshape(1, -1) if axis is None else values.movedim(axis, 0).reshape(values.shape[axis], -1)
            width = max([8, *(p.for_layer(path).weight_bits for p in quantizing if p.selects(path))])
            scale, zero = weight_grid(rows, width, symmetric=True, choice="min_max", percentile=100)
            grid = Grid(
                scale=scale,
                zero_point=zero,
                bit_width=torch.full_like(zero, width),
                signed=True,
                narrow=True,
                axis=axis,
            )
            net.encode_(f"{path}.weight" if path else "weight", weight.with_grid(grid))
    signed = target.preset.activations_signed or bits > NARROW
    net.activations = {name: Grid.per_tensor(1.0, 0, bits, signed=signed) for name in integer_values(graph)}
    grids = grids_of(graph, net.activations)
    for node in graph.nodes:
        weight = net.encodings.get(net.canonical(node.state["weight"])) if node.op in ("conv", "linear") else None
        source, bias = grids.get(node.inputs[0]) if node.inputs else None, node.state.get("bias")
        if (
            weight is not None
            and weight.grid is not None
            and source is not None
            and bias is not None
            and bias not in net.encodings
            and not bias_conflict(graph, bias, net.canonical)
        ):
            net.encode_(bias, integer_bias(net.parameter(bias).detach(), source, weight.grid))
    left: dict[str, str] = {}
    for name, reason in IntegerNet(net, graph).floats.items():
        node = graph[name]
        plain = node.op in LAYERS and net.encoding(node.state["weight"]).grid is None
        left[name] = left_out(quantizing, node.module) if plain and not _chosen(quantizing, node.module) else reason
    return left
