"""What learned functions cost and save where they run: ResMLP with ReLU beside ResMLP of half the hidden channels.

    python benchmarks/learned_functions_cost.py [part of a row's name]

Untrained networks of the zoo (`resmlp-192` has 192 hidden channels and ReLU, `-psa` and `-spline` a learned function
for each channel in two places of each block; "one a layer" has one for all channels of a place), with noise on every
number, as the constants of an untrained network would be coded in no bytes. There are no scores here.

Each is measured twice, as `lilliput compare` does it: in float, and folded and quantized to 8 bits. Parameters and
bytes include the functions, whose own part is given beside them; flash is that of the generated C, tables and code.
Latency of one sample on one thread, CPU time, all networks in turn: ONNX Runtime, torch (with our loops), and C (-O2
on this machine); torch also for a batch of 128, for each sample. Instructions are executed ones of one sample on an
emulated Cortex-M4, not cycles. Golden vectors must be equal. Needs the `onnx` extra and a C compiler; without
gcc-arm-none-eabi and qemu-system-arm there are no instructions. Writes results/learned_functions_cost.json and .txt
if all rows ran.
"""

import json
import os
import sys
import tempfile
from pathlib import Path

os.environ.update(dict.fromkeys(("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OMP_NUM_THREADS"), "1"))  # before numpy

import torch

from lilliput.core.artifact import Artifact
from lilliput.core.learned_activation import LearnedActivation
from lilliput.core.method import Context, apply_checked_
from lilliput.core.target import Target
from lilliput.core.task import Task
from lilliput.graph import stored
from lilliput.measure.latency import interleaved, single_thread, torch_runner
from lilliput.methods.normalization.batchnorm import FoldBatchNorm
from lilliput.methods.quantization.post_training import Quantization
from lilliput.nn.models.resmlp import ResMLP
from lilliput.report.beside import compare_files
from lilliput.report.result import environment
from lilliput.report.text import render
from lilliput.zoo.registry import ZOO

RESULTS = Path(__file__).parent / "results"
PAIRS = ((384, 192), (192, 96), (96, 48), (48, 24))
"""Hidden channels with ReLU, and those with learned functions that are to stand beside them."""
SHAPE, BATCH = (3, 32, 32), 128


def one_a_layer(channels):
    return LearnedActivation(channels, kind="lerp_psa", points=65, init="paper", share="layer")


def networks():
    """{name: makes it}, pairs beside each other."""
    made = {}
    for wide, narrow in PAIRS:
        for name in (f"resmlp-{wide}", f"resmlp-{wide}-gelu", f"resmlp-{narrow}-spline", f"resmlp-{narrow}-psa"):
            made[name] = ZOO[name].model
        made[f"resmlp-{narrow}-psa, one a layer"] = lambda narrow=narrow: ResMLP(
            hidden=narrow, activation=one_a_layer, before=True
        )
    return made


def noisy(model):
    with torch.no_grad():
        for tensor in (*model.parameters(), *(b for b in model.buffers() if b.numel() > 1)):
            tensor.add_(0.05 * torch.rand_like(tensor))
    return model


def write(made, floats, integers):
    """Files of each network in both folders; the artifacts in float."""
    found = {}
    x = torch.randn((64, *SHAPE), generator=torch.Generator().manual_seed(1))
    task = Task.classification(train=(x, torch.arange(64) % 10), validation=(x, torch.arange(64) % 10))
    for name, make in made.items():
        torch.manual_seed(0)
        found[name] = Artifact.of(noisy(make()).eval(), task.spec)
        stored.save(found[name], floats / f"{name}.lil")
        net = found[name].copy()
        for method in (FoldBatchNorm(rest="layer"), Quantization(signed=True)):
            apply_checked_(method, net, Context.of(task, net.module))
        stored.save(net, integers / f"{name}.lil")
        print(f"{name}: written", flush=True)
    return found


def torch_times(artifacts):
    """{name: {latency of one sample in torch, and of each in a batch}} in ms, with the 10th and 90th percentile."""
    found = {name: {} for name in artifacts}
    for label, batch in (("latency in torch", 1), (f"latency in torch, batch {BATCH}", BATCH)):
        x = torch.randn((batch, *SHAPE), generator=torch.Generator().manual_seed(2))
        with single_thread():
            timings = interleaved({n: torch_runner(a.module, x) for n, a in artifacts.items()}, repeats=15)
        for name in artifacts:
            m = timings.latency(name)
            found[name][label] = {"value": m.value / batch, "spread": [end / batch for end in m.spread or ()]}
    return found


def numbers(column):
    return {
        **{name: {"value": m.value, "unit": m.unit, "spread": m.spread} for name, m in column.measurements.items()},
        "notes": column.notes,
    }


def table(rows):
    head = ["network", "MACs", "parameters (functions)", "values (learned)", "float file (functions)", "ORT us"]
    head += ["torch us", f"torch us, {BATCH}", "int8 file (functions)", "flash (functions)", "M4 instructions", "C ms"]
    lines = [[*head, "ORT int8 us"]]

    def cell(numbers, name, scale=1.0, digits=0):
        return f"{numbers[name]['value'] * scale:,.{digits}f}" if name in numbers else "-"

    def both(numbers, whole, part):
        return f"{cell(numbers, whole)} ({cell(numbers, part)})"

    for name, row in rows.items():
        f, i = row["float"], row["int8"]
        lines.append(
            [
                name,
                cell(f, "MACs"),
                both(f, "parameters", "parameters of functions"),
                both(f, "values through functions", "values through learned functions"),
                both(f, "file", "file bytes of functions"),
                cell(f, "latency", 1e3),
                cell(f, "latency in torch", 1e3),
                cell(f, f"latency in torch, batch {BATCH}", 1e3),
                both(i, "file", "file bytes of functions"),
                both(i, "planned flash", "flash of functions"),
                cell(i, "instructions"),
                cell(i, "latency in C", 1.0, 2),
                cell(i, "latency", 1e3),
            ]
        )
    return render(lines)


def main() -> None:
    torch.set_num_threads(1)
    part = sys.argv[1] if len(sys.argv) > 1 else ""
    made = {name: make for name, make in networks().items() if part in name}
    with tempfile.TemporaryDirectory() as scratch:
        floats, integers = (Path(scratch) / name for name in ("float", "int8"))
        floats.mkdir()
        integers.mkdir()
        artifacts = write(made, floats, integers)
        columns = {
            folder.name: compare_files([folder / f"{name}.lil" for name in made], target=target)
            for folder, target in ((floats, Target()), (integers, Target("cortex-m4")))
        }
        times = torch_times(artifacts)
    rows = {name: {kind: numbers(found[i]) for kind, found in columns.items()} for i, name in enumerate(made)}
    for name, row in rows.items():
        row["float"] |= times[name]
    text = table(rows)
    print(text)
    if not part:
        found = {"rows": rows, "environment": environment()}
        (RESULTS / "learned_functions_cost.json").write_text(json.dumps(found, indent=1) + "\n")
        (RESULTS / "learned_functions_cost.txt").write_text(text + "\n")


if __name__ == "__main__":
    main()
