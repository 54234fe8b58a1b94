"""Every operation of the program, in 3 to 16 bits: the integers of `IntegerNet`."""

import numpy as np
import pytest
import torch
from test_lower import check
from torch import nn

from lilliput.core.errors import ExportError
from lilliput.graph.integer import IntegerNet, runnable
from lilliput.graph.interpreter import decode, quantize_input, run
from lilliput.graph.lower import lower, refusals
from lilliput.graph.shared_bias import shared_grids
from lilliput.graph.trace import graph_of
from lilliput.methods.quantization.post_training import Quantization
from lilliput.ops.interpolation import interpolate, look_up
from lilliput.testing import TINY, tiny_model, tiny_task
from lowered import Operations, quantized, quantized_tiny, task_of
from program_networks import (
    FUNCTIONS,
    NETS,
    SHAPE,
    Code,
    chain_of_functions,
    network,
    prelu,
    quantized_network,
    sequence,
)


def inputs(task):
    return torch.cat([b[0] for b in task.data("validation").batches(64)])


@pytest.mark.parametrize("bits", [3, 8, 12, 16])
@pytest.mark.parametrize("name", NETS)
def test_operations_compute_what_the_integer_net_computes(name, bits):
    task = task_of(SHAPE)
    program = check(quantized_network(name, Quantization(activation_bits=bits)), inputs(task))
    sums = {o.output for o in program if o.sums and not o.rescale}
    widest = max(v.bits for n, v in program.values.items() if n not in sums)
    assert widest == (8 if bits <= 8 else 16)


@pytest.mark.parametrize("bits", [9, 16])
@pytest.mark.parametrize("signed", [None, False])
@pytest.mark.parametrize("name", TINY)
def test_wide_activations_are_lowered_end_to_end(name, signed, bits):
    task = tiny_task()
    check(quantized_tiny(name, Quantization(activation_bits=bits, signed=signed)), inputs(task))


def test_all_operations_of_8_bits_have_16():
    torch.manual_seed(0)
    task = task_of((2, 9, 8))
    program = check(quantized(Operations().eval(), task, Quantization(activation_bits=16)), inputs(task))
    assert {o.kind for o in program} >= {
        "conv", "conv_transposed", "linear", "add", "mul", "concat", "slice", "pad", "sum_pool", "max_pool", "sum",
        "upsample", "transpose", "interpolate",
    }  # fmt: skip


@pytest.mark.parametrize("bits", [9, 12, 16])
@pytest.mark.parametrize("name", TINY)
def test_wide_weights_are_lowered_end_to_end(name, bits):
    task = tiny_task()
    program = check(quantized_tiny(name, Quantization(weight_bits=bits)), inputs(task))
    assert max(int(np.abs(w).max()) for w in program.tensors.values()) > 127


@pytest.mark.parametrize("weights", [8, 12])
def test_more_bits_bring_the_network_closer_to_float(weights):
    """Each bit of the activations halves the error, as long as weights do not limit it."""
    model, task = tiny_model("residual"), tiny_task()
    x = inputs(task)
    with torch.no_grad():
        wanted = model(x)
    errors = []
    for bits in (8, 12):
        settings = Quantization(activation_bits=bits, weight_bits=weights, activation_range="min_max")
        errors.append(float((runnable(quantized(model, task, settings))(x) - wanted).square().mean().sqrt()))
    assert errors[1] < errors[0] / (8 if weights == 12 else 1)


def test_sums_that_32_bits_may_not_hold_are_refused_and_run_in_float():
    model, task = sequence(nn.Linear(40, 40), nn.ReLU(), nn.Linear(40, 3)).eval(), task_of((40,))
    net = quantized(model, task, Quantization(activation_bits=16, weight_bits=16))
    assert IntegerNet(net).floats["layers.0"] == "its sums may need more than 32 bits"
    with pytest.raises(ExportError, match=r"'layers.0' to integers: its sums may need more than 32 bits.*; use fewer"):
        lower(net)
    x = inputs(task)
    with torch.no_grad():
        assert float((runnable(net)(x) - model(x)).abs().max()) < 1e-3


def test_products_that_32_bits_may_not_hold_are_refused():
    model = Code(lambda m, x: m.b(m.a(x).relu() * x.abs()), a=nn.Linear(4, 4), b=nn.Linear(4, 3)).eval()
    net = quantized(model, task_of((4,)), Quantization(activation_bits=16, signed=False))
    assert IntegerNet(net).floats["mul"] == "its sums may need more than 32 bits"
    assert IntegerNet(quantized(model, task_of((4,)), Quantization(activation_bits=16))).floats == {}


def test_a_relu_proves_half_of_the_range():
    """Behind a relu, 16-bit values are 0..32767: sums of twice as many weights are proved."""
    model = sequence(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 3)).eval()
    program = lower(quantized(model, task_of((4,)), Quantization(activation_bits=16)))
    hidden = program.values[program.operations[0].output]
    assert hidden.low == 0
    assert 20000 < hidden.high <= 32767


@pytest.mark.parametrize("bits", [8, 16])
def test_calls_of_a_layer_with_a_bias_share_one_grid(bits):
    model, task = network("called twice"), task_of(SHAPE)
    net = quantized(model, task, Quantization(activation_bits=bits, activation_range="min_max"))
    graph = graph_of(net)
    shared = shared_grids(graph)
    assert len(shared) == 1
    ((follower, leader),) = shared.items()
    assert net.activations[follower].same(net.activations[leader])
    reach = max(float(net.activations[leader].dequantize(end).abs()) for end in net.activations[leader].range())
    with torch.no_grad():
        first = model.get_submodule("e")(inputs(task).flatten(1))
        second = torch.relu(model.get_submodule("a")(first))
    assert reach == pytest.approx(float(max(first.abs().max(), second.max())), rel=0.02)


@pytest.mark.parametrize("bits", [8, 16])
def test_functions_of_wide_values_are_as_good_as_their_points(bits):
    """257 points: the error of a smooth function stays near a thousandth of its range, at 8 bits near half a step."""
    model = Code(lambda m, x: m.b(torch.tanh(m.a(x))), a=nn.Linear(8, 8), b=nn.Linear(8, 3)).eval()
    task = task_of((8,))
    x = inputs(task)
    net = quantized(model, task, Quantization(activation_bits=bits, activation_range="min_max"))
    seen = {}
    IntegerNet(net).values((x,), lambda node, value: seen.update({node.name: value}))
    exact = torch.tanh(seen["a"].decode().double())
    assert float((seen["tanh"].decode() - exact).abs().max()) < (0.005 if bits == 8 else 0.0002)


def test_a_function_without_a_value_takes_that_of_the_nearest_code():
    model = Code(lambda m, x: m.b(m.a(x).log()), a=nn.Linear(4, 4), b=nn.Linear(4, 3)).eval()
    with torch.no_grad():
        model.get_parameter("a.weight").zero_()
        model.get_parameter("a.bias").copy_(torch.tensor([0.5, 1.0, 2.0, 3.0]))
    net = quantized(model, task_of((4,)), Quantization(signed=True))
    program = check(net, torch.randn(5, 4))
    table = next(o for o in program if o.kind == "table")
    assert table.table is not None
    low = int(net.activations[table.output].range()[0])
    zero = program.values[table.inputs[0]].zero_point - table.attributes["first"]
    assert set(table.table[: zero + 1].tolist()) == {low}


def test_argmax_of_sums_compares_what_they_are_worth():
    """Scales differ by channel, so that the largest sum is not the largest value; equal ones go to the lowest index."""
    model = Code(lambda m, x: m.a(x).argmax(1), a=nn.Linear(3, 4)).eval()
    with torch.no_grad():
        model.get_parameter("a.weight").copy_(torch.tensor([[0.01, 0, 0], [0, 100.0, 0], [0, 0, 1.0], [0, 0, 1.0]]))
        model.get_parameter("a.bias").zero_()
    x = torch.tensor([[1.0, 0, 0.5], [1, 0.05, 0.5], [1, -1, -1], [0, 0, 0], [0, -1, 1]])
    task = task_of((3,))
    program = check(quantized(model, task, Quantization(activation_range="min_max")), x)
    assert "multipliers" in program.operations[-1].attributes
    codes = quantize_input(program, x.numpy())
    index = decode(program.values[program.outputs[0]], run(program, codes)[0])
    assert index.tolist() == [2, 1, 0, 0, 2]


def test_one_scale_needs_no_multipliers():
    model = Code(lambda m, x: m.a(x).argmax(1), a=nn.Linear(3, 4)).eval()
    program = lower(quantized(model, task_of((3,)), Quantization(weight_per="tensor")))
    assert "multipliers" not in program.operations[-1].attributes


@pytest.mark.parametrize("final", [nn.Flatten(), nn.Unflatten(1, (2, 3))])
def test_sums_may_be_reshaped_at_the_end(final):
    model = sequence(
        *([nn.Conv2d(1, 4, 3)] if isinstance(final, nn.Flatten) else [nn.Flatten(), nn.Linear(16, 6)]), final
    )
    task = tiny_task()
    net = quantized(model.eval(), task)
    program, x = lower(net), inputs(task)
    value = program.values[program.outputs[0]]
    assert len(value.scale) == np.prod(value.shape)
    (sums,) = run(program, quantize_input(program, x.numpy()))
    assert np.array_equal(decode(value, sums), IntegerNet(net)(x).numpy())


REFUSED = {
    "gru": (
        lambda: Code(
            lambda m, x: m.b(m.g(m.a(x))[0][:, -1]),
            a=nn.Linear(6, 6),
            g=nn.GRU(6, 4, batch_first=True),
            b=nn.Linear(4, 3),
        ),
        (5, 6),
        "use Conv1d over time",
    ),
    "lstm": (
        lambda: Code(
            lambda m, x: m.b(m.g(m.a(x))[0][:, -1]),
            a=nn.Linear(6, 6),
            g=nn.LSTM(6, 4, batch_first=True),
            b=nn.Linear(4, 3),
        ),
        (5, 6),
        "use Conv1d over time",
    ),
    "attention": (
        lambda: Code(
            lambda m, x: m.b(nn.functional.scaled_dot_product_attention(m.a(x), x, x).mean(1)),
            a=nn.Linear(6, 6),
            b=nn.Linear(6, 3),
        ),
        (5, 6),
        "mix places with",
    ),
    "matmul": (
        lambda: Code(lambda m, x: m.b((m.a(x) @ x.transpose(1, 2)).mean(1)), a=nn.Linear(6, 6), b=nn.Linear(5, 3)),
        (5, 6),
        "mix places with",
    ),
    "layer norm": (lambda: sequence(nn.Linear(6, 6), nn.LayerNorm(6), nn.Linear(6, 3)), (6,), "use BatchNorm"),
    "group norm": (
        lambda: sequence(nn.Conv2d(2, 4, 3), nn.GroupNorm(2, 4), nn.Conv2d(4, 3, 3)),
        SHAPE,
        "use BatchNorm",
    ),
    "instance norm": (
        lambda: sequence(nn.Conv2d(2, 4, 3), nn.InstanceNorm2d(4), nn.Conv2d(4, 3, 3)),
        SHAPE,
        "use BatchNorm",
    ),
    "softmax inside": (
        lambda: sequence(nn.Linear(6, 6), nn.Softmax(1), nn.Linear(6, 3)),
        (6,),
        "end the network before",
    ),
    "uneven adaptive pool": (
        lambda: sequence(nn.Conv2d(2, 4, 3), nn.AdaptiveAvgPool2d(3), nn.Conv2d(4, 3, 3)),
        SHAPE,
        "choose an output size that divides",
    ),
    "uneven adaptive max": (
        lambda: sequence(nn.Conv2d(2, 4, 3), nn.AdaptiveMaxPool2d(3), nn.Conv2d(4, 3, 3)),
        SHAPE,
        "choose an output size that divides",
    ),
    "ceil": (
        lambda: sequence(nn.Conv2d(2, 4, 3), nn.AvgPool2d(3, 2, ceil_mode=True), nn.Conv2d(4, 3, 2)),
        SHAPE,
        "use count_include_pad=True, and no ceil_mode",
    ),
    "uncounted padding": (
        lambda: sequence(nn.Conv2d(2, 4, 3), nn.AvgPool2d(2, 2, 1, count_include_pad=False), nn.Conv2d(4, 3, 2)),
        SHAPE,
        "use count_include_pad=True",
    ),
    "reflecting": (
        lambda: sequence(nn.Conv2d(2, 4, 3), nn.ReflectionPad2d(1), nn.Conv2d(4, 3, 2)),
        SHAPE,
        "pad with a constant",
    ),
    "bilinear": (
        lambda: sequence(nn.Conv2d(2, 4, 3), nn.UpsamplingBilinear2d(scale_factor=2), nn.Conv2d(4, 3, 2)),
        SHAPE,
        "use nearest upsampling",
    ),
    "softmax before argmax": (
        lambda: Code(lambda m, x: m.a(x).softmax(1).argmax(1), a=nn.Linear(6, 3)),
        (6,),
        "end the network before",
    ),
    "sigmoid at the end": (lambda: sequence(nn.Linear(6, 3), nn.Sigmoid()), (6,), "apply it after the network"),
    "sum at the end": (
        lambda: Code(lambda m, x: m.a(x) + m.b(x), a=nn.Linear(6, 3), b=nn.Linear(6, 3)),
        (6,),
        "follow it by a layer",
    ),
    "unknown": (
        lambda: Code(lambda m, x: m.b(m.a(x).roll(1, 1)), a=nn.Linear(6, 6), b=nn.Linear(6, 3)),
        (6,),
        "replace it by an operation of docs/support.md",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_integer_form_is_refused_with_its_line_and_what_to_do(name):
    make, shape, remedy = REFUSED[name]
    net = quantized(make().eval(), task_of(shape))
    with pytest.raises(ExportError, match=rf"lower '.+' to integers: .+ \(\w+\.py:\d+\); .*{remedy}") as error:
        lower(net)
    found = refusals(net)
    assert str(found[0].error()) == str(error.value)
    assert all(r.source and r.do for r in found)


def test_all_refusals_are_found_at_once_but_not_what_follows_from_them():
    model = sequence(
        nn.Conv2d(2, 4, 3),
        nn.GroupNorm(2, 4),
        nn.ReLU(),
        nn.Conv2d(4, 4, 1),
        nn.AvgPool2d(2, 2, 1, count_include_pad=False),
        nn.Flatten(),
        nn.Linear(36, 3),
    ).eval()
    assert [r.node for r in refusals(quantized(model, task_of(SHAPE)))] == ["layers.1", "layers.4"]
    recurrent = Code(
        lambda m, x: m.h(m.g(m.a(x).transpose(1, 2))[0][:, -1]).softmax(1),
        a=nn.Conv1d(3, 8, 3),
        g=nn.GRU(8, 6, batch_first=True),
        h=nn.Linear(6, 3),
    ).eval()
    net = quantized(recurrent, task_of((3, 20)))
    assert [r.node for r in refusals(net)] == ["g/gru"]
    with pytest.raises(ExportError, match=r"lower 'g' to integers: aten\.gru\.input .*; use Conv1d over time"):
        lower(net)


def test_every_function_is_lowered():
    """`FUNCTIONS` has a function for each word, and the graph of the network has each word."""
    net = quantized_network("functions")
    assert {n.op for n in graph_of(net).nodes} >= set(FUNCTIONS)
    assert prelu(3).weight.tolist() == [-0.5, 0.75, 2.0]


@pytest.mark.parametrize("channel", [None, 0, 1, 2])
@pytest.mark.parametrize("signed", [False, True])
def test_the_interpreter_draws_the_lines_of_the_rule(signed, channel):
    """3 to 8 bits of points, steepest lines and both ends of the codes."""
    program = chain_of_functions(signed=signed, channel=channel)
    value = program.values[program.input]
    codes = np.random.default_rng(1).integers(value.low, value.high + 1, (50, *value.shape))
    codes[0], codes[1], codes[2] = value.low, value.high, value.low + 1
    seen = {program.input: codes}
    run(program, codes, visit=lambda o, q: seen.update({o.output: q}))
    for o in program:
        table, x = torch.from_numpy(o.table), torch.from_numpy(seen[o.inputs[0]])
        low, along = o.attributes["first"], 1 + (channel or 0)
        if o.kind == "table":
            wanted = look_up(x, table, low, along)
        else:
            wanted = interpolate(x, table, low, o.attributes["shift"], along)
        assert np.array_equal(seen[o.output], wanted.numpy())
