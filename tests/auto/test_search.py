"""The search: a result for every budget, chosen on validation, repeatable, with everything that was tried."""

import json

import numpy as np
import pytest
import torch
from torch import nn

from lilliput.auto import compress as front
from lilliput.auto.compress import apply, compress, search_plan
from lilliput.auto.search.budget import Budget, Latency, Measured
from lilliput.auto.search.templates import TEMPLATES
from lilliput.core.errors import ArtifactError, UsageError
from lilliput.core.target import Target
from lilliput.core.task import Task
from lilliput.graph import stored
from lilliput.testing import tiny_model
from searched import Lines, three_roles, trained

TASK = three_roles()


@pytest.fixture(scope="module")
def model():
    return trained("batch_norm", TASK)


@pytest.fixture(scope="module")
def lines():
    return Lines()


@pytest.fixture(scope="module")
def searched(model, lines, tmp_path_factory):
    """A search that can keep its limit."""
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    return compress(model, TASK, max_bytes=700, trials=12, folder=folder, progress=lines)


def test_the_best_on_validation_within_the_limit_is_what_comes_out(searched):
    assert searched.feasible
    size = searched.columns[-1].measurements["file"].value
    fits = [t for t in searched.trials if t["feasible"]]
    assert size <= 700
    assert all(t["bytes"] <= 700 for t in fits)
    most = max(t["score"] for t in fits)
    assert (size, most) in {(t["bytes"], t["score"]) for t in fits}
    assert size == min(t["bytes"] for t in fits if t["score"] == most)


def test_every_trial_is_told_with_what_became_of_it(searched):
    tried = [t for t in searched.trials if t["trial"] is not None]
    assert len(tried) == 12
    assert {t["name"] for t in tried} <= {t.name for t in TEMPLATES}
    assert len({t["name"] for t in tried}) >= 5
    for t in tried:
        assert t["refused"] or (t["bytes"] > 0 and 0 <= t["score"] <= 100)
        assert t["feasible"] == (not t["refused"] and t["missed"] == [])
    assert any(t["training"] == "full" and t["rung"] == 3 for t in tried)
    data = json.loads((searched.folder / "trials.json").read_text())
    assert [(t["name"], t["bytes"], t["score"], t["feasible"]) for t in data] == [
        (t["name"], t["bytes"], t["score"], t["feasible"]) for t in searched.trials
    ]


def test_the_test_role_is_read_once_for_each_network_of_the_table(searched):
    assert searched.uses["test"] == 2


def test_its_recipe_gives_the_same_bytes_without_a_search(searched, model):
    written = (searched.folder / "net.lil").read_bytes()
    assert stored.dumps(searched.artifact) == written
    assert stored.dumps(apply(model, TASK, searched.recipe).artifact) == written
    assert stored.dumps(apply(model, TASK, str(searched.folder / "recipe.yaml")).artifact) == written


def test_the_same_seed_gives_the_same_trials_and_bytes(searched, model):
    again = compress(model, TASK, max_bytes=700, trials=12)
    assert stored.dumps(again.artifact) == stored.dumps(searched.artifact)
    own = [{k: v for k, v in t.items() if k != "seconds"} for t in again.trials]
    assert own == [{k: v for k, v in t.items() if k != "seconds"} for t in searched.trials]


def test_progress_says_trial_template_bytes_score_and_the_best_so_far(lines):
    said = [line for line in lines.lines if line.startswith("trial ")]
    assert len(said) == 12
    assert said[0].startswith("trial 0 rate_distortion: ")
    assert all("; best so far " in line and " bytes, " in line for line in said)


def test_three_trials_find_something_near_the_limit(model):
    found = compress(model, TASK, max_bytes=290, trials=3)
    assert found.feasible
    assert max(t["bytes"] for t in found.trials if t["feasible"]) > 270


def test_a_finished_search_gone_on_with_measures_nothing_again(searched, model):
    progress = Lines()
    again = compress(model, TASK, max_bytes=700, trials=12, folder=searched.folder, progress=progress)
    assert not [line for line in progress.lines if line.startswith("trial ")]
    assert stored.dumps(again.artifact) == stored.dumps(searched.artifact)
    more = compress(model, TASK, max_bytes=700, trials=14, folder=searched.folder, progress=progress)
    assert len([line for line in progress.lines if line.startswith("trial ")]) == 2
    assert len(more.trials) == len(searched.trials) + 2


def test_another_budget_does_not_go_on_with_a_search(searched, model):
    with pytest.raises(ArtifactError, match="budget not as it was"):
        compress(model, TASK, max_bytes=600, trials=3, folder=searched.folder)


def test_a_budget_that_nothing_keeps_gives_what_misses_it_least(model):
    found = compress(model, TASK, max_bytes=100, max_drop="1pt", trials=8)
    assert not found.feasible
    assert {v.budget for v in found.violations} <= {"max_bytes", "max_drop"}
    assert not any(t["feasible"] for t in found.trials)
    assert found.trials
    assert "\nMISSED max_" in found.table()


def test_without_recipe_a_missed_budget_starts_a_search_and_a_kept_one_does_not(model):
    progress = Lines()
    easy = compress(model, TASK, max_bytes="4kB", progress=progress)
    assert easy.trials == []
    assert not any("search" in line for line in progress.lines)
    hard = compress(model, TASK, max_bytes=300, max_drop="50pt", progress=progress)
    assert "the default recipe misses a budget: searching for one that does not" in progress.lines
    assert hard.feasible
    assert [t["name"] for t in hard.trials[:3]] == ["plain int8", "float", "default"]


def test_without_optuna_a_missed_budget_is_said_and_the_default_recipe_is_the_result(model, monkeypatch):
    monkeypatch.setattr(front, "find_spec", lambda name: None)
    progress = Lines()
    found = compress(model, TASK, max_bytes=300, progress=progress)
    assert [v.budget for v in found.violations] == ["max_bytes"]
    assert found.trials == []
    assert any("lilliput[search]" in line for line in progress.lines)


def test_within_a_drop_the_smallest_network_is_searched_for(model):
    found = compress(model, TASK, max_drop="5pt", trials=8)
    assert found.feasible
    fits = [t["bytes"] for t in found.trials if t["feasible"] and t["name"] != "float"]
    assert found.columns[-1].measurements["file"].value == min(fits) < found.columns[1].measurements["file"].value


def test_flash_and_ram_of_a_microcontroller_are_limits_too():
    task = three_roles()
    net = trained("conv", task, epochs=10)
    free = compress(net, task, "cortex-m4", trials=1)
    flash = int(free.columns[1].measurements["planned flash"].value)
    found = compress(net, task, "cortex-m4", max_flash=flash, max_drop="60pt", trials=6)
    assert found.feasible
    ours = [t for t in found.trials if t["feasible"] and t["name"] != "float"]
    assert found.columns[-1].measurements["planned flash"].value == min(t["flash"] for t in ours) <= flash
    small = compress(net, task, Target("cortex-m4", ram=10), trials=4)
    assert [v.budget for v in small.violations] == ["max_ram"]
    whatever = "its activations take"
    assert any(whatever in t["refused"] for t in small.trials)


def test_a_latency_is_a_limit_in_onnx_runtime(model):
    found = compress(model, TASK, max_latency="50x", max_drop="60pt", trials=2)
    assert found.feasible
    assert all(t["latency ratio"] > 0 for t in found.trials if t["trial"] is not None and not t["refused"])
    assert [v.budget for v in compress(model, TASK, max_latency="1us", trials=1).violations] == ["max_latency"]
    assert Latency.of("2ms") == Latency(quantity="milliseconds", limit=2.0)
    assert Latency.of(0.5) == Latency.of("0.5x") == Latency(quantity="ratio", limit=0.5)
    for wrong in ("fast", "0x", 0, -1.0):
        with pytest.raises(UsageError):
            Latency.of(wrong)


def test_a_regression_is_searched_by_its_own_score():
    generator = torch.Generator().manual_seed(1)
    x = torch.randn((160, 1, 4, 4), generator=generator)
    y = x.flatten(1) @ torch.randn((16, 3), generator=generator)
    task = Task.regression((x[:80], y[:80]), (x[80:120], y[80:120]), (x[120:], y[120:]))
    net = trained("linear", task, epochs=30)
    found = compress(net, task, max_drop="10%", trials=6)
    assert found.feasible
    original = next(t for t in found.trials if t["name"] == "float")
    assert original["drop"] == 0.0
    for t in found.trials:
        if t["feasible"]:
            assert t["score"] - original["score"] == pytest.approx(t["drop"])
            assert t["drop"] <= 0.1 * original["score"] + 1e-9


def test_an_anomaly_detector_is_searched_by_its_auc():
    generator = torch.Generator().manual_seed(2)
    normal = torch.randn((96, 2), generator=generator) @ torch.randn((2, 16), generator=generator)
    strange = torch.randn((48, 16), generator=generator) * 2
    x, y = torch.cat([normal[48:], strange]), torch.cat([torch.zeros(48), torch.ones(48)]).long()
    order = torch.randperm(96, generator=generator)
    task = Task.anomaly(
        (normal[:48], torch.zeros(48).long()), (x[order[:48]], y[order[:48]]), (x[order[48:]], y[order[48:]])
    )
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(16, 6), nn.ReLU(), nn.Linear(6, 16))
    found = compress(net, task, max_bytes=420, trials=5)
    assert found.score.name == "AUC"
    assert found.feasible
    assert any(t["feasible"] and t["trial"] is not None for t in found.trials)


@pytest.mark.parametrize("array", [False, True])
def test_without_labels_the_agreement_with_the_network_is_the_score(model, array):
    x = TASK.data("train").inputs
    found = compress(model, x.numpy() if array else x, max_bytes=700, trials=4)
    assert found.score.name == "agreement"
    assert found.columns[0].measurements["agreement"].value == 100.0
    assert found.feasible
    assert found.columns[-1].measurements["agreement"].value > 50.0


def test_without_classes_agreement_is_the_variance_that_is_kept():
    x = TASK.data("train").inputs
    net = nn.Sequential(tiny_model("linear"), nn.Linear(3, 1))
    found = compress(net, x, trials=2)
    values = [c.measurements["agreement"].value for c in found.columns]
    assert values[0] == 100.0
    assert 90.0 < values[1] < 100.0


def test_without_training_data_templates_that_train_are_left_out_with_the_reason(model):
    progress = Lines()
    found = compress(model, TASK.without("train"), max_bytes=700, trials=5, progress=progress)
    assert all(t["training"] == "untrained" for t in found.trials)
    assert "  not cluster+tune: there are no training data" in progress.lines


class Odd(nn.Module):
    """With an operation that has no integer rule."""

    def __init__(self):
        super().__init__()
        self.first, self.head = nn.Linear(16, 8), nn.Linear(8, 3)

    def forward(self, x):
        return self.head(torch.sort(torch.relu(self.first(x.flatten(1))), 1).values)


def test_a_network_with_an_unsupported_operation_gets_a_result_and_the_reasons():
    torch.manual_seed(0)
    progress = Lines()
    found = compress(Odd(), TASK, max_bytes=900, trials=6, progress=progress)
    assert found.feasible
    assert [line for line in progress.lines if line.startswith("  ") and " stays in float: " in line], progress.lines
    on_board = compress(Odd(), TASK, "cortex-m4", max_flash=10_000, trials=2, progress=progress)
    assert on_board.feasible
    assert [line for line in progress.lines if line.startswith("  there is no C, so flash and RAM are rough: ")]


def test_time_ends_a_search(model):
    found = compress(model, TASK, max_bytes=700, time=1.5)
    assert found.feasible
    assert compress(model, TASK, max_bytes=9000, time=0).columns[-1].measurements["file"].value > 0


def test_the_plan_names_templates_that_fit_and_those_that_do_not(model):
    plan = search_plan(model, TASK.without("train"), Target(), max_bytes=700, time="2min")
    assert plan.splitlines()[0] == "search for the best score within max_bytes 700"
    assert "  not cluster+tune: there are no training data" in plan.splitlines()
    assert any(line.startswith("  rate_distortion: about ") for line in plan.splitlines())
    assert "until 2.0 min are over" in plan.splitlines()[-1]


WRONG = [
    ({"trials": 0}, "trials 0"),
    ({"time": "1 fortnight"}, "time '1 fortnight'"),
    ({"max_latency": "soon"}, "time 'soon'"),
    ({"recipe": ["quantization"], "trials": 3}, "leave out the recipe"),
    ({"join": True}, "join: no folder"),
]


@pytest.mark.parametrize(("more", "text"), WRONG)
def test_what_makes_no_sense_is_refused_before_anything_is_done(model, more, text):
    with pytest.raises(UsageError, match=text):
        compress(model, TASK, **more)


# --- interruptions ---------------------------------------------------------------------------------------------------


def test_an_interrupt_gives_the_best_so_far(model, tmp_path):
    progress = Lines("trial 2 ")
    found = compress(model, TASK, max_bytes=700, trials=6, folder=tmp_path / "net", progress=progress)
    assert found.feasible
    assert len([t for t in found.trials if t["trial"] is not None]) == 3
    assert "interrupted: what was best so far is measured" in progress.lines
    again = compress(model, TASK, max_bytes=700, trials=6, folder=found.folder)
    assert stored.dumps(again.artifact) == stored.dumps(compress(model, TASK, max_bytes=700, trials=6).artifact)


def test_an_interrupt_before_the_first_trial_gives_plain_int8(model):
    class Early(Lines):
        def say(self, text):
            super().say(text)
            if text.startswith("stages: "):
                self.stop = "never"

        def task(self, title, total=None):
            if self.stop == "never":
                self.stop = None
                raise KeyboardInterrupt
            return super().task(title, total)

    found = compress(model, TASK, max_bytes="4kB", trials=3, progress=Early())
    assert [t["name"] for t in found.trials] == ["plain int8", "float"]
    assert found.feasible
    assert found.recipe.steps[-1].name == "quantization"


def test_an_interrupt_in_the_comparison_leaves_the_network(model, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        compress(model, TASK, max_bytes=700, trials=2, folder=tmp_path / "net", progress=Lines("measure ours"))
    written = (tmp_path / "0001-net" / "net.lil").read_bytes()
    found = compress(model, TASK, max_bytes=700, trials=2, folder=tmp_path / "0001-net")
    assert stored.dumps(found.artifact) == written


def test_constraints_are_shares_of_their_limits():
    budget = Budget(limits={"max_bytes": ("bytes", 200.0), "max_drop": ("drop", 1.0)})
    measured = Measured(bytes=300.0, flash=0, ram=0, score=0, drop=np.float64(0.5))
    assert budget.excess(measured)["max_bytes"] == pytest.approx(0.5)
    assert list(budget.missed(measured)) == ["max_bytes"]
