"""Self-compression of its reference's MNIST network, from scratch to the file: sizes, seeds, MNIST and Fashion-MNIST.

    LILLIPUT_TEST_DATA=folder python benchmarks/self_compression.py [part of a row's name]

Every row trains a fresh network (BatchNorm, then folded), lets channels learn their bits, and tunes the integers; the
last 5,000 training images choose, the 10,000 test images are read once, by the network that `lilliput.load` makes of
the written file. Bytes are those of that whole file, with its graph. One thread. Writes results/self_compression.json.
"""

import json
import sys
import tempfile
import time
from pathlib import Path

import torch
from published_resnet20 import data_folder

import lilliput as ll
from lilliput.core.artifact import Artifact
from lilliput.core.method import Context, apply_checked_
from lilliput.graph import stored
from lilliput.report.result import environment
from lilliput.training.fit import fit
from lilliput.training.settings import FitSettings
from lilliput.zoo import tasks
from lilliput.zoo.registry import entry

RESULTS = Path(__file__).parent / "results" / "self_compression.json"
GRAPH = 100
"""Bytes that the graph and what goes with it may take, beside the limit that the method holds."""


def rows():
    """{name: (data, seed, steps in float, settings)}."""
    short = {"steps": 400, "settle": 0.4}
    found = {
        "MNIST, 600 steps in all, 12 kB": ("mnist", 0, 200, {**short, "max_bytes": 12_000}),
        "MNIST, 600 steps in all, 8 kB": ("mnist", 0, 200, {**short, "settle": 0.5, "max_bytes": 8_000}),
    }
    longer = {"settle": 0.4, "rounds": 12}
    for seed in range(3):
        found[f"MNIST, 10 kB, seed {seed}"] = ("mnist", seed, 600, {**longer, "steps": 1200, "max_bytes": 10_000})
        found[f"MNIST, 6 kB, seed {seed}"] = ("mnist", seed, 600, {**longer, "steps": 1200, "max_bytes": 6_000})
    for seed in range(3):
        for name, more in (
            ("no safety set", {}),
            ("200 chosen samples", {"safety": 200}),
            ("200 random samples", {"safety": 200, "safety_methods": ("random",)}),
        ):
            settings = {**short, "rounds": 12, "max_bytes": 5_000, **more}
            found[f"MNIST, 600 steps, 5 kB, {name}, seed {seed}"] = ("mnist", seed, 200, settings)
    for size in (4, 5, 6, 10, 20, 40):
        name = f"Fashion-MNIST, {size} kB"
        found[name] = ("fashion-mnist", 0, 600, {**longer, "steps": 1200, "max_bytes": 1000 * size})
    return found


def measure(data, seed, float_steps, settings):
    started = time.process_time()
    task = tasks.image_classification(data)(data_root=data_folder())
    torch.manual_seed(seed)
    net = Artifact.of(entry("mnist-cnn").model(), task.spec)
    context = Context.of(task, net.module, seed=seed)
    first = FitSettings(
        epochs=1, epoch_steps=float_steps, learning_rate=2e-3, schedule="one_cycle", optimizer="adamw", keep="last"
    )
    fit(net, task, first, generator=context.generator)
    before = right(net.module, task)
    apply_checked_(ll.FoldBatchNorm(), net, context)
    context = Context.of(task, net.module, seed=seed)
    usual = {"batch_size": 128, "learning_rate": 1e-3, "distillation": 0.0}
    method = ll.SelfCompression(**{**usual, **settings, "max_bytes": settings["max_bytes"] - GRAPH})
    result = apply_checked_(method, net, context)
    cpu = time.process_time() - started
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "net.lil"
        size = stored.save(net, path)
        loaded = ll.load(path)
        accuracy, recalls = right(loaded, task), recalls_of(loaded, task)
    return {
        "accuracy": accuracy,
        "recalls": recalls,
        "lil_bytes": size,
        "float_accuracy": before,
        "cpu_s": round(cpu, 1),
        "channels": [len(net.parameter(n)) for n, p in net.module.named_parameters() if p.dim() > 1],
        "notes": list(result.notes),
        "events": (result.statistics or {}).get("events"),
        "rounds": (result.statistics or {}).get("rounds"),
    }


def right(module, task):
    """Percent of the test images."""
    data = task.data("test")
    with torch.inference_mode():
        found = sum(int((module(x).argmax(1) == y).sum()) for x, y in data.batches(500))
    return 100 * found / len(data)


def recalls_of(module, task):
    """Percent of the test images of each class."""
    data = task.data("test")
    with torch.inference_mode():
        found, wanted = zip(*((module(x).argmax(1) == y, y) for x, y in data.batches(500)), strict=True)
    ok, labels = torch.cat(found), torch.cat(wanted)
    return [round(100 * float(ok[labels == c].double().mean()), 2) for c in range(10)]


def main():
    torch.set_num_threads(1)
    wanted = sys.argv[1] if len(sys.argv) > 1 else ""
    for name, row in rows().items():
        if wanted not in name:
            continue
        found = measure(*row)
        size = f"{found['accuracy']:7.2f}%{found['lil_bytes']:8,} B{found['cpu_s']:8.1f} s"
        print(f"{name:52}{size}, worst class {min(found['recalls']):.2f}%", flush=True)
        kept = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {"rows": {}}
        kept["rows"][name] = found
        kept["environment"] = environment()
        RESULTS.write_text(json.dumps(kept, indent=1) + "\n")


if __name__ == "__main__":
    main()
