"""Code and stack of each kernel of generated C on a Cortex-M4, as `lilliput.export.c.plan` uses them.

    python benchmarks/kernel_sizes.py            # writes src/lilliput/export/c/kernel_sizes.py

Needs arm-none-eabi-gcc. The constants of `RUN` (the function that calls the kernels) are a least-squares fit over the
tiny test networks and the networks of the zoo.
"""

import re
import subprocess
import tempfile
from pathlib import Path

import numpy as np
import torch

from lilliput.core.artifact import Artifact
from lilliput.core.method import Context, apply_checked_
from lilliput.core.program import Program
from lilliput.core.task import Task
from lilliput.export.c.grouped import BLOCK
from lilliput.export.c.kernels import KERNELS
from lilliput.export.c.products import STEP
from lilliput.export.c.writer import Writer
from lilliput.graph.lower import lower
from lilliput.methods.normalization.batchnorm import FoldBatchNorm
from lilliput.methods.quantization.post_training import Quantization
from lilliput.testing import TINY, tiny_model, tiny_task
from lilliput.zoo.registry import ZOO

GCC = "arm-none-eabi-gcc -mcpu=cortex-m4 -mthumb -std=c99 -O2 -ffunction-sections -fstack-usage -c net.c -o net.o"
OUT = Path(__file__).parent.parent / "src" / "lilliput" / "export" / "c" / "kernel_sizes.py"
NETWORKS = ("digits-cnn", "lenet5", "resnet8", "lenet5-tanh", "digits-masks", "japanese-vowels", "seed-cnn", "diabetes")


def functions(text: dict[str, str]) -> dict[str, tuple[int, int]]:
    """{function: (bytes of code, bytes of stack)}."""
    with tempfile.TemporaryDirectory() as folder:
        for name, part in text.items():
            (Path(folder) / name).write_text(part)
        subprocess.run(GCC.split(), cwd=folder, check=True)
        listing = subprocess.run(
            ["arm-none-eabi-nm", "-S", "net.o"], cwd=folder, capture_output=True, text=True, check=True
        ).stdout
        usage = (Path(folder) / "net.su").read_text()
    stack = {m[1]: int(m[2]) for m in re.finditer(r":(\w+)\t(\d+)\t", usage)}
    parts = [line.split() for line in listing.splitlines()]
    return {p[3]: (int(p[1], 16), stack[p[3]]) for p in parts if len(p) == 4 and p[2] in "tT"}


def program_of(model: torch.nn.Module, task: Task, bits: int) -> Program:
    net = Artifact.of(model, task.spec)
    for method in (FoldBatchNorm(), Quantization(signed=True, weight_bits=bits)):
        apply_checked_(method, net, Context.of(task, model))
    return lower(net)


def every_kernel(program: Program) -> dict[str, tuple[int, int]]:
    writer = Writer(program)
    for kind in KERNELS:
        for rescaled in (True, False) if "@FINISH" in KERNELS[kind] else (True,):
            writer._kernel(kind, "int8_t", "int8_t" if rescaled else "int32_t", rescaled=rescaled)
    for form in (*STEP, *BLOCK):
        word = "int8_t" if form in BLOCK else ""
        for kind in ("conv", "linear"):
            for pixels in (2,) if form == "paired" else (1, 2):
                for rescaled in (True, False):
                    y = "int8_t" if rescaled else "int32_t"
                    writer._products(kind, "int8_t", y, form, pixels, rescaled=rescaled, word=word)
    text = dict(writer.files())
    text["net.c"] = text["net.c"].replace("static __attribute__((noipa))", "__attribute__((noipa, used)) static")
    found = functions(text)
    return {key: found[function] for function, key in writer.keys.items()}


def fitted() -> tuple[int, int, int]:
    """(entry, for each call, for each argument on the stack) of the function that calls the kernels."""
    rows: list[tuple[int, int, int]] = []
    wanted: list[int] = []
    for bits in (8, 4):
        programs = [program_of(tiny_model(name), tiny_task(), bits) for name in TINY]
        for name in NETWORKS:
            torch.manual_seed(0)
            x, y = torch.randn((32, *ZOO[name].shape)), torch.arange(32) % 3
            programs.append(
                program_of(ZOO[name].model().eval(), Task.classification(train=(x, y), validation=(x, y)), bits)
            )
        for program in programs:
            writer = Writer(program)
            calls = [call.count(",") + 1 for call in writer.calls if "/*" not in call]
            rows.append((1, len(calls), sum(max(0, n - 4) for n in calls)))
            wanted.append(functions(dict(writer.files()))["net_run"][0])
    best = np.linalg.lstsq(np.array(rows, float), np.array(wanted, float), rcond=None)[0]
    print("largest error of net_run, bytes:", np.abs(np.array(rows) @ best - wanted).max())
    entry, each, word = (round(float(v)) for v in best)
    return entry, each, word


def main() -> None:
    sizes = every_kernel(program_of(tiny_model("conv"), tiny_task(), 8))
    lines = [f'    "{key}": {sizes[key]},\n' for key in sorted(sizes)]
    OUT.write_text(
        '"""(bytes of code, bytes of stack) of each kernel on a Cortex-M4, by `benchmarks/kernel_sizes.py`."""\n\n'
        f"RUN = {fitted()}\n"
        '"""Of the function that calls the kernels: at its entry, for each call, for each argument on the stack."""\n\n'
        "KERNELS: dict[str, tuple[int, int]] = {\n" + "".join(lines) + "}\n"
    )
    print(f"{len(sizes)} kernels -> {OUT}")


if __name__ == "__main__":
    main()
