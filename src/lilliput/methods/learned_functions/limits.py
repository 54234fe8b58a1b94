"""How far the grid of a learned function reaches: so many root mean squares of what it reads."""

from collections.abc import Mapping

from lilliput.core.artifact import Artifact
from lilliput.core.method import Context
from lilliput.graph.trace import Graph, Node
from lilliput.training.calibrate import observe_ranges

LIMITS = ("observed", "batch_norm")


def limits_of(
    net: Artifact, graph: Graph, wanted: Mapping[str, tuple[float | str, float]], context: Context
) -> dict[str, float]:
    """For each activation; `wanted` has its limit or where that comes from, and how many root mean squares it is."""
    sources = {name: graph[name].inputs[0] for name, (limit, _) in wanted.items() if limit == "observed"}
    squares: dict[str, float] = {}
    if sources:
        seen = observe_ranges(
            net,
            context.task,
            list(dict.fromkeys(sources.values())),
            batch_size=context.batch_size,
            device=context.device,
            progress=context.progress,
            graph=graph,
        )
        squares = {name: float((s.counts * s.means**2).sum()) / s.total for name, s in seen.items()}
    result: dict[str, float] = {}
    for name, (limit, deviations) in wanted.items():
        source = graph[graph[name].inputs[0]]
        if isinstance(limit, str):
            square = squares[source.name] if limit == "observed" else _of_norm(net, source)
            limit = deviations * square**0.5 or 1.0  # noqa: PLW2901 - what reads zeros alone may have any
        result[name] = limit
    return result


def _of_norm(net: Artifact, norm: Node) -> float:
    """The mean square of what a BatchNorm gives: of channels with mean `bias` and deviation `weight`."""
    if "weight" not in norm.state:
        return 1.0
    return sum(float((net.parameter(norm.state[role]).detach().double() ** 2).mean()) for role in ("weight", "bias"))
