"""digits-cnn: what scales that are powers of two cost, rounded and trained.

    python benchmarks/power_of_two.py

The shipped network, BatchNorm folded, activations of 8 bits, weights of 8, 6 and 4: `quantization` (ranges of least
squared error), and `quantization_aware_training` of 10 epochs, each with multipliers and with right shifts. Accuracy on
the 360 test images, and the root mean square of what the outputs differ by from those of the float network, as a share
of the spread of these. `multiplies` counts operations of the program whose rescaling is no right shift.
"""

import json
from pathlib import Path

import torch

from lilliput.core.artifact import Artifact
from lilliput.core.method import Context, apply_checked_
from lilliput.export.hls.header import multiplying
from lilliput.graph.integer import runnable
from lilliput.graph.lower import lower
from lilliput.methods.normalization.batchnorm import FoldBatchNorm
from lilliput.methods.quantization.aware_training import QuantizationAwareTraining
from lilliput.methods.quantization.post_training import Quantization
from lilliput.report.result import environment
from lilliput.zoo.registry import open_model

RESULTS = Path(__file__).parent / "results" / "power_of_two.json"
KINDS = ("multiplier", "power_of_two")


def outputs(module, task):
    with torch.inference_mode():
        found = [(module(x), y) for x, y in task.data("test").batches(360)]
    return torch.cat([out for out, _ in found]), torch.cat([y for _, y in found])


def measured(module, task, wanted):
    found, labels = outputs(module, task)
    error = (found - wanted).square().mean().sqrt() / wanted.std()
    return {"accuracy": 100 * float((found.argmax(1) == labels).double().mean()), "error": float(error)}


def main():
    torch.set_num_threads(1)
    model, task = open_model("digits-cnn")
    wanted = outputs(model.eval(), task)[0]
    rows = {"float": measured(model, task, wanted)}
    for bits in (8, 6, 4):
        for kind in KINDS:
            methods = {
                "rounded": Quantization(weight_bits=bits, weight_range="mse", requantization=kind),
                "trained": QuantizationAwareTraining(weight_bits=bits, epochs=10, requantization=kind),
            }
            for name, method in methods.items():
                net = Artifact.of(model, task.spec)
                for each in (FoldBatchNorm(), method):
                    apply_checked_(each, net, Context.of(task, model, seed=0))
                row = measured(runnable(net), task, wanted) | {"multiplies": len(multiplying(lower(net)))}
                rows[f"{bits} bits, {kind}, {name}"] = row
                print(f"{bits} bits, {kind}, {name}: {row}")
    RESULTS.write_text(json.dumps({"rows": rows, "environment": environment()}, indent=1) + "\n")


if __name__ == "__main__":
    main()
