"""Sessions with clear errors. Files are made by hand here: the exporter is tested elsewhere."""

import sys

import numpy as np
import pytest
from onnx import TensorProto, helper

from lilliput.core.errors import ArtifactError, DataError, MissingExtraError
from lilliput.measure.runtime import predict, session


def relu(outputs=1, batch="n"):
    names = [f"y{i}" for i in range(outputs)]
    nodes = [helper.make_node("Relu", ["x"], [name]) for name in names]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [batch, 3]) for name in ("x", *names)]
    graph = helper.make_graph(nodes, "g", values[:1], values[1:])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10).SerializeToString()


X = np.array([[-1, 0, 2], [3, -4, 5]])


@pytest.mark.parametrize("optimize", [True, False])
def test_bytes_and_files_are_run(tmp_path, optimize):
    (tmp_path / "relu.onnx").write_bytes(relu())
    for model in (relu(), tmp_path / "relu.onnx", str(tmp_path / "relu.onnx")):
        assert np.array_equal(predict(session(model, optimize=optimize), X), np.maximum(X, 0))


def test_several_outputs_are_a_tuple():
    found = predict(session(relu(outputs=2)), X)
    assert isinstance(found, tuple)
    assert all(np.array_equal(y, np.maximum(X, 0)) for y in found)


def test_threads_are_what_was_asked_for():
    options = session(relu(), threads=2).get_session_options()
    assert (options.intra_op_num_threads, options.inter_op_num_threads) == (2, 1)
    assert session(relu()).get_session_options().intra_op_num_threads == 1


@pytest.mark.parametrize("content", [b"", b"not a model", relu()[:-40]])
def test_broken_file_is_named(tmp_path, content):
    path = tmp_path / "broken.onnx"
    path.write_bytes(content)
    with pytest.raises(ArtifactError, match=r"broken\.onnx"):
        session(path)
    with pytest.raises(ArtifactError, match="an ONNX model"):
        session(content)


def test_missing_file_is_named(tmp_path):
    with pytest.raises(ArtifactError, match=r"absent\.onnx"):
        session(tmp_path / "absent.onnx")


def test_missing_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MissingExtraError, match=r"lilliput\[onnx\]"):
        session(relu())


@pytest.mark.parametrize(("shape", "batch"), [((2, 4), "n"), ((2, 3, 1), "n"), ((2, 3), 1)])
def test_wrong_shape_is_refused_with_the_right_one(shape, batch):
    with pytest.raises(DataError, match="3"):
        predict(session(relu(batch=batch)), np.zeros(shape))
