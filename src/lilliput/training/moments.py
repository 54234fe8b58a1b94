"""Second moments of what a layer reads, and of that with what it should give, from calibration samples."""

import torch
from torch import Tensor
from torch.nn import functional as F

from lilliput.graph.trace import Node
from lilliput.ops.output_error import DAMPING, Moments
from lilliput.training.lockstep import Turn, channel_dim

MOST_POSITIONS = 2**17
"""Outputs that are looked at, spread evenly over all: enough for 2,000 inputs of one output."""
WIDEST = 2304
"""Inputs of one output up to which the whole covariance is kept; above, its diagonal."""
FEWEST = 8
"""Samples: of fewer, most weights look as if nothing depended on them."""
AT_ONCE = 2**22
"""Numbers in one block of patches."""


def moments(turn: Turn, generator: torch.Generator, *, centred: bool = True) -> Moments | None:
    """None for transposed convolutions. `centred`: a bias takes the means; without one, moments are about 0."""
    node = turn.node
    if node.attributes.get("transposed") or not turn.wanted:
        return None
    groups = int(node.attributes.get("groups", 1))
    width = turn.state[node.state["weight"]][0].numel()
    channels = turn.state[node.state["weight"]].shape[0]
    share = _share(node, turn.wanted)
    full = width <= WIDEST
    device = turn.wanted[0].device
    inner = torch.zeros((groups, width, width) if full else (groups, width), dtype=torch.float64, device=device)
    cross = torch.zeros((channels, width), dtype=torch.float64, device=device)
    sum_x = torch.zeros((groups, width), dtype=torch.float64, device=device)
    sum_y, sum_yy = (torch.zeros(channels, dtype=torch.float64, device=device) for _ in range(2))
    count = 0
    origin = turn.wanted[0].movedim(channel_dim(node), 0).flatten(1).double().mean(1)  # keeps the sums small
    for batch, wanted in zip(turn.inputs, turn.wanted, strict=True):
        step = max(1, AT_ONCE // max(1, width * groups * (wanted[0].numel() // channels)))
        for x, y in zip(batch.split(step), wanted.split(step), strict=True):
            patches = patches_of(node, x)
            outputs = y.movedim(channel_dim(node), -1).reshape(-1, channels)
            if share < 1:
                chosen = torch.rand(len(outputs), generator=generator) < share
                patches, outputs = patches[:, chosen.to(device)], outputs[chosen.to(device)]
            outputs = outputs.double() - (origin if centred else 0)
            inner += torch.bmm(patches.transpose(1, 2), patches).double() if full else patches.double().square().sum(1)
            split = outputs.reshape(len(outputs), groups, -1).permute(1, 2, 0)
            cross += torch.bmm(split.to(patches.dtype), patches).double().reshape(channels, width)
            sum_x += patches.double().sum(1)
            sum_y += outputs.sum(0)
            sum_yy += outputs.square().sum(0)
            count += len(outputs)
    n = max(count, 1)
    inner, cross, sum_x, sum_y, sum_yy = inner / n, cross / n, sum_x / n, sum_y / n, sum_yy / n
    if centred:
        inner -= sum_x[:, :, None] * sum_x[:, None, :] if full else sum_x.square()
        cross -= sum_y[:, None] * sum_x.repeat_interleave(channels // groups, 0)
        sum_yy -= sum_y.square()
    if full:
        diagonal = inner.diagonal(dim1=1, dim2=2)
        diagonal += DAMPING * diagonal.mean(1, keepdim=True)
    return Moments(covariance=inner.cpu(), cross=cross.cpu(), variance=sum_yy.clamp(min=0).cpu())


def patches_of(node: Node, x: Tensor) -> Tensor:
    """[groups, outputs, inputs of one output]: what each output of a layer is computed from, in its weight's order."""
    if node.op == "linear":
        return x.reshape(1, -1, x.shape[-1])
    a = node.attributes
    if x.dim() == 3:  # one spatial dimension: the first of two, of size 1
        x = x.unsqueeze(2)
    rank = len(a["kernel"])
    lead = (1,) * (2 - rank)
    pads = [p for low, high in reversed(a["pads"]) for p in (low, high)]
    x = F.pad(x, pads)
    unfolded = F.unfold(
        x, (*lead, *a["kernel"]), dilation=(*lead, *a["dilation"]), stride=(*lead, *a["stride"])
    )  # [n, channels x kernel, positions]
    split = unfolded.reshape(len(x), int(a["groups"]), -1, unfolded.shape[-1])
    return split.permute(1, 0, 3, 2).reshape(int(a["groups"]), -1, split.shape[2])


def _share(node: Node, wanted: list[Tensor]) -> float:
    outputs = sum(y.numel() // y.shape[channel_dim(node)] for y in wanted)
    return min(1.0, MOST_POSITIONS / max(1, outputs))
