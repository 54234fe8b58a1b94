"""A ResMLP on 8x8 digits made narrower, with learned functions and without: the CI-sized run of the whole recipe.

    python benchmarks/learned_functions_digits.py [--seeds 3]

A teacher of 32 hidden channels trains as `lilliput train digits-resmlp` does. Then examples/learned_functions.yaml
runs with a half, a quarter and an eighth of them, as it is and without learned functions: blocks learn from blocks,
the whole from answers, then all of it through 8-bit integers and tables of 17 points. Means over seeds, with the
sample standard deviation, on the 360 test images; `differences` are outputs of the C, and of the network that was
trained, that the interpreter has not.
"""

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path
from statistics import mean, stdev

import torch
from learned_functions_tables import in_c

from lilliput.core.artifact import Artifact
from lilliput.core.method import Context, apply_checked_
from lilliput.graph import stored
from lilliput.graph.integer import runnable
from lilliput.graph.lower import lower
from lilliput.graph.trace import graph_of
from lilliput.measure.macs import count_macs
from lilliput.methods.learned_functions.replace_activations import ReplaceActivations
from lilliput.methods.pruning.narrow import Narrow
from lilliput.pipeline.recipe import load
from lilliput.report.result import environment
from lilliput.training.fit import fit
from lilliput.zoo.registry import entry

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "learned_functions_digits.json"
RECIPE = ROOT / "examples" / "learned_functions.yaml"
FACTORS = (0.5, 0.25, 0.125)


def passes(factor, learned):
    """Those of the recipe, narrower by `factor`."""
    for step in load(RECIPE).steps:
        for method in step.passes:
            if isinstance(method, Narrow):
                yield replace(method, factor=factor)
            elif learned or not isinstance(method, ReplaceActivations):
                yield method


def tested(module, task):
    with torch.inference_mode():
        right = [module(x).argmax(1) == y for x, y in task.data("test").batches(500)]
    return 100 * float(torch.cat(right).double().mean())


def teacher(seed):
    found = entry("digits-resmlp")
    torch.manual_seed(seed)
    task = found.task()
    net = Artifact.of(found.model(), task.spec)
    fit(net, task, found.training, generator=torch.Generator().manual_seed(seed))
    return net.module.eval(), task


def measure(model, task, factor, learned, seed):
    net, context = Artifact.of(model, task.spec), Context.of(task, model, seed=seed)
    for method in passes(factor, learned):
        apply_checked_(method, net, context)
    graph, program = graph_of(net), lower(net)
    return {
        "accuracy": tested(runnable(net), task),
        "macs": int(count_macs(graph, net).total("macs").value),
        "parameters": sum(p.numel() for p in net.module.parameters()),
        "lil_bytes": len(stored.dumps(net)),
        "table_bytes": sum(o.table.size for o in program if o.table is not None),
        "differences": sum(in_c(program, task, runnable(net))),
    }


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, default=3)
    seeds = parser.parse_args().seeds
    torch.set_num_threads(1)
    started, rows, floats = time.process_time(), {}, []
    for seed in range(seeds):
        model, task = teacher(seed)
        floats.append(tested(model, task))
        print(f"seed {seed}: float teacher {floats[-1]:.2f}%", flush=True)
        for factor in FACTORS:
            for learned in (False, True):
                name = f"{'lerp_psa' if learned else 'relu'}, h{round(32 * factor)}"
                rows.setdefault(name, []).append(measure(model, task, factor, learned, seed))
                print(f"  {name:16} {rows[name][-1]}", flush=True)
    found = {name: {k: round(mean(r[k] for r in runs), 2) for k in runs[0]} for name, runs in rows.items()}
    for name, runs in rows.items():
        found[name]["sd"] = round(stdev([r["accuracy"] for r in runs]), 2) if seeds > 1 else None
    kept = {"teacher": round(mean(floats), 2), "rows": found, "cpu_s": round(time.process_time() - started, 1)}
    RESULTS.write_text(json.dumps(kept | {"environment": environment()}, indent=1) + "\n")


if __name__ == "__main__":
    main()
