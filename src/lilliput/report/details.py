"""What a page shows beside the table, as plain data, collected while the networks are there.

No network is run on a role again: answers come from the evaluations of the comparison. Only SQNR and learned functions
need values inside the network, on a few calibration samples.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn

from lilliput.core.artifact import Artifact
from lilliput.core.encoding import Encoding
from lilliput.core.errors import LilliputError
from lilliput.core.method import layers
from lilliput.core.task import Role, Task
from lilliput.graph.integer import LAYERS
from lilliput.graph.trace import Graph, graph_of
from lilliput.measure.memory import plan_memory
from lilliput.report.answers import answers, usual_kind
from lilliput.report.changed import changed_samples
from lilliput.report.circuits import circuits
from lilliput.report.compare import Column, samples_of
from lilliput.report.difference import layer_sqnr
from lilliput.report.functions import learned_functions

SQNR_SAMPLES, SQNR_VALUES = 64, 1 << 24
"""Layers are compared on so many samples, fewer where that would keep more values at once."""


def details(columns: list[Column], task: Task, role: Role) -> dict[str, Any]:
    """Of the last column, beside the first, as they answered on `role`."""
    first, last = columns[0], columns[-1]
    graph = graph_of(last.artifact)
    found: dict[str, Any] = {
        "task": {
            "kind": usual_kind(task),
            "score": task.score.name,
            "role": role,
            "higher_is_better": task.score.higher_is_better,
        },
        "layers": layer_rows(first, last, graph, task),
        "memory": memory_steps(graph, last.artifact),
        "functions": learned_functions(first.artifact, last.artifact, graph, _few(first.artifact, task)),
        "circuits": circuits(last.artifact),
        "data": fingerprints(task),
    }
    if first.evaluation is not None and last.evaluation is not None:
        found["samples"] = changed_samples(first.evaluation, last.evaluation, task, role)
        found["answers"] = answers(columns, task, role)
    return found


def fingerprints(task: Task) -> dict[str, dict[str, Any]]:
    roles: list[Role] = [role for role in ("train", "validation", "test") if task.has(role) or role == "validation"]
    data = {role: task.data(role) for role in roles}
    return {role: {"samples": len(d), "fingerprint": d.fingerprint()} for role, d in data.items()}


def layer_rows(first: Column, last: Column, graph: Graph, task: Task) -> list[dict[str, Any]]:
    """Every layer that has parameters: how they are stored, what they cost, how far the output moved."""
    sqnr = _sqnr(first.artifact, last.artifact, task)
    rows: list[dict[str, Any]] = []
    for path, module in layers(last.artifact).items():
        names = [name for name in last.tensors if name.rpartition(".")[0] == path]
        calls = [node for node in graph.nodes if node.module == path and node.op in LAYERS]
        weight = _main(path, module)
        moved = [sqnr[node.name] for node in calls if node.name in sqnr]
        before = [size for name, size in first.tensors.items() if name.rpartition(".")[0] == path]
        rows.append(
            {
                "layer": path,
                "kind": type(module).__name__,
                **_stored(last.artifact.encoding(weight)),
                "shared": _owner(last.artifact, weight, path),
                "bytes": sum(last.tensors[name] for name in names),
                "bytes_before": sum(before) if before else None,
                "macs": sum(int(last.costs.get(node.name, "macs").value) for node in calls) if last.costs else None,
                "sqnr": min(moved) if moved else None,
                "exact": bool(moved) and math.isinf(min(moved)),
            }
        )
    return rows


def memory_steps(graph: Graph, artifact: Artifact) -> dict[str, Any]:
    """Bytes of the arena that are in use while each operation runs."""
    plan = plan_memory(graph, artifact)
    steps = [
        {"name": node.name, "op": node.op, "bytes": sum(b.size for b in plan.buffers if b.first <= step <= b.last)}
        for step, node in enumerate(graph.nodes)
        if node.op not in ("size", "scalar", "several")
    ]
    return {"ram": plan.ram_bytes, "peak": plan.peak_step, "steps": steps}


def _main(path: str, module: nn.Module) -> str:
    """The largest parameter of a layer: its weight."""
    sizes = {f"{path}.{name}" if path else name: p.numel() for name, p in module.named_parameters(recurse=False)}
    return max(sizes, key=lambda name: sizes[name])


def _owner(artifact: Artifact, weight: str, path: str) -> str | None:
    """The layer under whose name a tied weight is stored; None if it is this layer's own."""
    owner = artifact.canonical(weight).rpartition(".")[0]
    return owner if owner != path else None


def _stored(encoding: Encoding) -> dict[str, Any]:
    values = encoding.decode()
    bits = [32] if encoding.grid is None else torch.unique(encoding.grid.bit_width).tolist()
    sizes = [] if encoding.sharing is None else torch.unique(encoding.sharing.sizes).tolist()
    sizes = [len(encoding.bank.values)] if encoding.bank is not None else sizes
    return {
        "shape": list(encoding.shape),
        "stored": encoding.describe(),
        "bits": [bits[0], bits[-1]],
        "sparsity": float((values == 0).double().mean()) if values.numel() else 0.0,
        "clusters": [sizes[0], sizes[-1]] if sizes else None,
    }


def _sqnr(original: Artifact, artifact: Artifact, task: Task) -> dict[str, float]:
    """By operation; empty where the networks cannot be compared from inside."""
    try:
        return layer_sqnr(artifact, original, _few(original, task))
    except LilliputError:
        return {}


def _few(network: Artifact, task: Task) -> Tensor:
    """Calibration samples on which all values of a network are kept."""
    values = sum(math.prod(node.shape[1:]) for node in graph_of(network).nodes)
    return samples_of(task, "calibration", max(1, min(SQNR_SAMPLES, SQNR_VALUES // max(values, 1))))
