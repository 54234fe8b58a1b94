"""Few learned functions for many channels: channels whose functions are alike share a table, and say which in a byte.

Functions of a layer are clustered by their values at the points of the grid, weighted by how often calibration samples
lie near each point (k-means). The tables that come out train together, if something trains after it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from lilliput.core.artifact import Artifact
from lilliput.core.device import moved
from lilliput.core.learned_activation import MOST_CHANNELS, LearnedActivation
from lilliput.core.method import Context, Pass, PassResult, check_range, layers
from lilliput.graph.function_tables import become_table_
from lilliput.graph.trace import Graph, Node, StoredNetwork, graph_of, run
from lilliput.ops.function_sharing import Shared, near_points, share


@dataclass(frozen=True, kw_only=True)
class ShareFunctions(Pass):
    """Learned functions of each layer become `tables` of them, and each channel has one of these.

    Functions of kinds with a grid become tables of their points. What a function changes by is told for each layer: the
    root mean square over its calibration samples, relative to that of its values; of each channel in the statistics.
    """

    name: ClassVar[str] = "share_functions"
    summary: ClassVar[str] = "let channels whose learned functions are alike share them"

    tables: int = 16

    def __post_init__(self) -> None:
        check_range("share_functions tables", self.tables, 1, MOST_CHANNELS)
        super().__post_init__()

    def requires(self, net: Artifact) -> list[str]:
        if isinstance(net.module, StoredNetwork):
            return ["the network was loaded without its code; load the file into the model's class"]
        if net.activations:
            return ["activations are already on integer grids; put share_functions before quantization"]
        return []

    def apply_(self, net: Artifact, context: Context) -> PassResult:
        skipped = {path: why for path, m in layers(net).items() if (why := self._why_not(net, path, m))}
        chosen = {
            path: m for path, m in layers(net).items() if path not in skipped and isinstance(m, LearnedActivation)
        }
        if not chosen:
            return PassResult(skipped=skipped)
        near = _near(net, context, chosen)
        changed: dict[str, str] = {}
        statistics: dict[str, Any] = {}
        for path, module in chosen.items():
            rows, weights = module.table().detach().cpu(), near[path].cpu()
            channels = _rows_of_channels(module).cpu()
            by_row = torch.zeros(rows.shape, dtype=torch.float64).index_add_(0, channels, weights)
            found = share(rows, by_row, self.for_layer(path).tables, context.generator)
            moved_by = _relative(found, rows, by_row)[channels]
            become_table_(net, path, found.tables.float(), found.owner[channels])
            changed[path] = (
                f"{len(rows)} functions in {len(found.tables)} tables: changed by {100 * float(moved_by.mean()):.2g}% "
                f"on average, at most {100 * float(moved_by.max()):.2g}%"
            )
            statistics[path] = {"owner": found.owner[channels].tolist(), "changed": moved_by.tolist()}
        return PassResult(changed=changed, skipped=skipped, statistics=statistics)

    def _why_not(self, net: Artifact, path: str, module: nn.Module) -> str:
        if not self.selects(path):
            return "not selected by include and skip"
        if not isinstance(module, LearnedActivation):
            return "no learned functions"
        if module.form == "psa":
            return "psa has no points"
        if len(module.weight) <= self.for_layer(path).tables:
            return f"it has {len(module.weight)} functions already"
        if net.canonical(f"{path}.weight" if path else "weight") in net.encodings:
            return "its functions are encoded"
        return ""


def _near(net: Artifact, context: Context, chosen: Mapping[str, LearnedActivation]) -> dict[str, Tensor]:
    """{layer: how much of what each channel reads lies near each point}, over calibration samples and all calls."""
    graph = graph_of(net)
    owners = {net.canonical(f"{path}.weight" if path else "weight"): path for path in chosen}
    readers: dict[str, list[tuple[Node, str]]] = {}
    for node in graph.nodes:
        path = owners.get(net.canonical(node.state["weight"])) if node.op == "learned_function" else None
        if path is not None:
            readers.setdefault(node.inputs[0], []).append((node, path))
    near = {
        path: torch.zeros(m.channels, m.points, dtype=torch.float64, device=net.device) for path, m in chosen.items()
    }

    def look(node: Node, value: Any) -> Any:
        for reader, path in readers.get(node.name, ()):
            module = chosen[path]
            x = value.movedim(reader.attributes["dim"], 0).flatten(1)
            near[path] += near_points(x, float(module.limit), module.points)
        return value

    watched = _Watched(graph, net.module.state_dict(), look)
    with torch.no_grad():
        for batch in context.task.data("calibration").batches(context.batch_size):
            context.task.forward(watched, moved(batch, net.device))
    return near


class _Watched(nn.Module):
    """Runs a graph, and shows every value."""

    def __init__(self, graph: Graph, state: Mapping[str, Tensor], look: Callable[[Node, Any], Any]) -> None:
        super().__init__()
        self.run = lambda inputs: run(graph, state, *inputs, visit=look)

    def forward(self, *inputs: Tensor) -> Any:
        return self.run(inputs)


def _rows_of_channels(module: LearnedActivation) -> Tensor:
    """int64 [channels]: which function each has."""
    if module.owner is not None:
        return module.owner.long()
    return torch.arange(module.channels) // (module.channels // len(module.weight))


def _relative(found: Shared, rows: Tensor, weights: Tensor) -> Tensor:
    """float64 [rows]: root mean square of the change, over that of the values."""
    nothing = Shared(owner=torch.zeros_like(found.owner), tables=torch.zeros_like(found.tables[:1]))
    size = nothing.squared_errors(rows, weights)
    return (found.squared_errors(rows, weights) / size.clamp(min=1e-30)).sqrt()
