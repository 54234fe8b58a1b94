"""Comparisons: each number is what an independent count or run gives, with its origin; what fails is a note."""

import copy
import sys

import onnxruntime
import pytest
import torch
from torch import nn

from lilliput.core.artifact import Artifact
from lilliput.core.errors import ArtifactError, ExportError, UsageError, VerificationError
from lilliput.core.guard import FullForward
from lilliput.core.method import Context, apply_checked_
from lilliput.core.target import Target
from lilliput.core.task import Task
from lilliput.export.onnx_check import Report
from lilliput.graph import stored
from lilliput.graph.integer import runnable
from lilliput.methods.normalization.batchnorm import FoldBatchNorm
from lilliput.methods.pruning.magnitude import MagnitudePruning
from lilliput.methods.quantization.post_training import Quantization
from lilliput.report import compare as comparing
from lilliput.report.compare import agreement, compare, onnx_target, samples_of
from lilliput.testing import tiny_model, tiny_task

TASK = tiny_task(48)


def artifact_of(model, *methods, task=TASK):
    net = Artifact.of(model, task.spec)
    for method in methods:
        apply_checked_(method, net, Context.of(task, model))
    return net


def compared(model, artifacts, folder, *, task=TASK, target="onnx-x86", latency=False):
    evaluator = FullForward(task, model)
    columns = compare(
        artifacts,
        model,
        task,
        target=Target(target),
        evaluator=evaluator,
        role="validation",
        folder=folder,
        latency=latency,
    )
    return columns, evaluator


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    """A float network and its pruned and quantized form, latency included."""
    model = tiny_model("batch_norm")
    artifacts = {
        "float": artifact_of(model),
        "small one": artifact_of(model, FoldBatchNorm(), MagnitudePruning(), Quantization()),
    }
    folder = tmp_path_factory.mktemp("compare")
    columns, evaluator = compared(model, artifacts, folder, latency=True)
    return model, artifacts, columns, evaluator, folder


def test_files_are_counted_in_bytes_and_onnx_files_are_there(result):
    _, artifacts, columns, _, folder = result
    for column in columns:
        m = column.measurements
        assert m["file"].value == len(stored.dumps(artifacts[column.name]))
        assert column.onnx is not None
        assert m["ONNX file"].value == column.onnx.stat().st_size
    assert [p.name for p in sorted(folder.iterdir())] == ["float.onnx", "small-one.onnx"]


def test_scores_are_those_of_running_the_networks(result):
    _, artifacts, columns, _, _ = result
    data = TASK.data("validation")
    rows = {}
    for column in columns:
        with torch.no_grad():
            outputs = runnable(artifacts[column.name])(data.inputs)
        rows[column.name] = TASK.score.statistics(outputs, data.targets)
        m = column.measurements["accuracy"]
        assert m.value == TASK.score.value(rows[column.name])
        assert m.spread == pytest.approx(TASK.score.interval(rows[column.name]))
        assert m.note == "validation, 48 samples, 95% interval"
    difference = columns[1].measurements["difference"]
    value, interval = TASK.score.difference(rows["small one"], rows["float"])
    assert (difference.value, difference.unit) == (value, "pt")
    assert difference.spread == pytest.approx(interval)
    lost = int((rows["float"][:, 0] > rows["small one"][:, 0]).sum())
    assert difference.note.startswith(f"paired; {lost} samples lost, ")
    assert "difference" not in columns[0].measurements


def test_the_float_network_is_not_evaluated_twice(result):
    assert result[3].uses == {"validation": 1}


def test_counts_are_those_of_the_network(result):
    model, artifacts, columns, _, _ = result
    m = columns[0].measurements
    trained = sum(p.numel() for p in model.parameters())
    assert m["parameters"].value == m["stored parameters"].value == trained
    assert m["MACs"].value == 2 * 2 * 4 * 9 + 16 * 3
    small = columns[1].measurements
    kept = sum(int(e.mask.sum()) for e in artifacts["small one"].encodings.values() if e.mask is not None)
    assert small["stored parameters"].value == kept + 4 + 3
    assert small["multiplies"].value < small["MACs"].value == m["MACs"].value


def test_each_number_has_its_origin_and_unit(result):
    for column in result[2]:
        kinds = {n: (m.origin, m.unit) for n, m in column.measurements.items()}
        assert {n for n, (origin, _) in kinds.items() if origin == "planned"} == {
            *("planned RAM", "planned flash", "flash of functions"),
        }
        assert kinds["file"] == kinds["ONNX file"] == ("counted", "B")
        assert kinds["MACs"] == ("counted", "")
        assert kinds["latency"][0] == "measured"


def test_latency_is_measured_together_and_compared_with_the_first(result):
    first, second = (c.measurements for c in result[2])
    for m in (first["latency"], second["latency"]):
        assert m.spread is not None
        assert 0 < m.spread[0] <= m.value <= m.spread[1]
        assert m.note.startswith("batch 1, ")
    assert "latency ratio" not in first
    assert second["latency ratio"].unit == "x"


def test_the_callers_model_and_the_artifacts_are_left_alone(result):
    model, artifacts, *_ = result
    assert all(torch.equal(t, artifacts["float"].module.state_dict()[n]) for n, t in model.state_dict().items())
    for net in artifacts.values():
        net.check()


def test_the_onnx_file_computes_what_was_scored(result):
    _, artifacts, columns, _, _ = result
    x = TASK.data("validation").inputs
    for column in columns:
        session = onnxruntime.InferenceSession(str(column.onnx), providers=["CPUExecutionProvider"])
        with torch.no_grad():
            ours = runnable(artifacts[column.name])(x)
        theirs = torch.from_numpy(session.run(None, {session.get_inputs()[0].name: x.numpy()})[0])
        assert float((theirs - ours).abs().max()) <= 0.02 * float(ours.std())
        assert f"run and compared on {len(x)} samples: 100.00% equal argmax" in column.measurements["ONNX file"].note


def test_quantized_activations_count_even_where_no_weight_has_changed(tmp_path):
    """Two bits a value and float weights: the score must be that of the integer network."""
    model = tiny_model("linear")
    coarse = artifact_of(model, Quantization(skip=("*",), activation_bits=2))
    columns, _ = compared(model, {"float": artifact_of(model), "coarse": coarse}, tmp_path)
    outputs = [c.evaluation.outputs for c in columns if c.evaluation is not None]
    assert outputs[0] is not None
    assert outputs[1] is not None
    assert not torch.equal(outputs[0], outputs[1])


class Summed(nn.Module):
    """Something that no exporter of ours writes."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(16, 3)

    def forward(self, x):
        return self.fc(x.flatten(1).cumsum(1))


def test_a_network_that_cannot_be_exported_is_still_compared(tmp_path):
    columns, _ = compared(Summed(), {"float": artifact_of(Summed())}, tmp_path, latency=True)
    (column,) = columns
    assert column.onnx is None
    assert any(note.startswith("no ONNX file: ") and "cumsum" in note for note in column.notes)
    assert "accuracy" in column.measurements
    assert column.measurements["latency"].origin == "measured"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("error", "mismatch"), [(VerificationError, True), (ArtifactError, True), (UsageError, False), (ExportError, False)]
)
def test_a_file_that_computes_something_else_is_removed_and_said(tmp_path, monkeypatch, error, mismatch):
    def fail(*_, **__):
        raise error("check", "it differs", "look")

    monkeypatch.setattr(comparing, "check_with_runtime", fail)
    model = tiny_model("linear")
    columns, _ = compared(model, {"float": artifact_of(model)}, tmp_path)
    assert columns[0].mismatch == ("check: it differs; look" if mismatch else "")
    assert columns[0].notes == ["no ONNX file: check: it differs; look"]
    assert list(tmp_path.iterdir()) == []


def test_layers_left_in_float_are_noted_by_name(tmp_path):
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.LayerNorm(8), nn.Linear(8, 3)).eval()
    columns, _ = compared(model, {"int8": artifact_of(model, Quantization())}, tmp_path)
    assert columns[0].notes == ["2 stays in float: layer_norm has no integer rule here"]


@pytest.mark.parametrize("missing", ["onnx", "onnxruntime"])
def test_without_onnx_the_rest_is_measured_and_the_extra_is_named(tmp_path, monkeypatch, missing):
    for name in [n for n in sys.modules if n == missing or n.startswith(f"{missing}.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, missing, None)
    model = tiny_model("linear")
    nets = {"float": artifact_of(model), "int8": artifact_of(model, Quantization())}
    columns, _ = compared(model, nets, tmp_path, latency=True)
    for column in columns:
        assert {"accuracy", "file", "planned RAM", "MACs"} <= set(column.measurements)
        assert column.onnx is None
        assert "pip install 'lilliput[onnx]'" in column.notes[0]
    assert "latency" in columns[0].measurements
    assert "no latency: there is no ONNX file to run" in columns[1].notes
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("target", "preset"),
    [("onnx-x86", "onnx-x86"), ("onnx-arm", "onnx-arm"), ("cortex-m4", "onnx-arm"), ("c-host", "onnx-arm")],
)
def test_every_target_has_an_onnx_preset_with_its_activations(target, preset):
    assert onnx_target(Target(target)) == preset


def test_samples_are_spread_over_the_role():
    x = torch.arange(10.0)[:, None]
    task = Task.regression(train=(x, x), validation=(x, x))
    assert samples_of(task, "validation", 4).flatten().tolist() == [0, 3, 6, 9]
    assert len(samples_of(task, "validation", 99)) == 10
    assert samples_of(task, "validation", 1).flatten().tolist() == [0]


def test_agreement_says_classes_only_where_there_are_some():
    some = Report(samples=4, max_difference=0.25, rms_difference=0.1, spread=2.0, equal_argmax=0.75)
    assert agreement(some) == "75.00% equal argmax, largest difference 0.25 (outputs spread 2)"
    none = Report(samples=4, max_difference=0.25, rms_difference=0.1, spread=2.0, equal_argmax=None)
    assert agreement(none) == "largest difference 0.25 (outputs spread 2)"


def test_a_single_sample_has_no_interval_and_no_crash(tmp_path):
    x = torch.randn((1, 4), generator=torch.Generator().manual_seed(0))
    task = Task.regression(train=(x, x), validation=(x, x))
    model = nn.Linear(4, 4)
    columns, _ = compared(
        model,
        {"a": artifact_of(model, task=task), "b": copy.deepcopy(artifact_of(model, task=task))},
        tmp_path,
        task=task,
    )
    assert columns[0].measurements["MAE"].spread is None
    assert columns[1].measurements["difference"].spread is None
