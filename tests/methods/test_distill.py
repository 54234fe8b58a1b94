"""Distillation: blocks from blocks, then answers from answers."""

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

import lilliput as ll
from lilliput.core.artifact import Artifact
from lilliput.core.errors import DataError, RecipeError
from lilliput.core.method import Context, apply_checked_
from lilliput.graph import stored
from lilliput.testing import tiny_model, tiny_task
from lilliput.training.distillation import Imitation

TASK = tiny_task()
QUICK: dict[str, Any] = {"batch_size": 16, "epochs": 1, "block_epochs": 4}


def shaken(model, seed=0):
    """The same architecture with other weights."""
    other = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in other.parameters():
            p.add_(0.5 * p.std().nan_to_num(1.0) * torch.randn(p.shape, generator=generator))
    return other


def started(model, teacher):
    return Artifact.of(model, TASK.spec), Context.of(TASK, teacher)


def block_error(net, teacher, path):
    x = TASK.data("validation").batch(torch.arange(16))
    with torch.no_grad():
        loss = Imitation(path=path).loss(
            net.module.eval(), copy.deepcopy(teacher).eval(), lambda network: TASK.forward(network, x)
        )
    return float(loss)


def test_each_block_comes_nearer_to_its_block():
    teacher = tiny_model("residual")
    net, context = started(shaken(teacher), teacher)
    before = {path: block_error(net, teacher, path) for path in ("first", "second")}
    method = ll.Distill(blocks=("first", "second"), block_rate=0.02, learning_rate=1e-9, **QUICK)
    result = apply_checked_(method, net, context)
    for path, error in before.items():
        assert block_error(net, teacher, path) < 0.5 * error
    assert [note.split(":")[0] for note in result.notes] == ["first", "second"]


def test_while_a_block_trains_everything_else_stands_still():
    teacher = tiny_model("residual")
    net, context = started(shaken(teacher), teacher)
    before = {n: p.detach().clone() for n, p in net.module.named_parameters()}
    method = ll.Distill(blocks=("second",), block_rate=0.02, learning_rate=1e-12, distillation=0.0, **QUICK)
    apply_checked_(method, net, context)
    moved = {n for n, p in net.module.named_parameters() if float((p.detach() - before[n]).abs().max()) > 1e-6}
    assert moved == {"second.weight"}


def test_nothing_behind_a_block_is_computed_and_nothing_before_it_gets_a_gradient():
    class Fails(nn.Module):
        def forward(self, x):
            raise AssertionError("computed")

    network = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 4), Fails())
    teacher = copy.deepcopy(network)
    with torch.no_grad():
        teacher.get_parameter("1.weight").add_(1.0)
    x = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    loss = Imitation(path="1").loss(network, teacher, lambda m: m(x))
    loss.backward()
    wanted = ((network[1](network[0](x)) - teacher[1](teacher[0](x))) ** 2).mean()
    torch.testing.assert_close(loss, wanted)
    assert network[0].weight.grad is None
    assert network[1].weight.grad is not None
    assert not network[1]._forward_hooks
    assert not network[1]._forward_pre_hooks


def test_a_teacher_from_a_file_teaches(tmp_path):
    """Followed alone, the answers come nearer to those of the file than to those of the original."""
    original, other = tiny_model("residual"), shaken(tiny_model("residual"), seed=7)
    path = tmp_path / "teacher.lil"
    path.write_bytes(stored.dumps(Artifact.of(other, TASK.spec)))
    net, context = started(copy.deepcopy(original), original)
    x = TASK.data("train").batch(torch.arange(64))[0]

    def apart(theirs):
        with torch.no_grad():
            ours, wanted = (m.eval()(x).log_softmax(1) for m in (net.module, copy.deepcopy(theirs)))
        return float((wanted.exp() * (wanted - ours)).sum(1).mean())

    before = apart(other)
    method = ll.Distill(teacher=str(path), distillation=1.0, epochs=10, learning_rate=0.01, batch_size=16, keep="last")
    apply_checked_(method, net, context)
    assert apart(other) < 0.5 * before


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"blocks": ("nothing.*",)}, "no module has such a path"),
        ({"blocks": ("head",), "skip": ("head",)}, "nothing to train"),
    ],
)
def test_blocks_that_cannot_learn_are_named(settings, words):
    teacher = tiny_model("residual")
    net, context = started(copy.deepcopy(teacher), teacher)
    with pytest.raises(RecipeError, match=words):
        apply_checked_(ll.Distill(**QUICK, **settings), net, context)


def test_blocks_and_a_teacher_from_a_file_are_refused():
    with pytest.raises(RecipeError, match="teacher from a file"):
        ll.Distill(blocks=("a",), teacher="x.lil")


def test_blocks_of_other_shapes_are_found_before_any_training():
    teacher = tiny_model("residual")
    net, context = started(copy.deepcopy(teacher), teacher)
    apply_checked_(ll.ChannelPruning(amount=0.25), net, context)
    before = {n: p.detach().clone() for n, p in net.module.named_parameters()}
    with pytest.raises(DataError, match="one shape"):
        apply_checked_(ll.Distill(blocks=("head", "first"), **QUICK), net, context)
    assert all(torch.equal(before[n], p.detach()) for n, p in net.module.named_parameters())


def test_a_resumed_distillation_ends_in_the_same_bits(tmp_path):
    teacher = tiny_model("residual")
    method = ll.Distill(blocks=("first", "second"), **QUICK)

    def distilled(task, name):
        net, context = started(shaken(teacher), teacher)
        apply_checked_(method, net, replace(context, task=task, checkpoint=tmp_path / name))
        return [p.detach().clone() for p in net.module.parameters()]

    whole = distilled(TASK, "whole.pt")
    calls = []

    def forward(network, batch):
        calls.append(1)
        if len(calls) > 60:
            raise KeyboardInterrupt
        return TASK.forward(network, batch)

    with pytest.raises(KeyboardInterrupt):
        distilled(replace(TASK, forward=forward), "stopped.pt")
    assert list(tmp_path.glob("stopped-*"))
    assert all(torch.equal(a, b) for a, b in zip(distilled(TASK, "stopped.pt"), whole, strict=True))
