"""Doubts about the data are said, and agreement judges without labels."""

import pytest
import torch
from torch import nn

from lilliput.auto.compress import apply
from lilliput.core.errors import RecipeError
from lilliput.core.guard import FullForward, MinAgreement, agreement
from lilliput.core.task import Task
from lilliput.methods.pruning.magnitude import MagnitudePruning
from lilliput.pipeline.recipe import from_data
from lilliput.report.honesty import doubts, repeated
from lilliput.testing import tiny_model, tiny_task


def answers(samples, right, seed=0):
    """One-hot outputs of which a share `right` is the target's, and the targets."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.randint(0, 4, (samples,), generator=generator)
    shown = torch.where(torch.rand(samples, generator=generator) < right, y, (y + 1) % 4)
    return nn.functional.one_hot(shown, 4).float() + 0.001 * torch.randn((samples, 4), generator=generator), y


class Same(nn.Module):
    def forward(self, x):
        return x


@pytest.mark.parametrize(("known", "fresh", "doubtful"), [(0.99, 0.9, True), (0.9, 0.9, False), (0.9, 0.99, False)])
def test_a_validation_far_above_test_is_doubted(known, fresh, doubtful):
    task = Task.classification(train=answers(50, 1.0), validation=answers(800, known, 1), test=answers(800, fresh, 2))
    evaluator = FullForward(task, Same())
    found = doubts(task, {role: evaluator.reference(role) for role in ("validation", "test")})
    assert bool(found) == doubtful
    assert all("trained on" in text and "agreement" in text for text in found)


def test_samples_in_two_roles_are_counted():
    x, y = torch.randn(100, 3, generator=torch.Generator().manual_seed(0)), torch.arange(100) % 3
    task = Task.classification(train=(x[:80], y[:80]), validation=(x[70:90], y[70:90]), test=(x[90:], y[90:]))
    assert doubts(task, {}) == ["10 of 20 samples of validation are in train too"]
    assert repeated(task.data("train"), [task.data("validation"), task.data("test")]) == [10, 0]


def test_a_result_says_it_below_its_table():
    model = tiny_model("linear")
    generator = torch.Generator().manual_seed(0)
    task = tiny_task()
    x = torch.randn((60, *task.spec.shape), generator=generator)
    with torch.no_grad():
        y = model(x).argmax(1)
    wrong = (y + (torch.arange(60) % 2)) % 3
    task = Task.classification(train=(x, y), validation=(x[:30], y[:30]), test=(-x, wrong))
    result = apply(model, task, {"passes": ["weight_clustering"], "guard": {"max_drop": "90pt"}})
    assert "30 of 30 samples of validation are in train too" in result.doubts
    assert all(f"NOTE {doubt}" in result.table() for doubt in result.doubts)
    assert result.to_data()["doubts"] == result.doubts


@pytest.mark.parametrize("kind", ["classification", "segmentation", "regression"])
def test_agreement_is_the_share_that_stays(kind):
    generator = torch.Generator().manual_seed(0)
    original = torch.randn((200, 3) if kind != "segmentation" else (20, 3, 5, 5), generator=generator)
    assert agreement(original, original.clone(), kind) == 1.0
    if kind == "regression":
        noise = 0.1 * torch.randn(original.shape, generator=generator)
        assert agreement(original + noise, original, kind) == pytest.approx(1 - 0.01, abs=0.003)
    else:
        changed = original.clone()
        changed[: len(changed) // 4] = changed[: len(changed) // 4].roll(1, 1)
        assert agreement(changed, original, kind) == pytest.approx(0.75)


@pytest.mark.parametrize("augmented", [True, False])
def test_a_guard_of_agreement_looks_at_no_label(augmented):
    model = tiny_model("conv")
    base = tiny_task()
    x = base.data("train").batch(torch.arange(len(base.data("train"))))[0]
    seen = []

    def shift(images, generator):
        seen.append(len(images))
        return images.roll(1, -1)

    labels = torch.zeros(len(x), dtype=torch.int64)
    task = Task.classification(train=(x, labels), validation=(x[:40], labels[:40]), augment=shift)
    verdicts = []
    for share in ("1%", 1.0):
        guard = {"agreement": share} | ({} if augmented else {"augmented": False})
        result = apply(model, task, {"passes": [{"magnitude_pruning": {"sparsity": 0.9}, "guard": guard}]})
        verdicts.append(result.trail[0]["verdict"])
    assert [v["accepted"] for v in verdicts] == [True, False]
    with torch.no_grad():
        images = x[:40].roll(1, -1) if augmented else x[:40]
        other = tiny_model("conv")
        other.load_state_dict(model.state_dict())
        net_result = apply(model, task, [MagnitudePruning(sparsity=0.9)])
        wanted = agreement(net_result.artifact.module(images), model(images), "classification")
    assert verdicts[1]["evidence"]["agreement"] == pytest.approx(wanted)
    assert bool(seen) == augmented


def test_guards_of_agreement_survive_yaml_and_wrong_ones_are_refused():
    text = {"guard": {"agreement": "98%", "role": "train"}, "passes": ["weight_clustering"]}
    recipe = from_data(text)
    assert from_data(recipe.to_data()) == recipe
    assert recipe.steps[0].guard == MinAgreement(agreement="98%", role="train")
    for guard in (
        {"agreement": "many"},
        {"agreement": 1.5},
        {"agreement": 0.9, "augmented": 1},
        {"agreement": 1, "drop": 2},
    ):
        with pytest.raises(RecipeError, match="guard"):
            from_data({"guard": guard, "passes": []})
    with pytest.raises(RecipeError, match="the test role chooses nothing"):
        from_data({"guard": {"agreement": 0.9, "role": "test"}, "passes": ["weight_clustering"]})
