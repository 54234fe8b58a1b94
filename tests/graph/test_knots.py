"""Learned functions whose points stand on codes: exact integers for every code, and which functions can be so."""

import math
from fractions import Fraction

import pytest
import torch
from torch import nn

from knotted import TASK, chain, functions, learned, quantized
from lilliput.core.learned_activation import LearnedActivation
from lilliput.export.onnx import build
from lilliput.export.onnx_check import check_layers
from lilliput.graph.functions import function
from lilliput.graph.integer import IntegerNet, grids_of
from lilliput.graph.knots import possible, standing
from lilliput.graph.lower import lower
from lilliput.graph.trace import graph_of
from lilliput.measure.flash import count_flash

CASES = [(bits, k) for bits in range(3, 9) for k in range(3, bits + 1)]


def rounded(value, grid):
    low, high = (int(end) for end in grid.range())
    return min(
        max(math.floor(Fraction(value) / Fraction(float(grid.scale)) + Fraction(1, 2)) + int(grid.zero_point), low),
        high,
    )


@pytest.mark.parametrize(("bits", "k"), CASES)
@pytest.mark.parametrize("kind", ["table", "cubic", "lerp_psa"])
def test_every_code_gives_the_line_between_rounded_points(kind, bits, k):
    net, _ = quantized(chain(functions(2**k + 1, kind)), activation_bits=bits)
    graph = graph_of(net)
    node = next(n for n in graph.nodes if n.op == "learned_function")
    source, grid = (net.activations[name] for name in (node.inputs[0], node.name))
    act = learned(net.module)
    values = act.table().double().tolist()
    found = function(node, source, grid, net.module.state_dict())
    assert found.table.shape[-1] == (2**k + 1 if k < bits else 2**k)
    codes = torch.arange(-(2 ** (bits - 1)), 2 ** (bits - 1))
    looked_up = found(codes[:, None].expand(-1, 3))
    assert torch.equal(found.expanded().table, looked_up.T)
    step = 2 ** (bits - k)
    for c, row in enumerate(values):
        points = [rounded(v, grid) for v in row]
        for code in codes.tolist():
            m, rest = divmod(code + 2 ** (bits - 1), step)
            wanted = points[m] + math.floor(Fraction((points[m + 1] - points[m]) * rest, step) + Fraction(1, 2))
            assert int(looked_up[code - int(codes[0]), c]) == wanted


@pytest.mark.parametrize("bits", [8, 5])
def test_a_point_is_where_its_code_is_and_the_last_one_a_step_beyond(bits):
    net, _ = quantized(chain(functions(9)), activation_bits=bits)
    source, act = net.activations["0"], learned(net.module)
    assert (source.signed, source.narrow, int(source.zero_point), int(source.bit_width)) == (True, False, 0, bits)
    low, high = (int(end) for end in source.range())
    places = torch.linspace(-1, 1, 9) * act.limit
    assert torch.equal(source.scale * torch.arange(low, high + 2, 2 ** (bits - 3)), places)


@pytest.mark.parametrize("points", [9, 33, 257])
def test_onnx_looks_up_the_same_integers(points):
    net, _ = quantized(chain(functions(points)))
    graph, x = graph_of(net), TASK.data("validation").inputs
    worst = check_layers(build(net, target="onnx-arm"), net, x, graph=graph)
    assert worst["1"] == 0


@pytest.mark.parametrize(("points", "bytes_"), [(9, 27), (129, 387), (257, 768), (64, 768)])
def test_flash_counts_the_points(points, bytes_):
    net, _ = quantized(chain(functions(points)))
    graph = graph_of(net)
    table = count_flash(graph, net, grids_of(graph, net.activations))
    assert table.rows["1"]["flash"].value == bytes_


class Forked(nn.Module):
    def __init__(self, *activations, add=False):
        super().__init__()
        self.a, self.b, self.add = nn.Linear(4, 3), nn.Linear(3, 2), add
        self.acts = nn.ModuleList(activations)

    def forward(self, x):
        x = self.a(x)
        y = sum(act(x.reshape(-1, 3)) for act in self.acts)
        return self.b(y + x if self.add else y)


@pytest.mark.parametrize(
    ("model", "reasons"),
    [
        (chain(functions(64)), ["64 points are not 2^k + 1 with k from 3 to 8"]),
        (chain(functions(5)), ["5 points are not"]),
        (chain(functions(513)), ["513 points are not"]),
        (chain(functions(33, "psa")), ["psa has no points"]),
        (Forked(functions(9), functions(17)), []),
        (Forked(functions(9), functions(17, limit=2.0)), ["functions of several limits read its input"] * 2),
        (Forked(functions(9), functions(8)), ["acts.1 reads its input too", "8 points"]),
        (Forked(functions(9), add=True), ["add reads its input too"]),
    ],
    ids=lambda value: None if isinstance(value, list) else "",
)
def test_who_cannot_stand_on_codes_keeps_a_full_table_and_the_pass_says_why(model, reasons):
    net, result = quantized(model.eval())
    graph = graph_of(net)
    found = standing(graph, grids_of(graph, net.activations), net.module.state_dict())
    count = sum(n.op == "learned_function" for n in graph.nodes)
    assert len(found) == count - len(reasons)
    told = [note for note in result.notes if "entry for each code" in note]
    assert len(told) == len(reasons)
    for reason in reasons:
        assert any(reason in note for note in told), (reason, told)
    x = TASK.data("validation").inputs
    assert torch.equal(IntegerNet(net, graph)(x), IntegerNet(net)(x))
    lower(net)


def test_the_input_of_a_network_and_moved_values_can_have_the_grid():
    torch.manual_seed(0)
    model = nn.Sequential(LearnedActivation(4, kind="table", points=17), nn.Linear(4, 2)).eval()
    net, result = quantized(model)
    assert not any("entry for each code" in note for note in result.notes)
    assert float(net.activations["input"].scale) == 4.0 / 128


def test_who_reads_much_beyond_its_limit_keeps_a_full_table():
    for limit, stands in ((0.5, False), (3.0, True)):
        net, result = quantized(nn.Sequential(functions(17, channels=4, limit=limit), nn.Linear(4, 2)).eval())
        graph = graph_of(net)
        assert bool(standing(graph, grids_of(graph, net.activations), net.module.state_dict())) == stands
        told = [note for note in result.notes if note.startswith("0 has an entry for each code")]
        assert len(told) == (not stands)
        x = TASK.data("calibration").inputs
        share = 100 * float((x.abs() > limit).float().mean())
        assert stands or f"{share:.1f}"[:2] in told[0]


def test_full_tables_when_asked_for():
    net, result = quantized(chain(functions(9)), tables="full")
    graph = graph_of(net)
    assert not standing(graph, grids_of(graph, net.activations), net.module.state_dict())
    assert not any("entry for each code" in note for note in result.notes)
    assert possible(graph, net.module.state_dict(), 8).grids
    assert [o.kind for o in lower(net)] == ["linear", "table", "linear"]
