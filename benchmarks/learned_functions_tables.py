"""Fashion-MNIST by 784-16-10: learned functions as integer tables of 2^k + 1 points, rounded and trained.

    LILLIPUT_TEST_DATA=folder python benchmarks/learned_functions_tables.py [points]

A linear layer, BatchNorm, a function (`lerp_psa`) for each unit, a linear layer: 5 epochs in float. From there, 8
bits for weights and activations: rounded, and trained for 2 epochs through the integer tables, which are points with
lines between them (`points`) or have an entry for each code (`full`). Means of 2 seeds, with the sample standard
deviation; accuracy on the 10,000 test images, of the last epoch. Bytes of the functions: in the file, coded; and in
C. The C runs on all test images; `differences` counts outputs of it and of the trained network that are not those of
the interpreter.
"""

import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import mean, stdev

import numpy as np
import torch
from published_resnet20 import data_folder
from torch import nn

from lilliput.core import container
from lilliput.core.artifact import Artifact
from lilliput.core.learned_activation import LearnedActivation
from lilliput.core.method import Context, apply_checked_
from lilliput.export.c.interface import c_type
from lilliput.export.c.writer import Writer
from lilliput.graph import stored
from lilliput.graph.integer import runnable
from lilliput.graph.interpreter import decode, quantize_input, run
from lilliput.graph.lower import lower
from lilliput.methods.normalization.batchnorm import FoldBatchNorm
from lilliput.methods.quantization.aware_training import QuantizationAwareTraining
from lilliput.methods.quantization.post_training import Quantization
from lilliput.report.result import environment
from lilliput.training.fit import fit
from lilliput.training.settings import FitSettings
from lilliput.zoo import tasks

RESULTS = Path(__file__).parent / "results" / "learned_functions_tables.json"
SEEDS, POINTS, UNITS = (0, 1), (9, 17, 33, 65, 129, 257), 16
SETTINGS = FitSettings(
    epochs=5, batch_size=128, optimizer="adamw", learning_rate=5e-3, schedule="one_cycle", keep="last", distillation=0.0
)
MAIN = """
#include <stdio.h>
#include "net.h"
static net_in_t in[NET_INPUTS];
static net_out_t out[NET_OUTPUTS];
int main(void) {
  while (fread(in, sizeof in, 1, stdin)) { net_run(in, out); fwrite(out, sizeof out, 1, stdout); }
  return 0;
}
"""


def network(points, seed):
    torch.manual_seed(seed)
    act = LearnedActivation(UNITS, kind="lerp_psa", points=points, init="paper")
    return nn.Sequential(nn.Flatten(), nn.Linear(784, UNITS), nn.BatchNorm1d(UNITS), act, nn.Linear(UNITS, 10))


def tested(module, task):
    with torch.inference_mode():
        right = [module(x).argmax(1) == y for x, y in task.data("test").batches(500)]
    return 100 * float(torch.cat(right).double().mean())


def quantized(net, model, task, seed, *methods):
    made = net.copy()
    for method in methods:
        apply_checked_(method, made, Context.of(task, model, seed=seed))
    return made


def in_c(program, task, trained):
    """How many outputs differ from the interpreter's: of the C, compiled here, and of the module that was trained."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for file, text in (*Writer(program).files().items(), ("main.c", MAIN)):
            (folder / file).write_text(text)
        gcc = shutil.which("gcc") or "gcc"
        files = ("net.c", "net_io.c", "main.c")
        subprocess.run([gcc, "-std=c99", "-O2", *files, "-o", "net"], cwd=folder, check=True)
        codes = quantize_input(program, torch.cat([x for x, _ in task.data("test").batches(500)]).numpy())
        kinds = [np.dtype(c_type(program.values[n]).removesuffix("_t")) for n in (program.input, program.outputs[0])]
        given = codes.astype(kinds[0]).tobytes()
        done = subprocess.run([folder / "net"], input=given, capture_output=True, check=True)
        expected = run(program, codes)[0]
        different = int((np.frombuffer(done.stdout, kinds[1]).reshape(expected.shape) != expected).sum())
        with torch.inference_mode():
            found = torch.cat([trained(x) for x, _ in task.data("test").batches(500)]).numpy()
        return different, int((decode(program.values[program.outputs[0]], expected) != found).sum())


def measured(points, seed, task):
    net = Artifact.of(network(points, seed), task.spec)
    fit(net, task, SETTINGS, generator=torch.Generator().manual_seed(seed))
    model = net.copy().module
    found = {"float": tested(net.module, task)}
    base = quantized(net, model, task, seed, FoldBatchNorm())
    for tables in ("points", "full"):
        rounded = quantized(base, model, task, seed, Quantization(tables=tables))
        found[f"{tables}, rounded"] = tested(runnable(rounded), task)
        settings = {"weight_bits": 8, "epochs": 2, "learning_rate": 1e-3, "distillation": 0.0, "keep": "last"}
        method = QuantizationAwareTraining(tables=tables, **settings)
        trained = quantized(base, model, task, seed, method)
        found[f"{tables}, trained"] = tested(runnable(trained), task)
        data = stored.dumps(trained)
        weight = next(name for name in container.sizes(container.loads(data)) if name == "3.weight")
        found[f"{tables}, bytes in the file"] = sum(container.sizes(container.loads(data))[weight].values())
        program = lower(trained)
        found[f"{tables}, bytes in C"] = sum(o.table.size for o in program if o.table is not None)
        found[f"{tables}, file"] = len(data)
        found[f"{tables}, differences"] = sum(in_c(program, task, runnable(trained)))
    return found


def summary(found):
    """{column: mean, or (mean, deviation) of accuracies}"""
    row = {}
    for column in found[0]:
        values = [f[column] for f in found]
        exact = column.split(", ")[-1] in ("rounded", "trained", "float")
        row[column] = [round(mean(values), 2), round(stdev(values), 2)] if exact else round(mean(values), 1)
    return row


def main():
    torch.set_num_threads(1)
    task = tasks.image_classification("fashion-mnist")(data_folder())
    wanted = tuple(map(int, sys.argv[1:])) or POINTS
    found = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {"rows": {}}
    for points in wanted:
        started = time.process_time()
        row = summary([measured(points, seed, task) for seed in SEEDS])
        row["cpu_s"] = round(time.process_time() - started, 1)
        found["rows"][f"{points} points"] = row
        found["environment"] = environment()
        RESULTS.write_text(json.dumps(found, indent=1) + "\n")
        print(f"{points:4} points", *(f"{k} {v}" for k, v in row.items()), sep="  ", flush=True)


if __name__ == "__main__":
    main()
