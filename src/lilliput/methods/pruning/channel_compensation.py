"""Least squares for what is left: each layer's weights give, on the inputs that it has now, what it gave before.

He, Zhang and Sun (2017), "Channel pruning for accelerating very deep neural networks",
https://arxiv.org/abs/1707.06168, section 3.1; here layer after layer, with the errors of the layers before.
"""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import nn

from lilliput.core.artifact import Artifact
from lilliput.core.edits import Slice
from lilliput.core.method import Context
from lilliput.training.lockstep import Lockstep, Turn
from lilliput.training.moments import moments

RIDGE = 1e-3
"""Of the mean second moment: how much weights are held to what they were."""


def compensate_(
    net: Artifact, before: nn.Module, edits: list[Slice], context: Context, selects: Callable[[str], bool]
) -> dict[str, str]:
    """{layer: what was done}, for layers that come after something removed; `before` is the network without `edits`."""
    changed: dict[str, str] = {}
    view = replace(net, edits=list(edits))  # what was done before these edits is in `before` already
    lockstep = Lockstep(view, before, context, edited=True)
    touched = {edit.path for edit in edits}
    reached = {node.name for node in lockstep.graph.nodes if touched & set(node.state.values())}
    for node in lockstep.graph.nodes:
        if any(name in reached for name in node.inputs):
            reached.add(node.name)

    def visit(turn: Turn) -> bool:
        node = turn.node
        weight, path = node.state["weight"], node.module
        late = any(name in reached for name in node.inputs) or any(
            edit.path == weight and edit.dim == 1 for edit in edits
        )
        if not late or not selects(path) or turn.missing or not _plain(net, lockstep, turn):
            return False
        done = _refit_(net, turn, context)
        if done:
            changed[path] = done
        return bool(done)

    with context.progress.task("least squares", len(lockstep.graph.nodes)) as advance:
        lockstep.run(visit)
        advance(len(lockstep.graph.nodes))
    return changed


def _plain(net: Artifact, lockstep: Lockstep, turn: Turn) -> bool:
    """Can the weights take any values? Not those of encodings, and not those of other layers or calls."""
    node = turn.node
    alone = all(len(lockstep.graph.users_of(name)) == 1 for name in node.state.values())
    free = not any(net.canonical(name) in net.encodings for name in node.state.values())
    return alone and free and not node.attributes.get("transposed")


def _refit_(net: Artifact, turn: Turn, context: Context) -> str:
    """The weights that give least squared error; a bias takes the difference of the means. Returns what was done.

    Layers of more inputs than a covariance is kept for have their bias moved only.
    """
    name, bias = turn.node.state["weight"], turn.node.state.get("bias")
    found = moments(turn, context.generator, centred=bias is not None)
    if found is None:
        return ""
    old = net.parameter(name).detach().double().cpu()
    rows, done = old.flatten(1), ""
    if found.covariance.dim() == 3:
        groups, n, _ = found.covariance.shape
        level = found.covariance.diagonal(dim1=1, dim2=2).mean(1).clamp(min=1e-12) * RIDGE
        damped = found.covariance + level[:, None, None] * torch.eye(n, dtype=torch.float64)
        split = rows.reshape(groups, -1, n)
        wanted = found.cross.reshape(groups, -1, n) + level[:, None, None] * split
        new = torch.linalg.solve(damped, wanted.transpose(1, 2)).transpose(1, 2).reshape(rows.shape)
        net.write_(name, new.reshape(old.shape).float())
        done = "weights fitted to the outputs that it had"
    if bias is not None:
        shift = turn.wanted_means()[0] - turn.means()[0]
        net.write_(bias, (net.parameter(bias).detach().double() + shift.to(net.device)).float())
        done = done or "bias moved to the mean that it had"
    return done
