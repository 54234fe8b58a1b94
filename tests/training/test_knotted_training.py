"""Training through points on codes: values of the integer program, gradients of the same without rounding."""

import pytest
import torch

from knotted import TASK, chain, functions, learned, rounded
from lilliput.core.artifact import Artifact
from lilliput.core.method import Context, apply_checked_
from lilliput.graph.integer import IntegerNet, grids_of
from lilliput.graph.interpreter import decode, quantize_input, run
from lilliput.graph.knots import standing
from lilliput.graph.lower import lower
from lilliput.graph.trace import graph_of
from lilliput.methods.quantization.aware_training import QuantizationAwareTraining
from lilliput.ops.learned_function import table_of
from lilliput.testing import check_artifact
from lilliput.training.fake_quant import Coded, FakeQuant
from lilliput.training.learned_steps import SUFFIX, LearnedSteps

KINDS = ("table", "cubic", "lerp_psa")
CASES = [(8, 9), (8, 129), (8, 257), (5, 17), (16, 33)]


@pytest.mark.parametrize(("bits", "points"), CASES)
@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_those_of_lines_between_points_without_rounding(kind, bits, points):
    net = rounded(chain(functions(points, kind)), activation_bits=bits, activation_range="percentile", percentile=90.0)
    graph = graph_of(net)
    node = next(n for n in graph.nodes if n.op == "learned_function")
    source, grid = net.activations["0"], net.activations["1"]
    scale = grid.scale.clone().requires_grad_()
    fake = FakeQuant(net, graph)
    fake.refresh(net, {"1": scale})
    ends = [int(end) for end in source.range()]
    generator = torch.Generator().manual_seed(bits)
    q = torch.randint(ends[0], ends[1] + 1, (200, 3), generator=generator).float().requires_grad_()
    found = fake._compute(node, {"0": Coded(q, source.scale.reshape(()), source)}, None)
    assert isinstance(found, Coded)
    wanted_by = torch.randn(found.q.shape, generator=generator)
    (found.decode() * wanted_by).sum().backward()

    act = learned(net.module)
    weight = act.weight.detach().double().requires_grad_()
    at, step = q.detach().double().requires_grad_(), scale.detach().double().requires_grad_()
    low, high = (float(end - grid.zero_point) for end in grid.range())
    table = (table_of(weight, act.limit.double(), act.form, points) / step).clamp(low, high)
    place = (at - ends[0]) / ((ends[1] + 1 - ends[0]) / (points - 1))
    index = place.detach().floor().long()
    rows = torch.arange(3)
    left, right = table[rows, index], table[rows, index + 1]
    y = left + (place - index) * (right - left)
    exact = found.q.detach().double()
    assert float((y.detach() - exact).abs().max()) <= 1.0  # half a step for the points, half for the line
    ((exact + (y - y.detach())) * step * wanted_by.double()).sum().backward()
    pairs = [(act.weight.grad, weight.grad), (q.grad, at.grad), (scale.grad, step.grad)]
    for own, oracle in pairs:
        assert own is not None
        assert oracle is not None
        assert torch.allclose(own.double(), oracle, rtol=1e-4, atol=1e-4 * float(oracle.abs().max()))
    assert bool(((table.detach() == low) | (table.detach() == high)).any())  # some points saturate


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("bits", "points"), [(8, 9), (8, 257), (5, 17)])
def test_what_has_trained_is_what_the_program_computes_and_grids_of_limits_stay(kind, bits, points):
    model = chain(functions(points, kind))
    net = Artifact.of(model, TASK.spec)
    before = learned(model).table().detach().clone()
    method = QuantizationAwareTraining(
        epochs=3, batch_size=16, learning_rate=1e-2, activation_bits=bits, weight_bits=8, keep="last"
    )
    apply_checked_(method, net, Context.of(TASK, model))
    graph, x = graph_of(net), TASK.data("validation").inputs
    act = learned(net.module)
    assert float(net.activations["0"].scale) * 2 ** (bits - 1) == float(act.limit)
    assert "0" + SUFFIX not in LearnedSteps(net)._steps
    assert standing(graph, grids_of(graph, net.activations), net.module.state_dict())
    outputs = IntegerNet(net, graph)(x)
    assert torch.equal(FakeQuant(net, graph)(x), outputs)
    program = lower(net)
    (codes,) = run(program, quantize_input(program, x.numpy()))
    assert torch.equal(torch.from_numpy(decode(program.values[program.outputs[0]], codes)), outputs)
    assert not torch.equal(act.table(), before)
    check_artifact(net, model, kind)
