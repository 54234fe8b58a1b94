"""Networks of the zoo as C: random samples and the ends of the range, no difference to the interpreter.

Small ones run under both sanitizers, the others optimized as users build them.
"""

import shutil
import subprocess

import numpy as np
import pytest

from lilliput.export.c.writer import Writer, c_type
from lilliput.graph.interpreter import quantize_input, run
from lilliput.graph.lower import lower
from zoo_networks import random_network, samples_of

GCC = shutil.which("gcc")
pytestmark = pytest.mark.skipif(GCC is None, reason="gcc is not installed")
WARNINGS = ["-std=c99", "-Wall", "-Wextra", "-Werror"]
SANITIZERS = ["-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover"]
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


def check(name, folder, *, count, flags):
    program = lower(random_network(name))
    for file, text in Writer(program).files().items():
        (folder / file).write_text(text)
    (folder / "main.c").write_text(MAIN)
    sources = ["net.c", "net_io.c", "main.c"]
    subprocess.run([GCC or "gcc", *WARNINGS, *flags, *sources, "-o", "net"], cwd=folder, check=True)
    value, result = program.values[program.input], program.values[program.outputs[0]]
    noise = np.random.default_rng(0).integers(value.low, value.high + 1, (count // 4, *value.shape))
    ends = np.stack([np.full(value.shape, end) for end in (value.low, value.high)])
    codes = np.concatenate([quantize_input(program, samples_of(name, count, seed=3).numpy()), noise, ends])
    expected = run(program, codes)[0]
    kinds = [np.dtype(c_type(v).removesuffix("_t")) for v in (value, result)]
    done = subprocess.run([folder / "net"], input=codes.astype(kinds[0]).tobytes(), capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()
    assert np.array_equal(np.frombuffer(done.stdout, kinds[1]).reshape(expected.shape), expected)


@pytest.mark.parametrize(
    "name", ["diabetes", "digits-masks", "japanese-vowels", "seed-cnn", "autoencoder-ad", "lenet5"]
)
def test_a_small_network_computes_the_same_under_sanitizers(name, tmp_path):
    check(name, tmp_path, count=100, flags=SANITIZERS)


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("ds-cnn", 40),
        ("resnet8-mlperf", 20),
        ("resnet16", 12),
        ("lenet5-seed", 40),
        ("mnist-cnn", 20),
        ("mobilenet-025", 4),
        ("resmlp-24", 8),
        ("resmlp-24-psa", 8),
    ],
)
def test_a_network_computes_the_same_in_c(name, count, tmp_path):
    check(name, tmp_path, count=count, flags=["-O2"])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet32", "resnet56", "vgg", "mojo-cifar"])
def test_a_large_network_computes_the_same_in_c(name, tmp_path):
    check(name, tmp_path, count=1, flags=["-O2"])
