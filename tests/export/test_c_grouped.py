"""Products of sums in C: the interpreter's integers under sanitizers and on a Cortex-M4; tables, sizes, multiplies."""

import dataclasses
import re
import shutil

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_c_plan import needs_gcc, sizes
from test_c_writer import GCC, check, samples
from torch import nn

from lilliput.export.c import project
from lilliput.export.c.grouped import BLOCK, LARGEST_PAIRED, pack
from lilliput.export.c.kernel_sizes import KERNELS
from lilliput.export.c.plan import plan
from lilliput.export.c.replay import replay
from lilliput.export.c.writer import Writer
from lilliput.graph.interpreter import run
from lilliput.graph.lower import lower
from lilliput.methods.clustering.weight_clustering import WeightClustering
from lilliput.methods.pruning.magnitude import MagnitudePruning
from lilliput.methods.quantization.post_training import Quantization
from lilliput.testing import TINY, tiny_model, tiny_task
from lilliput.zoo.registry import ZOO, open_model
from lowered import quantized, task_of

needs_cc = pytest.mark.skipif(GCC is None, reason="gcc is not installed")
needs_board = pytest.mark.skipif(
    any(shutil.which(tool) is None for tool in ("arm-none-eabi-gcc", "qemu-system-arm")),
    reason="needs arm-none-eabi-gcc and qemu-system-arm: apt install them",
)


def summed(model, task, *passes):
    return lower(quantized(model, task, *passes), product_of_sums=True)


def forms(program):
    writer = Writer(program)
    return [writer.rows[i].form for i, o in enumerate(program) if o.kind == "grouped_sum" and i in writer.rows]


class Layers(nn.Module):
    """Odd and even counts of pixels, one pixel, several rows of a linear layer, groups, strides, dilation, padding."""

    def __init__(self):
        super().__init__()
        self.a = nn.Conv2d(4, 8, 3, padding=(1, 2), groups=2)  # 35 pixels
        self.b = nn.Conv2d(8, 8, 3, padding="same", groups=8, dilation=(1, 2))
        self.c = nn.Conv2d(8, 40, (3, 2), stride=2, bias=False)
        self.rows = nn.Linear(7, 5)
        self.one = nn.Conv2d(40, 6, 2)
        self.wide, self.head = nn.Linear(6, 300), nn.Linear(300, 4)

    def forward(self, x):
        x = torch.relu(self.rows(torch.tanh(self.b(torch.relu(self.a(x))))))
        x = torch.relu(self.one(torch.relu(self.c(x))))
        return self.head(torch.relu(self.wide(x.flatten(1))))


def layers():
    torch.manual_seed(0)
    return Layers().eval(), task_of((4, 5, 5), classes=4)


CLUSTERS, PRUNED = WeightClustering(n_clusters=5), MagnitudePruning(sparsity=0.7)


@needs_cc
@pytest.mark.parametrize(
    ("passes", "found"),
    [
        ((CLUSTERS, Quantization()), {"paired", "grouped8"}),
        ((CLUSTERS, Quantization(activation_bits=16)), {"grouped8"}),
        ((CLUSTERS, Quantization(activation_bits=16, weight_bits=10)), {"grouped8"}),
        ((PRUNED, WeightClustering(n_clusters=60), Quantization(signed=True)), {"paired", "grouped8"}),
    ],
)
def test_layers_compute_what_the_interpreter_computes(passes, found, tmp_path):
    model, task = layers()
    program = summed(model, task, *passes)
    assert set(forms(program)) == found
    check(program, samples(task), tmp_path)


@needs_cc
@pytest.mark.parametrize("name", [name for name in TINY if name != "shared"])
def test_tiny_networks_compute_what_the_interpreter_computes(name, tmp_path):
    task = tiny_task()
    check(summed(tiny_model(name), task, WeightClustering(n_clusters=3, per="channel")), samples(task), tmp_path)


@needs_cc
@pytest.mark.parametrize(("rows", "bits"), [(1, 8), (3, 12)])
def test_long_rows_of_many_values_take_two_bytes_a_member(rows, bits, tmp_path):
    """800 inputs in groups of about one: a count for each block of 255 would take more than wider members do."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(800, 5), nn.Flatten(), nn.Linear(5 * rows, 3)).eval()
    task, many = task_of((rows, 800)), WeightClustering(n_clusters=700, per="channel")
    program = summed(model, task, many, Quantization(weight_bits=11, activation_bits=bits))
    assert forms(program)[0] == "grouped16"
    check(program, samples(task), tmp_path)


@needs_cc
def test_inputs_of_both_ends_do_not_overflow_the_half_words(tmp_path):
    """128 inputs of 255 in one group: the most that a block of a pair adds."""
    torch.manual_seed(0)
    model, task = nn.Sequential(nn.Conv1d(130, 2, 1)).eval(), task_of((130, 5))
    nn.init.constant_(model[0].get_parameter("weight"), 0.5)
    program = summed(nn.Sequential(*model, nn.ReLU(), nn.Flatten(), nn.Linear(10, 3)).eval(), task, CLUSTERS)
    ends = program.values[program.input]
    for low, high, zero in ((0, 255, 0), (-128, 127, -128), (-128, 127, 127)):
        value = dataclasses.replace(ends, low=low, high=high, zero_point=zero)
        check(dataclasses.replace(program, values={**program.values, ends.name: value}), samples(task), tmp_path)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 10_000),
    st.integers(1, 700),
    st.integers(1, 4),
    st.sampled_from([1, 2]),
    st.sampled_from([200, 9999]),
)
def test_tables_hold_the_weights(seed, length, outputs, pixels, reach):
    random = np.random.default_rng(seed)
    values = random.integers(-300, 300, random.integers(1, 40))
    rows = random.choice([0, *values.tolist()], (outputs, length))
    packed = pack(rows, pixels, -reach, reach)
    assert packed is not None
    assert (packed.form == "paired") == (pixels == 2 and reach <= LARGEST_PAIRED)
    weights, members = iter(packed.weights.tolist()), iter(packed.members.tolist())
    found = np.zeros_like(rows)
    multiplies = 0
    for row in found:
        for _ in range(next(weights)):
            weight = next(weights)
            multiplies += 1
            for start in range(0, length, BLOCK[packed.form]):
                for _ in range(next(members)):
                    row[start + next(members)] = weight
    assert next(weights, None) is None
    assert next(members, 0) == 0
    assert np.array_equal(found, rows)
    assert multiplies == sum(len({w for w in row if w}) for row in rows.tolist())
    assert max(packed.members, default=0) <= (255 if packed.form != "grouped16" else 65535)


@needs_cc
def test_layers_of_zeros_give_their_biases(tmp_path):
    torch.manual_seed(0)
    model, task = (
        nn.Sequential(nn.Conv2d(2, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(27, 3)).eval(),
        task_of((2, 4, 4)),
    )
    for i in (0, 3):
        nn.init.zeros_(model[i].get_parameter("weight"))
    program = summed(model, task, CLUSTERS)
    assert not any(program.tensors[o.weight].any() for o in program if o.weight)
    check(program, samples(task), tmp_path)


def test_numbers_beyond_16_bits_have_no_groups():
    rows = np.array([[1, 2, 3]])
    assert pack(rows, 1, -(1 << 15), (1 << 15) - 1) is not None
    assert pack(rows, 1, 0, 1 << 15) is None
    assert pack(rows * (1 << 14), 1, 0, 255) is None
    assert pack(np.ones((1, 65536), np.int64), 1, 0, 255) is None


@needs_cc
def test_numbers_beyond_16_bits_run_dense_with_the_same_integers(tmp_path):
    task = task_of((3, 5, 5))
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(36, 3)).eval()
    program = summed(model, task, CLUSTERS, Quantization(activation_bits=16, signed=False))
    assert not forms(program)
    check(program, samples(task), tmp_path)


def test_kernels_multiply_once_for_each_group():
    model, task = layers()
    text = Writer(summed(model, task, CLUSTERS)).files()["net.c"]
    kernels = re.findall(r"void net_products_\w+\(.*?\n}\n", text, re.DOTALL)
    assert kernels
    for kernel in kernels:
        multiplies = [
            line.strip() for line in kernel.splitlines() if re.search(r"\w \* ", line) and "const " not in line
        ]
        assert set(multiplies) <= {"s0 += x0 * *w;", "s1 += x1 * *w;"}
        assert "s0 += x0 * *w;" in multiplies


@needs_gcc
@pytest.mark.parametrize("name", ["digits-cnn", "lenet5", "seed-cnn"])
@pytest.mark.parametrize("activation_bits", [8, 16])
def test_planned_flash_is_within_two_percent_and_planned_arena_exact(name, activation_bits, tmp_path):
    entry = ZOO[name]
    torch.manual_seed(0)
    x, y = torch.randn((32, *entry.shape)), torch.arange(32) % 3
    task = type(tiny_task()).classification(train=(x, y), validation=(x, y))
    quantization = Quantization(signed=True, activation_bits=activation_bits)
    program = summed(entry.model().eval(), task, WeightClustering(n_clusters=6), quantization)
    planned, (flash, ram) = plan(program), sizes(program, tmp_path)
    assert planned.flash == pytest.approx(flash, rel=0.02)
    assert planned.arena == ram


def test_every_kernel_has_a_size():
    model, task = layers()
    for passes in ((CLUSTERS,), (CLUSTERS, Quantization(activation_bits=16, weight_bits=10))):
        assert set(Writer(summed(model, task, *passes)).keys.values()) <= set(KERNELS)


@needs_board
def test_golden_vectors_are_equal_on_every_target(tmp_path):
    model, task = layers()
    project.write(summed(model, task, CLUSTERS, Quantization(signed=True)), tmp_path)
    golden, targets = replay(tmp_path)
    assert {t.status for t in targets} == {"equal"}
    assert "emulated Cortex-M4" in {t.target for t in targets}
    assert len(golden.inputs) == 11


@needs_board
def test_digits_run_on_an_emulated_cortex_m4_within_the_planned_stack(tmp_path):
    model, task = open_model("digits-cnn")
    program = summed(model, task, WeightClustering(n_clusters=8), Quantization(signed=True))
    project.write(program, tmp_path)
    board = next(t for t in replay(tmp_path)[1] if t.target == "emulated Cortex-M4")
    assert board.status == "equal"
    assert board.instructions is not None
    assert 461_000 < board.instructions < 6 * 461_000  # 461 k additions
    assert board.stack is not None
    assert plan(program).stack <= board.stack <= plan(program).stack + 128  # that of the test's own main


def test_golden_inputs_give_equal_outputs_dense_and_summed():
    model, task = layers()
    net = quantized(model, task, CLUSTERS)
    dense, sums = lower(net), lower(net, product_of_sums=True)
    value = dense.values[dense.input]
    x = np.random.default_rng(0).integers(value.low, value.high + 1, (20, *value.shape))
    assert np.array_equal(run(dense, x)[0], run(sums, x, fast=False)[0])
