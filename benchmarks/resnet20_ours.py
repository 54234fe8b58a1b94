"""Lilliput's rows of resnet20.py: passes, and what is measured of the file that they give, read back."""

from dataclasses import dataclass
from typing import Any

import torch
from peer_runs import judged_artifact
from resnet20_tools import compressed, exported_runner, published_runner, times_faster

from lilliput.core import container
from lilliput.graph import stored
from lilliput.graph.integer import runnable
from lilliput.graph.trace import graph_of
from lilliput.measure.macs import count_macs
from lilliput.methods.normalization.batchnorm import FoldBatchNorm
from lilliput.methods.pruning.channel import ChannelPruning
from lilliput.methods.second_order.pruning import SecondOrderPruning
from lilliput.methods.second_order.rate_distortion import RateDistortion

FOLD = FoldBatchNorm()
GRAPH = 300
"""Bytes of graph and labels at most, which `max_bytes` does not count and the whole file does."""


@dataclass(frozen=True)
class Ours:
    group: str
    passes: list[Any]
    timed: bool = False


def rows():
    """{name: group and passes}."""
    classes = {70: "near-lossless", 58: "near-lossless", 60: "4-bit", 53: "4-bit", 50: "small", 44: "small"}
    found = {"float, BatchNorm folded": Ours("near-lossless", [FOLD])}
    found |= {
        f"at most {size} kB": Ours(group, [FOLD, RateDistortion(max_bytes=1000 * size - GRAPH)])
        for size, group in classes.items()
    }
    found |= {
        f"at most {size} kB, learned": Ours(
            group, [FOLD, RateDistortion(max_bytes=1000 * size - GRAPH, learned_steps=300)]
        )
        for size, group in classes.items()
        if size in (70, 58)
    }
    found["4 bits, compensated"] = Ours("4-bit", [FOLD, RateDistortion(weight_bits=4)])
    for share in (50, 70):
        found[f"second order, {share}% zero"] = Ours("sparse", [FOLD, SecondOrderPruning(sparsity=share / 100)])
    found["channels, 65% of the MACs in vectors of 16"] = Ours(
        "channels", [ChannelPruning(macs=0.65, lanes=16), FOLD], timed=True
    )
    found["channels, 50% of the MACs"] = Ours("channels", [ChannelPruning(macs=0.5), FOLD], timed=True)
    return found


def measured(row, model, given, task):
    """`given` has the images that methods may see, `task` the labels that judge the file."""
    net, notes, seconds = compressed(model, given, row.passes)
    data = stored.dumps(net)
    back = stored.stored_artifact(container.loads(data))
    found = {"group": row.group, "cpu_s": round(seconds, 2), "notes": list(notes)}
    found |= judged_artifact(data, runnable(back), task)
    weights = [e.decode() for name, e in net.stored().items() if name.endswith("weight") and len(e.shape) > 1]
    found["zeros"] = sum(int((w == 0).sum()) for w in weights) / sum(w.numel() for w in weights)
    if row.timed:
        image = given.data("train").batch(torch.arange(1))[0]
        latency, faster = times_faster(exported_runner(net, image), published_runner(model, given, image))
        found |= {"latency_ms": round(latency, 4), "times_faster": round(faster, 3)}
        found["macs"] = macs(net) / macs(compressed(model, given, [FOLD])[0])
    return found


def macs(net):
    return count_macs(graph_of(net), net).total("macs").value
