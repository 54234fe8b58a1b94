"""Integer programs on whole test sets: 8 bits against float, and how long the interpreter takes.

    LILLIPUT_TEST_DATA=folder python benchmarks/integer_accuracy.py [part of a row's name]

Folding and 8-bit quantization, no training after it; 512 calibration samples of the training set. Published and shipped
weights are taken as they are, other networks are trained here first: as the zoo says, LeNet-5 for two epochs.
Interpreter and `IntegerNet` both run in batches of 50, in turn, on one thread; their outputs are compared number by
number. Writes results/integer_accuracy.json and .txt.
"""

import json
import os
import sys
import time
from dataclasses import replace
from pathlib import Path

os.environ.update(dict.fromkeys(("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OMP_NUM_THREADS"), "1"))  # before numpy

import numpy as np
import torch
from published_resnet20 import data_folder

from lilliput.core.artifact import Artifact
from lilliput.core.errors import ExportError
from lilliput.core.method import Context, apply_checked_
from lilliput.graph.integer import IntegerNet
from lilliput.graph.interpreter import decode, quantize_input, run
from lilliput.graph.lower import lower
from lilliput.methods.normalization.batchnorm import FoldBatchNorm
from lilliput.methods.quantization.post_training import Quantization
from lilliput.report.result import environment
from lilliput.training.fit import fit
from lilliput.zoo.registry import ZOO, open_model

RESULTS = Path(__file__).parent / "results"
BATCH, ALLOWED = 50, 0.3
PUBLISHED = {"small-mnist": "sic_small_mnist", "lenet5-tanh": "sic_lenet5_tanh_mnist", "resnet20": "resnet20_cifar10"}
EPOCHS = {"lenet5": 2}
ROWS = [
    "digits-cnn", "small-mnist", "lenet5-tanh", "lenet5", "resnet20", "digits-anomaly", "digits-masks", "diabetes",
    "japanese-vowels",
]  # fmt: skip
HEAD = "network", "score", "float", "int8", "points", "samples", "interpreter", "IntegerNet", "ratio", "differ"


def network(name, folder):
    """Weights that are published or shipped, or a training that is as long as the zoo's."""
    entry = ZOO[name]
    weights = folder / "models" / f"{PUBLISHED[name]}.safetensors" if name in PUBLISHED else None
    torch.manual_seed(0)
    trained = weights is not None or bool(entry.weights)
    model, task = open_model(name, weights=weights, data_root=folder, trained=trained)
    if not trained:
        net = Artifact.of(model, task.spec)
        settings = replace(entry.training, epochs=EPOCHS.get(name, entry.training.epochs))
        fit(net, task, settings, generator=torch.Generator().manual_seed(0))
        model = net.module
    origin = "published" if name in PUBLISHED else "shipped" if entry.weights else "trained here"
    return model.eval(), task, origin


def judged(task, **computed):
    """{name: (score, outputs, seconds)} of functions of x on the test set; they take turns, batch by batch."""
    found = {name: ([], [], []) for name in computed}
    with torch.inference_mode():
        for batch in task.data("test").batches(BATCH):
            for name, compute in computed.items():
                rows, outputs, seconds = found[name]
                started = time.perf_counter()
                outputs.append(task.forward(compute, batch))
                seconds.append(time.perf_counter() - started)
                rows.append(task.score.statistics(outputs[-1], task.target(batch)))
    return {n: (task.score.value(torch.cat(rows)), torch.cat(ys), sum(times)) for n, (rows, ys, times) in found.items()}


def measure(name, folder):
    model, task, origin = network(name, folder)
    net = Artifact.of(model, task.spec)
    for method in (FoldBatchNorm(), Quantization()):
        apply_checked_(method, net, Context.of(task, model))
    program = lower(net)
    result = program.values[program.outputs[0]]

    def interpreter(x):
        codes = quantize_input(program, x.numpy())
        return torch.from_numpy(decode(result, run(program, codes)[0]))

    found = judged(task, float=model, int8=interpreter, torch=IntegerNet(net))
    score, (integer, outputs, seconds), (_, expected, other) = found["float"][0], found["int8"], found["torch"]
    return {
        "weights": origin,
        "score": f"{task.score.name}{f', {task.score.unit}' if task.score.unit else ''}",
        "float": round(score, 4),
        "int8": round(integer, 4),
        "difference": round(integer - score, 4),
        "samples": len(outputs),
        "interpreter_s": round(seconds, 3),
        "integer_net_s": round(other, 3),
        "interpreter / integer_net": round(seconds / other, 3),
        "outputs_that_differ": int(np.count_nonzero(outputs.numpy() != expected.numpy())),
        "within": task.kind != "classification" or score - integer <= ALLOWED,
    }


def table(rows):
    lines: list[tuple[str, ...]] = [HEAD]
    for name, row in rows.items():
        if "refused" in row:
            lines.append((name, row["refused"], *[""] * (len(HEAD) - 2)))
            continue
        numbers = f"{row['float']:.3f}", f"{row['int8']:.3f}", f"{row['difference']:+.3f}", f"{row['samples']:,}"
        times = f"{row['interpreter_s']:.2f} s", f"{row['integer_net_s']:.2f} s"
        ratio = f"{row['interpreter / integer_net']:.2f}"
        lines.append((name, row["score"], *numbers, *times, ratio, str(row["outputs_that_differ"])))
    whole = [line for line in lines if line[2]]
    widths = [max(len(line[i]) for line in whole) for i in range(len(HEAD))]
    return "\n".join(
        "  ".join(
            c.ljust(w) if i < 2 else c.rjust(w) for i, (c, w) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def main():
    torch.set_num_threads(1)
    folder, wanted = data_folder(), sys.argv[1] if len(sys.argv) > 1 else ""
    path = RESULTS / "integer_accuracy.json"
    found = json.loads(path.read_text()) if wanted and path.is_file() else {"rows": {}}
    for name in ROWS:
        if wanted not in name:
            continue
        try:
            found["rows"][name] = measure(name, folder)
        except ExportError as error:
            found["rows"][name] = {"refused": str(error)}
        print(table({name: found["rows"][name]}).splitlines()[-1], flush=True)
        found["environment"] = environment()
        path.write_text(json.dumps(found, indent=1) + "\n")
    text = table({name: found["rows"][name] for name in ROWS if name in found["rows"]})
    (RESULTS / "integer_accuracy.txt").write_text(text + "\n")
    print(text)
    missed = [name for name, row in found["rows"].items() if not row.get("within", True)]
    if missed:
        sys.exit(f"more than {ALLOWED} points below float: {', '.join(missed)}")


if __name__ == "__main__":
    main()
