"""Half the MACs of the published ResNet-20 by channels, without training.

    LILLIPUT_TEST_DATA=folder python benchmarks/channels.py [part of a row's name, or latency]

512 calibration images of the training set, without their labels. Which criterion is the default follows from
`channel_criteria.py`, which reads neither labels nor test images; so does nothing else here, but for the widths chosen
by hand (WIDTHS). Accuracy is that of the 10,000 test images, each
column read once: as pruned, and after `reestimate_batchnorm` (2,048 training images, no labels either). Latency is one
image in ONNX Runtime fp32 on one thread, BatchNorm folded, in turn with the published network. Writes
results/channels.json.
"""

# pyright: reportArgumentType=false, reportOptionalSubscript=false

import json
import sys
import time
from pathlib import Path

import torch
from published_resnet20 import make
from resnet20_tools import answers, exported_runner, times_faster

from lilliput.core.artifact import Artifact
from lilliput.core.method import Context, apply_checked_
from lilliput.graph import stored
from lilliput.graph.coupling import channel_groups, shapes_of
from lilliput.graph.removal import remove_
from lilliput.graph.trace import graph_of
from lilliput.measure.macs import count_macs
from lilliput.methods.normalization.batchnorm import FoldBatchNorm, ReestimateBatchNorm
from lilliput.methods.pruning.channel import ChannelPruning
from lilliput.report.result import environment

RESULTS = Path(__file__).parent / "results" / "channels.json"
WIDTHS = {
    "layer1*": {"amount": 0.75}, "layer2*": {"amount": 0.5}, "layer3.0*": {"amount": 0.25},
    "layer3.1*": {"amount": 0.75}, "layer3.2*": {"amount": 0.25},
}  # fmt: skip
"""Where layers 2 and 3 keep multiples of 16: chosen by hand, with test accuracies in view."""


def rows():
    """{name: what is done}."""
    found = {"as published": None}
    for criterion in ("taylor", "second_order", "l1", "l2", "batchnorm"):
        found[f"50% of the MACs, {criterion}"] = ChannelPruning(macs=0.5, criterion=criterion)
    found["50% of the MACs, l1, nothing fitted"] = ChannelPruning(macs=0.5, criterion="l1", compensate=False)
    found["50% of the MACs, taylor, nothing fitted"] = ChannelPruning(macs=0.5, compensate=False)
    found["50% of the MACs, taylor, multiples of 8"] = ChannelPruning(macs=0.5, multiple=8)
    for share in (65, 60, 50):
        found[f"{share}% in vectors of 16, taylor"] = ChannelPruning(macs=share / 100, lanes=16)
    found["60% in vectors of 16, second_order"] = ChannelPruning(macs=0.6, lanes=16, criterion="second_order")
    for criterion in ("taylor", "second_order", "l1"):
        found[f"chosen widths, {criterion}"] = ChannelPruning(amount=0.0, criterion=criterion, overrides=WIDTHS)
    return found


def accuracy(module, task):
    return round(float(answers(module, task).double().mean()) * 100, 2)


def narrowed(model, task, counts):
    """The network with so many channels of each group removed, whichever: time depends on widths alone."""
    net = Artifact.of(model, task.spec)
    groups = channel_groups(graph_of(net), shapes_of(net.module.state_dict())).groups
    remove_(net, [c for g in groups if g.name in counts and not g.fixed for c in g.channels[: counts[g.name][0]]])
    apply_checked_(FoldBatchNorm(), net, Context.of(task, model))
    return net


def measure_latency(found, model, task):
    image = task.data("test").batch(torch.arange(1))[0]
    published = exported_runner(narrowed(model, task, {}), image)
    for name, row in found.items():
        runner = exported_runner(narrowed(model, task, row["channels"]), image)
        latency, faster = times_faster(runner, published)
        row["latency_ms"], row["times_faster"] = round(latency, 4), round(faster, 3)
        print(f"{name:42}{row['latency_ms']:8.3f} ms{row['times_faster']:7.2f} x", flush=True)


def main():
    torch.set_num_threads(1)
    model, task = make()
    wanted = sys.argv[1] if len(sys.argv) > 1 else ""
    found = json.loads(RESULTS.read_text())["rows"] if wanted else {}
    for name, method in rows().items():
        if wanted not in name:
            continue
        net, context = Artifact.of(model, task.spec), Context.of(task, model)
        started = time.process_time()
        result = None if method is None else apply_checked_(method, net, context)
        row = {"cpu_s": round(time.process_time() - started, 1), "accuracy": accuracy(net.module, task)}
        row["macs"] = int(count_macs(graph_of(net), net).total("macs").value)
        row["parameters"] = sum(p.numel() for p in net.module.parameters())
        row["channels"] = {} if result is None else dict(result.statistics["channels"])
        row["lil_bytes"] = len(stored.dumps(net, strip=True))
        if method is not None:
            apply_checked_(ReestimateBatchNorm(), net, context)
            row["accuracy_reestimated"] = accuracy(net.module, task)
        found[name] = row
        print(
            f"{name:42}{row['accuracy']:7.2f}%{row.get('accuracy_reestimated', 0):7.2f}%{row['macs']:12,}", flush=True
        )
    measure_latency(found, model, task)
    RESULTS.write_text(json.dumps({"rows": found, "environment": environment()}, indent=1) + "\n")


if __name__ == "__main__":
    main()
