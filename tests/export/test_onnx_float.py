"""Float files: every operation, every shape of input, and what cannot be written."""

import itertools

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from lilliput.core.artifact import Artifact, InputSpec
from lilliput.core.errors import ExportError, UsageError
from lilliput.export.onnx import build, export, layers_in_float, unsupported
from lilliput.export.onnx_check import check_with_runtime
from lilliput.export.onnx_operators import MOVES, VALUES
from lilliput.graph.trace import trace
from lilliput.measure.runtime import predict, session
from onnx_cases import CASES, IMAGE, Fn, Tied, artifact_of, case, encode_weights_, folded, quantize_


def outputs(model, samples):
    return predict(session(model.SerializeToString()), samples.numpy())


def assert_same(model, artifact, samples):
    with torch.no_grad():
        expected = artifact.module(samples).numpy()
    found = np.asarray(outputs(model, samples))
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", CASES)
def test_runtime_computes_what_torch_computes(name):
    artifact, graph = case(name)
    model = build(artifact, target="onnx-x86", graph=graph)
    onnx.checker.check_model(model, full_check=True)
    for batch in (1, 4):
        assert_same(model, artifact, artifact.input.example(batch))


def test_cases_use_every_operation():
    used = {node.op for name in CASES for node in case(name)[1].nodes}
    assert used >= {*VALUES, *MOVES, "slice"} - {"flatten"}  # the graph calls flatten a reshape


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_convolutions_of_any_geometry_are_written(data):
    spatial, transposed = data.draw(st.sampled_from([1, 2])), data.draw(st.booleans())
    kind = [[nn.Conv1d, nn.Conv2d], [nn.ConvTranspose1d, nn.ConvTranspose2d]][transposed][spatial - 1]
    numbers = lambda low, high: tuple(data.draw(st.integers(low, high)) for _ in range(spatial))  # noqa: E731
    groups = data.draw(st.sampled_from([1, 2]))
    extra = {"output_padding": numbers(0, 1)} if transposed else {}
    extra |= {"stride": numbers(2, 3), "padding": numbers(0, 1), "dilation": numbers(1, 2), "groups": groups}
    layer = kind(4, 6, numbers(1, 3), bias=data.draw(st.booleans()), **extra)
    artifact = artifact_of(layer, (4, *numbers(6, 9)))
    assert_same(build(artifact, target="onnx-x86"), artifact, artifact.input.example(2))


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_pools_of_any_geometry_are_written_or_refused(data):
    kernel = data.draw(st.integers(1, 4))
    geometry = {"kernel_size": kernel, "stride": data.draw(st.integers(1, 4)), "ceil_mode": data.draw(st.booleans()),
                "padding": data.draw(st.integers(0, kernel // 2))}  # fmt: skip
    count = data.draw(st.sampled_from([None, True, False]))
    layer = nn.MaxPool2d(**geometry) if count is None else nn.AvgPool2d(**geometry, count_include_pad=count)
    artifact = artifact_of(layer, (2, data.draw(st.integers(4, 9)), data.draw(st.integers(4, 9))))
    graph = trace(artifact.module, artifact.input.example(2))
    if unsupported(graph):
        assert count
        assert geometry["ceil_mode"]
        assert geometry["padding"]
    else:
        assert_same(build(artifact, target="onnx-x86", graph=graph), artifact, artifact.input.example(2))


def test_static_batch_is_one_sample():
    artifact, graph = case("residual")
    model = build(artifact, target="onnx-x86", batch=1, graph=graph)
    assert [d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim] == [1, *IMAGE]
    assert_same(model, artifact, artifact.input.example(1))


def test_dynamic_batch_has_a_name():
    model = build(case("residual")[0], target="onnx-x86")
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"
    assert model.graph.output[0].type.tensor_type.shape.dim[0].dim_param == "batch"


def test_weights_are_inside_and_tied_ones_once():
    artifact = artifact_of(Tied(), (6,))
    model = build(artifact, target="onnx-x86")
    assert all(not t.external_data for t in model.graph.initializer)
    assert sum(list(t.dims) == [6, 6] for t in model.graph.initializer) == 1


def test_same_artifact_gives_same_bytes(tmp_path):
    sizes = []
    for i in (0, 1):
        artifact = case("residual")[0]
        graph = trace(artifact.module, artifact.input.example(2))
        sizes.append(export(artifact, tmp_path / f"{i}.onnx", target="onnx-arm", graph=graph))
    assert (tmp_path / "0.onnx").read_bytes() == (tmp_path / "1.onnx").read_bytes()
    assert sizes == [(tmp_path / "0.onnx").stat().st_size] * 2


def test_refused_export_leaves_the_old_file_alone(tmp_path):
    path = tmp_path / "net.onnx"
    path.write_bytes(b"old")
    with pytest.raises(ExportError):
        export(artifact_of(Fn(lambda x: torch.cumsum(x, 1)), (6,)), path, target="onnx-x86")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_unwritable_target_leaves_nothing_behind(tmp_path):
    folder = tmp_path / "net.onnx"
    folder.mkdir()
    with pytest.raises(UsageError, match=r"write .*net\.onnx: .*nothing was changed"):
        export(case("linear")[0], folder, target="onnx-x86")
    assert list(tmp_path.iterdir()) == [folder]


def test_unknown_operation_is_named_with_its_line_and_a_remedy():
    class Sums(nn.Module):
        def forward(self, x):
            return torch.cumsum(x, 1)

    artifact = artifact_of(Sums(), (6,))
    with pytest.raises(ExportError, match=r"cumsum.*aten\.cumsum\.default, test_onnx_float\.py:\d+.*lilliput check"):
        build(artifact, target="onnx-x86")


@pytest.mark.parametrize("function", [
    lambda x: torch.cumsum(x, 1),
    lambda x: F.conv2d(x, x.mean((2, 3), keepdim=True).expand(-1, 3, 1, 1)[:1]),
    lambda x: F.batch_norm(x, None, None, training=True),
])  # fmt: skip
def test_unsupported_lists_exactly_what_build_refuses(function):
    artifact = artifact_of(Fn(function), IMAGE)
    graph = trace(artifact.module, artifact.input.example(2))
    refused = unsupported(graph)
    assert refused
    with pytest.raises(ExportError, match=refused[0][0].name):
        build(artifact, target="onnx-x86", graph=graph)


def test_supported_networks_list_nothing():
    assert all(unsupported(case(name)[1]) == [] for name in itertools.islice(CASES, 10))


def test_several_outputs_and_aliases_of_values_are_given_out():
    model = Fn(lambda x, a: (a(x), x, F.relu(x), a(x).view(-1, 4)), nn.Linear(6, 4))
    artifact = artifact_of(model, (6,))
    samples = artifact.input.example(3)
    found = outputs(build(artifact, target="onnx-x86"), samples)
    with torch.no_grad():
        for a, b in zip(found, artifact.module(samples), strict=True):
            np.testing.assert_allclose(a, b.numpy(), atol=1e-6)


def test_one_value_given_out_twice():
    def thrice(x, layer):
        y = layer(x)
        return y, y, y.view(-1, 4)

    artifact = artifact_of(Fn(thrice, nn.Linear(6, 4)), (6,))
    found = outputs(build(artifact, target="onnx-x86"), artifact.input.example(3))
    assert np.array_equal(found[0], found[1])
    assert np.array_equal(found[0], found[2])


def test_value_that_the_module_does_not_store_is_refused():
    class Loose(nn.Module):
        def __init__(self):
            super().__init__()
            self.factor = torch.tensor([1.0, 2.0])

        def forward(self, x):
            return x * self.factor

    with pytest.raises(ExportError, match="with these arguments has no form here"):
        build(artifact_of(Loose(), (2,)), target="onnx-x86")


def test_buffers_are_written_like_parameters():
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("factor", torch.tensor([1.0, 2.0]))

        def forward(self, x):
            return x * self.factor

    artifact = artifact_of(Scaled(), (2,))
    assert_same(build(artifact, target="onnx-x86"), artifact, artifact.input.example(2))


def test_unknown_target_is_refused_with_the_known_ones():
    with pytest.raises(UsageError, match="onnx-x86 or onnx-arm"):
        build(case("linear")[0], target="x86")
    with pytest.raises(UsageError, match="onnx-x86 or onnx-arm"):
        build(case("linear")[0], target="cortex-m4")


@pytest.mark.parametrize("bits", [2, 4, 8, 12, 20])
@pytest.mark.parametrize("name", ["residual", "tied", "transposed", "linear on tokens"])
def test_weight_only_file_holds_integers_and_runs_in_float(name, bits):
    artifact, graph = case(name)
    encode_weights_(artifact, graph, bits)
    model = build(artifact, target="onnx-x86", graph=graph)
    kinds = {t.data_type for t in model.graph.initializer if len(t.dims) > 1 and np.prod(t.dims) > 20}
    expected = onnx.TensorProto.INT8 if bits <= 8 else onnx.TensorProto.INT16 if bits <= 16 else onnx.TensorProto.INT32
    assert kinds & {onnx.TensorProto.INT8, onnx.TensorProto.INT16, onnx.TensorProto.INT32} == {expected}
    assert {n.op_type for n in model.graph.node}.isdisjoint({"QuantizeLinear", "DequantizeLinear"})
    assert_same(model, artifact, artifact.input.example(3))
    assert layers_in_float(artifact, graph) == {}


def test_runtime_undoes_weight_grids_at_loading(tmp_path):
    import onnxruntime

    artifact, graph = case("conv")
    encode_weights_(artifact, graph)
    data = build(artifact, target="onnx-x86", graph=graph).SerializeToString()
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    kinds = {n.op_type for n in onnx.load(tmp_path / "optimized.onnx").graph.node}
    assert kinds.isdisjoint({"Cast", "Mul", "DequantizeLinear"})


def test_names_tell_the_layers():
    model = build(case("residual")[0], target="onnx-x86")
    assert {"conv1", "conv2", "fc"} <= {n.name for n in model.graph.node}


def test_artifact_may_be_given_without_a_graph():
    artifact = Artifact.of(nn.Linear(3, 2), InputSpec(shape=(3,)))
    assert_same(build(artifact, target="onnx-x86"), artifact, artifact.input.example(2))


class WithBuffers(nn.Module):
    """`code(x, buffers)` between two layers."""

    def __init__(self, code, *buffers):
        super().__init__()
        self.enter, self.leave, self.code = nn.Linear(6, 4), nn.Linear(4, 3), code
        for i, buffer in enumerate(buffers):
            self.register_buffer(f"b{i}", buffer)

    def forward(self, x):
        return self.leave(self.code(self.enter(x), list(self.buffers())))


COUNTS, FLAGS = torch.tensor([1, 2, -3, 4]), torch.tensor([True, False, True, True])
BESIDE = {
    "add": WithBuffers(lambda x, b: x + b[0], COUNTS),
    "sub": WithBuffers(lambda x, b: b[0] - x, COUNTS.int()),
    "mul": WithBuffers(lambda x, b: x * b[0], FLAGS),
    "large": WithBuffers(lambda x, b: x * b[0], COUNTS + 2**30),
}


@pytest.mark.parametrize("integers", [False, True])
@pytest.mark.parametrize("name", BESIDE)
def test_integer_buffers_beside_a_value_are_constants(name, integers):
    artifact = artifact_of(BESIDE[name], (6,))
    graph, samples = folded(artifact), artifact.input.example(32)
    if integers:
        quantize_(artifact, graph, samples)
    file = build(artifact, target="onnx-x86", graph=graph)
    onnx.checker.check_model(file, full_check=True)
    check_with_runtime(file, artifact, samples, graph=graph)


ALONE = {
    "add: it computes with buffers alone": WithBuffers(lambda x, b: x * (b[0] + b[1]), FLAGS, ~FLAGS),
    "relu: it computes with buffers alone": WithBuffers(lambda x, b: x * b[0].relu(), COUNTS),
    "mul: it reads a buffer of complex numbers": WithBuffers(lambda x, b: (x * b[0]).real, COUNTS * 1j),
}


@pytest.mark.parametrize("text", ALONE)
def test_buffers_that_cannot_be_constants_are_named_with_a_remedy(text):
    node, reason = text.split(": ")
    with pytest.raises(ExportError, match=rf"ONNX export of '{node}': {reason} .*register the result as a buffer"):
        build(artifact_of(ALONE[text], (6,)), target="onnx-x86")
