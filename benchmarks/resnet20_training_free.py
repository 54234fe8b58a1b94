"""What is possible without training: the published ResNet-20 with range search, bias correction and mixed precision.

    LILLIPUT_TEST_DATA=folder python benchmarks/resnet20_training_free.py [part of a row's name]

Widths, shared values and zeros as they come, then what makes up for them. 512 calibration images of the training set,
without their labels. Accuracy is that of the 10,000 test images, each row
read once; settings were chosen on training images. "w" rows have float activations, "wa" rows 8-bit activations, run in
integers. Bytes are those of the `.lil` file without the recipe. Writes results/resnet20_training_free.json.
"""

import math
from pathlib import Path
from typing import Any

import torch
from published_resnet20 import make
from resnet20_tools import answers, compressed, keep_rows

from lilliput.core import container
from lilliput.graph.integer import runnable
from lilliput.methods.clustering.weight_clustering import WeightClustering
from lilliput.methods.normalization.batchnorm import FoldBatchNorm, ReestimateBatchNorm
from lilliput.methods.pruning.magnitude import MagnitudePruning
from lilliput.methods.quantization.bias_correction import BiasCorrection
from lilliput.methods.quantization.equalization import CrossLayerEqualization
from lilliput.methods.quantization.mixed_precision import MixedPrecision
from lilliput.methods.quantization.post_training import Quantization

RESULTS = Path(__file__).parent / "results" / "resnet20_training_free.json"
SEARCHED: dict[str, Any] = {"weight_range": "output", "rounding": "output"}


def rows():
    """{name: passes}."""
    found = {}
    for mark, bits in (("w", 0), ("wa", 8)):

        def q(bits=bits, **settings):
            return Quantization(activation_bits=bits, **settings)

        found |= {
            f"8 bits per channel, {mark}": [q()],
            f"6 bits per channel, {mark}": [q(weight_bits=6)],
            f"4 bits per channel, mse, {mark}": [q(weight_bits=4, weight_range="mse")],
            f"3 bits per channel, mse, {mark}": [q(weight_bits=3, weight_range="mse")],
            f"8 bits per tensor, {mark}": [q(weight_per="tensor")],
            f"8 bits per tensor, equalized, {mark}": [CrossLayerEqualization(), q(weight_per="tensor")],
            f"8 bits per tensor, searched, {mark}": [q(weight_per="tensor", **SEARCHED)],
            f"7 bits per channel, {mark}": [q(weight_bits=7)],
            f"7 bits per channel, searched, {mark}": [q(weight_bits=7, **SEARCHED)],
            f"4 bits per channel, min_max, {mark}": [q(weight_bits=4)],
            f"4 bits per channel, min_max, corrected, {mark}": [q(weight_bits=4), BiasCorrection()],
            f"4 bits per channel, ranges searched, {mark}": [q(weight_bits=4, weight_range="output")],
            f"4 bits per channel, searched, {mark}": [q(weight_bits=4, **SEARCHED)],
            f"4 bits per channel, searched, size 0.005, {mark}": [q(weight_bits=4, size_weight=0.005, **SEARCHED)],
            f"4 bits per channel, searched, size 0.01, {mark}": [q(weight_bits=4, size_weight=0.01, **SEARCHED)],
            f"3 bits per channel, searched, {mark}": [q(weight_bits=3, **SEARCHED)],
            f"3 bits per channel, searched, size 0.03, {mark}": [q(weight_bits=3, size_weight=0.03, **SEARCHED)],
            f"mixed, at most 96,000 bytes, {mark}": [MixedPrecision(max_bytes=96_000, activation_bits=bits)],
            f"mixed, at most 82,000 bytes, {mark}": [MixedPrecision(max_bytes=82_000, activation_bits=bits)],
            f"mixed, at most 70,000 bytes, {mark}": [MixedPrecision(max_bytes=70_000, activation_bits=bits)],
        }
    clusters = WeightClustering(n_clusters=32)
    found |= {
        "float, w": [],
        "64 shared values a layer, w": [WeightClustering(n_clusters=64)],
        "16 shared values a layer, w": [WeightClustering(n_clusters=16)],
        "16 shared values a channel, w": [WeightClustering(n_clusters=16, per="channel")],
        "32 shared values a layer, w": [clusters],
        "32 shared values a layer, corrected, w": [clusters, BiasCorrection()],
        "32 shared values a layer, wa": [clusters, Quantization()],
        "32 shared values a layer, corrected, wa": [clusters, Quantization(), BiasCorrection()],
    }
    return {name: [FoldBatchNorm(), *passes] for name, passes in found.items()} | zeros()


def zeros():
    """Magnitude pruning, BatchNorm not folded."""
    found = {}
    for percent, scope in ((50, "layer"), (50, "lamp"), (50, "global"), (70, "lamp")):
        prune = MagnitudePruning(sparsity=percent / 100, scope=scope)
        found[f"{percent}% zero, {scope}"] = [prune]
        if scope == "lamp":
            found[f"{percent}% zero, {scope}, BatchNorm re-estimated"] = [prune, ReestimateBatchNorm()]
    return found


def entropy(net):
    """Order-0 entropy of the stored integers of each layer, in bits a weight."""
    found = {}
    for name, e in net.encodings.items():
        if name.endswith("weight") and e.grid is not None and e.sharing is None:
            share = torch.unique(e.integers(), return_counts=True)[1].double() / math.prod(e.shape)
            found[name] = round(float(-(share * share.log2()).sum()), 3)
    return found


def measure(model, task, passes):
    net, notes, seconds = compressed(model, task, passes)
    right = answers(runnable(net), task)
    bits = entropy(net)
    sizes = {name: math.prod(net.encodings[name].shape) for name in bits}
    return {
        "accuracy": float(right.double().mean()) * 100,
        "lil_bytes": len(container.dumps(net, strip=True)),
        "order0_bytes": round(sum(bits[n] * sizes[n] for n in bits) / 8),
        "compress_cpu_s": round(seconds, 1),
        "entropy_bits_a_weight": bits,
        "widths": {n: int(e.grid.bit_width.max()) for n, e in net.encodings.items() if n in bits and e.grid},
        "notes": notes,
    }


def main():
    torch.set_num_threads(1)
    model, task = make()
    keep_rows(RESULTS, rows(), lambda passes: measure(model, task, passes))


if __name__ == "__main__":
    main()
