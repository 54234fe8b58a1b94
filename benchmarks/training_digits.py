"""Passes that train, on the digits: integers in the loop, zeros and channels that go little by little.

    python benchmarks/training_digits.py [part of a row's name]

Accuracy on the 360 validation samples (which choose the epoch, too) of what the file computes. One thread, one seed.
Writes results/training_digits.json.
"""

from pathlib import Path

import torch
from resnet20_tools import compressed, keep_rows
from torch import nn

from lilliput.core import container
from lilliput.core.task import Task
from lilliput.data.digits import read_digits
from lilliput.data.roles import by_role
from lilliput.graph.integer import runnable
from lilliput.graph.trace import graph_of
from lilliput.measure.macs import count_macs
from lilliput.methods.normalization.batchnorm import FoldBatchNorm
from lilliput.methods.pruning.channel import ChannelPruning
from lilliput.methods.pruning.gradual import GradualPruning
from lilliput.methods.pruning.gradual_channels import GradualChannelPruning
from lilliput.methods.pruning.magnitude import MagnitudePruning
from lilliput.methods.quantization.aware_training import QuantizationAwareTraining
from lilliput.methods.quantization.post_training import Quantization
from lilliput.methods.tuning.fine_tune import FineTune
from lilliput.zoo.registry import open_model

RESULTS = Path(__file__).parent / "results" / "training_digits.json"
FOLD = FoldBatchNorm()


def perceptron():
    """64-24-16-10, trained in float."""
    roles = by_role(read_digits())
    train, validation = ((roles[role][0].float() / 16, roles[role][1]) for role in ("train", "validation"))
    task = Task.classification(train, validation)
    torch.manual_seed(0)
    layers = (nn.Linear(64, 24), nn.ReLU(), nn.Linear(24, 16), nn.ReLU(), nn.Linear(16, 10))
    training = FineTune(epochs=30, learning_rate=1e-2, batch_size=64, distillation=0.0)
    return compressed(nn.Sequential(nn.Flatten(), *layers), task, [training])[0].module, task


def integers(weights, activations, epochs):
    """{how: passes}."""
    rounding = Quantization(weight_bits=weights, activation_bits=activations, weight_range="mse")
    found = {"rounded": [FOLD, rounding]}
    for how, rate in (("trained, scales stay", 0.0), ("trained, scales learned", 1.0)):
        training = QuantizationAwareTraining(epochs=epochs, batch_size=64, learning_rate=5e-3, scale_rate=rate)
        found[how] = [FOLD, rounding, training]
    return found


def rows():
    """{name: (network, passes)}."""
    found = {"perceptron, float": ("perceptron", []), "digits-cnn, float": ("digits-cnn", [])}
    for name, bits, epochs in (
        ("perceptron", (4, 4), 15),
        ("perceptron", (2, 4), 15),
        ("perceptron", (2, 2), 15),
        ("digits-cnn", (2, 2), 12),
    ):
        for how, passes in integers(*bits, epochs).items():
            found[f"{name}, {bits[0]}-bit weights, {bits[1]}-bit activations, {how}"] = (name, passes)
    found["digits-cnn, 90% zeros at once, lamp"] = ("digits-cnn", [FOLD, MagnitudePruning(sparsity=0.9)])
    for scope in ("lamp", "uniform"):
        growing = GradualPruning(sparsity=0.9, scope=scope, epochs=12, batch_size=64, learning_rate=5e-3)
        found[f"digits-cnn, 90% zeros in 12 epochs, {scope}"] = ("digits-cnn", [FOLD, growing])
    training = {"batch_size": 64, "learning_rate": 5e-3}
    for share in (0.04, 0.08):
        rounds = GradualChannelPruning(macs=share, rounds=6, round_epochs=2, epochs=10, **training)
        once = (ChannelPruning(macs=share), FineTune(epochs=20, **training))  # as many epochs
        found[f"digits-cnn, {share:.0%} of the MACs in six rounds"] = ("digits-cnn", [rounds, FOLD])
        found[f"digits-cnn, {share:.0%} of the MACs at once"] = ("digits-cnn", [*once, FOLD])
    return found


def measure(model, task, passes):
    net, notes, seconds = compressed(model, task, passes)
    run = runnable(net)
    with torch.inference_mode():
        right = torch.cat([run(x).argmax(1) == y for x, y in task.data("validation").batches(250)])
    return {
        "accuracy": 100 * float(right.double().mean()),
        "macs": int(count_macs(graph_of(net), net).total("macs").value),
        "lil_bytes": len(container.dumps(net, strip=True)),
        "cpu_s": round(seconds, 1),
        "notes": notes,
    }


def main():
    torch.set_num_threads(1)
    networks = {"perceptron": perceptron(), "digits-cnn": open_model("digits-cnn")}
    keep_rows(RESULTS, rows(), lambda row: measure(*networks[row[0]], row[1]))


if __name__ == "__main__":
    main()
