import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from lilliput.core.artifact import Artifact, InputSpec
from lilliput.core.encoding import Encoding, Grid, Sharing
from lilliput.core.errors import UsageError
from lilliput.core.learned_activation import LearnedActivation
from lilliput.graph.trace import Graph, Node, trace
from lilliput.measure.macs import COLUMNS, count_macs, of_layers, uncounted
from lilliput.nn.models.digits import DigitsCNN, TinyRegressor
from lilliput.nn.models.resnet import CifarResNet


def artifact_of(model, *shape):
    artifact = Artifact.of(model, InputSpec(shape=shape))
    return artifact, trace(artifact.module, artifact.input.example(2))


def totals(model, *shape):
    artifact, graph = artifact_of(model, *shape)
    table = count_macs(graph, artifact)
    return {name: table.total(name).value for name in COLUMNS}


class Many(nn.Module):
    """Every layer on the same input: one trace for many settings."""

    def __init__(self, *layers):
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, x):
        return tuple(layer(x) for layer in self.layers)


def layers_2d():
    return [
        nn.Conv2d(4, 6, 3),
        nn.Conv2d(4, 6, (3, 1), stride=(2, 1), padding=(1, 0), bias=False),
        nn.Conv2d(4, 8, 3, groups=2, padding="same"),
        nn.Conv2d(4, 8, 3, groups=4, dilation=2, padding=2),
        nn.Conv2d(4, 4, 5, groups=4, bias=False),
        nn.ConvTranspose2d(4, 6, 2, stride=2),
        nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, output_padding=1, groups=2, bias=False),
        nn.Linear(11, 5),
        nn.Linear(11, 3, bias=False),
    ]


def layers_1d():
    return [
        nn.Conv1d(4, 6, 3, stride=2),
        nn.Conv1d(4, 4, 3, groups=4, padding=1),
        nn.ConvTranspose1d(4, 6, 4, stride=3, padding=1),
        nn.ConvTranspose1d(4, 4, 3, groups=2, dilation=2, bias=False),
        nn.Linear(9, 2),
    ]


@pytest.mark.parametrize(("layers", "shape"), [(layers_2d, (4, 10, 11)), (layers_1d, (4, 9))])
def test_macs_are_half_of_torchs_own_flops(layers, shape):
    artifact, graph = artifact_of(Many(*layers()), *shape)
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        artifact.module(artifact.input.example())
    flops = counter.get_flop_counts()
    table = count_macs(graph, artifact)
    for i in range(len(layers())):
        assert 2 * table.get(f"layers.{i}", "macs").value == sum(flops[f"Many.layers.{i}"].values())


def simulated(weight, biases, samples):
    """(multiplies, additions, product-of-sums multiplies) of a linear layer, weight by weight."""
    multiplies = additions = products = 0
    for row, bias in zip(weight.tolist() * samples, biases.tolist() * samples, strict=True):
        terms = [w for w in row if w != 0]
        multiplies += len(terms)
        products += len(set(terms))
        additions += max(len(terms) + (bias != 0) - 1, 0)
    return multiplies, additions, products


@settings(max_examples=30, deadline=None)
@given(st.data(), st.integers(1, 4), st.integers(1, 6))
def test_effective_counts_are_those_of_a_loop_that_skips_zeros(data, n_out, n_in):
    values = data.draw(st.lists(st.sampled_from([0.0, -0.0, 0.5, 2.0]), min_size=n_out * n_in, max_size=n_out * n_in))
    layer = nn.Linear(n_in, n_out)
    artifact = Artifact.of(nn.Sequential(layer), InputSpec(shape=(3, n_in)))
    weight = torch.tensor(values).reshape(n_out, n_in)
    table, indices = weight.abs().unique(return_inverse=True)
    encoding = Encoding.of(weight).with_sharing(Sharing(indices=indices, sizes=torch.tensor([len(table)])), table)
    artifact.encode_("0.weight", encoding)
    bias = data.draw(st.lists(st.sampled_from([0.0, 1.0]), min_size=n_out, max_size=n_out))
    artifact.write_("0.bias", torch.tensor(bias))
    row = count_macs(one_layer_graph(n_in, n_out), artifact)["0"]
    multiplies, additions, products = simulated(artifact.parameter("0.weight"), artifact.parameter("0.bias"), 3)
    assert row["effective_multiplies"].value == row["effective_macs"].value == multiplies
    assert row["effective_additions"].value == additions
    assert row["product_of_sums_multiplies"].value == products
    assert row["multiplies"].value == row["macs"].value == 3 * n_in * n_out
    assert row["additions"].value == 3 * n_in * n_out


def one_layer_graph(n_in, n_out):
    source = Node(name="input", op="input", inputs=(), shape=(1, 3, n_in), module="", target="input", source="")
    layer = Node(
        name="0",
        op="linear",
        inputs=("input",),
        shape=(1, 3, n_out),
        module="0",
        source="",
        target="aten.linear.default",
        state={"weight": "0.weight", "bias": "0.bias"},
    )
    return Graph(nodes=(source, layer), inputs=("input",), outputs=("0",))


def test_counts_of_a_convolution_by_hand():
    with_bias = totals(nn.Conv2d(2, 4, 3, stride=2, padding=1), 2, 8, 8)  # 4 * 4 * 4 outputs of 18 taps
    without = totals(nn.Conv2d(2, 4, 3, stride=2, padding=1, bias=False), 2, 8, 8)
    assert (with_bias["multiplies"], with_bias["additions"]) == (64 * 18, 64 * 18)
    assert (without["multiplies"], without["additions"]) == (64 * 18, 64 * 17)
    assert (with_bias["parameters"], without["parameters"]) == (76, 72)


@pytest.mark.parametrize(
    ("bias", "taps", "macs", "additions", "products"),
    [
        (1.0, 4, 20, 20, 10),  # 5 positions; 10 outputs of the channel, each with one value of a weight
        (0.0, 4, 20, 10, 10),
        (1.0, 1, 5, 5, 5),  # only every second output gets anything
    ],
)
def test_a_sparse_transposed_convolution_skips_zeros_of_each_output_channel(bias, taps, macs, additions, products):
    layer = nn.ConvTranspose1d(4, 6, 2, stride=2, groups=2)
    with torch.no_grad():
        layer.weight.zero_()
        layer.weight[2:, 1] = (torch.arange(4) < taps).float().reshape(2, 2)  # group 1, its second output channel
    artifact, graph = artifact_of(nn.Sequential(layer), 4, 5)
    artifact.write_("0.bias", torch.tensor([0, 0, 0, 0, bias, 0]))
    artifact.encode_("0.weight", shared(artifact.parameter("0.weight")))
    row = count_macs(graph, artifact)["0"]
    assert row["effective_macs"].value == macs
    assert row["effective_additions"].value == additions
    assert row["product_of_sums_multiplies"].value == products


def shared(weight):
    table, indices = weight.detach().unique(return_inverse=True)
    return Encoding.of(weight).with_sharing(Sharing(indices=indices, sizes=torch.tensor([len(table)])), table)


@pytest.fixture(scope="module")
def digits():
    torch.manual_seed(0)
    return artifact_of(DigitsCNN(), 1, 8, 8)


def test_every_operation_has_a_row_and_pointwise_ones_cost_nothing(digits):
    artifact, graph = digits
    table = count_macs(graph, artifact)
    assert list(table.rows) == [node.name for node in graph.nodes if node.op != "input"]
    free = [node.name for node in graph.nodes if node.op in ("relu", "reshape")]
    assert free
    assert all(m.value == 0 for name in free for m in table[name].values() if m.name != "function_values")


def test_counts_of_everything_else_by_hand(digits):
    artifact, graph = digits
    table = count_macs(graph, artifact)
    elements = 24 * 8 * 8
    assert costs(table, "stem.1") == (elements, elements)
    assert costs(table, "add") == (0, elements)
    assert costs(table, "pool") == (0, 24 * 4 * 4 * 3)
    assert table.get("stem.1", "parameters").value == 48
    assert table.total("macs").value == 64 * 9 * 24 + 64 * 216 * 24 + 16 * 216 * 32 + 512 * 10


def costs(table, layer):
    return table.get(layer, "multiplies").value, table.get(layer, "additions").value


def test_what_layers_cost_is_told_from_what_the_rest_costs(digits):
    artifact, graph = digits
    table = count_macs(graph, artifact)
    layers = of_layers(table, graph)
    assert list(layers.rows) == [n.name for n in graph.nodes if n.op in ("conv", "linear")]
    for name in ("multiplies", "product_of_sums_multiplies"):
        others = sum(row[name].value for node, row in table.rows.items() if node not in layers.rows)
        assert layers.total(name).value == layers.total("macs").value
        assert layers.total(name).value + others == table.total(name).value
        assert others > 0  # BatchNorms


class Rest(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.LayerNorm(6)
        self.plain = nn.LayerNorm(6, elementwise_affine=False)
        self.average = nn.AvgPool2d(2)
        self.highest = nn.MaxPool2d(3, stride=1)

    def forward(self, x):
        y = self.norm(x) * self.plain(x) * 0.5
        return self.average(y).mean((2, 3)), self.highest(y), torch.softmax(torch.cat([x, x], 1), 1), torch.relu(x - y)


def test_counts_of_pools_means_products_and_norms_by_hand():
    artifact, graph = artifact_of(Rest(), 2, 4, 6)
    table = count_macs(graph, artifact)
    assert costs(table, "norm") == (48 * 3, 48 * 4)
    assert costs(table, "plain") == (48 * 2, 48 * 3)
    assert costs(table, "mul") == (48, 0)
    assert costs(table, "mul_scalar") == (48, 0)
    assert costs(table, "average") == (12, 12 * 3)
    assert costs(table, "mean") == (2, 12 - 2)
    assert costs(table, "highest") == (0, 2 * 2 * 4 * 8)
    assert costs(table, "sub") == (0, 48)
    assert costs(table, "softmax") == costs(table, "concat") == costs(table, "relu") == (0, 0)
    assert uncounted(graph) == []


def test_the_published_numbers_of_resnet_20():
    found = totals(CifarResNet(depth=20), 3, 32, 32)
    assert found["macs"] == 40_551_040
    assert found["parameters"] == 269_722


def test_models_below_a_hundredth_of_a_million_macs_are_counted_exactly():
    found = totals(TinyRegressor(), 10)
    assert found["macs"] == found["multiplies"] == found["additions"] == 10 * 32 + 32 * 16 + 16
    assert found["parameters"] == 897


class Reused(nn.Module):
    """A layer that runs twice, a tied weight, and a layer that never runs."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.unused = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(7, 2)
        self.b.weight = self.a.weight

    def forward(self, x):
        return self.b(self.a(self.a(x)))


def test_what_runs_twice_is_computed_twice_and_stored_once():
    model = Reused()
    artifact, graph = artifact_of(model, 4)
    table = count_macs(graph, artifact)
    assert table.total("macs").value == 3 * 16
    assert table.total("parameters").value == sum(p.numel() for p in model.parameters())
    assert table.get("unused", "parameters").value == 16
    assert table.get("unused", "macs").value == 0


def test_kept_parameters_are_those_that_a_file_stores():
    artifact, graph = artifact_of(nn.Sequential(nn.Linear(4, 3)), 4)
    weight = torch.tensor([[1.0, 2, 3, 4], [1, 2, 3, 4], [0.1, 2, 3, 4]])
    mask = torch.ones(3, 4, dtype=torch.bool)
    mask[0, :2] = False
    grid = Grid(
        scale=torch.ones(3), zero_point=torch.zeros(3, dtype=torch.int64), bit_width=torch.tensor([8, 0, 8]), axis=0
    )
    artifact.encode_("0.weight", Encoding.of(weight).with_mask(mask).with_grid(grid))
    artifact.write_("0.bias", torch.ones(3))
    row = count_macs(graph, artifact)["0"]
    assert row["parameters"].value == 15
    assert row["kept_parameters"].value == 15 - 2 - 4
    assert row["nonzero_parameters"].value == 15 - 2 - 4 - 1  # 0.1 is rounded to 0
    assert row["effective_macs"].value == 12 - 2 - 4 - 1


def test_all_zero_layers_cost_only_their_biases():
    model = nn.Linear(4, 3)
    nn.init.zeros_(model.weight)
    nn.init.zeros_(model.bias)
    found = totals(model, 4)
    assert found["effective_macs"] == found["effective_additions"] == 0
    assert found["macs"] == 12


class Unknown(nn.Module):
    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.ones(4, 4))

    def forward(self, x):
        a, b = x.chunk(2, dim=1)
        return nn.functional.linear(a @ b.transpose(1, 2), self.w * 2)


def test_operations_without_a_rule_are_named_and_not_counted():
    artifact, graph = artifact_of(Unknown(), 8, 4)
    table = count_macs(graph, artifact)
    assert [node.target for node in uncounted(graph)] == ["aten.matmul.default", "aten.linear.default"]
    assert table.total("macs").note == "aten.matmul.default is not counted; aten.linear.default is not counted"
    assert table.total("macs").value == 0
    assert table.get("mul_scalar", "multiplies").value == 0  # of parameters alone: computed once


def test_a_graph_of_another_network_is_refused():
    _, graph = artifact_of(TinyRegressor(), 10)
    other = Artifact.of(nn.Linear(10, 1), InputSpec(shape=(10,)))
    with pytest.raises(UsageError, match=r"layers\.0\.weight"):
        count_macs(graph, other)


def test_values_through_functions_are_counted_apart_from_operations():
    model = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 4), LearnedActivation(4, kind="table", points=9))
    found, plain = totals(model, 6), totals(nn.Sequential(model[0], model[2]), 6)
    assert (found["function_values"], found["learned_values"], found["function_parameters"]) == (5 + 4, 4, 4 * 9)
    assert found["parameters"] == plain["parameters"] + 4 * 9
    for name in ("macs", "multiplies", "additions"):
        assert found[name] == plain[name]
    assert (plain["function_values"], plain["function_parameters"]) == (0, 0)


def test_a_prelu_learns_and_its_parameters_are_those_of_a_function():
    found = totals(nn.Sequential(nn.Conv1d(2, 3, 1), nn.PReLU(3)), 2, 7)
    assert (found["function_values"], found["learned_values"], found["function_parameters"]) == (21, 21, 3)
