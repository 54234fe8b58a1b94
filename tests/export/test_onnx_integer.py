"""Files with grids: ONNX Runtime's integers are ours, to one unit, and its integer kernels are really used."""

from collections import Counter

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, numpy_helper
from torch import nn

from lilliput.core.encoding import Encoding, Grid, Sharing
from lilliput.core.errors import ExportError
from lilliput.core.method import Context, apply_checked_
from lilliput.export.onnx import build, layers_in_float
from lilliput.export.onnx_check import check_layers, check_with_runtime
from lilliput.graph.integer import LAYERS, integer_bias, integer_values
from lilliput.methods.quantization.post_training import Quantization
from lilliput.nn.models.resnet import CifarResNet
from lowered import self_compressed
from onnx_cases import CASES, IMAGE, Fn, artifact_of, case, folded, quantize_, quantized, value_grid

MOVING = ("slice", "pad", "identity", "flatten", "reshape", "select", "permute")
INTEGER = [name for name in CASES if name not in ("parameters", "transposed grouped 1d")]


def initializers(model):
    return {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}


def grid_of(artifact, node):
    grid = artifact.encoding(node.state["weight"]).grid
    assert grid is not None
    return grid


def optimized(model, tmp_path):
    """The graph that ONNX Runtime makes of it."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return Counter(n.op_type for n in onnx.load(tmp_path / "optimized.onnx").graph.node)


@pytest.mark.parametrize("name", INTEGER)
def test_integers_are_ours_to_one_unit(name):
    artifact, graph, samples = quantized(name)
    for target in ("onnx-x86", "onnx-arm"):
        model = build(artifact, target=target, graph=graph)
        onnx.checker.check_model(model, full_check=True)
        worst = check_layers(model, artifact, samples, graph=graph)
        assert set(worst) >= set(integer_values(graph))
        assert all(units == 0 for node, units in worst.items() if graph[node].op in MOVING)
        check_with_runtime(model, artifact, samples, classes=False, graph=graph)


@pytest.mark.parametrize("settings", [
    {"bits": 4}, {"bits": 7}, {"bits": 8, "signed": True}, {"bits": 8, "symmetric": True}, {"bits": 6, "signed": True},
    {"bits": 12}, {"bits": 16, "signed": True}, {"weight_bits": 2}, {"weight_bits": 4}, {"weight_bits": 7},
    {"weight_bits": 10},
])  # fmt: skip
@pytest.mark.parametrize("name", ["residual", "concat"])
def test_grids_of_any_width_keep_their_bounds(name, settings):
    artifact, graph, samples = quantized(name, **settings)
    model = build(artifact, target="onnx-x86", graph=graph)
    wild = torch.cat([samples, 10 * samples])  # saturates everywhere
    check_layers(model, artifact, wild, graph=graph)
    check_with_runtime(model, artifact, samples, classes=False, graph=graph)


@settings(max_examples=15, deadline=None)
@given(
    st.integers(0, 10**6),
    st.floats(0.02, 3),
    st.integers(2, 8),
    st.booleans(),
    st.sampled_from(["onnx-x86", "onnx-arm"]),
)
def test_any_zero_point_and_scale(seed, factor, bits, signed, target):
    artifact, graph, samples = quantized("add and mul", seed=seed, bits=bits, signed=signed)
    for name in integer_values(graph):  # grids that fit nothing: everything saturates somewhere
        artifact.activations[name] = value_grid(samples * factor, bits, signed=signed)
    for name in [n for n in artifact.encodings if n.endswith("bias")]:
        del artifact.encodings[name]
    for node in graph.nodes:
        if node.op in LAYERS:
            bias, weight = artifact.parameter(node.state["bias"]).detach(), grid_of(artifact, node)
            artifact.encode_(node.state["bias"], integer_bias(bias, artifact.activations[node.inputs[0]], weight))
    check_layers(build(artifact, target=target, graph=graph), artifact, samples, graph=graph)


def test_both_targets_hold_the_same_integers():
    artifact, graph, samples = quantized("residual")
    u8, s8 = (build(artifact, target=t, graph=graph) for t in ("onnx-x86", "onnx-arm"))
    zeros = [[v for v in initializers(m).values() if v.shape == () and v.dtype.itemsize == 1] for m in (u8, s8)]
    assert [int(z) - 128 for z in zeros[0]] == [int(z) for z in zeros[1]]
    assert {z.dtype for z in zeros[0]} == {np.dtype("uint8")}
    assert {z.dtype for z in zeros[1]} == {np.dtype("int8")}
    for m in (u8, s8):
        check_layers(m, artifact, samples, graph=graph)


def test_stored_integers_are_in_the_file():
    artifact, graph, _ = quantized("residual")
    found = initializers(build(artifact, target="onnx-x86", graph=graph)).values()
    for node in graph.nodes:
        if node.op in LAYERS:
            weight, bias = (artifact.encoding(node.state[role]) for role in ("weight", "bias"))
            assert any(v.dtype == np.int8 and np.array_equal(v, weight.integers()) for v in found)
            assert any(v.dtype == np.int32 and np.array_equal(v, bias.integers()) for v in found)
            assert any(v.dtype == np.float32 and np.array_equal(v, grid_of(artifact, node).scale) for v in found)


def test_no_weight_is_left_in_float():
    model = build(quantized("residual")[0], target="onnx-x86")
    assert all(t.data_type != TensorProto.FLOAT or len(t.dims) <= 1 for t in model.graph.initializer)


def test_relu_costs_no_node_where_the_type_saturates_at_zero():
    kinds = {n.op_type for n in build(quantized("residual")[0], target="onnx-x86").graph.node}
    assert kinds.isdisjoint({"Relu", "Clip"})


def test_moves_stand_on_integers():
    model = build(quantized("residual")[0], target="onnx-x86")
    made = {name: n.op_type for n in model.graph.node for name in n.output}
    moves = [n for n in model.graph.node if n.op_type in ("Slice", "Pad")]
    assert [n.op_type for n in moves] == ["Slice", "Pad"]  # one operation for a slice of two dimensions
    assert made[moves[0].input[0]] == "QuantizeLinear"
    assert made[moves[1].input[0]] == "Slice"


def test_x86_runtime_finds_integer_kernels_for_everything(tmp_path):
    artifact, graph, _ = quantized("residual")
    assert layers_in_float(artifact, graph) == {}
    kinds = optimized(build(artifact, target="onnx-x86", graph=graph), tmp_path)
    assert kinds["QLinearConv"] == 2
    assert kinds["QLinearAdd"] == kinds["QLinearGlobalAveragePool"] == kinds["QGemm"] == kinds["QuantizeLinear"] == 1
    assert kinds["DequantizeLinear"] == kinds["Conv"] == kinds["Add"] == kinds["Gemm"] == 0


@pytest.mark.parametrize(("name", "kernel"), [
    ("conv1d", "QLinearConv"), ("conv depthwise 1d", "QLinearConv"), ("linear on tokens", "QGemm"),
    ("concat", "QLinearConcat"), ("add and mul", "QLinearMul"), ("avg_pool", "QLinearAveragePool"),
    ("sigmoid", "QLinearSigmoid"), ("leaky_relu", "QLinearLeakyRelu"),
])  # fmt: skip
def test_runtime_finds_the_integer_kernel(name, kernel, tmp_path):
    artifact, _ = case(name)
    shape = artifact.module(artifact.input.example(2)).shape[1:]
    behind = nn.Sequential(artifact.module, nn.Flatten(), nn.Linear(int(np.prod(shape)), 2))
    artifact = artifact_of(behind, artifact.input.shape)
    graph = folded(artifact)
    quantize_(artifact, graph, torch.randn(16, *artifact.input.shape, generator=torch.Generator().manual_seed(0)))
    assert optimized(build(artifact, target="onnx-x86", graph=graph), tmp_path)[kernel] >= 1


def test_resnet_file_is_little_more_than_its_weights():
    artifact = artifact_of(CifarResNet(depth=20), (3, 32, 32))
    graph = folded(artifact)
    quantize_(artifact, graph, artifact.input.example(2))
    size = len(build(artifact, target="onnx-x86", graph=graph).SerializeToString())
    weights = sum(p.numel() for name, p in artifact.module.named_parameters() if name.endswith("weight"))
    assert size < 1.07 * weights
    assert size < 300_000


def test_shared_and_masked_weights_are_written_as_their_integers():
    artifact, _ = case("conv")
    graph = folded(artifact)
    weight = artifact.parameter("weight").detach()
    scale = float(weight.abs().max()) / 127
    grid = Grid.per_tensor(scale, 0, 8, signed=True, narrow=True)
    indices = (weight > 0).long() + (weight > 0.05).long()
    sharing = Sharing(indices=indices, sizes=torch.tensor([3]))
    encoding = Encoding.of(weight).with_mask(weight.abs() > 0.02).with_sharing(sharing, torch.tensor([-0.1, 0.04, 0.1]))
    artifact.encode_("weight", encoding.with_grid(grid))
    samples = artifact.input.example(20)
    quantize_(artifact, graph, samples)
    model = build(artifact, target="onnx-x86", graph=graph)
    stored = next(v for v in initializers(model).values() if v.dtype == np.int8 and v.ndim == 4)
    assert np.array_equal(stored, artifact.encoding("weight").integers())
    assert len(np.unique(stored)) <= 4
    check_with_runtime(model, artifact, samples, classes=False, graph=graph)


def test_asymmetric_weight_grids_keep_their_zero_points():
    artifact, _ = case("linear")
    graph = folded(artifact)
    weight = artifact.parameter("weight").detach()
    grid = Grid(scale=(weight.amax(1) - weight.amin(1)) / 200, zero_point=torch.tensor([100, 90, 120, 110]),
                bit_width=torch.full((4,), 8), signed=False, axis=0)  # fmt: skip
    artifact.encode_("weight", Encoding.of(weight).with_grid(grid))
    samples = artifact.input.example(50)
    quantize_(artifact, graph, samples)
    model = build(artifact, target="onnx-x86", graph=graph)
    assert any(v.dtype == np.uint8 and v.tolist() == [100, 90, 120, 110] for v in initializers(model).values())
    check_with_runtime(model, artifact, samples, classes=False, graph=graph)


def test_gone_channels_are_zeros():
    artifact, _ = case("linear")
    graph = folded(artifact)
    weight = artifact.parameter("weight").detach()
    grid = Grid(scale=torch.full((4,), 0.01), zero_point=torch.zeros(4, dtype=torch.int64),
                bit_width=torch.tensor([0, 3, 8, 1]), signed=True, axis=0)  # fmt: skip
    artifact.encode_("weight", Encoding.of(weight).with_grid(grid))
    samples = artifact.input.example(50)
    quantize_(artifact, graph, samples)
    model = build(artifact, target="onnx-x86", graph=graph)
    assert not next(v for v in initializers(model).values() if v.dtype == np.int8 and v.ndim == 2)[0].any()
    check_with_runtime(model, artifact, samples, classes=False, graph=graph)


@pytest.mark.parametrize("target", ["onnx-x86", "onnx-arm"])
def test_layers_left_in_float_run_between_integer_ones(target):
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(), nn.LayerNorm([4, 7, 6]), nn.Conv2d(4, 4, 3), nn.Flatten(), nn.Linear(80, 3)
    )
    artifact = artifact_of(model, IMAGE)
    graph = folded(artifact)
    samples = torch.randn(64, *IMAGE, generator=torch.Generator().manual_seed(0))
    quantize_(artifact, graph, samples)
    assert "2" in layers_in_float(artifact, graph)
    check_layers(build(artifact, target=target, graph=graph), artifact, samples, graph=graph)


def test_weight_without_bias_grid_stays_correct():
    artifact, graph, samples = quantized("residual")
    float_bias = artifact.parameter("conv2.bias").detach().clone()
    artifact.encode_("conv2.bias", Encoding.of(float_bias))
    assert layers_in_float(artifact, graph) == {"conv2": "its weight or bias has no integer grid"}
    check_layers(build(artifact, target="onnx-x86", graph=graph), artifact, samples, graph=graph)


@pytest.mark.parametrize("grid", [
    Grid.per_tensor(0.01, 0, 17, signed=True),
    Grid(scale=torch.ones(3), zero_point=torch.zeros(3, dtype=torch.int64), bit_width=torch.full((3,), 8), axis=1),
])  # fmt: skip
def test_activation_grids_without_a_type_are_refused_by_name(grid):
    artifact, graph, _ = quantized("conv")
    artifact.activations["input"] = grid
    with pytest.raises(ExportError, match="'input'"):
        build(artifact, target="onnx-x86", graph=graph)


def test_concatenation_on_one_grid_needs_no_rounding():
    artifact = artifact_of(
        Fn(lambda x, a, b: b(torch.cat([a(x)[:, :2], a(x)[:, 2:]], 1)), nn.Linear(6, 4), nn.Linear(4, 2)), (6,)
    )
    graph = folded(artifact)
    samples = torch.randn(64, 6, generator=torch.Generator().manual_seed(0))
    quantize_(artifact, graph, samples)
    same = value_grid(samples * 2)
    for name in [n for n in artifact.activations if n != "input"]:
        artifact.activations[name] = same
    artifact.encode_("layers.1.bias", Encoding.of(artifact.parameter("layers.1.bias")))
    model = build(artifact, target="onnx-x86", graph=graph)
    made = {name: n.op_type for n in model.graph.node for name in n.output}
    joined = next(n for n in model.graph.node if n.op_type == "Concat")
    assert [made[name] for name in joined.input] == ["Slice", "Slice"]
    assert check_layers(model, artifact, samples, graph=graph)["concat"] == 0


@pytest.mark.parametrize("name", ["residual", "option A", "grouped"])
def test_a_network_that_compressed_itself(name):
    """As float network to the last bits of sums, and in integers to one unit for each value."""
    model, task, net = self_compressed(name)
    samples = task.data("train").batch(torch.arange(48))[0]
    check_with_runtime(build(net, target="onnx-x86"), net, samples)
    apply_checked_(Quantization(), net, Context.of(task, model))
    for target in ("onnx-x86", "onnx-arm"):
        exported = build(net, target=target)
        onnx.checker.check_model(exported, full_check=True)
        check_layers(exported, net, samples)
        check_with_runtime(exported, net, samples, classes=False)
