"""Generated C, compiled with every warning as an error and both sanitizers, gives the interpreter's integers."""

import shutil
import subprocess

import numpy as np
import pytest
import torch
from torch import nn

from lilliput.core.errors import ExportError, UsageError
from lilliput.export.c import project
from lilliput.export.c.interface import Interface
from lilliput.export.c.writer import Writer, c_type
from lilliput.graph.interpreter import decode, quantize_input, run
from lilliput.graph.lower import lower
from lilliput.methods.clustering.weight_clustering import WeightClustering
from lilliput.methods.pruning.magnitude import MagnitudePruning
from lilliput.methods.quantization.post_training import Quantization
from lilliput.testing import TINY, tiny_task
from lilliput.zoo.registry import open_model
from lowered import Operations, quantized, quantized_tiny, task_of

GCC = shutil.which("gcc")
FLAGS = ["-std=c99", "-Wall", "-Wextra", "-Werror", "-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover"]
"""Without -g, which doubles the time of compiling: the sanitizers say the line of undefined behaviour all the same."""
MAIN = """
#include <stdio.h>
#include "net.h"
int main(int argc, char **argv) {
  static net_in_t in[NET_INPUTS];
  static net_out_t out[NET_OUTPUTS];
  static float real[NET_INPUTS], score[NET_OUTPUTS];
  (void)argv;
  while (argc > 1 ? fread(real, sizeof real, 1, stdin) : fread(in, sizeof in, 1, stdin)) {
    if (argc > 1) net_quantize_input(real, in);
    net_run(in, out);
    net_dequantize_output(out, score);
    if (argc > 1) fwrite(score, sizeof score, 1, stdout);
    else fwrite(out, sizeof out, 1, stdout);
  }
  return 0;
}
"""
pytestmark = pytest.mark.skipif(GCC is None, reason="gcc is not installed")


def compiled(program, folder):
    for name, text in Writer(program).files().items():
        (folder / name).write_text(text)
    (folder / "main.c").write_text(MAIN)
    files = ["net.c", "net_io.c", "main.c"]
    done = subprocess.run(
        [GCC or "gcc", *FLAGS, *files, "-o", "net"], cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return folder / "net"


def ran(binary, data, *options):
    done = subprocess.run([binary, *options], input=data, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout


def check(program, x, folder):
    binary = compiled(program, folder)
    value, result = program.values[program.input], program.values[program.outputs[0]]
    random = np.random.default_rng(0).integers(value.low, value.high + 1, (20, *value.shape))
    ends = np.stack([np.full(value.shape, end) for end in (value.low, value.high, value.zero_point)])
    codes = np.concatenate([quantize_input(program, x), random, ends])
    expected = run(program, codes)[0]
    kinds = [np.dtype(c_type(v).removesuffix("_t")) for v in (value, result)]
    found = np.frombuffer(ran(binary, codes.astype(kinds[0]).tobytes()), kinds[1]).reshape(expected.shape)
    assert np.array_equal(found, expected)
    real = x.astype(np.float32)
    scores = np.frombuffer(ran(binary, real.tobytes(), "real"), np.float32).reshape(len(x), *result.shape)
    assert np.array_equal(scores, decode(result, expected[: len(x)]))


def samples(task, count=40):
    return torch.cat([b[0] for b in task.data("validation").batches(64)])[:count].numpy()


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("name", [name for name in TINY if name != "shared"])
def test_c_computes_what_the_interpreter_computes(name, signed, tmp_path):
    task = tiny_task()
    check(lower(quantized_tiny(name, Quantization(signed=signed))), samples(task), tmp_path)


def test_every_operation_is_written(tmp_path):
    torch.manual_seed(0)
    task = task_of((2, 9, 8))
    check(lower(quantized(Operations().eval(), task)), samples(task), tmp_path)


def test_a_pruned_clustered_4_bit_network_goes_through(tmp_path):
    model, task = open_model("digits-cnn")
    passes = (MagnitudePruning(sparsity=0.5), WeightClustering(n_clusters=8), Quantization(weight_bits=4, signed=True))
    check(lower(quantized(model, task, *passes)), samples(task, 100), tmp_path)


def test_two_networks_link_into_one_program(tmp_path):
    program = lower(quantized_tiny("conv"))
    for name in ("one", "two"):
        for file, text in Writer(program, name).files(Interface(labels=("a", 'b"\n'))).items():
            (tmp_path / file).write_text(text)
    calls = "one_run(x, y); two_run(x, y);"
    (tmp_path / "main.c").write_text(
        f'#include "one.h"\n#include "two.h"\nint main(void) {{ one_in_t x[ONE_INPUTS] = {{0}}; '
        f"one_out_t y[ONE_OUTPUTS]; {calls} return one_label_count - 2; }}\n"
    )
    files = ["one.c", "one_io.c", "two.c", "two_io.c", "main.c"]
    subprocess.run([GCC or "gcc", *FLAGS, *files, "-o", "net"], cwd=tmp_path, check=True)
    subprocess.run([tmp_path / "net"], check=True)


def test_the_core_includes_stdint_only(tmp_path):
    text = Writer(lower(quantized_tiny("residual"))).files()["net.c"]
    assert [line for line in text.splitlines() if line.startswith("#include")] == ['#include "net.h"']
    assert "float" not in text
    assert "double" not in text


def test_names_and_shapes_that_c_cannot_have_are_refused():
    program = lower(quantized_tiny("conv"))
    with pytest.raises(UsageError, match="export to C: the name '2net'; use letters"):
        Writer(program, "2net")


class Around(nn.Module):
    """Averages over the dimensions on both sides of another one."""

    def __init__(self):
        super().__init__()
        self.conv, self.head = nn.Conv2d(1, 4, 3), nn.Linear(2, 3)

    def forward(self, x):
        return self.head(self.conv(x).mean((1, 3)))


def test_what_c_cannot_do_yet_is_refused():
    program = lower(quantized(Around().eval(), tiny_task()))
    with pytest.raises(ExportError, match=r"export 'mean' to C: a sum over dimensions \(0, 2\); reduce neighbouring"):
        Writer(program)


def test_the_folder_builds_by_itself_and_its_golden_vectors_agree(tmp_path):
    model, task = open_model("digits-cnn")
    program = lower(quantized(model, task, Quantization(signed=True)))
    paths = project.write(program, tmp_path, interface=Interface(labels=tuple(map(str, range(10)))))
    assert {p.name for p in paths} >= {"net.h", "net.c", "net_io.c", "net_golden.h", "net_test.c", "Makefile"}
    done = subprocess.run(["make", "test"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "11 vectors, 0 outputs differ" in done.stdout
    text = (tmp_path / "net.c").read_text()
    (tmp_path / "net.c").write_text(text.replace("s0 = net_bias(bias, wide, c)", "s0 = 0"))
    done = subprocess.run(["make", "test"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode != 0  # the test sees a network that is not the same
