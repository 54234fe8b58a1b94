"""ONNX files with our own grids inside: float, weight-only, or integer for ONNX Runtime's int8 kernels.

Written directly from the graph: what a layer computes, and with which integers, is decided by the artifact and by
nobody after it.
"""

from pathlib import Path
from typing import Any

from lilliput.core import target as targets
from lilliput.core.artifact import Artifact
from lilliput.core.errors import UsageError
from lilliput.core.files import write_atomically
from lilliput.export.onnx_build import Builder
from lilliput.export.onnx_operators import cannot
from lilliput.graph.integer import IntegerNet
from lilliput.graph.trace import Graph, Node, graph_of

PRESETS = {name: preset for name, preset in targets.PRESETS.items() if preset.file == "onnx"}


def build(artifact: Artifact, *, target: str, batch: int | None = None, graph: Graph | None = None) -> Any:
    """The network as an `onnx.ModelProto`, weights inside. `ExportError` names a node that has no form in ONNX.

    `batch` fixes the batch size; None leaves it free. Activations with grids become int8 or uint8 as the target's
    kernels want them: the same integers, moved by 128.
    """
    builder = Builder(artifact, graph or graph_of(artifact), unsigned=_is_unsigned(target))
    return builder.model(batch or "batch")


def export(
    artifact: Artifact,
    path: str | Path,
    *,
    target: str,
    batch: int | None = None,
    graph: Graph | None = None,
) -> int:
    """Write `build(...)` to a file, whole or not at all; gives its size in bytes."""
    model = build(artifact, target=target, batch=batch, graph=graph)
    data = model.SerializeToString(deterministic=True)
    write_atomically(path, data)
    return len(data)


def unsupported(graph: Graph) -> list[tuple[Node, str]]:
    """The nodes that `build` would refuse, and why."""
    reasons = ((node, cannot(node, graph)) for node in graph.nodes)
    return [(node, reason) for node, reason in reasons if reason is not None]


def layers_in_float(artifact: Artifact, graph: Graph | None = None) -> dict[str, str]:
    """Arithmetic that runs in float32 although activations have grids: node -> reason. Empty for a float network."""
    return dict(IntegerNet(artifact, graph).floats) if artifact.activations else {}


def _is_unsigned(target: str) -> bool:
    if target not in PRESETS:
        raise UsageError(f"ONNX export for target {target!r}", "it names no ONNX preset", f"use {' or '.join(PRESETS)}")
    return not PRESETS[target].activations_signed
