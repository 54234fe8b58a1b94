"""The allocation is the best of all choices, and its recipe makes the network that was scored."""

# pyright: reportOptionalMemberAccess=false

import itertools
import math

import pytest
import torch
import yaml
from torch import nn

from lilliput.auto.analyse import analyse
from lilliput.core.artifact import Artifact
from lilliput.core.errors import UsageError
from lilliput.core.method import Context, apply_checked_
from lilliput.core.streams import size_bits
from lilliput.core.task import Task
from lilliput.methods.pruning.magnitude import MagnitudePruning
from lilliput.methods.quantization.post_training import Quantization
from lilliput.pipeline.recipe import Recipe, from_data
from lilliput.pipeline.run import run
from lilliput.testing import tiny_model, tiny_task

KINDS = ("bits", "sparsity", "clusters")


def two_layers() -> tuple[nn.Module, Task]:
    generator = torch.Generator().manual_seed(3)
    x = torch.randn((64, 8), generator=generator)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3)).eval()
    with torch.no_grad():
        y = model(x).argmax(1)
    return model, Task.classification(train=(x, y), validation=(x, y))


def pair(model: nn.Module, task: Task, layer: str, sparsity: float, bits: float) -> float:
    """Coded bytes of a layer after the passes of a recipe."""
    net, context = Artifact.of(model, task.spec), Context.of(task, model)
    apply_checked_(MagnitudePruning(scope="layer", sparsity=sparsity, include=(layer,)), net, context)
    grid = Quantization(weight_bits=int(bits), weight_range="mse", activation_bits=0, include=(layer,))
    apply_checked_(grid, net, context)
    return size_bits(net.encoding(f"{layer}.weight")) / 8


@pytest.fixture(scope="module")
def every() -> list[list[tuple[float, float]]]:
    """(bytes, divergence) of all choices for each of the two layers."""
    model, task = two_layers()
    found = analyse(model, task, kinds=KINDS, samples=64, max_drop="90pt")
    choices: list[list[tuple[float, float]]] = []
    for layer in ("0", "2"):
        rows = {kind: found.of(kind)[layer] for kind in KINDS}
        options = [(size_bits(Artifact.of(model, task.spec).encoding(f"{layer}.weight")) / 8, 0.0)]
        options += [(p.coded_bytes, p.divergence) for row in rows.values() for p in row if p.effect]
        options += [
            (pair(model, task, layer, s.level, b.level), s.divergence + b.divergence)
            for s in rows["sparsity"] for b in rows["bits"]
        ]  # fmt: skip
        choices.append(options)
    return choices


@pytest.mark.parametrize("budget", [90, 130, 180, 260, 400, 10_000])
def test_no_other_choice_in_the_budget_moves_the_outputs_less(budget, every):
    model, task = two_layers()
    found = analyse(model, task, kinds=KINDS, samples=64, max_drop="90pt", max_bytes=budget)
    fits = [
        sum(v for _, v in both) for both in itertools.product(*every) if sum(math.ceil(c) for c, _ in both) <= budget
    ]
    allocation = found.allocation
    assert allocation.divergence == pytest.approx(min(fits), rel=1e-9, abs=1e-15)
    assert allocation.coded_bytes <= budget
    assert (budget == 10_000) == all(str(c) == "as it is" for c in allocation.choices.values())


def again(recipe: Recipe) -> Recipe:
    """Through the file that a user runs."""
    return from_data(yaml.safe_load(recipe.to_yaml()))


@pytest.mark.parametrize("name", ["conv", "residual", "grouped", "shared"])
@pytest.mark.parametrize("budget", [120, 200, 300])
def test_the_recipe_makes_what_was_scored(name, budget):
    model, task = tiny_model(name), tiny_task()
    try:
        found = analyse(model, task, kinds=KINDS, samples=64, max_drop="95pt", max_bytes=budget)
    except UsageError as error:
        assert "smallest choices take" in str(error)  # noqa: PT017 - of some networks that is so
        assert budget < 300
        return
    recipe = again(found.recipe())
    assert recipe.steps == found.recipe().steps
    outcome = run(model, task, recipe)
    (step,) = outcome.trail
    assert step["accepted"] if "accepted" in step else step["verdict"]["accepted"]
    assert step["verdict"]["evidence"]["score"] == pytest.approx(found.allocation.score)
    net = outcome.artifact
    weights = {net.canonical(f"{path}.weight") for path in found.allocation.choices}
    coded = sum(size_bits(net.encoding(weight)) for weight in weights) / 8
    assert coded == pytest.approx(found.allocation.coded_bytes)
    assert coded <= budget


def test_the_recipe_of_one_kind_makes_its_proposal():
    model, task = tiny_model("residual"), tiny_task()
    found = analyse(model, task, samples=64, max_drop="30pt")
    for proposal in found.proposals:
        if not any(proposal.levels.values()):
            continue
        outcome = run(model, task, again(found.recipe(proposal.kind)))
        step = outcome.trail[0]
        assert step["passes"][0]["changed"]
        if proposal.kind != "channels":  # that recipe fits weights, too
            assert step["verdict"]["evidence"]["score"] == pytest.approx(proposal.score)
    with pytest.raises(UsageError, match="name one, or give max_bytes"):
        found.recipe()
    with pytest.raises(UsageError, match="'speed'"):
        found.recipe("speed")


def test_too_few_bytes_are_refused_with_the_least():
    model, task = two_layers()
    with pytest.raises(UsageError, match=r"9, and the smallest choices take \d+"):
        analyse(model, task, kinds=["bits"], samples=8, max_drop="90pt", max_bytes=9)


def test_what_the_guard_refuses_is_said_and_kept():
    model, task = two_layers()
    found = analyse(model, task, kinds=["bits", "sparsity"], samples=64, max_drop="0pt", max_bytes=70)
    assert not found.allocation.accepted
    assert found.allocation.drop > 0
    assert "refused" in str(found)
