"""The checks find what they are there to find: a wrong integer, a wrong scale, another network's file."""

import numpy as np
import pytest
import torch
from onnx import numpy_helper
from torch import nn

from lilliput.core.errors import UsageError, VerificationError
from lilliput.export.onnx import build, export
from lilliput.export.onnx_check import Report, _fault, check_layers, check_with_runtime
from onnx_cases import VECTOR, Fn, artifact_of, case, folded, quantize_, quantized


def changed(model, matches, change):
    """A copy with one constant changed: the first that `matches`."""
    copy = type(model)()
    copy.CopyFrom(model)
    tensor = next(t for t in copy.graph.initializer if matches(numpy_helper.to_array(t)))
    tensor.CopyFrom(numpy_helper.from_array(change(numpy_helper.to_array(tensor).copy()), tensor.name))
    return copy


def is_weight(array):
    return array.dtype == np.int8 and array.ndim > 1


def test_right_files_pass_by_path_and_by_model(tmp_path):
    artifact, graph, samples = quantized("residual")
    path = tmp_path / "net.onnx"
    export(artifact, path, target="onnx-x86", graph=graph)
    by_path = check_with_runtime(path, artifact, samples)
    by_model = check_with_runtime(build(artifact, target="onnx-x86", graph=graph), artifact, samples, graph=graph)
    assert by_path == by_model
    assert by_path.samples == 64
    assert by_path.equal_argmax is not None
    assert by_path.equal_argmax >= 63 / 64
    assert max(check_layers(path, artifact, samples).values()) <= 1


def test_static_file_is_checked_sample_by_sample():
    artifact, graph, samples = quantized("residual")
    model = build(artifact, target="onnx-x86", graph=graph, batch=1)
    assert check_with_runtime(model, artifact, samples[:5], graph=graph).samples == 5
    check_layers(model, artifact, samples[:3], graph=graph)


def test_changed_weight_is_found_in_its_layer():
    artifact, graph, samples = quantized("residual")

    def flip(array):
        array[3] = -array[3]
        return array

    model = changed(build(artifact, target="onnx-x86", graph=graph), is_weight, flip)
    with pytest.raises(VerificationError, match="'relu'"):
        check_layers(model, artifact, samples, graph=graph)
    with pytest.raises(VerificationError, match=r"% of their spread|another largest output"):
        check_with_runtime(model, artifact, samples, graph=graph)


def test_two_units_in_one_place_are_too_many():
    artifact, graph, samples = quantized("pad")
    model = build(artifact, target="onnx-x86", graph=graph)
    assert set(check_layers(model, artifact, samples, graph=graph).values()) <= {0}  # moves only
    artifact, graph, samples = quantized("linear")
    model = build(artifact, target="onnx-x86", graph=graph)
    worse = changed(model, lambda a: a.dtype == np.uint8 and a.ndim == 0, lambda a: a + np.uint8(2))
    with pytest.raises(VerificationError, match=r"'input'.*2 units"):
        check_layers(worse, artifact, samples, graph=graph)


def test_file_of_another_network_is_refused():
    artifact, graph, samples = quantized("residual")
    other, _ = case("residual")
    with pytest.raises(VerificationError, match="not made from this artifact"):
        check_layers(build(other, target="onnx-x86"), artifact, samples, graph=graph)


def test_float_files_must_agree_closely():
    artifact, graph = case("residual")
    samples = artifact.input.example(20)
    model = build(artifact, target="onnx-x86", graph=graph)
    assert check_with_runtime(model, artifact, samples, graph=graph).drift < 1e-5
    worse = changed(model, lambda a: a.ndim == 4, lambda a: a * np.float32(1.01))
    with pytest.raises(VerificationError, match="is allowed"):
        check_with_runtime(worse, artifact, samples, graph=graph)
    check_with_runtime(worse, artifact, samples, graph=graph, float_tolerance=0.1)


def test_one_sample_with_one_output_can_be_checked():
    for make in (nn.Linear(6, 1), nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 1))):
        artifact = artifact_of(make, VECTOR)
        graph = folded(artifact)
        samples = artifact.input.example(1)
        check_with_runtime(build(artifact, target="onnx-x86", graph=graph), artifact, samples, graph=graph)
        quantize_(artifact, graph, artifact.input.example(50))
        report = check_with_runtime(build(artifact, target="onnx-x86", graph=graph), artifact, samples, graph=graph)
        assert report.equal_argmax is None


def test_no_samples_prove_nothing():
    artifact, graph = case("linear")
    with pytest.raises(UsageError, match="no samples"):
        check_with_runtime(build(artifact, target="onnx-x86", graph=graph), artifact, torch.zeros(0, 6), graph=graph)


def test_several_outputs_are_compared_together():
    class Heads(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 3), nn.Linear(8, 2)

        def forward(self, x):
            x = self.body(x).relu()
            return self.a(x), self.b(x)

    artifact = artifact_of(Heads(), VECTOR)
    graph = folded(artifact)
    samples = artifact.input.example(50)
    quantize_(artifact, graph, samples)
    model = build(artifact, target="onnx-x86", graph=graph)
    assert check_with_runtime(model, artifact, samples, graph=graph).equal_argmax is None
    worse = changed(model, lambda a: a.shape == (2, 8), lambda a: -a)
    with pytest.raises(VerificationError):
        check_with_runtime(worse, artifact, samples, graph=graph)


FORMS = {
    "a dictionary": lambda a, b: {"z": a, "y": b},
    "a dictionary of one": lambda a, b: {"out": a + b.mean(1, keepdim=True)},
    "a tuple of one": lambda a, b: (a,),
    "a list in a tuple": lambda a, b: (a, [b, None]),
    "the same twice": lambda a, b: [a, a],
}


@pytest.mark.parametrize("integers", [False, True])
@pytest.mark.parametrize("form", FORMS)
def test_outputs_of_every_form_are_compared(form, integers):
    model = Fn(
        lambda x, body, a, b: FORMS[form](a(body(x).relu()), b(body(x).relu())), *map(nn.Linear, (6, 8, 8), (8, 3, 2))
    )
    artifact = artifact_of(model, VECTOR)
    graph, samples = folded(artifact), artifact.input.example(50)
    if integers:
        quantize_(artifact, graph, samples)
    file = build(artifact, target="onnx-x86", graph=graph)
    found = check_with_runtime(file, artifact, samples, graph=graph)
    single = len(file.graph.output) == 1
    assert (found.equal_argmax is not None) == single
    worse = changed(file, lambda a: a.ndim == 2 and 3 in a.shape, lambda a: -a)
    with pytest.raises(VerificationError):
        check_with_runtime(worse, artifact, samples, graph=graph)


def test_an_output_that_is_not_in_the_file_is_said():
    model = Fn(lambda x, fc: (fc(x), fc.weight), nn.Linear(6, 3))
    artifact, samples = artifact_of(model, VECTOR), torch.randn(5, 6)
    with pytest.raises(VerificationError, match=r"outputs of shape \(5, 3\), the network gives \(5, 3\) and \(3, 6\)"):
        check_with_runtime(build(artifact, target="onnx-x86"), artifact, samples)


def report_of(samples, drift=0.0):
    return Report(samples=samples, max_difference=1.0, rms_difference=drift, spread=1.0, equal_argmax=1.0)


def test_one_flip_is_allowed_for_few_samples_and_one_in_a_thousand_for_many():
    large = np.full(9, 0.5)  # nine samples that clearly have another argmax
    assert _fault(report_of(500), large[:1], classes=True) == ""
    assert "2 of 500" in _fault(report_of(500), large[:2], classes=True)
    assert _fault(report_of(9_000), large, classes=True) == ""
    assert "9 of 8000" in _fault(report_of(8_000), large, classes=True)


def test_near_ties_count_only_where_outputs_are_known_to_be_classes():
    near = np.full(9, 0.01)
    assert _fault(report_of(100), near, classes=None) == ""
    assert "9 of 100" in _fault(report_of(100), near, classes=True)


@pytest.mark.parametrize("drift", [0.06, float("nan")])
def test_drift_beyond_the_limit_is_a_fault_whatever_the_argmax(drift):
    assert "spread" in _fault(report_of(1000, drift), np.zeros(0), classes=None)
