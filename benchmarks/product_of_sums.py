"""Product of sums on LeNet-5 after SIC: operations, time in torch, instructions on emulated Cortex-M cores.

    LILLIPUT_TEST_DATA=folder python benchmarks/product_of_sums.py [part of a row's name]

The published lenet5-tanh on MNIST, exact mode, for the first 5,000 samples that it gets right and for all. Multiplies
and additions are those of one sample, for convolutions and linear layers (`layers`), and with the divisions of its
pools (`all`). Torch: CPU time of one thread, medians, dense and grouped in turns. int8: the generated C, dense and with
`product_of_sums`, executed instructions for one sample, with DSP instructions and without; golden vectors must be
equal. Float: two layers in float32 C on cores without floating point, where each product and each sum is a call;
compiled for Cortex-M3 and Cortex-M0 and run on an emulated M3. Instructions are executed ones, not cycles. Needs
arm-none-eabi-gcc and qemu-system-arm. Writes results/product_of_sums.json and .txt.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

os.environ.update(dict.fromkeys(("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OMP_NUM_THREADS"), "1"))  # before numpy

import numpy as np
import torch
from published_resnet20 import data_folder
from sic import opened

import lilliput as ll
from lilliput.core.method import Context, apply_checked_
from lilliput.export.c import emulate, project
from lilliput.export.c.plan import plan
from lilliput.export.c.replay import replay
from lilliput.graph.lower import lower
from lilliput.graph.trace import graph_of
from lilliput.measure.macs import count_macs, of_layers
from lilliput.report.result import environment

RESULTS = Path(__file__).parent / "results"
BOTH = "train+validation"
ROWS = {
    "lenet5-tanh, 5,000": ll.Sic(mode="exact", acceptance_from=BOTH, eval_max=5000),
    "lenet5-tanh, all": ll.Sic(mode="exact", acceptance_from=BOTH),
}
COUNTED = ("multiplies", "product_of_sums_multiplies", "additions", "effective_additions")
BATCHES = (1, 64)
FLOAT_LAYERS = ("conv2", "fc1")
CORES = ("cortex-m3", "cortex-m0")
MACHINE = "-M mps2-an385 -display none -monitor none -semihosting-config enable=on,target=native"

FLOAT = """
#include <stdint.h>
void m4_write(const char *text);
int main(void);
#define SYSTICK ((volatile uint32_t *)0xE000E010)
static const float x[COUNT] = {INPUTS}, weight[ROWS * COUNT] = {WEIGHTS}, value[] = {VALUES};
static const uint16_t member[] = {MEMBERS};
static float dense_y[ROWS], grouped_y[ROWS];

static void __attribute__((noipa)) dense(const float *x, float *y) {
  const float *w = weight;
  for (int o = 0; o < ROWS; o++) {
    float sum = 0;
    for (int i = 0; i < COUNT; i++) sum += *w++ * x[i];
    y[o] = sum;
  }
}

static void __attribute__((noipa)) grouped(const float *x, float *y) {
  const uint16_t *m = member;
  const float *v = value;
  for (int o = 0; o < ROWS; o++) {
    float sum = 0;
    for (int groups = *m++; groups > 0; groups--) {
      int n = *m++ - 1;
      float part = x[*m++];
      for (; n > 0; n--) part += x[*m++];
      sum += part * *v++;
    }
    y[o] = sum;
  }
}

static void number(const char *name, uint32_t n) {
  char text[12];
  int at = 11;
  text[at] = 0;
  do {
    text[--at] = (char)('0' + n % 10);
    n /= 10;
  } while (n);
  m4_write(name);
  m4_write(text + at);
  m4_write("\\n");
}

static uint32_t counted(void (*run)(const float *, float *), float *y) {
  SYSTICK[1] = 0xFFFFFF;
  SYSTICK[2] = 0;
  SYSTICK[0] = 5;
  const uint32_t before = SYSTICK[2];
  run(x, y);
  const uint32_t ticks = (before - SYSTICK[2]) & 0xFFFFFF;
  SYSTICK[0] = 0;
  return 40 * ticks;
}

int main(void) {
  number("dense ", counted(dense, dense_y));
  number("grouped ", counted(grouped, grouped_y));
  int wrong = 0;
  for (int o = 0; o < ROWS; o++) {
    const float d = dense_y[o] - grouped_y[o];
    wrong += d > 1e-4f || d < -1e-4f;
  }
  number("differ ", (uint32_t)wrong);
  return wrong;
}
"""


def operations(net):
    """{layers, all: {column: number}}."""
    graph = graph_of(net)
    table = count_macs(graph, net)
    return {
        name: {column: int(part.total(column).value) for column in COUNTED}
        for name, part in (("layers", of_layers(table, graph)), ("all", table))
    }


def torch_times(net, x):
    """{batch: microseconds of dense and grouped, and their ratio}."""
    grouped, found = ll.product_of_sums(net), {}
    for batch in BATCHES:
        part = x[:batch]
        times = {"dense": [], "grouped": []}
        with torch.no_grad():
            error = float((grouped(part) - net.module(part)).abs().max())
            for _ in range(15):
                for name, module in (("dense", net.module), ("grouped", grouped)):
                    started = time.process_time()
                    module(part)
                    times[name].append(time.process_time() - started)
        dense, slow = (1e6 * median(times[name]) for name in ("dense", "grouped"))
        found[batch] = {
            "dense us": round(dense),
            "grouped us": round(slow),
            "times slower": round(slow / dense, 1),
            "largest difference": error,
        }
    return found


def integer_instructions(net):
    """{dense, grouped: {flash, instructions with DSP and without}} of the 8-bit network."""
    found = {}
    for name, program in (("dense", lower(net)), ("grouped", lower(net, product_of_sums=True))):
        with tempfile.TemporaryDirectory() as folder:
            project.write(program, Path(folder))
            _, targets = replay(Path(folder))
        if wrong := [f"{t.target}: {t.status} {t.reason}" for t in targets if t.status != "equal"]:
            sys.exit(f"{name}: {'; '.join(wrong)}")
        counts = {t.target: t.instructions for t in targets}
        planned = plan(program)
        found[name] = {
            "planned flash": planned.flash,
            "planned ram": planned.ram,
            "dsp": counts["emulated Cortex-M4"],
            "plain": counts.get("emulated Cortex-M4, plain"),
        }
    return found


def listed(values):
    return ",".join(f"{v.hex()}f" if isinstance(v, float) else str(v) for v in values)


def float_instructions(rows, core):
    """{dense, grouped: instructions} of rows [n, k] times one vector, in software floating point."""
    members, values = [], []
    for row in rows:
        distinct = np.unique(row[row != 0])
        members.append(len(distinct))
        for value in distinct:
            inputs = np.flatnonzero(row == value)
            members += [len(inputs), *inputs.tolist()]
            values.append(float(value))
    x = np.random.default_rng(0).uniform(-1, 1, rows.shape[1]).astype(np.float32)
    marks = {"INPUTS": listed(x.tolist()), "WEIGHTS": listed(rows.reshape(-1).tolist())}
    marks |= {"VALUES": listed(values), "MEMBERS": listed(members)}
    text = re.sub("INPUTS|WEIGHTS|VALUES|MEMBERS", lambda m: marks[m[0]], FLOAT)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for path, part in emulate.files("net").items():
            (folder / path).parent.mkdir(exist_ok=True)
            (folder / path).write_text(part)
        (folder / "main.c").write_text(text)
        flags = f"-mcpu={core} -mfloat-abi=soft -mthumb -std=gnu99 -O2 -Wall -Wextra -Werror -ffreestanding"
        sizes = f"-DROWS={rows.shape[0]} -DCOUNT={rows.shape[1]}"
        linked = f"{emulate.LINKED} -T emulate/link.ld -lgcc -o net.elf"
        command = f"arm-none-eabi-gcc {flags} {sizes} main.c emulate/start.c {linked}"
        subprocess.run(command.split(), cwd=folder, check=True)
        run = f"qemu-system-arm {MACHINE} -serial null -icount shift=0 -kernel net.elf"
        done = subprocess.run(run.split(), cwd=folder, capture_output=True, text=True, check=False)
    said = {key: int(n) for key, n in re.findall(r"^(\w+) (\d+)$", done.stdout + done.stderr, re.MULTILINE)}
    if done.returncode != 0 or said.get("differ") != 0:
        sys.exit(f"float on {core}: {done.stdout}{done.stderr}")
    return {
        "dense": said["dense"],
        "grouped": said["grouped"],
        "dense / grouped": round(said["dense"] / said["grouped"], 2),
    }


def measure(method, folder):
    model, task = opened("lenet5-tanh", folder)
    net, context = ll.Artifact.of(model, task.spec), Context.of(task, model)
    apply_checked_(method, net, context)
    found = {
        "test": round(task.score.value(context.evaluator(net.module, "test").rows), 2),
        "operations": operations(net),
        "torch": torch_times(net, task.data("test").batch(torch.arange(max(BATCHES)))[0]),
        "float without FPU": {
            f"{layer}, {core}": float_instructions(net.parameter(f"{layer}.weight").detach().flatten(1).numpy(), core)
            for layer in FLOAT_LAYERS
            for core in CORES
        },
    }
    apply_checked_(ll.Quantization(signed=True), net, context)
    found["int8 operations"] = operations(net)
    found["int8 instructions"] = integer_instructions(net)
    return found


def text_of(rows):
    lines = []
    for name, row in rows.items():
        lines.append(f"{name}: test {row['test']}%")
        for kind in ("operations", "int8 operations"):
            for part, counts in row[kind].items():
                dense, grouped, additions, ours = (counts[c] for c in COUNTED)
                lines.append(
                    f"  {kind}, {part}: multiplies {dense:,} -> {grouped:,} (1/{dense / grouped:.1f}), "
                    f"additions {additions:,} -> {ours:,}"
                )
        for batch, t in row["torch"].items():
            lines.append(
                f"  torch, batch {batch}: dense {t['dense us']:,} us, grouped {t['grouped us']:,} us: "
                f"{t['times slower']} times slower; largest difference {t['largest difference']:.1e}"
            )
        counts = row["int8 instructions"]
        for kind in ("dsp", "plain"):
            dense, grouped = counts["dense"][kind], counts["grouped"][kind]
            lines.append(
                f"  int8 on a Cortex-M4, {kind}: dense {dense:,}, grouped {grouped:,} instructions: "
                f"{grouped / dense:.2f} times as many"
            )
        flash = [counts[n]["planned flash"] for n in ("dense", "grouped")]
        lines.append(f"  int8 flash: dense {flash[0]:,}, grouped {flash[1]:,} bytes")
        for kind, counts in row["float without FPU"].items():
            lines.append(
                f"  float without FPU, {kind}: dense {counts['dense']:,}, grouped {counts['grouped']:,} instructions: "
                f"{counts['dense / grouped']} times fewer"
            )
    return "\n".join(lines)


def main():
    torch.set_num_threads(1)
    folder, wanted = data_folder(), sys.argv[1] if len(sys.argv) > 1 else ""
    path = RESULTS / "product_of_sums.json"
    found = json.loads(path.read_text()) if wanted and path.is_file() else {"rows": {}}
    for name, method in ROWS.items():
        if wanted in name:
            found["rows"][name] = measure(method, folder)
    found["environment"] = environment()
    path.write_text(json.dumps(found, indent=1) + "\n")
    text = text_of(found["rows"])
    print(text)
    (RESULTS / "product_of_sums.txt").write_text(text + "\n")


if __name__ == "__main__":
    main()
