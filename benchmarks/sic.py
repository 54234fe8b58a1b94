"""SIC on the published MNIST networks: decisions, CPU seconds, bytes; beside the algorithm as it is published.

    LILLIPUT_TEST_DATA=folder python benchmarks/sic.py [part of a row's name]

One thread, CPU seconds of the method alone (the network has been traced, and run once on the samples: `reference_s`).
The acceptance set is what the network gets right of the training images in file order: 60,000, or the first 5,000. The
row "published" runs the published algorithm in the same process: jenkspy for each k, a full forward of all samples for
each candidate; it must take the same decisions. Writes results/sic.json and .txt.
"""

import json
import os
import sys
import time
from pathlib import Path

os.environ.update(dict.fromkeys(("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OMP_NUM_THREADS"), "1"))  # before numpy

import numpy as np
import torch
from published_resnet20 import data_folder

from lilliput.core.artifact import Artifact
from lilliput.core.method import Context, apply_checked_
from lilliput.graph import stored
from lilliput.graph.trace import graph_of
from lilliput.measure.macs import count_macs
from lilliput.methods.consolidation.sic import Sic
from lilliput.ops.clustering import optimal_1d_all
from lilliput.report.result import environment
from lilliput.zoo.registry import open_model

RESULTS = Path(__file__).parent / "results"
FILES = {"small-mnist": "sic_small_mnist", "lenet5-tanh": "sic_lenet5_tanh_mnist"}
BOTH = "train+validation"
ROWS = {
    "small, 5,000, exact": ("small-mnist", Sic(mode="exact", acceptance_from=BOTH, eval_max=5000)),
    "small, all, exact": ("small-mnist", Sic(mode="exact", acceptance_from=BOTH)),
    "small, all, budget": ("small-mnist", Sic(acceptance_from=BOTH)),
    "lenet5-tanh, all, exact": ("lenet5-tanh", Sic(mode="exact", acceptance_from=BOTH)),
    "lenet5-tanh, all, budget": ("lenet5-tanh", Sic(acceptance_from=BOTH)),
}
PUBLISHED = "small, 5,000, published"


def opened(name, folder):
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
    table = count_macs(graph_of(net), net)
    return {
        "cpu_s": round(seconds, 2),
        "reference_s": round(middle - started, 2),
        "groups": weights,
        "test": round(task.score.value(evaluation.rows), 2),
        "bytes": len(stored.dumps(net)),
        "multiplies": {kind: int(table.total(kind).value) for kind in table.names()},
        "notes": list(result.notes),
    }, net


def published(folder, size):
    """The published algorithm on the first `size` samples that are right."""
    import jenkspy

    model, task = opened("small-mnist", folder)
    parts = [task.data(role).batch(torch.arange(len(task.data(role)))) for role in ("train", "validation")]
    x, y = torch.cat([p[0] for p in parts]), torch.cat([p[1] for p in parts])
    candidates = 0
    with torch.no_grad():
        right = model(x).argmax(1) == y
        x, y = x[right][:size], y[right][:size]
        started = time.process_time()
        for module in model.modules():
            if not isinstance(module, torch.nn.Linear):
                continue
            for row in module.weight:
                before = row.clone()
                live = before != 0
                values = before[live].double().numpy()
                for k in range(max(1, len(np.unique(values)) - 1) + 1):
                    row.zero_()
                    if k:
                        breaks = np.array(jenkspy.jenks_breaks(values.tolist(), n_classes=k))
                        labels = np.searchsorted(breaks[1:-1], values, side="left")
                        sums, counts = np.bincount(labels, values, k), np.bincount(labels, minlength=k)
                        row[live] = torch.from_numpy((sums / np.maximum(counts, 1))[labels]).float()
                    candidates += 1
                    if bool((model(x).argmax(1) == y).all()):
                        break
                else:
                    row.copy_(before)
        seconds = time.process_time() - started
    return model, candidates, seconds


def main():
    torch.set_num_threads(1)
    folder, wanted = data_folder(), sys.argv[1] if len(sys.argv) > 1 else ""
    optimal_1d_all(np.arange(40.0), 9)  # compiled, or loaded, before the clock starts
    optimal_1d_all(np.arange(40.0), 9, np.ones(40))
    path = RESULTS / "sic.json"
    found = json.loads(path.read_text()) if wanted and path.is_file() else {"rows": {}}
    for name, (network, method) in ROWS.items():
        if wanted not in name:
            continue
        found["rows"][name], net = measure(network, method, folder)
        print(name, found["rows"][name], flush=True)
        if name == "small, 5,000, exact":
            model, candidates, seconds = published(folder, 5000)
            same = sum(
                int(torch.equal(a, b))
                for layer in found["rows"][name]["groups"]
                for a, b in zip(*(m.get_parameter(f"{layer}.weight") for m in (net.module, model)), strict=True)
            )
            ratio = seconds / found["rows"][name]["cpu_s"]
            found["rows"][PUBLISHED] = {
                "cpu_s": round(seconds, 2),
                "candidates": candidates,
                "rows_equal_to_ours": same,
                "published / ours": round(ratio, 1),
            }
            print(PUBLISHED, found["rows"][PUBLISHED], flush=True)
        found["environment"] = environment()
        path.write_text(json.dumps(found, indent=1) + "\n")
    lines = [f"{name}: {json.dumps(row)}" for name, row in found["rows"].items()]
    (RESULTS / "sic.txt").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
