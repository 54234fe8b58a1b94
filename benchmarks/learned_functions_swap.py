"""What a trained network loses at the moment when its activations are replaced, before any training.

    LILLIPUT_TEST_DATA=folder python benchmarks/learned_functions_swap.py

Fashion-MNIST, two networks: 784-16-10 with BatchNorm and ReLU; two convolutions with GELU called in code. Trained
on the first 55,000 training images for 4 epochs (AdamW, 1e-3, batches of 128, seeds 0 and 1). Rows: kinds and points,
with `limit: observed`; and PSA drawn as published. Accuracy on the 10,000 test images, before and after. Writes
results/learned_functions_swap.json and .txt.
"""

import json
from pathlib import Path

import torch
from published_resnet20 import data_folder
from torch import nn
from torch.nn import functional as F

import lilliput as ll
from lilliput.core.artifact import Artifact
from lilliput.core.method import Context, apply_checked_
from lilliput.data.mnist import read_mnist
from lilliput.report.result import environment
from lilliput.training.fit import fit
from lilliput.training.settings import FitSettings

RESULTS = Path(__file__).parent / "results"
SEEDS = (0, 1)
ROWS = {
    **{f"{kind}, {points} points": {"kind": kind, "points": points}
       for kind in ("table", "cubic", "lerp_psa") for points in (9, 16, 17, 33, 65)},
    "psa": {"kind": "psa"},
    "table for the layer, 17 points": {"kind": "table", "points": 17, "share": "layer"},
    "lerp_psa, 33 points, drawn as published": {"kind": "lerp_psa", "init": "paper"},
}  # fmt: skip


class Mlp(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.norm, self.act, self.b = nn.Linear(784, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 10)

    def forward(self, x):
        return self.b(self.act(self.norm(self.a(x.flatten(1)))))


class Cnn(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(1, 4, 3, 2, 1), nn.Conv2d(4, 8, 3, 2, 1), nn.Linear(392, 10)

    def forward(self, x):
        return self.c(F.gelu(self.b(F.gelu(self.a(x)))).flatten(1))


def data() -> ll.Task:
    raw = read_mnist(data_folder() / "FashionMNIST" / "raw", "fashion-mnist")
    (x, y), (tx, ty) = raw.train, raw.test
    x, tx = ((t.float().reshape(-1, 1, 28, 28) / 255 - 0.286) / 0.353 for t in (x, tx))
    return ll.Task.classification(train=(x[:55000], y[:55000]), validation=(x[55000:], y[55000:]), test=(tx, ty))


def accuracy(module: nn.Module, task: ll.Task) -> float:
    right = 0
    with torch.no_grad():
        for x, y in task.data("test").batches(1000):
            right += int((module(x).argmax(1) == y).sum())
    return 100 * right / len(task.data("test"))


def main() -> None:
    torch.set_num_threads(1)
    task, found, lines = data(), {}, []
    for name, make in (("mlp", Mlp), ("cnn", Cnn)):
        for seed in SEEDS:
            torch.manual_seed(seed)
            net = Artifact.of(make(), task.spec)
            settings = FitSettings(epochs=4, batch_size=128, learning_rate=1e-3)
            fit(net, task, settings, generator=torch.Generator().manual_seed(seed))
            before = accuracy(net.module, task)
            found[f"{name}, seed {seed}"] = rows = {"before": before}
            for row, how in ROWS.items():
                changed = net.copy()
                apply_checked_(ll.ReplaceActivations(**how), changed, Context.of(task, net.module, seed=seed))
                rows[row] = accuracy(changed.module, task)
            lines.append(f"{name}, seed {seed}: {before:.2f}% before")
            lines += [f"  {row:42s} {rows[row]:6.2f}% {rows[row] - before:+7.2f} points" for row in ROWS]
            print("\n".join(lines[-len(ROWS) - 1 :]), flush=True)
    (RESULTS / "learned_functions_swap.txt").write_text("\n".join(lines) + "\n")
    data_ = {"environment": environment(), "accuracy": found}
    (RESULTS / "learned_functions_swap.json").write_text(json.dumps(data_, indent=1) + "\n")


if __name__ == "__main__":
    main()
