"""Channels go in rounds, and training goes on as if those that are gone had never been there."""

from dataclasses import replace

import pytest
import torch

from lilliput.core.artifact import Artifact
from lilliput.core.container import dumps
from lilliput.core.errors import RecipeError, UsageError
from lilliput.core.method import Context, apply_checked_
from lilliput.graph.coupling import channel_groups, shapes_of
from lilliput.graph.removal import remove_
from lilliput.graph.trace import graph_of
from lilliput.measure.macs import count_macs
from lilliput.methods.pruning.channel import ChannelPruning
from lilliput.methods.pruning.gradual_channels import GradualChannelPruning
from lilliput.methods.quantization.post_training import Quantization
from lilliput.testing import check_artifact, tiny_model, tiny_task
from lilliput.training import trained
from lilliput.training.fit import fit
from lilliput.training.optimizer import memory_of, recall_, sliced
from lilliput.training.settings import FitSettings

TASK = tiny_task(48)
PRUNE = GradualChannelPruning(macs=0.5, rounds=3, epochs=2, batch_size=16, learning_rate=1e-2)


def applied(model, *methods, seed=0, checkpoint=None):
    net = Artifact.of(model, TASK.spec)
    context = replace(Context.of(TASK, model, seed=seed), checkpoint=checkpoint)
    results = [apply_checked_(m, net, context) for m in methods]
    return net, results[-1]


def macs(net):
    return int(count_macs(graph_of(net), net).total("macs").value)


@pytest.mark.parametrize("optimizer", [torch.optim.AdamW, lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9)])
def test_memory_is_sliced_with_the_parameters(optimizer):
    net = Artifact.of(tiny_model("residual"), TASK.spec)
    trainable = dict(net.module.named_parameters())
    first = optimizer(list(trainable.values()))
    for _ in range(2):
        first.zero_grad()
        net.module(TASK.data("train").inputs).square().sum().backward()
        first.step()
    before = memory_of(first, trainable)
    coupling = channel_groups(graph_of(net), shapes_of(net.module.state_dict()))
    group = next(g for g in coupling.groups if g.made and not g.fixed)
    edits = remove_(net, [group.channels[0], group.channels[2]])
    after = sliced(before, edits)
    touched = {edit.path for edit in edits} & set(before)
    assert touched
    for name, state in before.items():
        for key, value in state.items():
            wanted = value
            for edit in edits:
                if edit.path == name and isinstance(value, torch.Tensor) and value.dim():
                    wanted = torch.stack([wanted.select(edit.dim, i) for i in edit.index], edit.dim)
            assert torch.equal(torch.as_tensor(after[name][key]), torch.as_tensor(wanted))
    remaining = dict(net.module.named_parameters())
    second = optimizer(list(remaining.values()))
    recall_(second, remaining, after)
    again = memory_of(second, remaining)
    assert {n: {k: v.shape for k, v in s.items() if isinstance(v, torch.Tensor)} for n, s in again.items()} == {
        n: {k: v.shape for k, v in s.items() if isinstance(v, torch.Tensor)} for n, s in after.items()
    }


def test_memory_of_other_shapes_is_refused():
    tensor = torch.zeros(3, requires_grad=True)
    with pytest.raises(UsageError, match="slice it with the edits"):
        recall_(torch.optim.SGD([tensor]), {"w": tensor}, {"w": {"momentum_buffer": torch.zeros(4)}})


@pytest.mark.parametrize(("optimizer", "rate"), [("adamw", 1e-2), ("sgd", 1e-1)])
def test_removing_channels_of_zeros_changes_no_later_step(optimizer, rate):
    """Against the whole network, in which they are masked: no weights, and no gradients."""
    settings = FitSettings(
        epochs=2, batch_size=16, optimizer=optimizer, learning_rate=rate, schedule="constant", keep="last"
    )
    net = Artifact.of(tiny_model("conv"), TASK.spec)
    coupling = channel_groups(graph_of(net), shapes_of(net.module.state_dict()))
    group = next(g for g in coupling.groups if ("0.weight", 0) in g.places)
    gone = [group.channels[1], group.channels[3]]
    for name in group.tensors:
        mask = torch.ones(net.parameter(name).shape, dtype=torch.bool)
        for channel in gone:
            for (tensor, dim), index in channel.items():
                if tensor == name:
                    mask.index_fill_(dim, torch.tensor(index), False)
        net.encode_(name, net.encoding(name).with_mask(mask))
    generator = torch.Generator().manual_seed(0)
    memory = fit(net, TASK, settings, generator=generator).memory
    smaller = net.copy()
    edits = remove_(smaller, gone)
    assert edits
    start = generator.get_state()
    fit(net, TASK, settings, generator=generator, memory=memory)
    generator.set_state(start)
    moved = {name: p.detach().clone() for name, p in smaller.module.named_parameters()}
    fit(smaller, TASK, settings, generator=generator, memory=sliced(memory, edits))
    remove_(net, gone)
    for name, p in smaller.module.named_parameters():
        assert not torch.equal(p, moved[name])
        assert torch.allclose(p, net.parameter(name), rtol=1e-4, atol=1e-6)


def test_without_the_memory_the_next_steps_are_others():
    """So the test before this one sees whether the memory is there."""
    settings = FitSettings(epochs=1, batch_size=16, learning_rate=1e-2, schedule="constant", keep="last")
    found = []
    for carried in (True, False):
        net, generator = Artifact.of(tiny_model("conv"), TASK.spec), torch.Generator().manual_seed(0)
        memory = fit(net, TASK, settings, generator=generator).memory
        fit(net, TASK, settings, generator=generator, memory=memory if carried else None)
        found.append(net.parameter("0.weight").detach().clone())
    assert not torch.allclose(*found, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("name", ["conv", "batch_norm", "residual", "grouped", "shared"])
def test_the_target_is_met_in_rounds_each_smaller_than_the_one_before(name):
    net, result = applied(tiny_model(name), PRUNE)
    assert result.statistics is not None
    counts = result.statistics["macs"]
    assert len(counts) == 4
    assert counts == sorted(counts, reverse=True)
    assert macs(net) == counts[-1] <= counts[0] / 2
    assert any("->" in text for text in result.changed.values())
    check_artifact(net, tiny_model(name), retrace=False)


def test_between_rounds_the_memory_is_that_of_the_round_before(monkeypatch):
    seen = []

    def spy(net, *args, memory, **more):
        shapes = {n: p.shape for n, p in net.module.named_parameters()}
        fits = all(v.shape == shapes[n] for n, s in memory.items() for v in s.values() if v.dim())
        seen.append((len(memory), fits, max((float(s["step"]) for s in memory.values()), default=0.0)))
        return fit(net, *args, memory=memory, **more)

    monkeypatch.setattr(trained, "fit", spy)
    applied(tiny_model("conv"), PRUNE)
    assert seen == [(0, True, 0.0), (4, True, 3.0), (4, True, 6.0)]


def test_in_one_round_without_training_it_is_channel_pruning():
    still = replace(PRUNE, rounds=1, epochs=1, learning_rate=1e-12, distillation=0.0, most=0.9)
    ours, _ = applied(tiny_model("conv"), still)
    theirs, _ = applied(
        tiny_model("conv"), ChannelPruning(max_macs=int(0.5 * macs(Artifact.of(tiny_model("conv"), TASK.spec))))
    )
    assert ours.edits == theirs.edits


def test_if_nothing_can_go_nothing_is_trained_and_it_says_so():
    model = tiny_model("conv")
    net, result = applied(model, replace(PRUNE, macs=1.0))
    assert not result.effect
    assert all(torch.equal(p, net.parameter(n)) for n, p in model.named_parameters())


def test_what_cannot_be_reached_is_an_error_before_any_training(monkeypatch):
    monkeypatch.setattr(trained, "fit", lambda *_, **__: pytest.fail("it trained"))
    with pytest.raises(RecipeError, match=r"gradual_channel_pruning: .*MACs asked for"):
        applied(tiny_model("conv"), replace(PRUNE, macs=0.01))


def test_a_failure_between_rounds_leaves_the_network_as_it_was(monkeypatch):
    calls = []

    def second_fails(*args, **more):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return fit(*args, **more)

    monkeypatch.setattr(trained, "fit", second_fails)
    net = Artifact.of(tiny_model("residual"), TASK.spec)
    before = dumps(net)
    with pytest.raises(KeyboardInterrupt):
        apply_checked_(PRUNE, net, Context.of(TASK, tiny_model("residual")))
    assert dumps(net) == before


@pytest.mark.parametrize("fails", [2, 3])
def test_a_resumed_run_ends_in_the_same_bytes(tmp_path, monkeypatch, fails):
    straight = dumps(applied(tiny_model("residual"), PRUNE)[0])
    calls = []

    def dies(*args, **more):
        calls.append(1)
        if len(calls) == fails:
            raise KeyboardInterrupt
        return fit(*args, **more)

    place = tmp_path / "step-00-0.checkpoint"
    with monkeypatch.context() as patch:
        patch.setattr(trained, "fit", dies)
        with pytest.raises(KeyboardInterrupt):
            applied(tiny_model("residual"), PRUNE, checkpoint=place)
    names = [p.name for p in sorted(tmp_path.iterdir())]
    assert names == [f"step-00-0-round{k}.checkpoint" for k in range(1, fails)]  # a run folder deletes step-00-*
    assert dumps(applied(tiny_model("residual"), PRUNE, checkpoint=place)[0]) == straight


def test_the_same_seed_gives_the_same_bytes():
    files = [dumps(applied(tiny_model("conv"), PRUNE, seed=s)[0]) for s in (0, 0, 1)]
    assert files[0] == files[1] != files[2]


def test_activation_grids_are_refused_with_a_remedy():
    with pytest.raises(RecipeError, match="put gradual_channel_pruning before quantization"):
        applied(tiny_model("conv"), Quantization(), PRUNE)


@pytest.mark.parametrize(
    ("settings", "found"),
    [
        ({"macs": 1.5}, "macs"),
        ({"max_macs": 0}, "max_macs"),
        ({"rounds": 0}, "rounds"),
        ({"round_epochs": 0}, "round_epochs"),
        ({"criterion": "l3"}, "gradual_channel_pruning criterion"),
        ({"most": 2.0}, "most"),
        ({"lanes": 0}, "lanes"),
        ({"overrides": {"fc": {"macs": 0.5}}}, "overrides"),
    ],
)
def test_settings_are_checked(settings, found):
    with pytest.raises(RecipeError, match=found):
        GradualChannelPruning(**settings)
