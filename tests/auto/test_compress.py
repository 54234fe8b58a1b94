"""The front door: from a network and its data to a verified file, with every number and every missed budget said."""

import dataclasses
import importlib.util
import json
import re
import shutil

import numpy as np
import pytest
import torch
from torch import nn

from lilliput.auto import compress as front
from lilliput.auto.compress import apply, compress, default_recipe
from lilliput.auto.given import as_recipe, as_task
from lilliput.auto.load import load
from lilliput.core import container
from lilliput.core.artifact import Artifact
from lilliput.core.errors import DataError, RecipeError, UsageError, VerificationError
from lilliput.core.guard import MaxDrop
from lilliput.core.progress import Progress
from lilliput.core.target import Target
from lilliput.core.task import Task
from lilliput.export import onnx as onnx_export
from lilliput.export.c.plan import plan
from lilliput.graph import stored, trace
from lilliput.graph.integer import runnable
from lilliput.graph.lower import lower
from lilliput.methods.clustering.weight_clustering import WeightClustering
from lilliput.methods.normalization.batchnorm import FoldBatchNorm
from lilliput.methods.pruning.magnitude import MagnitudePruning
from lilliput.methods.quantization.post_training import Quantization
from lilliput.methods.tuning.fine_tune import FineTune
from lilliput.pipeline.recipe import Recipe, Step
from lilliput.report.result import Violation
from lilliput.testing import tiny_model, tiny_task
from lilliput.training.fit import fit
from lilliput.zoo.registry import entry, open_model

SHORT = [MagnitudePruning(sparsity=0.3), Quantization()]


def three_roles():
    """A task with a test role."""
    x, y = tiny_task(96).data("train").batch(torch.arange(96))
    return Task.classification((x[:48], y[:48]), (x[48:72], y[48:72]), (x[72:], y[72:]))


TASK = three_roles()


class Lines(Progress):
    def __init__(self):
        self.lines = []

    def say(self, text):
        self.lines.append(text)


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    """A small run in a folder."""
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    return compress(tiny_model("batch_norm"), TASK, recipe=[FoldBatchNorm(), *SHORT], folder=folder, max_drop="100pt")


def test_three_networks_are_compared_by_every_quantity_with_origin(result):
    table = result.table()
    assert table.splitlines()[0].split("  ")[-1] == "origin"
    assert [c.name for c in result.columns] == ["float", "plain int8", "ours"]
    for label, origin in {
        "accuracy": "measured",
        "difference to float": "measured",
        ".lil file": "counted",
        "deployable (ONNX)": "counted",
        "planned flash": "planned",
        "planned RAM": "planned",
        "peak memory": "measured",
        "parameters": "counted",
        "stored parameters": "counted",
        "MACs": "counted",
        "multiplies": "counted",
        "additions": "counted",
        "latency": "measured",
        "latency / float": "measured",
    }.items():
        row = next(line for line in table.splitlines() if line.startswith(label))
        assert row.endswith(origin), row
    assert "accuracy: test, 24 samples, 95% interval" in table
    assert table.count("ONNX file of ") == 3


def test_the_folder_holds_the_network_its_recipe_and_its_numbers(result):
    folder = result.folder
    assert folder is not None
    assert folder.name == "0001-tiny"
    names = {p.name for p in folder.iterdir()}
    assert names == {
        *("net.lil", "recipe.yaml", "run.json", "result.json", "report.json", "table.txt", "table.csv", "trail.jsonl"),
        *("step-00.lil", "step-01.lil", "step-02.lil", "float.onnx", "plain-int8.onnx", "ours.onnx"),
    }
    assert (folder / "net.lil").read_bytes() == stored.dumps(result.artifact)
    assert (folder / "table.txt").read_text() == result.table() + "\n"
    assert as_recipe(folder / "recipe.yaml") == result.recipe
    assert result.columns[-1].measurements["file"].value == (folder / "net.lil").stat().st_size


def test_the_numbers_are_json_that_every_reader_takes(result):
    data = json.loads((result.folder / "result.json").read_text(), parse_constant=pytest.fail)
    assert data["feasible"] is True
    assert data["violations"] == []
    assert [c["name"] for c in data["columns"]] == ["float", "plain int8", "ours"]
    assert {"name", "value", "unit", "origin", "spread", "note"} == set(data["columns"][0]["measurements"][0])
    assert [e["name"] for e in data["trail"]] == ["fold_batchnorm", "magnitude_pruning", "quantization"]
    assert data["roles"][0] == "train: 48 samples"
    assert {"python", "torch", "machine", "lilliput"} <= set(data["environment"])
    assert data["recipe"] == result.recipe.to_data()


def test_the_test_role_is_read_only_after_the_last_step(result):
    assert all("test" not in e["uses"] for e in result.trail)
    assert result.uses["test"] == len(result.columns) - 1 == 2  # plain int8 and ours; float is the reference
    assert result.uses["validation"] == 1  # the budget of max_drop


def test_a_result_is_one_line_and_prints_as_its_table(result):
    assert str(result) == result.table()
    assert "\n" not in repr(result)
    sizes = ", ".join(rf"{name} [0-9.]+ k?B" for name in ("float", "plain int8", "ours"))
    assert re.fullmatch(rf"<Result: {sizes}; budgets: none missed>", repr(result))
    missed = dataclasses.replace(result, violations=[Violation(budget="max_ram", limit=1, found=2, text="")])
    assert repr(missed).endswith("; budgets: 1 missed (max_ram)>")
    assert repr(dataclasses.replace(result, columns=[])) == "<Result: nothing measured; budgets: none missed>"


def test_a_layer_that_the_recipe_skips_says_so_in_the_table():
    recipe = [MagnitudePruning(skip=("1",)), Quantization(skip=("3",))]
    found = apply(tiny_model("linear"), TASK, recipe)
    notes = [n for n in found.columns[-1].notes if "float" in n]
    assert notes == ["3 stays in float: skipped by the recipe (include and skip of quantization)"]
    assert f"ours: {notes[0]}" in found.table()


def test_the_same_call_gives_the_same_bytes_and_its_recipe_too(result):
    again = apply(tiny_model("batch_norm"), TASK, result.recipe)
    assert container.dumps(again.artifact) == container.dumps(result.artifact)
    from_file = apply(tiny_model("batch_norm"), TASK, str(result.folder / "recipe.yaml"))
    assert container.dumps(from_file.artifact) == container.dumps(result.artifact)


def test_a_saved_network_loads_and_computes_the_same(result, tmp_path):
    size = result.save(tmp_path / "net.lil")
    assert size == (tmp_path / "net.lil").stat().st_size
    x = TASK.data("test").inputs
    with torch.no_grad():
        assert torch.equal(load(tmp_path / "net.lil", into=tiny_model("batch_norm"))(x), runnable(result.artifact)(x))
    assert result.save(tmp_path / "bare.lil", strip=True) < size


def test_an_export_is_verified_on_the_test_role(result, tmp_path):
    export = result.export(tmp_path / "a" / "fw", name="tiny")
    assert export.onnx == tmp_path / "a" / "fw" / "tiny.onnx"
    assert export.verify().startswith("100.00% equal argmax, largest difference ")
    onnx_export.export(result.columns[0].artifact, export.onnx, target="onnx-x86")
    with pytest.raises(VerificationError, match="outputs differ by"):
        export.verify()
    with pytest.raises(UsageError, match="export to 'tflite': not a format; use one of onnx"):
        result.export(tmp_path, to=["tflite"])
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="File exists; choose another folder"):
        result.export(tmp_path / "file")


def test_each_structure_is_traced_once_for_all_columns(monkeypatch):
    calls, original = [], trace.trace
    monkeypatch.setattr(trace, "trace", lambda net, x: calls.append(type(net[1])) or original(net, x))
    compress(tiny_model("batch_norm"), TASK, recipe=[FoldBatchNorm(), *SHORT])
    assert calls == [nn.BatchNorm2d, nn.Identity]


def test_the_caller_is_left_as_it_was(tmp_path):
    model = tiny_model("linear").train()
    before = {n: t.clone() for n, t in model.state_dict().items()}
    torch.manual_seed(4)
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    x = TASK.data("train").inputs.clone()
    compress(model, TASK, recipe=[*SHORT[:1], FineTune(epochs=1), *SHORT[1:]], folder=tmp_path / "net")
    assert model.training
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_num_threads() == threads
    assert torch.equal(TASK.data("train").inputs, x)


def test_a_folder_is_gone_on_with(result):
    lines = Lines()
    again = compress(
        tiny_model("batch_norm"), TASK, recipe=result.recipe, folder=result.folder, progress=lines, max_drop="100pt"
    )
    assert "resumed after step 2: quantization" in lines.lines
    assert container.dumps(again.artifact) == container.dumps(result.artifact)


def test_a_failure_while_measuring_does_not_lose_the_network(tmp_path, monkeypatch):
    def broken(*_, **__):
        raise VerificationError("measuring", "failed", "look")

    monkeypatch.setattr(front, "measured", broken)
    with pytest.raises(VerificationError):
        compress(tiny_model("linear"), TASK, recipe=SHORT, folder=tmp_path / "net")
    assert load(tmp_path / "0001-net" / "net.lil", into=tiny_model("linear")) is not None


BUDGETS = {
    "max_bytes": ({"max_bytes": "100B"}, "max_bytes: 4[0-9]{2} bytes, at most 100 wanted"),
    "max_flash": ({"max_flash": 200}, "max_flash: [0-9]+ bytes, at most 200 wanted"),
    "max_ram": ({"max_ram": 5}, "max_ram: [0-9]+ bytes, at most 5 wanted"),
    "max_drop": (
        {"max_drop": "0pt", "recipe": [Quantization(weight_bits=2, activation_bits=2)]},
        r"max_drop: accuracy [0-9.]+% -> [0-9.]+%, at least [0-9.]+% wanted",
    ),
}


@pytest.fixture(scope="module")
def trained():
    """A network that is right most of the time, so that damage shows."""
    net = Artifact.of(tiny_model("linear"), TASK.spec)
    fit(net, TASK, FineTune(epochs=20, learning_rate=1e-2).fit_settings({}), generator=torch.Generator().manual_seed(0))
    return net.module


@pytest.mark.parametrize("name", BUDGETS)
def test_a_missed_budget_is_a_result_that_says_by_how_much(name, trained):
    more, text = BUDGETS[name]
    found = compress(trained, TASK, **({"recipe": SHORT} | more))
    assert not found.feasible
    (violation,) = found.violations
    assert violation.budget == name
    assert violation.found > violation.limit
    assert f"\nMISSED {violation.text}" in found.table()
    assert pytest.approx(violation.limit) == found.to_data()["violations"][0]["limit"]
    assert re.fullmatch(text, violation.text)


def test_budgets_count_beside_a_recipe_that_has_a_target_of_its_own(trained):
    recipe = Recipe(steps=(Step(passes=(Quantization(),)),), target=Target("cortex-m4"))
    found = compress(trained, TASK, recipe=recipe, max_ram="1B")
    assert found.target == Target("cortex-m4", ram=1)
    assert [v.budget for v in found.violations] == ["max_ram"]
    assert all(g.signed for g in found.artifact.activations.values())


def test_met_budgets_are_feasible(trained):
    found = compress(trained, TASK, recipe=SHORT, max_bytes="1kB", max_flash="1kB", max_ram="1kB", max_drop="50pt")
    assert found.feasible
    assert "MISSED" not in found.table()


WRONG = [
    ({"max_bytes": "60k"}, UsageError, "size '60k': not a number with a known unit"),
    ({"max_drop": "half"}, UsageError, "max_drop='half': not a number with a unit"),
    ({"max_drop": -1}, UsageError, "max_drop=-1: a drop that is not a finite number from 0 up"),
    ({"max_flash": "1k"}, UsageError, "size '1k'"),
    ({"target": "arm"}, UsageError, "target 'arm': not a known target"),
    ({"recipe": ["quantize"]}, RecipeError, "method 'quantize': there is no such method; did you mean 'quantization'"),
    ({"recipe": "none.yaml"}, RecipeError, "recipe none.yaml: it cannot be read"),
    ({"recipe": [Step(passes=(), guard=MaxDrop(max_drop="x"))]}, UsageError, "max_drop='x': not a number with a unit"),
]


WRONG.append(
    ({"recipe": [Quantization(), MagnitudePruning(skip=("4",))]}, RecipeError, "magnitude_pruning skip '4': it m")
)


@pytest.mark.parametrize(("more", "kind", "text"), WRONG, ids=lambda v: str(v) if isinstance(v, dict) else None)
def test_what_is_wrong_is_found_before_anything_runs(more, kind, text, tmp_path):
    lines = Lines()
    with pytest.raises(kind) as error:
        compress(tiny_model("linear"), TASK, folder=tmp_path / "net", progress=lines, **more)
    assert text in str(error.value)
    assert lines.lines == []
    if "recipe" not in more:
        assert list(tmp_path.iterdir()) == []


def test_seed_and_target_of_the_call_override_those_of_the_recipe():
    data = {"seed": 3, "target": "onnx-arm", "passes": ["fold_batchnorm"]}
    assert as_recipe(data).seed == 3
    assert as_recipe(data, 5).seed == 5
    assert as_recipe(Recipe(seed=3), 5).seed == 5
    assert as_recipe([FoldBatchNorm()], 5) == Recipe(steps=(Step(passes=(FoldBatchNorm(),)),), seed=5)
    assert as_recipe([[FoldBatchNorm(), "fine_tune"], {"quantization": None}]).steps == (
        Step(passes=(FoldBatchNorm(), FineTune())),
        Step(passes=(Quantization(),)),
    )


def test_a_single_pass_is_a_recipe():
    assert as_recipe(Quantization()) == as_recipe([Quantization()])


def test_a_class_in_the_place_of_a_model_is_refused():
    with pytest.raises(UsageError, match=r"compress: the class \w+; give an nn.Module"):
        compress(nn.Linear, TASK)  # pyright: ignore[reportArgumentType]


def test_the_default_recipe_suits_the_task():
    names = [s.name for s in default_recipe(TASK).steps]
    assert (names[0], names[-1]) == ("fold_batchnorm", "quantization")
    assert "weight_clustering + fine_tune" in names
    assert {s.guard for s in default_recipe(TASK).steps} == {MaxDrop(max_drop="1pt")}
    assert {s.guard for s in default_recipe(TASK, max_drop=2).steps} == {MaxDrop(max_drop=2)}
    untrained = default_recipe(Task.classification(validation=(torch.randn(9, 2), torch.zeros(9).long())))
    assert not any(isinstance(p, FineTune) for s in untrained.steps for p in s.passes)
    x = torch.linspace(0, 1, 20)[:, None]
    assert {s.guard for s in default_recipe(Task.regression(train=(x, x))).steps} == {MaxDrop(max_drop="2%")}


def test_without_training_data_a_network_is_still_compressed():
    data = TASK.data("validation")
    found = compress(tiny_model("batch_norm"), Task.classification(validation=(data.inputs, data.targets)))
    assert found.columns[-1].measurements["accuracy"].note.startswith("validation, ")
    assert found.columns[-1].measurements["file"].value < found.columns[0].measurements["file"].value
    assert found.folder is None
    assert all(c.onnx is None for c in found.columns)


def arrays(n=60, *, kind="class"):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((n, 6))
    return x, (x[:, 0] > 0).astype(np.int64) if kind == "class" else x[:, :2]


@pytest.mark.parametrize("kind", ["class", "number"])
def test_arrays_are_split_into_roles_and_targets_tell_the_task(kind):
    x, y = arrays(kind=kind)
    task = as_task((x, y))
    assert task.kind == ("classification" if kind == "class" else "regression")
    assert [len(task.data(role)) for role in ("train", "validation", "test")] == [36, 12, 12]
    seen = torch.cat([task.data(role).inputs for role in ("train", "validation", "test")])
    assert torch.equal(seen.sort(0).values, torch.from_numpy(x).float().sort(0).values)
    assert torch.equal(
        as_task((torch.from_numpy(x), torch.from_numpy(y))).data("test").inputs, task.data("test").inputs
    )
    model = nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 2))
    found = compress(model, (x, y), recipe=[WeightClustering(), Quantization()])
    assert found.score.name in ("accuracy", "MAE")
    assert found.columns[-1].measurements[found.score.name].note.startswith("test, 12 samples")


@pytest.mark.parametrize(
    ("task", "text"),
    [
        (None, "task: a NoneType; give a lilliput.Task, or (X, y)"),
        ((np.zeros((9, 2)),), "task: a tuple; give a lilliput.Task, or (X, y)"),
        ((np.zeros((9, 2)), np.zeros(8)), "task (X, y): 9 inputs and 8 targets; give one target for each input"),
        ((np.zeros((0, 2)), np.zeros(0)), "task (X, y): 0 inputs and 0 targets"),
        ((np.zeros((4, 2)), np.zeros(4)), "and at least 5"),
        ((np.zeros((9, 2)), np.array(["a"] * 9)), "an array of <U1; give numbers; classes as 0, 1, 2, ..."),
        ((np.zeros((9, 2)), [None] * 9), "an array of object"),
        ((torch.tensor(1.0), np.zeros(9)), "the single value 1.0; give one row for each sample"),
        ((np.full((9, 2), np.nan), np.zeros(9)), "NaN or infinity in the inputs; clean the data first"),
        ((np.zeros((9, 2), dtype=np.uint8), np.zeros(9)), "inputs of torch.uint8; give float inputs"),
    ],
)
def test_data_that_are_no_task_are_refused(task, text):
    with pytest.raises((UsageError, DataError)) as error:
        compress(nn.Linear(2, 1), task)
    assert text in str(error.value)


def test_a_model_that_does_not_fit_its_data_is_one_clear_error():
    x, y = arrays()
    with pytest.raises(Exception, match=r"trace of Linear|outputs of the model|shapes cannot be multiplied") as error:
        compress(nn.Linear(5, 2), (x, y), recipe=[Quantization()])
    assert type(error.value).__module__ == "lilliput.core.errors"


SMALL_TASKS = {
    # epochs, the worst score that is well above chance, the most that compression may cost
    "digits-cnn": (5, 90.0, 3.0),
    "digits-anomaly": (12, 90.0, 3.0),
    "diabetes": (25, 0.65, 0.08),
    "digits-masks": (4, 75.0, 3.0),
    "japanese-vowels": (8, 70.0, 5.0),
}


@pytest.mark.parametrize("name", SMALL_TASKS)
def test_five_kinds_of_task_reach_a_small_file_and_a_verified_export(name, tmp_path):
    if name == "japanese-vowels" and importlib.util.find_spec("aeon") is None:
        pytest.skip("the speech features come with the package aeon: pip install --no-deps aeon")
    epochs, sane, cost = SMALL_TASKS[name]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, task = open_model(name, trained=False, fresh=True)
    net = Artifact.of(model, task.spec)
    settings = dataclasses.replace(entry(name).training, epochs=epochs)
    fit(net, task, settings, generator=torch.Generator().manual_seed(0))
    steps = [
        FoldBatchNorm(),
        [MagnitudePruning(sparsity=0.3), FineTune(epochs=1)],
        WeightClustering(n_clusters=32),
        Quantization(),
    ]
    found = compress(net.module, task, recipe=steps)
    score = task.score
    scores = [c.measurements[score.name].value for c in found.columns]
    sign = 1 if score.higher_is_better else -1
    assert all(sign * (value - sane) > 0 for value in scores)
    assert sign * (scores[0] - scores[2]) <= cost
    small, large = (found.columns[i].measurements for i in (2, 0))
    assert small["file"].value < large["file"].value / 3
    assert small["ONNX file"].value < large["ONNX file"].value / 1.9
    assert [c.notes for c in found.columns] == [[], [], []]
    assert found.mismatches == []
    size = found.save(tmp_path / "net.lil")
    assert size == small["file"].value
    x = task.data("test").batch(torch.arange(20))[0]
    with torch.no_grad():
        assert torch.equal(load(tmp_path / "net.lil", into=entry(name).model())(x), runnable(found.artifact)(x))
    assert "largest difference" in found.export(tmp_path / "fw").verify()


def test_budgets_of_a_microcontroller_are_judged_by_the_generated_c(tmp_path):
    target = Target("cortex-m4", flash="2kB", ram="16kB")
    found = compress(tiny_model("residual"), TASK, target=target, recipe=[FoldBatchNorm(), Quantization()])
    planned = plan(lower(found.artifact))
    measured = found.columns[-1].measurements
    assert (measured["planned flash"].value, measured["planned RAM"].value) == (planned.flash, planned.ram)
    assert [v.budget for v in found.violations] == ["max_flash"]
    assert found.violations[0].found == planned.flash > 2000
    written = found.export(tmp_path, to=("onnx", "c"))
    assert written.onnx == tmp_path / "net.onnx"
    assert written.c == tmp_path / "net-c"
    assert (tmp_path / "net-c" / "net.c").is_file()


def test_a_result_is_exported_as_product_of_sums(tmp_path):
    recipe = [WeightClustering(n_clusters=4), Quantization()]
    found = compress(tiny_model("linear"), TASK, target="cortex-m4", recipe=recipe)
    with pytest.raises(UsageError, match=r"export with product of sums: formats onnx; give to=\[\"c\"\]"):
        found.export(tmp_path, product_of_sums=True)
    written = found.export(tmp_path, to=["c"], product_of_sums=True)
    assert "grouped_sum" in (tmp_path / "net-c" / "net.c").read_text()
    if shutil.which("gcc") or shutil.which("cc"):
        assert "vectors equal on host C" in written.verify()


def test_a_result_is_exported_as_c_and_verified(tmp_path):
    found = compress(tiny_model("linear"), TASK, target="cortex-m4", recipe=[Quantization()])
    written = found.export(tmp_path, to=["c"], name="tiny")
    assert (written.onnx, written.c) == (None, tmp_path / "tiny-c")
    assert not (tmp_path / "tiny.onnx").exists()
    if shutil.which("gcc") or shutil.which("cc"):
        assert "vectors equal on host C" in written.verify()
        code = tmp_path / "tiny-c" / "tiny.c"
        code.write_text(code.read_text().replace("s0 = tiny_bias(bias, wide, c)", "s0 = 1"))
        with pytest.raises(VerificationError, match="differs on host C"):
            written.verify()
