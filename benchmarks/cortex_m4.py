"""Generated C on an emulated Cortex-M4: bytes of tables, code and RAM; executed instructions for one sample.

    LILLIPUT_TEST_DATA=folder python benchmarks/cortex_m4.py [part of a row's name] [--keep folder]

Folding and quantization, of 8 bits where the row does not say. digits-cnn and ResNet-20 have trained weights, LeNet-5
and ResNet-8 random ones: the kernels of 8 bits do not look at their values. Bytes are those of sections of the compiled
net.c (arm-none-eabi-size, -O2): tables .rodata, code .text, RAM .bss, which is the arena. The stack is of the whole
test. Instructions are executed ones, exact to 40, and not cycles: an emulator has no flash wait states. `dsp` is what a
Cortex-M4 builds, `plain` leaves its DSP instructions out (NET_PLAIN). All golden vectors must be equal, or it stops.
Needs arm-none-eabi-gcc and qemu-system-arm. Writes results/cortex_m4.json and .txt if all rows could run.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

os.environ.update(dict.fromkeys(("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OMP_NUM_THREADS"), "1"))  # before numpy

import torch

from lilliput.core.artifact import Artifact
from lilliput.core.errors import LilliputError
from lilliput.core.method import Context, apply_checked_
from lilliput.core.task import Task
from lilliput.export.c import emulate, project
from lilliput.export.c.interface import Interface
from lilliput.export.c.replay import replay, trouble
from lilliput.export.c.tools import found as tool
from lilliput.export.c.writer import Writer
from lilliput.graph.lower import lower
from lilliput.graph.trace import graph_of
from lilliput.measure.macs import count_macs
from lilliput.methods.clustering.weight_clustering import WeightClustering
from lilliput.methods.normalization.batchnorm import FoldBatchNorm
from lilliput.methods.quantization.post_training import Quantization
from lilliput.report.result import environment
from lilliput.zoo.registry import ZOO, open_model

RESULTS = Path(__file__).parent / "results"
ROWS = {
    name: (network, [FoldBatchNorm(), *passes])
    for name, network, *passes in (
        ("digits-cnn", "digits-cnn", Quantization(signed=True)),
        ("lenet5", "lenet5", Quantization(signed=True)),
        ("resnet8", "resnet8", Quantization(signed=True)),
        ("resnet20", "resnet20", Quantization(signed=True)),
        ("digits-cnn, 4 bits", "digits-cnn", Quantization(signed=True, weight_bits=4)),
        ("resnet20, 4 bits", "resnet20", Quantization(signed=True, weight_bits=4)),
        ("digits-cnn, 12 bits", "digits-cnn", Quantization(signed=True, weight_bits=12)),
        ("digits-cnn, 16 values", "digits-cnn", WeightClustering(n_clusters=16), Quantization(signed=True)),
    )
}
HEAD = ["network", "MACs", "tables", "code", "RAM", "stack", "dsp", "a MAC", "plain", "a MAC"]
TOOLS = ("arm-none-eabi-gcc", "arm-none-eabi-size", "qemu-system-arm")
DSP, PLAIN = "emulated Cortex-M4", "emulated Cortex-M4, plain"


def network(name):
    """The network and a task; None and why not."""
    if ZOO[name].weights:
        return open_model(name)
    if name == "resnet20":
        folder = Path(os.environ.get("LILLIPUT_TEST_DATA", ""))
        weights = folder / "models" / "resnet20_cifar10.safetensors"
        if not weights.is_file():
            return None, "LILLIPUT_TEST_DATA has no models/resnet20_cifar10.safetensors"
        return open_model(name, weights=weights, data_root=folder)
    torch.manual_seed(0)
    x = torch.randn((64, *ZOO[name].shape), generator=torch.Generator().manual_seed(1))
    data = (x, torch.arange(64) % 10)
    return ZOO[name].model().eval(), Task.classification(train=data, validation=data)


def sections(folder):
    """{table, code, ram: bytes} of the network alone."""
    compiler = ["arm-none-eabi-gcc", *emulate.FLAGS.split(), "-c", "net.c", "-o", "net.o"]
    subprocess.run(compiler, cwd=folder, check=True)
    size = ["arm-none-eabi-size", "-A", "net.o"]
    text = subprocess.run(size, cwd=folder, check=True, capture_output=True, text=True).stdout
    found = dict.fromkeys(("rodata", "text", "bss", "data"), 0)
    for kind, count in re.findall(r"^\.(rodata|text|bss|data)\S*\s+(\d+)", text, re.MULTILINE):
        found[kind] += int(count)
    return {"tables": found["rodata"], "code": found["text"], "ram": found["bss"] + found["data"]}


def measure(name, model, task, passes, folder):
    net = Artifact.of(model, task.spec)
    for method in passes:
        apply_checked_(method, net, Context.of(task, model))
    try:
        return compiled(net, folder)
    except LilliputError as error:
        sys.exit(f"{name}: {error}")


def compiled(net, folder):
    """What the network takes on a Cortex-M4; an error where a golden vector differs."""
    program = lower(net)
    project.write(program, folder, interface=Interface.of(net.input))
    _, targets = replay(folder)
    wrong = trouble(folder, targets)
    if wrong:
        raise wrong
    by_target = {t.target: t for t in targets}
    return {
        "macs": int(count_macs(graph_of(net), net).total("macs").value),
        **sections(folder),
        "arena": Writer(program).arena,
        "stack": by_target[DSP].stack,
        "vectors": by_target[DSP].vectors,
        "instructions": by_target[DSP].instructions,
        "instructions_plain": by_target[PLAIN].instructions if PLAIN in by_target else None,
    }


def table(rows):
    lines = [HEAD]
    for name, row in rows.items():
        counts = [f"{row[key]:,}" for key in ("macs", "tables", "code", "ram", "stack")]
        for key in ("instructions", "instructions_plain"):
            n = row[key]
            counts += ["-", "-"] if n is None else [f"{n:,}", f"{n / row['macs']:.2f}"]
        lines.append([name, *counts])
    widths = [max(len(line[i]) for line in lines) for i in range(len(HEAD))]
    padded = [
        [c.rjust(w) if i else c.ljust(w) for i, (c, w) in enumerate(zip(li, widths, strict=True))] for li in lines
    ]
    return "\n".join("  ".join(cells) for cells in padded)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("part", nargs="?", default="")
    parser.add_argument("--keep", type=Path, help="write the C here, and no results")
    options = parser.parse_args()
    if missing := [name for name in TOOLS if not tool(name)]:
        sys.exit(f"not installed: {', '.join(missing)}")
    torch.set_num_threads(1)
    rows: dict[str, dict] = {}
    for name, (source, passes) in ROWS.items():
        if options.part not in name:
            continue
        model, task = network(source)
        if model is None:
            print(f"{name}: skipped: {task}", flush=True)
            continue
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch) if options.keep is None else options.keep / name
            folder.mkdir(parents=True, exist_ok=True)
            rows[name] = measure(name, model, task, passes, folder)
        print(f"{name}: done", flush=True)
    text = table(rows)
    if rows:
        print(f"\n{text}")
    if options.keep is None and len(rows) == len(ROWS):
        found = {"rows": rows, "environment": environment(), "flags": emulate.FLAGS}
        (RESULTS / "cortex_m4.json").write_text(json.dumps(found, indent=1) + "\n")
        (RESULTS / "cortex_m4.txt").write_text(text + "\n")


if __name__ == "__main__":
    main()
