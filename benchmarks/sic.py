"""SIC on the published MNIST networks, on Fashion-MNIST and on ResNet-20: decisions, CPU seconds, bytes.

    LILLIPUT_TEST_DATA=folder python benchmarks/sic.py [part of a row's name]

One thread, CPU seconds of the method alone (the network has been traced, and run once on the samples: `reference_s`).
The acceptance set is what the network gets right of the training images in file order. Rows that are not SIC's own:

- "small, 5,000, published": the published algorithm in the same process: jenkspy for each k, a full forward of all
  samples for each candidate; it must take the same decisions.
- "resnet20, 500, plainly": the same rule in the first seven layers, each candidate by forwards of the whole network
  that end at the first lost sample; it must take the same decisions. `published_estimated_s`: ours needs so many
  candidates in all layers, times a forward of all samples.
- "fashion ...": LeNet-5 (tanh) trained here, 8 epochs.
- "chain ...": SIC, centroids of 8 bits, of 6 bits, then 85% of the weights pruned: bytes and accuracy of each,
  and the last one's C on an emulated Cortex-M4, if the tools are there.

Writes results/sic.json and .txt.
"""

import copy
import json
import os
import re
import subprocess
import sys
import time
from functools import cache
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory

os.environ.update(dict.fromkeys(("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OMP_NUM_THREADS"), "1"))  # before numpy

import numpy as np
import torch
from published_resnet20 import data_folder

from lilliput.core.artifact import Artifact
from lilliput.core.method import Context, apply_checked_
from lilliput.data.select import margins
from lilliput.export.c import project
from lilliput.graph import stored
from lilliput.graph.integer import runnable
from lilliput.graph.lower import lower
from lilliput.graph.trace import graph_of
from lilliput.measure.macs import count_macs, of_layers
from lilliput.methods.consolidation.sic import Sic
from lilliput.methods.pruning.magnitude import MagnitudePruning
from lilliput.methods.quantization.post_training import Quantization
from lilliput.ops.clustering import optimal_1d, optimal_1d_all
from lilliput.ops.rate_clustering import rate_clusters
from lilliput.report.result import environment
from lilliput.training.fit import fit
from lilliput.training.settings import FitSettings
from lilliput.zoo.registry import open_model

RESULTS = Path(__file__).parent / "results"
FILES = {
    "small-mnist": "sic_small_mnist",
    "lenet5-tanh": "sic_lenet5_tanh_mnist",
    "resnet20": "resnet20_cifar10",
}
BOTH = "train+validation"
FASHION = "lenet5-tanh on Fashion-MNIST"
ROWS = {
    "small, 5,000, exact": ("small-mnist", Sic(mode="exact", acceptance_from=BOTH, eval_max=5000)),
    "small, 5,000, exact, SASIC": (
        "small-mnist",
        Sic(mode="exact", acceptance_from=BOTH, eval_max=5000, sasic={"enable": True}),
    ),
    "small, all, exact": ("small-mnist", Sic(mode="exact", acceptance_from=BOTH)),
    "small, all, budget": ("small-mnist", Sic(acceptance_from=BOTH)),
    "lenet5-tanh, all, exact": ("lenet5-tanh", Sic(mode="exact", acceptance_from=BOTH)),
    "lenet5-tanh, all, budget": ("lenet5-tanh", Sic(acceptance_from=BOTH)),
    "lenet5-tanh, all, budget, inputs": ("lenet5-tanh", Sic(acceptance_from=BOTH, weighting="inputs")),
    "lenet5-tanh, all, budget, no refit": ("lenet5-tanh", Sic(acceptance_from=BOTH, refit=False)),
    "fashion, all, exact": (FASHION, Sic(mode="exact", acceptance_from=BOTH)),
    "fashion, all, budget": (FASHION, Sic(acceptance_from=BOTH)),
    "resnet20, 500, exact": ("resnet20", Sic(mode="exact", eval_max=500)),
    "resnet20, 5,000, exact": ("resnet20", Sic(mode="exact", eval_max=5000)),
    "resnet20, 5,000, budget": ("resnet20", Sic(eval_max=5000)),
}
PUBLISHED, PLAINLY, CHAIN = "small, 5,000, published", "resnet20, 500, plainly", "chain on lenet5-tanh"
LOOKS = (16, 64)
FIRST = ("conv1", *(f"layer1.{block}.conv{n}" for block in range(3) for n in (1, 2)))
KINDS = ("multiplies", "product_of_sums_multiplies", "effective_additions")


@cache
def trained(folder):
    """LeNet-5 (tanh) on Fashion-MNIST."""
    model, task = open_model("lenet5-tanh", data="fashion-mnist", data_root=folder, trained=False)
    net = Artifact.of(model, task.spec)
    fit(net, task, FitSettings(epochs=8, learning_rate=1e-3), generator=torch.Generator().manual_seed(0))
    return net.module, task


def opened(name, folder):
    if name == FASHION:
        model, task = trained(folder)
        return copy.deepcopy(model), task
    return open_model(name, weights=folder / "models" / f"{FILES[name]}.safetensors", data_root=folder)


def groups(weight):
    return sum(len(row[row != 0].unique()) for row in weight)


def measure(name, method, folder):
    model, task = opened(name, folder)
    net, context = Artifact.of(model, task.spec), Context.of(task, model)
    graph_of(net)
    started = time.process_time()
    for role in ("train", "validation") if method.eval_max is None else ():
        context.evaluator.reference(role)
    middle = time.process_time()
    result = apply_checked_(method, net, context)
    seconds = time.process_time() - middle
    weights = {path: groups(net.module.get_submodule(path).weight) for path in result.changed}
    evaluation = context.evaluator(net.module, "test")
    table = of_layers(count_macs(graph_of(net), net), graph_of(net))
    return {
        "cpu_s": round(seconds, 2),
        "reference_s": round(middle - started, 2),
        "groups": weights,
        "test": round(task.score.value(evaluation.rows), 2),
        "bytes": len(stored.dumps(net)),
        "dense_test": round(task.score.value(context.evaluator(model, "test").rows), 2),
        "multiplies": {kind: int(table.total(kind).value) for kind in KINDS},
        "notes": list(result.notes),
    }, net


def consolidate_(weights, clustered, holds):
    """For each row the first k whose values hold, zero first; else the row stays. Gives the number of candidates."""
    candidates = 0
    for row in (row for weight in weights for row in weight):
        before = row.clone()
        live = before != 0
        values = before[live].double().numpy()
        for k in range(max(1, len(np.unique(values)) - 1) + 1):
            row.zero_()
            if k:
                row[live] = torch.from_numpy(clustered(values, k)).float()
            candidates += 1
            if holds():
                break
        else:
            row.copy_(before)
    return candidates


def exact(values, k):
    found = optimal_1d(values, k)
    return found.centroids[found.labels]


def jenks(values, k):
    import jenkspy

    breaks = np.array(jenkspy.jenks_breaks(values.tolist(), n_classes=k))
    labels = np.searchsorted(breaks[1:-1], values, side="left")
    sums, counts = np.bincount(labels, values, k), np.bincount(labels, minlength=k)
    return (sums / np.maximum(counts, 1))[labels]


def published(folder, size):
    """The published algorithm on the first `size` samples that are right."""
    model, task = opened("small-mnist", folder)
    parts = [task.data(role).batch(torch.arange(len(task.data(role)))) for role in ("train", "validation")]
    x, y = torch.cat([p[0] for p in parts]), torch.cat([p[1] for p in parts])
    with torch.no_grad():
        right = model(x).argmax(1) == y
        x, y = x[right][:size], y[right][:size]
        started = time.process_time()
        weights = [m.weight for m in model.modules() if isinstance(m, torch.nn.Linear)]
        candidates = consolidate_(weights, jenks, lambda: bool((model(x).argmax(1) == y).all()))
        seconds = time.process_time() - started
    return model, candidates, seconds


def plainly(folder, size):
    """Exact SIC by forwards of the whole network on the first `size` samples that are right."""
    model, task = opened("resnet20", folder)
    model.eval()
    x, y = task.data("train").batch(torch.arange(2 * size))
    with torch.no_grad():
        outputs = model(x)
        right = torch.nonzero(outputs.argmax(1) == y).reshape(-1)[:size]
        x, y = x[right], y[right]
        order = torch.argsort(margins(outputs[right], y))
        once = time.process_time()
        model(x)
        once = time.process_time() - once

        def all_right():
            nonlocal order
            for a, b in pairwise((0, *LOOKS, size)):
                part = order[a:b]
                wrong = torch.nonzero(model(x[part]).argmax(1) != y[part]).reshape(-1)
                if len(wrong):
                    lost = part[wrong[-1]]
                    order = torch.cat([lost[None], order[order != lost]])
                    return False
            return True

        started = time.process_time()
        candidates = consolidate_([model.get_parameter(f"{layer}.weight") for layer in FIRST], exact, all_right)
        seconds = time.process_time() - started
    return model, candidates, seconds, once


def equal_rows(net, model, layers):
    found = 0
    for layer in layers:
        ours, theirs = (m.get_parameter(f"{layer}.weight") for m in (net.module, model))
        found += sum(int(torch.equal(a, b)) for a, b in zip(ours, theirs, strict=True))
    return found


def chain(folder):
    """SIC, 8 bits, 6 bits, pruned: bytes and test score after each; instructions of the last one's C."""
    model, task = opened("lenet5-tanh", folder)
    context = Context.of(task, model)
    found = {}
    consolidated = Artifact.of(model, task.spec)
    apply_checked_(Sic(acceptance_from=BOTH), consolidated, context)
    pruned = consolidated.copy()
    apply_checked_(MagnitudePruning(sparsity=0.85), pruned, context)
    eight, six = (Quantization(weight_bits=bits, activation_bits=0) for bits in (8, 6))
    for name, start, method in [
        ("sic", consolidated, None),
        ("sic, 8 bits", consolidated, eight),
        ("sic, 6 bits", consolidated, six),
        ("sic, 85% zero, 6 bits", pruned, six),
        ("the same, activations 8 bits", pruned, Quantization(weight_bits=6, signed=True)),
    ]:
        net = start.copy()
        if method is not None:
            apply_checked_(method, net, context)
        score = task.score.value(context.evaluator(runnable(net), "test").rows)
        found[name] = {"bytes": len(stored.dumps(net)), "test": round(score, 2)}
        print(name, found[name], flush=True)
    with TemporaryDirectory() as place:
        project.write(lower(net), Path(place))
        done = subprocess.run(["make", "emulate"], cwd=place, capture_output=True, text=True, check=False)
        counts = dict(re.findall(r"^(\w+) (\d+)$", done.stdout + done.stderr, re.MULTILINE))
        found["emulated Cortex-M4"] = {k: int(counts[k]) for k in ("vectors", "differ", "instructions") if k in counts}
    return found


def kept(name, row):
    """The row in results/, beside what other runs have written there."""
    path = RESULTS / "sic.json"
    found = json.loads(path.read_text()) if path.is_file() else {"rows": {}}
    found["rows"][name] = row
    order = [*ROWS, PUBLISHED, PLAINLY, CHAIN]
    found["rows"] = {n: found["rows"][n] for n in order if n in found["rows"]}
    found["environment"] = environment()
    path.write_text(json.dumps(found, indent=1) + "\n")
    lines = [f"{name}: {json.dumps(row)}" for name, row in found["rows"].items()]
    (RESULTS / "sic.txt").write_text("\n".join(lines) + "\n")
    print(name, row, flush=True)


def main():
    torch.set_num_threads(1)
    folder, wanted = data_folder(), sys.argv[1] if len(sys.argv) > 1 else ""
    optimal_1d_all(np.arange(40.0), 9)  # compiled, or loaded, before the clock starts
    rate_clusters(np.ones((1, 4)), 0.1)
    for name, (network, method) in ROWS.items():
        if wanted not in name:
            continue
        row, net = measure(network, method, folder)
        kept(name, row)
        if name == "small, 5,000, exact":
            model, candidates, seconds = published(folder, 5000)
            found = {
                "cpu_s": round(seconds, 2),
                "candidates": candidates,
                "rows_equal_to_ours": equal_rows(net, model, row["groups"]),
                "published / ours": round(seconds / row["cpu_s"], 1),
            }
            kept(PUBLISHED, found)
        if name == "resnet20, 500, exact":
            model, candidates, seconds, once = plainly(folder, 500)
            published_s = once * int(row["notes"][1].split()[0].replace(",", ""))
            found = {
                "cpu_s": round(seconds, 1),
                "candidates": candidates,
                "rows_equal_to_ours": equal_rows(net, model, FIRST),
                "rows": sum(len(model.get_parameter(f"{n}.weight")) for n in FIRST),
                "published_estimated_s": round(published_s),
                "published / ours": round(published_s / row["cpu_s"], 1),
            }
            kept(PLAINLY, found)
    if wanted in CHAIN:
        kept(CHAIN, chain(folder))


if __name__ == "__main__":
    main()
