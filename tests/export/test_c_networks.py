"""Networks of the zoo as C, optimized as users build them: samples and the ends of the range, no difference."""

import shutil
import subprocess

import numpy as np
import pytest
import torch

from coupled_networks import SHAPE, network
from lilliput.core.edits import Slice
from lilliput.core.method import Context, apply_checked_
from lilliput.export.c.writer import Writer, c_type
from lilliput.graph.integer import runnable
from lilliput.graph.interpreter import decode, quantize_input, run
from lilliput.graph.lower import lower
from lilliput.methods.pruning.channel import ChannelPruning
from lilliput.methods.quantization.post_training import Quantization
from lilliput.zoo.registry import ZOO, open_model
from lowered import calibrated_on, quantized, self_compressed

GCC = shutil.which("gcc")
pytestmark = pytest.mark.skipif(GCC is None, reason="gcc is not installed")
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


def check(program, x, folder):
    for name, text in Writer(program).files().items():
        (folder / name).write_text(text)
    (folder / "main.c").write_text(MAIN)
    command = [
        GCC or "gcc",
        "-std=c99",
        "-O2",
        "-Wall",
        "-Wextra",
        "-Werror",
        "net.c",
        "net_io.c",
        "main.c",
        "-o",
        "net",
    ]
    subprocess.run(command, cwd=folder, check=True)
    value, result = program.values[program.input], program.values[program.outputs[0]]
    ends = np.stack([np.full(value.shape, end) for end in (value.low, value.high)])
    codes = np.concatenate([quantize_input(program, x), ends])
    expected = run(program, codes)[0]
    kinds = [np.dtype(c_type(v).removesuffix("_t")) for v in (value, result)]
    done = subprocess.run([folder / "net"], input=codes.astype(kinds[0]).tobytes(), capture_output=True, check=True)
    assert np.array_equal(np.frombuffer(done.stdout, kinds[1]).reshape(expected.shape), expected)


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("lenet5", 100),
        ("lenet5-tanh", 50),
        ("lenet5-elu", 50),
        ("small-mnist", 100),
        ("seed-cnn", 100),
        ("resnet8", 20),
    ],
)
def test_a_network_of_the_zoo_computes_the_same_in_c(name, count, tmp_path):
    entry = ZOO[name]
    torch.manual_seed(0)
    model = entry.model().eval()
    generator = torch.Generator().manual_seed(1)
    x = torch.randn((count, *entry.shape), generator=generator)
    check(lower(quantized(model, calibrated_on(x), Quantization(signed=True))), x.numpy(), tmp_path)


def test_the_trained_digits_network_computes_the_same_in_c(tmp_path):
    model, task = open_model("digits-cnn")
    x = torch.cat([b[0] for b in task.data("test").batches(128)])[:100].numpy()
    check(lower(quantized(model, task, Quantization(signed=True))), x, tmp_path)


def test_the_published_resnet_20_computes_the_same_in_c(published_data, tmp_path):
    weights = published_data / "models" / "resnet20_cifar10.safetensors"
    model, task = open_model("resnet20", weights=weights, data_root=published_data)
    x = next(iter(task.data("test").batches(20)))[0]
    program = lower(quantized(model, calibrated_on(x), Quantization(signed=True)))
    check(program, x.numpy(), tmp_path)
    assert Writer(program).arena <= 51_000


@pytest.mark.parametrize("name", ["option A", "depthwise", "grouped", "series", "transposed"])
def test_a_network_without_half_of_its_channels_computes_the_same_in_c(name, tmp_path):
    x = torch.randn((24, *SHAPE), generator=torch.Generator().manual_seed(2))
    net = quantized(network(name), calibrated_on(x), ChannelPruning(amount=0.5))
    assert any(isinstance(edit, Slice) for edit in net.edits)
    check(lower(net), x.numpy(), tmp_path)


@pytest.mark.parametrize("name", ["residual", "option A", "grouped"])
def test_a_network_that_compressed_itself_computes_the_same_in_c(name, tmp_path):
    """Widths of 0 to 12 bits, biases on grids of their own, channels that have vanished through sums too."""
    model, task, net = self_compressed(name)
    apply_checked_(Quantization(), net, Context.of(task, model))
    program = lower(net)
    x = task.data("train").batch(torch.arange(48))[0]
    check(program, x.numpy(), tmp_path)
    codes = run(program, quantize_input(program, x.numpy()))[0]
    with torch.no_grad():
        assert np.array_equal(runnable(net)(x).numpy(), decode(program.values[program.outputs[0]], codes))
