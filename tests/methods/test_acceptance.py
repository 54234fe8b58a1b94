"""Samples of methods under an acceptance set: those of the network as the task calls it, and as it is now."""

# pyright: reportAttributeAccessIssue=false, reportOptionalMemberAccess=false, reportIndexIssue=false, reportArgumentType=false

import pytest
import torch
from torch import nn

from lilliput.core.artifact import Artifact
from lilliput.core.errors import RecipeError
from lilliput.core.method import Context, apply_checked_
from lilliput.core.task import Task
from lilliput.methods.consolidation.pruning import AcceptancePruning
from lilliput.methods.consolidation.sic import Sic
from lilliput.methods.pruning.magnitude import MagnitudePruning
from patterned import trained

METHODS = [Sic(held_out=0.0), Sic(mode="exact"), AcceptancePruning()]


class Wrapped(nn.Module):
    def __init__(self, net, wrap):
        super().__init__()
        self.net, self.wrap = net, wrap

    def forward(self, x):
        return self.wrap(self.net(x))


def applied(method, model, task, net=None):
    net = Artifact.of(model, task.spec) if net is None else net
    return net, apply_checked_(method, net, Context.of(task, model))


def with_forward(forward, model=None):
    """The network of patterns whose task asks it in another way; labels are what it answers so."""
    net, task = trained("mlp", samples=60)
    model = net if model is None else model(net)
    x, _ = task.train.batch(torch.arange(60))
    with torch.no_grad():
        y = forward(model, (x, None)).argmax(1)
    return model, Task.classification(train=(x, y), validation=(x, y), forward=forward)


@pytest.mark.parametrize("method", METHODS, ids=lambda m: f"{m.name}-{m.settings().get('mode', '')}")
@pytest.mark.parametrize("kind", ["inputs", "dictionary"])
def test_samples_are_right_when_the_task_asks_not_only_when_the_network_is_run(method, kind):
    if kind == "inputs":
        model, task = with_forward(lambda m, b: m(0.5 - 3.0 * b[0]))
    else:
        model, task = with_forward(lambda m, b: m(-b[0])["y"], lambda net: Wrapped(net, lambda y: {"y": y}).eval())
    net, result = applied(method, model, task)
    assert result.effect
    allowed = int(60 * method.error_budget) if isinstance(method, Sic) and method.mode == "budget" else 0
    x, y = task.train.batch(torch.arange(60))
    with torch.no_grad():
        assert int((task.forward(net.module, (x, y)).argmax(1) != y).sum()) <= allowed
    assert result.notes[0] == "60 of 60 samples of train keep their class"


@pytest.mark.parametrize("method", METHODS, ids=lambda m: f"{m.name}-{m.settings().get('mode', '')}")
@pytest.mark.parametrize(
    "forward",
    [lambda m, b: m(b[0]).softmax(1), lambda m, b: m(b[0]) + m(-b[0]), lambda m, b: m(b[0])[:, :2]],
    ids=["softmax", "twice", "part"],
)
def test_a_forward_that_candidates_cannot_follow_is_refused(method, forward):
    model, task = with_forward(forward)
    with pytest.raises(RecipeError, match="let the model itself give what the task judges"):
        applied(method, model, task)


@pytest.mark.parametrize("method", METHODS, ids=lambda m: f"{m.name}-{m.settings().get('mode', '')}")
def test_two_outputs_are_refused_in_one_line(method):
    model, task = with_forward(lambda m, b: m(b[0])[1], lambda net: Wrapped(net, lambda y: (y * 2, y)).eval())
    with pytest.raises(RecipeError, match=f"^{method.name}: the network has 1 inputs and 2 outputs"):
        applied(method, model, task)


@pytest.mark.parametrize("method", METHODS, ids=lambda m: f"{m.name}-{m.settings().get('mode', '')}")
def test_without_training_data_the_setting_that_helps_is_named(method):
    model, task = trained("mlp", samples=60)
    with pytest.raises(RecipeError, match="acceptance_from: validation"):
        applied(method, model, task.without("train"))


@pytest.mark.parametrize("method", METHODS, ids=lambda m: f"{m.name}-{m.settings().get('mode', '')}")
def test_samples_that_were_lost_before_are_counted_and_do_not_stop_the_search(method):
    model, task = trained("mlp")
    net = Artifact.of(model, task.spec)
    apply_checked_(MagnitudePruning(sparsity=0.9, scope="layer"), net, Context.of(task, model))
    x, y = task.train.batch(torch.arange(len(task.train)))
    with torch.no_grad():
        first, start = model(x).argmax(1) == y, net.module(x).argmax(1) == y
    lost = int((first & ~start).sum())
    assert lost
    before = sum(len(p.unique()) for p in net.module.parameters())
    net, result = applied(method, model, task, net)
    kept = int((first & start).sum())
    assert f"{kept} of {kept} samples of train keep their class" in result.notes
    assert f"{lost} samples that the original gets right had been lost before" in result.notes
    with torch.no_grad():
        assert int((net.module(x).argmax(1) == y)[first & start].sum()) == kept
    assert sum(len(p.unique()) for p in net.module.parameters()) < before
