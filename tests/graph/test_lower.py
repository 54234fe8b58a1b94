"""The program computes what `IntegerNet` computes, bit for bit: two implementations, one in torch, one in numpy."""

import numpy as np
import pytest
import torch
from torch import nn

from lilliput.core.errors import ExportError
from lilliput.graph import interpreter
from lilliput.graph.integer import IntegerNet, Quantized, Sums, fusions
from lilliput.graph.interpreter import decode, quantize_input, run
from lilliput.graph.lower import lower
from lilliput.methods.clustering.weight_clustering import WeightClustering
from lilliput.methods.pruning.magnitude import MagnitudePruning
from lilliput.methods.quantization.post_training import Quantization
from lilliput.testing import TINY, tiny_task
from lowered import Operations, quantized, quantized_tiny, task_of


def check(net, x):
    """Every value, plain and fast; and the decoded outputs."""
    program, reference = lower(net), IntegerNet(net)
    expected: dict[str, torch.Tensor] = {}

    def keep(node, value):
        if isinstance(value, Quantized):
            expected[node.name] = value.q
        elif isinstance(value, Sums):
            expected[node.name] = value.acc

    logits = reference.values((x,), keep)
    expected |= {name: expected[clip] for name, clip in fusions(reference.graph).items() if clip in expected}
    codes = quantize_input(program, x.numpy())
    for fast in (False, True):
        seen: dict[str, np.ndarray] = {}
        outputs = run(program, codes, fast=fast, visit=lambda o, q, seen=seen: seen.__setitem__(o.output, q))
        compared = 0
        for name, q in seen.items():
            value = program.values[name]
            assert value.low <= q.min() <= q.max() <= value.high, name
            assert q.shape[1:] == value.shape, name
            if name in expected:
                assert np.array_equal(q, expected[name].numpy()), name
                compared += 1
        assert compared >= len(seen) - len(program.outputs)
        for o in program:
            if o.sums is not None and not o.rescale:
                assert o.sums[0] <= seen[o.output].min() <= seen[o.output].max() <= o.sums[1]
        if not program.tail:
            assert np.array_equal(decode(program.values[program.outputs[0]], outputs[0]), logits.numpy())
    return program


@pytest.mark.parametrize("name", TINY)
@pytest.mark.parametrize("signed", [False, True])
def test_program_computes_what_the_integer_net_computes(name, signed):
    task = tiny_task()
    net = quantized_tiny(name, Quantization(signed=signed))
    check(net, torch.cat([b[0] for b in task.data("validation").batches(64)]))


@pytest.mark.parametrize("bits", [2, 3, 4, 6])
def test_narrow_weights_pruned_and_clustered_need_no_special_case(bits):
    task = tiny_task()
    passes = (MagnitudePruning(sparsity=0.5), WeightClustering(n_clusters=6), Quantization(weight_bits=bits))
    check(quantized_tiny("residual", *passes), torch.cat([b[0] for b in task.data("validation").batches(64)]))


def test_every_operation_with_an_integer_rule_is_lowered():
    torch.manual_seed(0)
    task = task_of((2, 9, 8))
    program = check(
        quantized(Operations().eval(), task), torch.cat([b[0] for b in task.data("validation").batches(64)])
    )
    kinds = {o.kind for o in program}
    assert kinds >= {
        "conv", "conv_transposed", "linear", "add", "mul", "concat", "slice", "pad", "sum_pool", "max_pool", "sum",
        "upsample", "transpose", "table",
    }  # fmt: skip


@pytest.mark.parametrize("groups", [1, 2])
def test_one_dimensional_and_ceil_mode(groups):
    torch.manual_seed(1)
    model = nn.Sequential(
        nn.Conv1d(2, 4, 4, stride=2, padding=1, groups=groups), nn.ReLU(), nn.MaxPool1d(3, 2, ceil_mode=True),
        nn.ConvTranspose1d(4, 2, 3, stride=3, dilation=2, groups=groups), nn.Flatten(), nn.Linear(2 * 17, 3),
    ).eval()  # fmt: skip
    task = task_of((2, 20))
    size = model[:4](torch.zeros(1, 2, 20)).shape[-1]
    model[5] = nn.Linear(2 * size, 3)
    check(quantized(model, task), torch.cat([b[0] for b in task.data("validation").batches(64)]))


def test_softmax_at_the_end_is_named_and_left_out():
    model = nn.Sequential(nn.Linear(4, 3), nn.Softmax(1)).eval()
    task = task_of((4,))
    program = lower(quantized(model, task))
    assert program.tail == "softmax"
    assert program.values[program.outputs[0]].bits == 32


def test_what_stays_in_float_is_refused_with_node_line_and_remedy():
    class Norm(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.norm, self.b = nn.Linear(4, 4), nn.LayerNorm(4), nn.Linear(4, 3)

        def forward(self, x):
            return self.b(self.norm(self.a(x)))

    with pytest.raises(
        ExportError, match=r"lower 'norm' to integers: .*layer_norm.*\(test_lower.py:\d+\); use BatchNorm, which folds"
    ):
        lower(quantized(Norm().eval(), task_of((4,))))


def test_one_bias_for_layers_with_different_weights_is_refused():
    first, second = nn.Linear(16, 12), nn.Linear(12, 12)
    second.bias = first.bias
    model = nn.Sequential(nn.Flatten(), first, nn.ReLU(), second)
    with pytest.raises(
        ExportError, match=r"its weight or bias has no integer grid.*; give each layer a bias of its own"
    ):
        lower(quantized(model.eval(), tiny_task()))


def test_float_activations_are_refused():
    with pytest.raises(ExportError, match="activations have no grids; quantize with activation_bits: 8"):
        lower(quantized_tiny("linear", Quantization(activation_bits=0)))


def test_sums_are_proved_and_reached():
    """The bounds are not only safe: an input that reaches them exists for the first layer."""
    net = quantized_tiny("linear")
    program = lower(net)
    layer = next(o for o in program if o.kind == "linear")
    value = program.values[layer.inputs[0]]
    assert layer.weight
    assert layer.bias
    assert layer.sums
    w = program.tensors[layer.weight]
    worst = np.where(w > 0, value.high, value.low)  # a sample for each row: the largest sum of it
    sums = ((worst - value.zero_point) * w).sum(1) + program.tensors[layer.bias]
    assert sums.max() == layer.sums[1]


def test_interpreter_refuses_other_shapes_and_codes():
    program = lower(quantized_tiny("conv"))
    with pytest.raises(interpreter.UsageError, match="input of shape"):
        run(program, np.zeros((2, 16), np.int64))
    with pytest.raises(interpreter.UsageError, match="codes from 0 to 999"):
        run(program, np.pad(np.full((1, 1, 1, 1), 999), ((0, 0), (0, 0), (0, 3), (0, 3))))
