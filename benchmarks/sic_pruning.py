"""Pruning under an acceptance set on lenet5-tanh, before and after SIC: CPU seconds, zeros, bytes, test accuracy.

    LILLIPUT_TEST_DATA=folder python benchmarks/sic_pruning.py [part of a row's name]

One thread, CPU seconds of the pruning alone. The set is the first 5,000 training images, in file order, that the
network gets right. Writes results/sic_pruning.json and .txt.
"""

import json
import os
import sys
import time
from pathlib import Path

os.environ.update(dict.fromkeys(("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OMP_NUM_THREADS"), "1"))  # before numpy

import torch
from published_resnet20 import data_folder
from sic import BOTH, groups, opened

import lilliput as ll
from lilliput.core.method import Context, apply_checked_
from lilliput.graph import stored
from lilliput.report.result import environment

RESULTS = Path(__file__).parent / "results"
SAMPLES = {"acceptance_from": BOTH, "eval_max": 5000}
SIC = ll.Sic(mode="exact", **SAMPLES)
ROWS = {
    "alone, per_neuron_sequential": [ll.AcceptancePruning(**SAMPLES)],
    "alone, per_layer_binary_search": [ll.AcceptancePruning(strategy="per_layer_binary_search", **SAMPLES)],
    "after SIC": [SIC],
    "after SIC, per_neuron_sequential": [SIC, ll.AcceptancePruning(**SAMPLES)],
    "after SIC, per_layer_binary_search": [SIC, ll.AcceptancePruning(strategy="per_layer_binary_search", **SAMPLES)],
    "after SIC, per_neuron_binary_values": [SIC, ll.AcceptancePruning(strategy="per_neuron_binary_values", **SAMPLES)],
    "before SIC, per_layer_binary_search": [ll.AcceptancePruning(strategy="per_layer_binary_search", **SAMPLES), SIC],
}


def measure(methods, folder):
    model, task = opened("lenet5-tanh", folder)
    net, context = ll.Artifact.of(model, task.spec), Context.of(task, model)
    for role in ("train", "validation"):
        context.evaluator.reference(role)
    seconds, notes = {}, []
    for method in methods:
        started = time.process_time()
        result = apply_checked_(method, net, context)
        seconds[method.name] = round(time.process_time() - started, 2)
        notes += result.notes
    weights = [p for name, p in net.module.named_parameters() if name.endswith("weight")]
    return {
        "cpu_s": seconds,
        "zeros": sum(int((w == 0).sum()) for w in weights),
        "weights": sum(w.numel() for w in weights),
        "groups": sum(groups(w) for w in weights),
        "bytes": len(stored.dumps(net)),
        "test": round(task.score.value(context.evaluator(net.module, "test").rows), 2),
        "notes": notes,
    }


def main():
    torch.set_num_threads(1)
    folder, wanted = data_folder(), sys.argv[1] if len(sys.argv) > 1 else ""
    path = RESULTS / "sic_pruning.json"
    found = json.loads(path.read_text()) if wanted and path.is_file() else {"rows": {}}
    for name, methods in ROWS.items():
        if wanted in name:
            found["rows"][name] = measure(methods, folder)
            print(name, found["rows"][name], flush=True)
    found["environment"] = environment()
    path.write_text(json.dumps(found, indent=1) + "\n")
    lines = [f"{name}: {json.dumps(row)}" for name, row in found["rows"].items()]
    (RESULTS / "sic_pruning.txt").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
