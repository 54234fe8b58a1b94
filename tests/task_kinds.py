"""Small trained networks and tasks of every kind, compressed hard enough that answers change."""

import torch
from torch import nn
from torch.nn import functional as F

import lilliput as ll
from lilliput.testing import tiny_model, tiny_task

KINDS = ("classification", "regression", "anomaly", "segmentation")
LABELS = ("<script>alert(1)</script>", 'bird & "wing"', "ship")


def model_and_task(kind):
    """The same numbers each time."""
    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return {
            "classification": _classification,
            "regression": _regression,
            "anomaly": _anomaly,
            "segmentation": _segmentation,
        }[kind](generator)


def compressed(kind, folder=None, **more):
    """A result; of four steps the third is refused."""
    model, task = model_and_task(kind)
    recipe = {
        "seed": 3,
        "passes": [
            "fold_batchnorm",
            {"weight_clustering": {"n_clusters": 5}},
            {"magnitude_pruning": {"sparsity": 0.97}, "guard": {"max_drop": "1%"}},
            {"quantization": {"weight_bits": 4}},
        ],
    }
    return ll.compress(model, task, recipe=recipe, folder=folder, **more)


def fitted(model, x, y, loss, steps):
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(steps):
        optimizer.zero_grad()
        loss(model(x), y).backward()
        optimizer.step()
    return model.eval()


def _classification(generator):
    task = tiny_task(120)
    x, y = task.train.inputs, task.train.targets
    noise = 0.8 * torch.randn(x.shape, generator=generator)
    model = fitted(tiny_model("residual").train(), x, y, F.cross_entropy, 60)
    roles = {"train": (x, y), "validation": (x[:50] + noise[:50], y[:50]), "test": (x[30:] + noise[30:], y[30:])}
    return model, ll.Task.classification(**roles, labels=LABELS)


def _regression(generator):
    x = torch.rand(300, 3, generator=generator) * 4 - 2
    y = x[:, :1] ** 2 + x[:, 1:2]
    model = fitted(nn.Sequential(nn.Linear(3, 24), nn.ReLU(), nn.Linear(24, 1)), x[:200], y[:200], F.mse_loss, 250)
    return model, ll.Task.regression(
        train=(x[:200], y[:200]), validation=(x[200:240], y[200:240]), test=(x[240:], y[240:]), unit="kg"
    )


def _anomaly(generator):
    basis = torch.randn(4, 16, generator=generator)
    normal = torch.randn(300, 4, generator=generator) @ basis / 2
    odd = torch.randn(40, 4, generator=generator) @ basis / 2 + 0.8 * torch.randn(40, 16, generator=generator)
    x, y = torch.cat([normal, odd]), torch.cat([torch.zeros(300), torch.ones(40)])
    model = fitted(
        nn.Sequential(nn.Linear(16, 8), nn.Tanh(), nn.Linear(8, 16)), normal[:200], normal[:200], F.mse_loss, 250
    )
    rows = {"validation": [*range(200, 240), *range(300, 310)], "test": [*range(240, 300), *range(310, 340)]}
    validation, test = ((x[i], y[i]) for i in rows.values())
    return model, ll.Task.anomaly(train=(x[:200], y[:200]), validation=validation, test=test)


def _segmentation(generator):
    x = torch.rand(60, 3, 8, 8, generator=generator) * 0.3
    y = torch.zeros(60, 8, 8, dtype=torch.long)
    for i in range(60):
        a, b = torch.randint(0, 5, (2,), generator=generator).tolist()
        x[i, i % 2, a : a + 4, b : b + 4] += 0.5
        y[i, a : a + 4, b : b + 4] = i % 2 + 1
    model = fitted(
        nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 3, 3, padding=1)),
        x[:40], y[:40], F.cross_entropy, 100,
    )  # fmt: skip
    return model, ll.Task.segmentation(
        train=(x[:40], y[:40]), validation=(x[40:50], y[40:50]), test=(x[50:], y[50:]), n_classes=3
    )
