import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from lilliput.core.artifact import Artifact, InputSpec
from lilliput.core.encoding import Encoding, Grid, Sharing
from lilliput.graph.integer import grids_of, integer_bias, integer_values
from lilliput.graph.trace import trace
from lilliput.measure.flash import array_bytes, count_flash, packed_bits


def artifact_of(model, *shape):
    artifact = Artifact.of(model, InputSpec(shape=shape))
    return artifact, trace(artifact.module, artifact.input.example(2))


def flash(artifact, graph):
    table = count_flash(graph, artifact, grids_of(graph, artifact.activations))
    return {layer: row["flash"].value for layer, row in table.rows.items() if row["flash"].value}


def quantize_(artifact, graph, bit_width=8):
    """Activations of 8 bits, weights per channel, biases on their accumulators."""
    for name in integer_values(graph):
        artifact.activations[name] = Grid.per_tensor(0.05, 0, 8, signed=True)
    grids = grids_of(graph, artifact.activations)
    for node in graph.nodes:
        if node.op in ("conv", "linear"):
            weight = artifact.parameter(node.state["weight"])
            n = len(weight)
            grid = Grid(
                scale=torch.full((n,), 0.01),
                zero_point=torch.zeros(n, dtype=torch.int64),
                bit_width=torch.full((n,), bit_width),
                axis=0,
            )
            artifact.encode_(node.state["weight"], Encoding.of(weight).with_grid(grid))
            bias = node.state.get("bias")
            if bias is not None:
                artifact.encode_(bias, integer_bias(artifact.parameter(bias), grids[node.inputs[0]], grid))


@given(st.integers(0, 32))
def test_packed_widths_are_those_that_kernels_read(bit_width):
    width = packed_bits(bit_width)
    assert width in (0, 1, 2, 4, 8, 16, 32)
    assert bit_width <= width <= 2 * max(bit_width - 1, 1) or bit_width == 0


def test_a_float_network_takes_four_bytes_a_parameter():
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 2))
    artifact, graph = artifact_of(model, 1, 8, 8)
    assert sum(flash(artifact, graph).values()) == 4 * sum(p.numel() for p in model.parameters())


def test_a_norm_is_a_factor_and_a_term_for_each_channel():
    artifact, graph = artifact_of(nn.Sequential(nn.Conv2d(1, 4, 3, bias=False), nn.BatchNorm2d(4)), 1, 8, 8)
    assert flash(artifact, graph) == {"0": 4 * 36, "1": 4 * 8}


@pytest.mark.parametrize(("bit_width", "weight_bytes"), [(8, 144), (5, 144), (4, 72), (3, 72), (2, 36), (1, 18)])
def test_integer_layers_by_hand(bit_width, weight_bytes):
    model = nn.Sequential(nn.Conv2d(1, 16, 3), nn.ReLU(), nn.Flatten(), nn.Linear(576, 10))
    artifact, graph = artifact_of(model, 1, 8, 8)
    quantize_(artifact, graph, bit_width)
    found = flash(artifact, graph)
    assert found["0"] == weight_bytes + 16 * 4 + 16 * 4 + 1  # weights, biases, multipliers, one shift
    assert found["3"] == 40 * weight_bytes + 10 * 4 + 10 * 4  # weights, biases, float scales of the accumulators
    assert set(found) == {"0", "3"}


def test_weights_alone_on_a_grid_keep_their_scales():
    artifact, graph = artifact_of(nn.Linear(16, 4), 16)
    quantize_(artifact, graph)
    artifact.activations.clear()
    (name,) = [n.name for n in graph.nodes if n.op == "linear"]
    assert flash(artifact, graph) == {name: 64 + 16 + 16}


class Arithmetic(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(2, 2, 1, bias=False)

    def forward(self, x):
        y = torch.tanh(x)
        z = torch.relu(x + y) * x
        return self.conv(torch.cat([z, x], 1)[:, 1:3]).mean((2, 3))


def test_tables_and_multipliers_of_functions_sums_and_products_by_hand():
    artifact, graph = artifact_of(Arithmetic(), 2, 4, 4)
    quantize_(artifact, graph)
    artifact.activations["concat"] = Grid.per_tensor(0.07, 0, 8, signed=True)
    found = flash(artifact, graph)
    assert found == {"tanh": 256, "add": 9, "mul": 5, "concat": 10, "conv": 4 + 2 * 4 + 1}


def test_a_concatenation_on_its_inputs_own_grid_needs_no_constants():
    artifact, graph = artifact_of(Arithmetic(), 2, 4, 4)
    quantize_(artifact, graph)
    assert "concat" not in flash(artifact, graph)


def test_shared_weights_are_indices_and_a_table_where_that_is_smaller():
    weight = torch.randn(64, 64, generator=torch.Generator().manual_seed(0))
    table = torch.linspace(-1, 1, 16)
    indices = (weight[..., None] - table).abs().argmin(-1)
    encoding = Encoding.of(weight).with_sharing(Sharing(indices=indices, sizes=torch.tensor([16])), table)
    assert array_bytes(encoding) == 64 * 64 // 2 + 16 * 4
    grid = Grid.per_tensor(0.01, 0, 8, signed=True)
    assert array_bytes(encoding.with_grid(grid)) == 64 * 64 // 2 + 16
    pair = Sharing(indices=torch.tensor([[0, 1]]), sizes=torch.tensor([2]))
    few = Encoding.of(weight[:1, :2]).with_sharing(pair, torch.tensor([-1.0, 1.0]))
    assert array_bytes(few) == 2 * 4  # the plain array


def test_masked_weights_are_stored_as_zeros_and_dropped_channels_take_no_width():
    weight = torch.ones(4, 4)
    assert array_bytes(Encoding.of(weight).with_mask(torch.eye(4, dtype=torch.bool))) == 64
    none = Grid.per_tensor(1.0, 0, 0, signed=True)
    assert array_bytes(Encoding.of(weight).with_grid(none)) == 0


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.unused = nn.Linear(4, 4), nn.Linear(4, 4, bias=False), nn.Linear(9, 9)
        self.b.weight = self.a.weight

    def forward(self, x):
        return self.b(self.a(self.a(x)))


def test_tied_and_reused_tensors_are_there_once_and_unread_ones_not_at_all():
    artifact, graph = artifact_of(Tied(), 4)
    assert sum(flash(artifact, graph).values()) == 4 * 20
    quantize_(artifact, graph)
    found = flash(artifact, graph)
    assert sum(found.values()) == 16 + 16 + 2 * (4 * 4 + 1) + 4 * 4
