"""Guards judge outputs by a rule; evaluators get the outputs, count their uses and leave the model as it was."""

from typing import Any

import pytest
import torch
from torch import nn

from lilliput.core.errors import DataError, UsageError
from lilliput.core.guard import Evaluation, FullForward, MaxDrop, MinAgreement, evaluate, outputs_of
from lilliput.core.progress import Progress
from lilliput.core.score import Score, mean_absolute_error
from lilliput.core.task import Data, Task
from lilliput.testing import tiny_model, tiny_task

CPU = torch.device("cpu")


def rows(values):
    return torch.tensor(values, dtype=torch.float64)[:, None]


def evaluation(values):
    return Evaluation(role="validation", rows=rows(values), ok=torch.ones(len(values), dtype=torch.bool))


def share(right, n=100):
    return evaluation([1.0] * right + [0.0] * (n - right))


def regression(x=None, y=None, **more):
    x = torch.arange(6.0).reshape(6, 1) if x is None else x
    return Task.regression(validation=(x, torch.zeros(len(x), 1) if y is None else y), **more)


class Dropping(nn.Module):
    """Different in training mode; counts its calls."""

    def __init__(self):
        super().__init__()
        self.drop, self.calls = nn.Dropout(0.9), 0

    def forward(self, x):
        self.calls += 1
        return self.drop(x)


# The rule


@pytest.mark.parametrize(("now", "accepted"), [(95, True), (90, True), (89, True), (88, False), (0, False)])
def test_share_may_drop_by_the_limit_and_no_more(now, accepted):
    verdict = MaxDrop(max_drop="1pt").judge(tiny_task(), share(now), share(90))
    assert verdict.accepted == accepted
    assert verdict.reason == f"accuracy 90.00% -> {now}.00%, at least 89.00% wanted"
    assert verdict.evidence["drop"] == pytest.approx(90 - now)
    assert verdict.evidence["limit"] == 1
    assert verdict.evidence["samples"] == 100
    assert (verdict.evidence["score"], verdict.evidence["original"]) == (now, 90)
    low, high = verdict.evidence["interval"]
    assert low <= now - 90 <= high
    assert verdict.evidence["role"] == "validation"


@pytest.mark.parametrize(("now", "accepted"), [(1.0, True), (2.0, True), (2.2, True), (2.21, False)])
def test_error_may_rise_by_the_limit_and_no_more(now, accepted):
    task = regression(unit="mg")
    verdict = MaxDrop(max_drop="10%").judge(task, evaluation([now] * 4), evaluation([1.0, 3.0, 2.0, 2.0]))
    assert verdict.accepted == accepted
    assert verdict.reason == f"MAE 2 mg -> {now:.4g} mg, at most 2.2 mg wanted"
    assert verdict.evidence["drop"] == pytest.approx(now - 2)


def test_no_drop_at_all_may_be_asked_for():
    assert MaxDrop(max_drop=0).judge(tiny_task(), share(90), share(90)).accepted
    assert not MaxDrop(max_drop=0).judge(tiny_task(), share(89), share(90)).accepted


def test_wrong_limit_and_other_samples_are_refused():
    with pytest.raises(UsageError, match="max_drop='1 point': not a number with a unit"):
        MaxDrop(max_drop="1 point").judge(tiny_task(), share(90), share(90))
    with pytest.raises(UsageError, match="paired difference: 99 and 100 samples"):
        MaxDrop(max_drop=1).judge(tiny_task(), share(90, 99), share(90))


# Getting outputs


@pytest.mark.parametrize("batch_size", [1, 5, 64, 1000])
def test_evaluation_does_not_depend_on_batches(batch_size):
    task, model = tiny_task(), tiny_model("conv")
    whole = model(task.data("validation").batch(torch.arange(64))[0]).detach()
    found: Any = FullForward(task, model, batch_size=batch_size)(tiny_model("conv"), "validation")
    assert torch.allclose(found.outputs, whole, atol=1e-6)
    targets = task.data("validation").targets
    assert torch.equal(found.rows, task.score.statistics(whole, targets))
    assert torch.equal(found.ok, whole.argmax(1) == targets)
    assert (found.role, found.ok.dtype) == ("validation", torch.bool)


def test_ok_compares_with_the_original_of_the_same_sample():
    task = regression(y=torch.full((6, 1), 2.5), tolerance=0.5)
    original, worse = nn.Identity(), nn.Linear(1, 1)
    with torch.no_grad():
        worse.weight.fill_(1.0)
        worse.bias.fill_(1.0)
    found = FullForward(task, original, batch_size=4)(worse, "validation")
    assert found.ok.tolist() == [True, True, True, False, False, False]
    assert FullForward(task, original, batch_size=4).reference("validation").ok.all()


def test_original_runs_once_for_each_role_and_uses_are_counted():
    task = Task.regression(
        train=(torch.zeros(4, 1), torch.zeros(4, 1)), validation=(torch.zeros(4, 1), torch.zeros(4, 1))
    )
    original, model = Dropping(), Dropping()
    evaluator = FullForward(task, original)
    for _ in range(3):
        evaluator(model, "validation")
    evaluator.reference("validation")
    evaluator(model, "train")
    assert (original.calls, model.calls) == (2, 4)
    assert evaluator.uses == {"validation": 3, "train": 1}


def test_reference_is_not_a_use():
    evaluator = FullForward(tiny_task(), tiny_model("conv"))
    evaluator.reference("validation")
    assert evaluator.uses == {}


def test_missing_role_is_refused():
    evaluator = FullForward(tiny_task(), tiny_model("conv"))
    with pytest.raises(DataError, match="role 'test': the task has no such data; give test= when you make the task"):
        evaluator(tiny_model("conv"), "test")


def test_evaluation_needs_no_gradients_and_shows_progress():
    class Counting(Progress):
        def __init__(self):
            self.titles, self.steps = [], 0

        def task(self, title, total=None):
            from contextlib import contextmanager

            @contextmanager
            def run():
                self.titles.append((title, total))
                yield lambda n: setattr(self, "steps", self.steps + n)

            return run()

    task, progress = tiny_task(), Counting()
    found: Any = evaluate(tiny_model("conv"), task, task.data("validation"), "validation", None, 10, CPU, progress)
    assert not found.outputs.requires_grad
    assert (progress.titles, progress.steps) == ([("evaluate on validation", 64)], 64)


# The model stays as it was


def modes(model):
    return [m.training for m in model.modules()]


def test_every_mode_comes_back_and_evaluation_is_not_training():
    model: Any = nn.Sequential(Dropping(), nn.Sequential(nn.Dropout(0.9), nn.Identity()))
    model.train()
    model[1][0].eval()
    before, data = modes(model), Data.of((torch.ones(5, 3), torch.zeros(5)))
    assert outputs_of(model, regression(), data, 2, CPU).tolist() == [[1.0] * 3] * 5
    assert modes(model) == before


ROW = "let forward(model, batch) of the task return a tensor with one row a sample"
EACH = "let the model give one number for each target"


class Broken(nn.Module):
    """Right for the first batch, then something else."""

    def __init__(self, second):
        super().__init__()
        self.second, self.calls = second, 0

    def forward(self, x):
        self.calls += 1
        return x if self.calls == 1 else self.second(x)


@pytest.mark.parametrize(
    ("second", "text"),
    [
        (
            lambda x: x[:1],
            "outputs of the model: shape (1, 1) for 3 inputs; " + ROW,
        ),
        (
            lambda x: x.sum(),
            "outputs of the model: shape () for 3 inputs; " + ROW,
        ),
        (
            lambda x: (x, x),
            "outputs of the model: tuple for 3 inputs; " + ROW,
        ),
        (lambda x: x / 0, "outputs of the model: NaN or infinity; look for broken weights or a range that overflows"),
        (
            lambda x: x * float("nan"),
            "outputs of the model: NaN or infinity; look for broken weights or a range that overflows",
        ),
        (
            lambda x: x.expand(3, 2),
            "a score: outputs of shape (3, 2) for targets of shape (3, 1); " + EACH,
        ),
    ],
)
def test_wrong_outputs_are_named_and_the_model_stays_as_it_was(second, text):
    task, model = regression(), Broken(second).train()
    with pytest.raises(DataError) as error:
        evaluate(model, task, task.data("validation"), "validation", None, 3, CPU)
    assert torch.is_grad_enabled()
    assert model.training
    assert str(error.value) == text


def test_error_inside_the_model_passes_through_and_the_model_stays_as_it_was():
    def fail(x):
        raise ZeroDivisionError

    task, model = regression(), Broken(fail).train()
    for run in (
        lambda: outputs_of(model, task, task.data("validation"), 2, CPU),
        lambda: evaluate(model, task, task.data("validation"), "validation", None, 2, CPU),
    ):
        model.calls = 0
        with pytest.raises(ZeroDivisionError):
            run()
        assert model.training
        assert torch.is_grad_enabled()


def test_targets_that_do_not_fit_the_outputs_are_named():
    x, y = torch.zeros(4, 3), torch.nn.functional.one_hot(torch.arange(4))
    task = Task.classification(validation=(x, y))
    with pytest.raises(DataError) as error:
        FullForward(task, nn.Identity())(nn.Identity(), "validation")
    assert str(error.value).startswith("score accuracy on validation: outputs (4, 3) do not fit the targets (")
    assert str(error.value).endswith("); check the targets' shape and type against the task")


@pytest.mark.parametrize("part", ["score", "ok"])
def test_one_row_for_each_sample_is_wanted(part):
    task = regression()
    own = {
        "score": Score(name="mine", statistics=lambda o, t: torch.zeros(1, 1)),
        "ok": lambda o, t, original: torch.ones(len(o), 2),
    }
    found = {"score": "1 rows of the score and 6 of ok", "ok": "6 rows of the score and 12 of ok"}[part]
    name = "mine" if part == "score" else "MAE"
    task = Task.regression(validation=task.data("validation"), **{part: own[part]})
    with pytest.raises(DataError) as error:
        FullForward(task, nn.Identity())(nn.Identity(), "validation")
    assert str(error.value) == (
        f"score {name} on validation: {found} for 6 samples; "
        "let score.statistics and ok of the task give one row for each sample"
    )


def test_half_precision_outputs_are_judged_as_float32():
    task = regression()
    outputs = outputs_of(nn.Identity().half(), task, task.data("validation"), 4, CPU)
    assert outputs.dtype == torch.float32
    assert mean_absolute_error().value(task.score.statistics(outputs, torch.zeros(6, 1))) == 2.5


def test_an_augmentation_that_loses_samples_is_refused():
    task = regression(augment=lambda x, _: x[:2])
    model = nn.Linear(1, 1)
    with pytest.raises(
        DataError, match=r"augment of the task: 2 samples for 6; let it give as many samples as it gets"
    ):
        MinAgreement(agreement=0.9).decide(FullForward(task, model), model)
