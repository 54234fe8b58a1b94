"""The published ResNet-20 at half its MACs by channels, with training and without.

    LILLIPUT_TEST_DATA=folder python benchmarks/resnet20_trained.py [part of a row's name]

45,000 training images with random flips and crops, the float network as the teacher; the last 5,000 training images
choose the epoch, the 10,000 test images are read once for each row. One thread. Writes results/resnet20_trained.json.
"""

from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from published_resnet20 import make
from resnet20_tools import answers, compressed, exported_runner, keep_rows, published_runner, times_faster

import lilliput as ll
from lilliput.core import container
from lilliput.data.augment import horizontal_flip, random_crop
from lilliput.graph.integer import runnable
from lilliput.graph.trace import graph_of
from lilliput.measure.macs import count_macs
from lilliput.zoo.tasks import CIFAR_MEAN, CIFAR_STD

RESULTS = Path(__file__).parent / "results" / "resnet20_trained.json"
FOLD = ll.FoldBatchNorm()
TUNE = partial(ll.FineTune, learning_rate=2e-3, schedule="one_cycle", optimizer="adamw")


BLACK = (-torch.tensor(CIFAR_MEAN) / torch.tensor(CIFAR_STD)).reshape(1, 3, 1, 1)


def augment(images, generator):
    """Flips, and crops that let black in at the edges."""
    images = horizontal_flip(images, generator=generator)
    return random_crop(images - BLACK, 4, generator=generator) + BLACK


def rows():
    """{name: passes}."""
    return {
        "65% of the MACs in vectors of 16, 6 epochs": [ll.ChannelPruning(macs=0.65, lanes=16), TUNE(epochs=6), FOLD],
        "65% of the MACs in vectors of 16, untrained": [ll.ChannelPruning(macs=0.65, lanes=16), FOLD],
    }


def measure(model, task, image, passes):
    net, notes, seconds = compressed(model, task, passes)
    right = answers(runnable(net), task)
    latency, faster = times_faster(exported_runner(net, image), published_runner(model, task, image))
    return {
        "accuracy": 100 * float(right.double().mean()),
        "macs": int(count_macs(graph_of(net), net).total("macs").value),
        "lil_bytes": len(container.dumps(net, strip=True)),
        "cpu_s": round(seconds, 1),
        "latency_ms": latency,
        "times_faster": faster,
        "notes": notes,
    }


def main():
    torch.set_num_threads(1)
    model, task = make()
    task = replace(task, augment=augment)
    image = task.data("test").batch(torch.arange(1))[0]
    keep_rows(RESULTS, rows(), lambda passes: measure(model, task, image, passes))


if __name__ == "__main__":
    main()
