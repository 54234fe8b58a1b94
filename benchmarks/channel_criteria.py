"""Criteria of channel pruning compared blind: no label and no test image is read.

    LILLIPUT_TEST_DATA=folder python benchmarks/channel_criteria.py

The published ResNet-20 and the zoo's network of digits, pruned with the calibration role (512 training images). What is
compared: on how many held-out training images (the validation role, 5,000 at most) the pruned network decides as the
whole one does, and the KL divergence of its outputs. The default criterion is the one with the best mean agreement over
the rows of ResNet-20. Writes results/channel_criteria.json.
"""

import json
import time
from pathlib import Path

import torch
from published_resnet20 import make

from lilliput.core.artifact import Artifact
from lilliput.core.method import Context, apply_checked_
from lilliput.graph.trace import graph_of
from lilliput.measure.macs import count_macs
from lilliput.methods.pruning.channel import ChannelPruning
from lilliput.methods.pruning.channel_scores import CRITERIA
from lilliput.report.result import environment
from lilliput.training.distillation import distillation_loss
from lilliput.zoo.registry import open_model

RESULTS = Path(__file__).parent / "results" / "channel_criteria.json"
SETTINGS = {
    "70% of the MACs": {"macs": 0.7},
    "50% of the MACs": {"macs": 0.5},
    "65% in vectors of 16": {"macs": 0.65, "lanes": 16},
    "60% in vectors of 16": {"macs": 0.6, "lanes": 16},
    "50% in vectors of 16": {"macs": 0.5, "lanes": 16},
}
SMALL = {name: SETTINGS[name] for name in ("70% of the MACs", "50% of the MACs")}
HELD_OUT = 5000


def outputs_of(module, images):
    with torch.inference_mode():
        return torch.cat([module(x) for x in images.split(250)])


def compared(model, task, settings):
    """{setting: {criterion: row}}."""
    data = task.data("validation")
    images = data.batch(torch.arange(min(HELD_OUT, len(data))))[0]
    original = outputs_of(model, images)
    found = {}
    for name, chosen in settings.items():
        for criterion in CRITERIA:
            net = Artifact.of(model, task.spec)
            started = time.process_time()
            method = ChannelPruning(criterion=criterion, **chosen)
            result = apply_checked_(method, net, Context.of(task, model))
            seconds = time.process_time() - started
            outputs = outputs_of(net.module, images)
            row = {
                "agreement": round(100 * float((outputs.argmax(1) == original.argmax(1)).float().mean()), 2),
                "divergence": round(float(distillation_loss(outputs, original, kind=task.kind, temperature=1.0)), 4),
                "macs": int(count_macs(graph_of(net), net).total("macs").value),
                "cpu_s": round(seconds, 1),
                "channels": result.statistics["channels"] if result.statistics else {},
            }
            found.setdefault(name, {})[criterion] = row
            print(
                f"{name:24}{criterion:14}{row['agreement']:7.2f}% agree{row['divergence']:9.4f} KL{row['macs']:12,}",
                flush=True,
            )
    return found


def main():
    torch.set_num_threads(1)
    rows = {"resnet20": compared(*make(), SETTINGS), "digits-cnn": compared(*open_model("digits-cnn"), SMALL)}
    settings = list(rows["resnet20"].values())
    means = {c: round(sum(row[c]["agreement"] for row in settings) / len(settings), 2) for c in CRITERIA}
    print("mean agreement of ResNet-20:", means)
    RESULTS.write_text(json.dumps({"rows": rows, "mean": means, "environment": environment()}, indent=1) + "\n")


if __name__ == "__main__":
    main()
