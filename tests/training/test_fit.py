"""The training loop: what it learns, what it keeps, and how it leaves things when it fails."""

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lilliput.core.artifact import Artifact
from lilliput.core.container import dumps
from lilliput.core.errors import DataError, UsageError
from lilliput.core.progress import Progress
from lilliput.core.score import Score
from lilliput.core.task import Task
from lilliput.nn.models.digits import DigitsCNN, TinyAutoencoder, TinyRegressor, TinySegmenter
from lilliput.training.distillation import distillation_loss
from lilliput.training.fit import fit
from lilliput.training.hooks import Hook
from lilliput.training.settings import Factors, FitSettings

QUICK = FitSettings(epochs=2, batch_size=64, learning_rate=0.01)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def values_of(net):
    return {name: t.clone() for name, t in net.module.state_dict().items()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


class Call(Hook):
    def __init__(self, function):
        self.function = function

    def on_epoch(self, moment):
        self.function(moment)


def scripted(task, scores, *, higher_is_better=True):
    """The task with a score that says these numbers, one for each look."""
    left = iter(scores)
    score = Score(
        name="script",
        higher_is_better=higher_is_better,
        statistics=lambda o, t: torch.zeros(len(o), 1),
        reduce=lambda rows: next(left),
    )
    return replace(task, score=score)


def test_an_encoded_network_learns_and_ends_in_its_encodings(digits, make_net):
    net = make_net()
    before = dict(net.encodings)
    settings = replace(QUICK, epochs=20, learning_rate=0.03)
    result = fit(net, digits, settings, generator=seeded())
    net.check()
    assert result.history[-1]["train_loss"] < result.history[0]["train_loss"]
    assert result.best_score > 80 > result.start_score
    assert list(net.encodings) == list(before)
    for name, encoding in net.encodings.items():
        old = before[name]
        assert not encoding.same(old)
        assert replace(encoding, values=old.values).same(old)  # slots other than the stored numbers stay
    assert [row["epoch"] for row in result.history] == list(range(1, 21))
    assert result.epochs_run == 20
    assert not result.stopped_early


def test_nothing_is_left_on_the_module(digits, make_net):
    net = make_net()
    net.module.norm.train()
    net.module.get_parameter("hidden.bias").requires_grad_(False)
    parameters, kinds = list(net.module.parameters()), [type(m) for m in net.module.modules()]
    frozen = net.module.get_parameter("hidden.bias").clone()
    fit(net, digits, QUICK, generator=seeded())
    assert all(a is b for a, b in zip(net.module.parameters(), parameters, strict=True))
    assert [type(m) for m in net.module.modules()] == kinds
    assert [m.training for m in net.module.children()] == [False, False, True, False, False]
    assert [n for n, p in net.module.named_parameters() if not p.requires_grad] == ["hidden.bias"]
    assert torch.equal(net.module.get_parameter("hidden.bias"), frozen)
    assert all(p.grad is None and not p._backward_hooks for p in net.module.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.module.modules())


@pytest.mark.parametrize("optimizer", ["adamw", "adam", "sgd"])
def test_same_seed_same_bytes_and_another_seed_others(digits, make_net, optimizer):
    def train(seed):
        net = make_net(dropout=0.2)
        fit(net, digits, replace(QUICK, optimizer=optimizer, momentum=0.5), generator=seeded(seed))
        return dumps(net)

    torch.manual_seed(1)
    first = train(0)
    torch.manual_seed(2)
    assert train(0) == first
    assert train(1) != first


def test_the_process_keeps_its_random_numbers(digits, make_net):
    torch.manual_seed(3)
    wanted = torch.rand(3)
    torch.manual_seed(3)
    fit(make_net(dropout=0.2), digits, QUICK, generator=seeded())
    assert torch.equal(torch.rand(3), wanted)


def test_plain_sgd_step_is_that_of_torch(digits):
    """One epoch, one batch: the definition of gradient descent."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    net = Artifact.of(model, digits.spec)
    settings = FitSettings(
        epochs=1,
        batch_size=1000,
        optimizer="sgd",
        momentum=0.0,
        learning_rate=0.1,
        schedule="constant",
        weight_decay=0.01,
        keep="last",
    )
    fit(net, digits, settings, generator=seeded())
    x, y = digits.train.batch(torch.arange(360))
    F.cross_entropy(model(x), y).backward()
    for name, p in model.named_parameters():
        assert p.grad is not None
        wanted = p.detach() - 0.1 * (p.grad + 0.01 * p.detach())
        torch.testing.assert_close(net.parameter(name).detach(), wanted, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("higher", "scores", "best", "value"),
    [
        (True, [10, 30, 20, 25], 1, 30.0),
        (False, [10, 30, 5, 25], 2, 5.0),
        (True, [50, 30, 20, 25], 0, 50.0),  # nothing was as good as the start
    ],
)
def test_the_best_weights_are_kept(digits, make_net, higher, scores, best, value):
    seen = []
    net = make_net(encoded=False)
    start = values_of(net)
    hook = Call(lambda m: seen.append({k: v.clone() for k, v in m.module.state_dict().items()}))
    task = scripted(digits, scores, higher_is_better=higher)
    result = fit(net, task, replace(QUICK, epochs=3), generator=seeded(), hooks=[hook])
    assert (result.best_epoch, result.best_score, result.start_score) == (best, value, scores[0])
    assert same(values_of(net), [start, *seen][best])


def test_of_equally_good_epochs_the_one_of_the_lowest_loss_is_kept(digits, make_net):
    task = scripted(digits, [30, 30, 30, 30])
    result = fit(make_net(encoded=False), task, replace(QUICK, epochs=3), generator=seeded())
    losses = [row["train_loss"] for row in result.history]
    assert result.best_epoch == 1 + losses.index(min(losses)) > 1


def test_the_last_weights_are_kept_on_demand(digits, make_net):
    seen = []
    net = make_net()
    hook = Call(lambda m: seen.append({k: v.clone() for k, v in m.module.state_dict().items()}))
    task = scripted(digits, [50, 30, 20])
    fit(net, task, replace(QUICK, keep="last"), generator=seeded(), hooks=[hook])
    assert same(values_of(net), seen[-1])
    net.check()


def test_patience_ends_the_training(digits, make_net):
    result = fit(
        make_net(), scripted(digits, [10, 20, 15, 19, 99]), replace(QUICK, epochs=9, patience=2), generator=seeded()
    )
    assert (result.epochs_run, result.best_epoch, result.stopped_early) == (3, 1, True)


def test_patience_counts_from_the_last_better_score(digits, make_net):
    result = fit(
        make_net(), scripted(digits, [10, 20, 15, 25, 15]), replace(QUICK, epochs=4, patience=2), generator=seeded()
    )
    assert (result.epochs_run, result.best_epoch, result.stopped_early) == (4, 3, False)


@pytest.mark.parametrize("taught", [False, True])
def test_bfloat16_multiplies_in_16_bits_and_keeps_float32_for_the_rest(digits, make_net, taught):
    """Products are seen with few digits, the loss and the score with all; the ends are near to those of float32."""
    seen = []

    def loss(outputs, targets):
        seen.append(outputs.dtype)
        return F.cross_entropy(outputs, targets)

    def train(precision):
        net = make_net()
        teacher = copy.deepcopy(net.module) if taught else None
        settings = replace(QUICK, epochs=4, precision=precision, keep="last")
        result = fit(net, replace(digits, loss=loss), settings, generator=seeded(), teacher=teacher)
        return net, result

    (low, lower), (again, _), (_, higher) = train("bfloat16"), train("bfloat16"), train("float32")
    assert set(seen) == {torch.float32}
    assert {p.dtype for p in low.module.parameters()} == {torch.float32}
    assert same(values_of(low), values_of(again))
    losses = [[row["train_loss"] for row in r.history] for r in (lower, higher)]
    assert losses[0] != losses[1]
    assert losses[0] == pytest.approx(losses[1], rel=0.05)


@pytest.mark.parametrize("steps", [1, 3, 40])
def test_an_epoch_may_be_any_number_of_steps_on_all_samples_in_turn(digits, make_net, steps):
    seen = []

    def loss(outputs, targets):
        seen.append(len(outputs))
        return F.cross_entropy(outputs, targets)

    drawn = []

    def augment(x, generator):
        drawn.append(x)
        return x

    settings = replace(QUICK, epochs=2, epoch_steps=steps, batch_size=32)
    fit(make_net(), replace(digits, loss=loss, augment=augment), settings, generator=seeded())
    assert seen == [32] * 2 * steps
    count = len(digits.data("train"))
    first = torch.cat(drawn[:steps])[:count]
    assert len(first.flatten(1).unique(dim=0)) == len(first)


def test_parts_share_one_course_of_the_learning_rate(digits, make_net):
    whole = fit(make_net(), digits, replace(QUICK, epochs=4, schedule="cosine"), generator=seeded()).history
    rates = [row["learning_rate"] for row in whole]
    for part in (0, 1):
        half = replace(QUICK, epochs=2, schedule="cosine", part=(part, 2))
        found = [row["learning_rate"] for row in fit(make_net(), digits, half, generator=seeded()).history]
        assert found == pytest.approx(rates[2 * part : 2 * part + 2])


def test_penalties_move_the_weights(digits, make_net):
    def l1(module):
        return 0.05 * module.get_parameter("norm.weight").abs().sum()

    settings = replace(QUICK, epochs=4, keep="last")
    free, pressed = make_net(), make_net()
    fit(free, digits, settings, generator=seeded())
    fit(pressed, digits, settings, generator=seeded(), penalties=[l1])
    assert pressed.parameter("norm.weight").abs().sum() < free.parameter("norm.weight").abs().sum() - 0.1


def test_penalties_see_the_stored_form_and_reach_its_raw_copy(digits, make_net):
    seen = []

    def squares(module):
        weight = module.get_parameter("linear.weight")
        seen.append(weight.unique().numel())
        return 10 * weight.square().sum()

    net = make_net()
    before = net.parameter("linear.weight").square().sum()
    fit(net, digits, replace(QUICK, keep="last"), generator=seeded(), penalties=[squares])
    assert max(seen) == 8  # its shared values
    assert net.parameter("linear.weight").square().sum() < 0.5 * before


def test_a_group_with_learning_rate_0_stays(digits, make_net):
    net = make_net()
    before = values_of(net)
    groups = {"*": Factors(learning_rate=0.0), "linear.*": Factors()}
    fit(net, digits, replace(QUICK, keep="last", weight_decay=0.1, parameter_groups=groups), generator=seeded())
    changed = {name for name, t in values_of(net).items() if not torch.equal(t, before[name]) and "running" not in name}
    assert changed == {"linear.weight", "linear.bias", "norm.num_batches_tracked"}


def test_batch_norm_statistics_move_or_are_frozen(digits, make_net):
    for mode in ("train", "freeze"):
        net = make_net()
        before = values_of(net)
        fit(net, digits, replace(QUICK, batch_norm=mode, keep="last"), generator=seeded())
        assert torch.equal(net.module.norm.running_mean, before["norm.running_mean"]) == (mode == "freeze")
        assert not torch.equal(net.module.norm.weight, before["norm.weight"])


def divergence(model, teacher, task):
    x, _ = task.train.batch(torch.arange(360))
    with torch.no_grad():
        return float(distillation_loss(model(x), teacher(x), kind="classification", temperature=1.0))


def test_distillation_brings_the_outputs_nearer_to_the_teachers(digits, make_net):
    """A teacher with a mind of its own: it calls every digit by the next one's name."""
    teacher, start = make_net(encoded=False, seed=1), make_net()
    settings = replace(QUICK, epochs=20, learning_rate=0.02, keep="last", distillation=1.0)
    shifted = replace(digits, loss=lambda outputs, targets: F.cross_entropy(outputs, (targets + 1) % 10))
    fit(teacher, shifted, settings, generator=seeded())
    teacher.module.train()
    weights = values_of(teacher)
    half, taught = make_net(), make_net()
    fit(half, digits, replace(settings, distillation=0.5), generator=seeded(), teacher=teacher.module)
    fit(taught, digits, settings, generator=seeded(), teacher=teacher.module)
    assert teacher.module.training
    assert same(values_of(teacher), weights)
    teacher.module.eval()
    distances = [divergence(net.module, teacher.module, digits) for net in (taught, half, start)]
    assert distances[0] < 0.5 * distances[1] < 0.5 * distances[2]


def test_distillation_loss_is_the_formula():
    outputs, taught = torch.randn(5, 3, generator=seeded()), torch.randn(5, 3, generator=seeded(1))
    p, q = (torch.softmax(v.double() / 2, 1) for v in (taught, outputs))
    wanted = 4 * (p * (p / q).log()).sum(1).mean()
    found = distillation_loss(outputs, taught, kind="classification", temperature=2.0)
    torch.testing.assert_close(found.double(), wanted, rtol=1e-5, atol=0)
    found = distillation_loss(outputs, taught, kind="regression", temperature=2.0)
    torch.testing.assert_close(found, (outputs - taught).square().mean())
    with pytest.raises(DataError, match=r"outputs \(5, 3\), the teacher's \(5, 2\)"):
        distillation_loss(outputs, taught[:, :2], kind="classification", temperature=2.0)


def test_augmentation_is_for_training_inputs_only(digits, make_net):
    sizes = []

    def augment(x, generator):
        sizes.append(len(x))
        return x + torch.rand(x.shape, generator=generator)

    net, plain = make_net(), make_net()
    fit(net, replace(digits, augment=augment), replace(QUICK, epochs=1), generator=seeded())
    fit(plain, digits, replace(QUICK, epochs=1), generator=seeded())
    assert sum(sizes) == 360
    assert dumps(net) != dumps(plain)


def test_gradient_clip_bounds_the_step(digits, make_net):
    settings = FitSettings(
        epochs=1,
        batch_size=1000,
        optimizer="sgd",
        momentum=0.0,
        learning_rate=1.0,
        schedule="constant",
        keep="last",
        gradient_clip=0.01,
    )
    net = make_net(encoded=False)
    before = {n: p.detach().clone() for n, p in net.module.named_parameters()}
    fit(net, digits, settings, generator=seeded())
    moved = torch.cat([(p.detach() - before[n]).flatten() for n, p in net.module.named_parameters()])
    assert float(moved.norm()) == pytest.approx(0.01, rel=1e-3)


def test_a_last_batch_of_one_sample_joins_the_one_before(digits, make_net):
    x, y = digits.train.batch(torch.arange(65))
    sizes = []

    def loss(outputs, targets):
        sizes.append(len(outputs))
        return F.cross_entropy(outputs, targets)

    task = replace(Task.classification((x, y), digits.validation), loss=loss)
    fit(make_net(), task, replace(QUICK, epochs=1, batch_size=32), generator=seeded())
    assert sizes == [32, 33]


class Listing(Progress):
    def __init__(self):
        self.lines = []

    def say(self, text):
        self.lines.append(text)


def test_progress_has_a_line_for_each_epoch(digits, make_net):
    progress = Listing()
    fit(make_net(), digits, QUICK, generator=seeded(), progress=progress)
    assert [line.split(":")[0] for line in progress.lines] == ["epoch 1/2", "epoch 2/2"]
    assert "accuracy" in progress.lines[0]


# How it fails


def interrupted(x, generator):
    raise KeyboardInterrupt


@pytest.mark.parametrize("where", ["hook", "batch"])
def test_interrupting_leaves_the_network_as_it_was(digits, make_net, where):
    net, generator = make_net(), seeded()
    before, encodings, modes = dumps(net), dict(net.encodings), [m.training for m in net.module.modules()]

    def stop(moment):
        raise KeyboardInterrupt

    task = replace(digits, augment=interrupted) if where == "batch" else digits
    with pytest.raises(KeyboardInterrupt):
        fit(net, task, QUICK, generator=generator, hooks=[Call(stop)])
    assert dumps(net) == before
    assert net.encodings == encodings
    assert [m.training for m in net.module.modules()] == modes
    assert all(p.grad is None for p in net.module.parameters())
    assert torch.equal(generator.get_state(), seeded().get_state())
    net.check()


def test_a_loss_that_is_no_number_is_an_error_that_says_what_to_do(digits, make_net):
    net = make_net()
    before = dumps(net)
    bad = replace(digits, loss=lambda outputs, targets: outputs.sum() * torch.nan)
    with pytest.raises(DataError, match=r"fit, epoch 1, step 1: the loss is nan; lower the learning rate"):
        fit(net, bad, QUICK, generator=seeded())
    assert dumps(net) == before


@pytest.mark.parametrize("encoded", [True, False])
def test_weights_that_are_no_numbers_are_an_error_too(digits, make_net, encoded):
    """A loss that is finite with a gradient that is not: the root of zero."""
    net = make_net(encoded=encoded)
    before = dumps(net)
    name = "linear.weight" if encoded else "norm.weight"

    def root(module):
        return (module.get_parameter(name) * 0).square().sum().sqrt()

    with pytest.raises(DataError, match="NaN or infinity"):
        fit(net, digits, replace(QUICK, epochs=1, batch_size=1000), generator=seeded(), penalties=[root])
    assert dumps(net) == before


@pytest.mark.parametrize(
    ("loss", "found"),
    [
        (lambda o, t: F.cross_entropy(o, t, reduction="none"), r"a loss of shape \(64,\)"),
        (lambda o, t: F.cross_entropy(o.detach(), t), "a loss that no parameter changes"),
        (lambda o, t: 1.0, "a loss that no parameter changes"),
        (lambda o, t: F.cross_entropy(o, t[:3]), "ValueError"),
        (lambda o, t: o[:, 99].sum(), "IndexError"),
    ],
)
def test_a_loss_that_does_not_fit_is_an_error(digits, make_net, loss, found):
    net = make_net()
    before = dumps(net)
    with pytest.raises(DataError, match=found):
        fit(net, replace(digits, loss=loss), QUICK, generator=seeded())
    assert dumps(net) == before


def test_a_network_that_is_frozen_as_a_whole_is_an_error(digits, make_net):
    net = make_net()
    net.module.requires_grad_(False)
    with pytest.raises(UsageError, match="no parameter that can be trained; set requires_grad"):
        fit(net, digits, QUICK, generator=seeded())


def test_training_data_are_needed(digits, make_net):
    task = digits.without("train")
    with pytest.raises(DataError, match="role 'train'"):
        fit(make_net(), task, QUICK, generator=seeded())


# Every kind of task


def test_the_four_kinds_of_tasks_train():
    generator = seeded()
    images = torch.rand(60, 1, 8, 8, generator=generator)
    table = torch.randn(60, 10, generator=generator)
    cases = [
        (Task.classification((images, torch.randint(10, (60,), generator=generator))), DigitsCNN()),
        (Task.regression((table, table.sum(1, keepdim=True))), TinyRegressor()),
        (Task.anomaly((images, torch.arange(60) % 2)), TinyAutoencoder()),
        (Task.segmentation((images, (images[:, 0] > 0.5).long()), n_classes=2), TinySegmenter()),
    ]
    for task, model in cases:
        net = Artifact.of(model, task.spec)
        settings = FitSettings(epochs=3, batch_size=16, learning_rate=3e-3, keep="last")
        result = fit(net, task, settings, generator=seeded(), teacher=model)
        assert result.history[-1]["train_loss"] < result.history[0]["train_loss"], task.kind
