"""The published ResNet-20 compressed with training in the loop: half the MACs by channels, and integers at a size.

    LILLIPUT_TEST_DATA=folder python benchmarks/resnet20_trained.py [part of a row's name]

45,000 training images with random flips and crops, the float network as the teacher; the last 5,000 training images
choose the epoch (of the rows at a size it is the last), the 10,000 test images are read once for each row. Bytes are
those of the `.lil` file without recipe and graph. One thread; matrices are multiplied in bfloat16 where it says so.
Writes results/resnet20_trained.json.
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


LONG = ll.FineTune(
    epochs=24,
    optimizer="sgd",
    learning_rate=0.05,
    weight_decay=5e-4,
    schedule="one_cycle",
    precision="bfloat16",
    keep="last",
)
SLOW = partial(
    ll.FineTune,
    step_rate=8e-3,
    learning_rate=2e-4,
    optimizer="adam",
    temperature=2.0,
    precision="bfloat16",
    keep="last",
)


GENTLE = partial(
    ll.SelfCompression,
    epochs=12,
    rounds=1,
    settle=0.92,
    gamma=2.0,
    bit_rate=2e-4,
    step_rate=8e-3,
    exponents="short",
    learning_rate=2e-4,
    optimizer="adam",
    temperature=2.0,
    precision="bfloat16",
    keep="last",
)
TAUGHT = partial(GENTLE, distillation=0.95, temperature=4.0)
"""Nearly all of the loss by the float network, softly, in place of half of it."""


def retrained(epochs):
    """The float network trained again on its own answers, half of the way to what this gives; BatchNorms folded."""
    return [replace(LONG, epochs=epochs, blend=0.5), ll.ReestimateBatchNorm(), FOLD]


def rows():
    """{name: passes}."""
    return {
        "at most 48 kB, 25 epochs in bfloat16": [
            FOLD,
            ll.RateDistortion(max_bytes=53_000),
            SLOW(max_bytes=48_000, epochs=25),
        ],
        "at most 60 kB, 25 epochs in bfloat16": [
            FOLD,
            ll.RateDistortion(max_bytes=60_000),
            SLOW(max_bytes=60_000, epochs=25),
        ],
        "at most 60 kB, 13 epochs of SGD blended, 12 in integers": [
            *retrained(13),
            ll.RateDistortion(max_bytes=61_000),
            SLOW(max_bytes=60_000, epochs=12),
        ],
        "at most 60 kB, 13 epochs of SGD, 12 in integers": [
            replace(LONG, epochs=13),
            FOLD,
            ll.RateDistortion(max_bytes=61_000),
            SLOW(max_bytes=60_000, epochs=12),
        ],
        "at most 50 kB, 13 epochs of SGD blended, 12 in integers": [
            *retrained(13),
            ll.RateDistortion(max_bytes=53_000),
            SLOW(max_bytes=50_000, epochs=12),
        ],
        "at most 40 kB, 13 epochs of SGD blended, 12 in integers": [
            *retrained(13),
            ll.RateDistortion(max_bytes=44_000),
            SLOW(max_bytes=40_000, epochs=12),
        ],
        "self-compression, at most 60 kB, 13 epochs of SGD blended": [
            *retrained(13),
            ll.RateDistortion(max_bytes=61_000),
            GENTLE(max_bytes=60_000),
        ],
        "self-compression, at most 60 kB, 13 epochs of SGD blended, first price 1": [
            *retrained(13),
            ll.RateDistortion(max_bytes=61_000),
            GENTLE(max_bytes=60_000, gamma=1.0),
        ],
        "self-compression, at most 48 kB, 13 epochs of SGD blended": [
            *retrained(13),
            ll.RateDistortion(max_bytes=49_500),
            GENTLE(max_bytes=48_000),
        ],
        "self-compression, at most 50 kB, 13 epochs of SGD blended": [
            *retrained(13),
            ll.RateDistortion(max_bytes=51_500),
            GENTLE(max_bytes=50_000),
        ],
        "self-compression, at most 60 kB, 13 epochs of SGD blended, taught": [
            *retrained(13),
            ll.RateDistortion(max_bytes=61_000),
            TAUGHT(max_bytes=60_000),
        ],
        "self-compression, at most 50 kB, 13 epochs of SGD blended, taught": [
            *retrained(13),
            ll.RateDistortion(max_bytes=51_500),
            TAUGHT(max_bytes=50_000),
        ],
        "self-compression, at most 48 kB, 13 epochs of SGD blended, taught": [
            *retrained(13),
            ll.RateDistortion(max_bytes=49_500),
            TAUGHT(max_bytes=48_000),
        ],
        "self-compression, at most 40 kB, 13 epochs of SGD blended, taught": [
            *retrained(13),
            ll.RateDistortion(max_bytes=42_500),
            TAUGHT(max_bytes=40_000),
        ],
        "self-compression, at most 50 kB, 13 epochs of SGD blended, taught for 20 epochs": [
            *retrained(13),
            ll.RateDistortion(max_bytes=51_500),
            TAUGHT(max_bytes=50_000, epochs=20),
        ],
        "self-compression, at most 40 kB, 13 epochs of SGD blended": [
            *retrained(13),
            ll.RateDistortion(max_bytes=42_500),
            GENTLE(max_bytes=40_000),
        ],
        "65% of the MACs in vectors of 16, 24 epochs in bfloat16": [ll.ChannelPruning(macs=0.65, lanes=16), LONG, FOLD],
        "65% of the MACs in vectors of 16, 6 epochs": [ll.ChannelPruning(macs=0.65, lanes=16), TUNE(epochs=6), FOLD],
        "65% of the MACs in vectors of 16, untrained": [ll.ChannelPruning(macs=0.65, lanes=16), FOLD],
    }


def measure(model, task, image, passes):
    net, notes, seconds = compressed(model, task, passes)
    found = {
        "accuracy": 100 * float(answers(runnable(net), task).double().mean()),
        "macs": int(count_macs(graph_of(net), net).total("macs").value),
        "lil_bytes": len(container.dumps(net, strip=True)),
        "cpu_s": round(seconds, 1),
        "notes": notes,
    }
    if any(isinstance(m, ll.ChannelPruning) for m in passes):
        latency, faster = times_faster(exported_runner(net, image), published_runner(model, task, image))
        found |= {"latency_ms": latency, "times_faster": faster}
    return found


def main():
    torch.set_num_threads(1)
    model, task = make()
    task = replace(task, augment=augment)
    image = task.data("test").batch(torch.arange(1))[0]
    keep_rows(RESULTS, rows(), lambda passes: measure(model, task, image, passes))


if __name__ == "__main__":
    main()
