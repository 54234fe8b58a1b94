"""What a run notes for its page, on networks and tasks that are not the usual ones."""

import pytest
import torch
from sklearn.metrics import confusion_matrix
from torch import nn

import lilliput as ll
from lilliput.core.guard import evaluate
from lilliput.report.difference import difference
from lilliput.testing import tiny_model, tiny_task

PASSES = [ll.WeightClustering(n_clusters=4), ll.Quantization(weight_bits=4)]


def rows_of(result):
    return {row["layer"]: row for row in result.details["layers"]}


def test_a_tied_weight_is_counted_once_and_its_owner_named():
    result = ll.compress(tiny_model("shared"), tiny_task(), recipe=PASSES)
    rows = rows_of(result)
    assert [rows[name]["shared"] for name in ("enter", "middle", "tied", "head")] == [None, None, "middle", None]
    assert rows["tied"]["shape"] == rows["middle"]["shape"] == [8, 8]
    assert rows["tied"]["bytes"] < rows["middle"]["bytes"]
    assert sum(row["bytes"] for row in rows.values()) == sum(result.columns[-1].tensors.values())
    assert rows["middle"]["macs"] == 2 * 64  # it runs twice


def test_sqnr_is_that_of_diff_on_the_same_samples():
    model, task = tiny_model("conv"), tiny_task()
    result = ll.compress(model, task, recipe=PASSES)
    calibration = task.data("calibration")
    same = ll.Task.classification(train=task.train, validation=calibration)
    found = difference(result.artifact, model, same, samples=len(calibration)).sqnr
    rows = rows_of(result)
    assert {name: row["sqnr"] for name, row in rows.items()} == pytest.approx({name: found[name] for name in rows})


def test_an_unchanged_network_is_exact():
    result = ll.compress(tiny_model("conv"), tiny_task(), recipe=[])
    assert all(row["exact"] for row in rows_of(result).values())
    assert result.details["samples"]["shown"] == []
    assert result.details["answers"]["before"] == result.details["answers"]["after"]


def test_narrowed_layers_have_no_sqnr_and_their_own_shapes():
    result = ll.compress(tiny_model("conv"), tiny_task(), recipe=[ll.ChannelPruning(amount=0.5)])
    row = rows_of(result)["0"]
    assert row["shape"][0] < 4
    assert row["sqnr"] is None
    assert row["macs"] < 4 * 9 * 16


def test_many_classes_are_listed_and_not_drawn():
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(200, 8, generator=generator), torch.arange(200) % 40
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(8, 40))
    task = ll.Task.classification(train=(x, y), validation=(x, y))
    result = ll.compress(model, task, recipe=[ll.Quantization(weight_bits=2, activation_bits=0)])
    found = result.details["answers"]
    assert "before" not in found
    with torch.no_grad():
        before, after = (m(x).argmax(1) for m in (model, result.artifact.module))
    moved = confusion_matrix(y, after, labels=range(40)) - confusion_matrix(y, before, labels=range(40))
    largest = sorted(abs(moved[moved != 0]).tolist(), reverse=True)
    assert [abs(c["after"] - c["before"]) for c in found["changes"]] == largest[: len(found["changes"])]
    for c in found["changes"]:
        assert c["after"] - c["before"] == moved[int(c["label"]), int(c["answer"])]


def test_targets_are_kept_where_they_are_one_number_or_row_for_each_sample():
    model, task = tiny_model("linear"), tiny_task()
    found = evaluate(model, task, task.validation, "validation", None, 7, torch.device("cpu"))
    assert found.targets is not None
    assert torch.equal(found.targets, task.data("validation").batch(torch.arange(64))[1])
    odd = ll.Task.anomaly(
        train=(torch.zeros(4, 16), torch.zeros(4)), validation=(torch.zeros(4, 16), torch.arange(4.0))
    )
    found = evaluate(nn.Linear(16, 16), odd, odd.data("validation"), "validation", None, 7, torch.device("cpu"))
    assert found.targets is None
