"""Rate-distortion rounding and second-order pruning of the published ResNet-20: bytes, accuracy, seconds.

    LILLIPUT_TEST_DATA=folder python benchmarks/rate_distortion.py [part of a row's name]

No training and no labels: 1,024 training images for rounding, 256 for pruning, one seed. Accuracy is that of the 10,000
test images, each row read once; prices were chosen by the size of the file, or by the agreement with the float network
on 2,048 other training images. Bytes are those of the `.lil` file without recipe and graph. Writes
results/rate_distortion.json.
"""

from pathlib import Path

import torch
from published_resnet20 import make
from resnet20_tools import answers, compressed, keep_rows

from lilliput.core import container
from lilliput.graph.integer import runnable
from lilliput.methods.normalization.batchnorm import FoldBatchNorm
from lilliput.methods.quantization.post_training import Quantization
from lilliput.methods.second_order.pruning import SecondOrderPruning
from lilliput.methods.second_order.rate_distortion import RateDistortion

RESULTS = Path(__file__).parent / "results" / "rate_distortion.json"
FOLD = FoldBatchNorm()
LEARNED = 300
"""Steps of learned rounding for each block."""


def rows():
    """{name: passes}."""
    found = {
        f"at most {size:,} bytes": [FOLD, RateDistortion(max_bytes=size)]
        for size in (70_000, 60_000, 58_000, 53_000, 50_000, 44_000, 35_000)
    }
    found |= {f"agreement of {share}": [FOLD, RateDistortion(min_agreement=share)] for share in (0.995, 0.99, 0.98)}
    found |= {f"{bits} bits, compensated": [FOLD, RateDistortion(weight_bits=bits)] for bits in (4, 3, 2)}
    found |= {
        f"{bits} bits, learned": [FOLD, RateDistortion(weight_bits=bits, learned_steps=LEARNED)] for bits in (3, 2)
    }
    for scope in ("layer", "global"):
        found |= {
            f"{round(100 * s)}% zero, {scope}": [FOLD, SecondOrderPruning(sparsity=s, scope=scope)] for s in (0.5, 0.7)
        }
    found["at most 53,000 bytes, 8-bit activations"] = [FOLD, RateDistortion(max_bytes=53_000), Quantization()]
    return found


def measure(model, task, passes):
    net, notes, seconds = compressed(model, task, passes)
    right = answers(runnable(net), task)
    return {
        "accuracy": float(right.double().mean()) * 100,
        "accuracy_first_4000": float(right[:4000].double().mean()) * 100,
        "lil_bytes": len(container.dumps(net, strip=True)),
        "compress_cpu_s": round(seconds, 1),
        "notes": notes,
    }


def main():
    torch.set_num_threads(1)
    model, task = make()
    keep_rows(RESULTS, rows(), lambda passes: measure(model, task, passes))


if __name__ == "__main__":
    main()
