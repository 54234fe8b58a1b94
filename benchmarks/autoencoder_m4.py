"""MLPerf Tiny's autoencoder on a Cortex-M4 with 256 KiB of flash and 64 KiB of RAM: in 8 bits it does not fit there.

    LILLIPUT_TEST_DATA=folder python benchmarks/autoencoder_m4.py

The published shape (640-128-8-128-640) on one-class data that can be had everywhere: ankle boots of Fashion-MNIST,
resized to 20 x 32, are normal, all other clothes are not. Training: 5,000 normal images. Validation: 1,000 normal and
1,000 other training images. Test: the 10,000 test images, read once for each network. Each network is exported to C,
compiled, and its golden vectors run on an emulated Cortex-M4: all must be equal, or it stops. Flash is tables and
code of the compiled net.c, RAM its arena. Needs arm-none-eabi-gcc and qemu-system-arm. Writes
results/autoencoder_m4.json.
"""

import json
import sys
import tempfile
import time
from pathlib import Path

import torch
from cortex_m4 import TOOLS, compiled
from published_resnet20 import data_folder
from torch.nn import functional as F

import lilliput as ll
from lilliput.core.artifact import Artifact
from lilliput.core.method import Context, apply_checked_
from lilliput.core.task import Task
from lilliput.data.mnist import read_mnist
from lilliput.export.c.tools import found as tool
from lilliput.graph.integer import runnable
from lilliput.nn.models.mlperf_tiny import DenseAutoencoder
from lilliput.report.result import environment
from lilliput.training.fit import fit
from lilliput.training.settings import FitSettings

RESULTS = Path(__file__).parent / "results" / "autoencoder_m4.json"
NORMAL, FLASH, RAM = 9, 256 * 1024, 64 * 1024
INT8 = ll.Quantization(signed=True)
ROWS = {
    "8 bits": [ll.FoldBatchNorm(), INT8],
    "4 bits, compensated": [ll.FoldBatchNorm(), ll.RateDistortion(weight_bits=4), INT8],
    "90% of the MACs, 4 bits": [
        ll.ChannelPruning(macs=0.9),
        ll.FoldBatchNorm(),
        ll.RateDistortion(weight_bits=4),
        INT8,
    ],
}


def features(images):
    """[n, 640] in 0..1."""
    return F.interpolate(images.float() / 255, size=(20, 32), mode="bilinear").flatten(1)


def data():
    raw = read_mnist(data_folder() / "FashionMNIST" / "raw", "fashion-mnist")
    (x, y), (tx, ty) = raw.train, raw.test
    normal, other = torch.nonzero(y == NORMAL)[:, 0], torch.nonzero(y != NORMAL)[:, 0]
    train, held = normal[:5000], torch.cat([normal[5000:6000], other[-1000:]])
    return Task.anomaly(
        train=(features(x[train]), torch.zeros(len(train))),
        validation=(features(x[held]), (y[held] != NORMAL).float()),
        test=(features(tx), (ty != NORMAL).float()),
    )


def trained(task):
    torch.manual_seed(0)
    net = Artifact.of(DenseAutoencoder(), task.spec)
    settings = FitSettings(epochs=30, batch_size=128, learning_rate=1e-3)
    result = fit(net, task, settings, generator=torch.Generator().manual_seed(0))
    print(f"trained: validation AUC {result.best_score:.2f}", flush=True)
    return net.module.eval()


def main():
    if missing := [name for name in TOOLS if not tool(name)]:
        sys.exit(f"not installed: {', '.join(missing)}")
    torch.set_num_threads(1)
    task = data()
    model = trained(task)
    rows = {}
    for name, passes in {"float": [], **ROWS}.items():
        started = time.process_time()
        net, context = Artifact.of(model, task.spec), Context.of(task, model)
        for method in passes:
            apply_checked_(method, net, context)
        seconds = time.process_time() - started
        row = rows[name] = {"AUC": task.score.value(context.evaluator(runnable(net), "test").rows), "cpu_s": seconds}
        if passes:
            with tempfile.TemporaryDirectory() as folder:
                found = compiled(net, Path(folder))
            row |= {"flash": found["tables"] + found["code"], "RAM": found["ram"], "stack": found["stack"]}
            row |= {"vectors": found["vectors"], "instructions": found["instructions"]}
            row["fits"] = row["flash"] <= FLASH and row["RAM"] + row["stack"] <= RAM
        print(f"{name:28}{row}", flush=True)
    RESULTS.write_text(json.dumps({"rows": rows, "environment": environment()}, indent=1) + "\n")


if __name__ == "__main__":
    main()
