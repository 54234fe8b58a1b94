"""Learned functions stand where activations were, and compute the same until they are trained."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lilliput.core import container
from lilliput.core.artifact import Artifact, InputSpec
from lilliput.core.errors import RecipeError
from lilliput.core.learned_activation import KINDS, LearnedActivation, second_variation_of
from lilliput.core.method import Context, apply_checked_
from lilliput.core.task import Task
from lilliput.graph import stored
from lilliput.graph.integer import runnable
from lilliput.graph.interpreter import decode, quantize_input
from lilliput.graph.interpreter import run as interpret
from lilliput.graph.lower import lower
from lilliput.graph.trace import graph_of
from lilliput.methods.learned_functions.replace_activations import ReplaceActivations
from lilliput.methods.normalization.batchnorm import FoldBatchNorm
from lilliput.methods.pruning.channel import ChannelPruning
from lilliput.methods.quantization.aware_training import QuantizationAwareTraining
from lilliput.methods.quantization.post_training import Quantization
from lilliput.methods.tuning.fine_tune import FineTune
from lilliput.testing import check_artifact, tiny_model, tiny_task
from lilliput.training.fake_quant import FakeQuant
from lilliput.training.fit import fit
from lilliput.training.settings import FitSettings

TASK = tiny_task(48)
TABLE = ReplaceActivations(kind="table", points=9)


def applied(model, *methods, task=TASK):
    net = Artifact.of(model, task.spec)
    results = [apply_checked_(m, net, Context.of(task, model)) for m in methods]
    return net, results[-1]


def learned(net):
    return {path: m for path, m in net.module.named_modules() if isinstance(m, LearnedActivation)}


class Reused(nn.Module):
    """One ReLU for layers of different widths, as many networks have it, and one in code."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c, self.act = nn.Linear(16, 6), nn.Linear(6, 8), nn.Linear(8, 3), nn.ReLU()

    def forward(self, x):
        return self.c(F.relu(self.act(self.b(self.act(self.a(x.flatten(1)))))))


@pytest.fixture(scope="module")
def trained():
    """An MLP on scikit-learn's digits, with a ReLU of each kind: (network, task)."""
    from lilliput.data.digits import read_digits

    raw = read_digits()
    (x, y), (vx, vy) = raw.train, raw.test
    x, vx = (t.float().flatten(1) / 16 for t in (x, vx))
    task = Task.classification(train=(x, y), validation=(vx, vy), test=(vx, vy))

    class Mlp(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.act, self.b, self.c = nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 32), nn.Linear(32, 10)

        def forward(self, x):
            return self.c(F.relu(self.b(self.act(self.a(x)))))

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = Artifact.of(Mlp(), task.spec)
    fit(
        net, task, FitSettings(epochs=15, batch_size=64, learning_rate=3e-3), generator=torch.Generator().manual_seed(0)
    )
    return net.module.eval(), task, Mlp


def accuracy(module, task):
    x, y = next(iter(task.data("test").batches(10_000)))
    with torch.no_grad():
        return 100 * float((module(x).argmax(1) == y).float().mean())


@pytest.mark.parametrize("kind", KINDS)
def test_a_trained_network_stays_as_good_when_its_activations_are_replaced(trained, kind):
    model, task, _ = trained
    before = accuracy(model, task)
    assert before > 90
    net, result = applied(model, ReplaceActivations(kind=kind), task=task)
    assert set(result.changed) == {"act", "relu"}
    assert accuracy(net.module, task) >= before - 0.3
    check_artifact(net, model, kind)


@pytest.mark.parametrize("kind", ["table", "lerp_psa"])
def test_functions_train_are_quantized_and_run_from_a_file(trained, kind):
    model, task, cls = trained
    net, _ = applied(model, ReplaceActivations(kind=kind, points=17), task=task)
    start = {path: m.weight.detach().clone() for path, m in learned(net).items()}
    result = apply_checked_(FineTune(epochs=2, batch_size=64, learning_rate=1e-3), net, Context.of(task, model))
    assert {"act", "learned"} <= set(result.changed)
    assert all(not torch.equal(m.weight, start[path]) for path, m in learned(net).items())
    assert accuracy(net.module, task) >= accuracy(model, task) - 1.5
    apply_checked_(Quantization(), net, Context.of(task, model))
    x = net.input.example(32)
    integer = runnable(net)
    data = stored.dumps(net)
    with torch.no_grad():
        outputs = integer(x)
        assert torch.equal(runnable(stored.stored_artifact(container.loads(data)))(x), outputs)
        assert torch.equal(runnable(container.loads(data).replay(cls()))(x), outputs)
    program = lower(net)
    assert [o.kind for o in program.operations].count("interpolate") == 2
    assert accuracy(integer, task) >= accuracy(model, task) - 2


def test_training_through_integer_tables_sees_what_the_integer_network_computes(trained):
    model, task, _ = trained
    for kind in ("table", "psa"):
        net, _ = applied(model, ReplaceActivations(kind=kind), Quantization(activation_bits=4), task=task)
        start = {path: m.weight.detach().clone() for path, m in learned(net).items()}
        x = next(iter(task.data("test").batches(64)))[0]
        found = FakeQuant(net, graph_of(net))(x)
        assert torch.equal(found.detach(), runnable(net)(x))
        found.square().sum().backward()
        assert all(m.weight.grad is not None and m.weight.grad.any() for m in learned(net).values())
        method = QuantizationAwareTraining(epochs=1, batch_size=64, activation_bits=4, keep="last")
        apply_checked_(method, net, Context.of(task, model))
        assert all(not torch.equal(m.weight, start[path]) for path, m in learned(net).items())
        check_artifact(net, model, kind)


def test_bends_that_cost_become_fewer(trained):
    model, task, _ = trained
    sizes = []
    for price in (0.0, 3e-3):
        net, _ = applied(model, ReplaceActivations(kind="bspline", points=17), task=task)
        method = FineTune(epochs=2, batch_size=64, learning_rate=3e-3, second_variation=price, keep="last")
        apply_checked_(method, net, Context.of(task, model))
        sizes.append(float(second_variation_of(net.module.requires_grad_(requires_grad=False))))
    assert sizes[1] < 0.9 * sizes[0]


def test_the_program_computes_what_the_integer_network_computes(trained):
    model, task, _ = trained
    net, _ = applied(model, ReplaceActivations(kind="lerp_psa", share="layer"), Quantization(), task=task)
    x = next(iter(task.data("test").batches(64)))[0]
    program = lower(net)
    found = decode(program.values[program.outputs[0]], interpret(program, quantize_input(program, x.numpy()))[0])
    with torch.no_grad():
        assert torch.equal(torch.from_numpy(found), runnable(net)(x))


def test_each_call_of_a_module_gets_functions_of_its_own():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Reused().eval()
    net, result = applied(model, TABLE)
    assert {path: len(m.weight) for path, m in learned(net).items()} == {
        "act.learned": 6, "act.learned_1": 8, "learned": 8,
    }  # fmt: skip
    assert set(result.changed) == {"act", "act#1", "relu"}
    assert result.skipped == dict.fromkeys("abc", "no activation of this kind")
    x = net.input.example(9)
    with torch.no_grad():
        assert torch.allclose(net.module(x), model(x), atol=1e-5)
    assert model.act(torch.tensor([-1.0])) == 0


def test_what_one_pass_leaves_another_may_replace():
    """Edits of calls are by number: those of the first pass still mean the same calls."""
    model = tiny_model("shared")
    net, first = applied(model, ReplaceActivations(kind="table", include=("relu_2",)))
    assert set(first.changed) == {"relu_2"}
    second = apply_checked_(ReplaceActivations(kind="table", points=5), net, Context.of(TASK, model))
    assert len(second.changed) == 3
    assert [n.op for n in graph_of(net).nodes].count("learned_function") == 4
    assert sorted(m.points for m in learned(net).values()) == [5, 5, 5, 33]
    check_artifact(net, model, "two passes")


def test_functions_are_where_the_channels_are():
    class Mixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 5), nn.Linear(6, 7)
            self.conv, self.head = nn.Conv1d(5, 6, 1), nn.Linear(7, 3)

        def forward(self, x):
            x = F.gelu(self.a(x.squeeze(1)))  # [n, 4, 5]: tokens
            x = F.silu(self.conv(x.transpose(1, 2)) * 2)  # [n, 6, 4]
            return self.head(F.relu(self.b(x.transpose(1, 2))).mean(1))

    net, _ = applied(Mixed().eval(), TABLE)
    assert [(m.channels, m.dim) for m in learned(net).values()] == [(5, 2), (6, 1), (7, 2)]


def test_settings_by_activation():
    method = ReplaceActivations(
        kind="table", points=9, skip=("relu",), overrides={"relu_[23]": {"points": 5, "share": "layer", "limit": 2.0}}
    )
    net, result = applied(tiny_model("shared"), method)
    assert result.skipped["relu"] == "not selected by include and skip"
    assert [(m.points, m.share) for m in learned(net).values()] == [(9, "channel"), (5, "layer"), (5, "layer")]
    assert [float(m.limit) for m in learned(net).values()][1:] == [2.0, 2.0]


@pytest.mark.parametrize("method", [
    ReplaceActivations(skip=("no.such",)), ReplaceActivations(overrides={"relu_9": {"points": 5}}),
])  # fmt: skip
def test_patterns_that_match_no_activation_are_refused(method):
    with pytest.raises(RecipeError, match="it matches no activation"):
        applied(tiny_model("shared"), method)


def test_limits_follow_what_the_layer_reads():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 3)).eval()
    with torch.no_grad():
        model.get_parameter("2.weight").copy_(torch.tensor([1.0, 2.0, 1.0, 2.0]))
        model.get_parameter("2.bias").fill_(0.5)
    observed, _ = applied(model, ReplaceActivations(kind="table", deviations=3.0))
    x = torch.cat([x for x, _ in TASK.data("calibration").batches(64)])
    with torch.no_grad():
        wanted = 3 * nn.Sequential(*list(model)[:3])(x).square().mean().sqrt()
    assert float(observed.module.get_buffer("3.limit")) == pytest.approx(float(wanted), rel=1e-3)
    stated, _ = applied(model, ReplaceActivations(kind="table", limit="batch_norm", deviations=4.0))
    assert float(stated.module.get_buffer("3.limit")) == pytest.approx(4 * (2.5 + 0.25) ** 0.5)
    folded, result = applied(model, FoldBatchNorm(), ReplaceActivations(limit="batch_norm"))
    assert not result.effect
    assert result.skipped["3"] == "no BatchNorm is before it; use limit: observed"
    assert not learned(folded)


def test_groups_that_do_not_fit_are_skipped_with_the_reason():
    _, result = applied(tiny_model("residual"), ReplaceActivations(kind="table", share="group", groups=8))
    assert result.skipped["relu"] == "4 channels do not make 8 equal groups"
    assert set(result.changed) == {"relu_1"}


def test_functions_go_with_their_channels():
    model = tiny_model("residual")
    net, _ = applied(model, TABLE)
    with torch.no_grad():
        for module in learned(net).values():
            module.weight.add_(torch.linspace(0.1, 1, len(module.weight))[:, None])
    before = {path: m.weight.detach().clone() for path, m in learned(net).items()}
    result = apply_checked_(ChannelPruning(amount=0.5, compensate=False), net, Context.of(TASK, model))
    assert result.effect
    for path, module in learned(net).items():
        assert module.channels == len(module.weight) < len(before[path])
        left = [any(torch.equal(row, old) for old in before[path]) for row in module.weight]
        assert all(left)
    check_artifact(net, model, "pruned")


class InPlace(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.act = nn.Linear(16, 6), nn.Linear(6, 3), nn.ReLU(inplace=True)

    def forward(self, x):
        x = self.a(x.flatten(1))
        y = self.act(x)
        return self.b(x + 2 * y)


class Otherwise(nn.Module):
    """In training it has a second head."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(16, 6), nn.Linear(6, 3)

    def forward(self, x):
        x = F.relu(self.a(x.flatten(1)))
        return self.b(x) + self.b(F.relu(-x)) if self.training else self.b(x)


@pytest.mark.parametrize(
    ("cls", "found"), [(InPlace, "in place is read under its old name"), (Otherwise, "other activations in training")]
)
def test_code_that_cannot_be_followed_is_refused_and_left_alone(cls, found):
    model = cls().eval()
    net = Artifact.of(model, TASK.spec)
    before = container.dumps(net)
    with pytest.raises(RecipeError, match=found):
        apply_checked_(TABLE, net, Context.of(TASK, model))
    assert container.dumps(net) == before


def test_an_activation_in_place_that_nobody_reads_under_its_old_name_is_replaced():
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 4), nn.ReLU(inplace=True), nn.Linear(4, 3)).eval()
    net, result = applied(model, TABLE)
    assert set(result.changed) == {"2"}
    x = net.input.example(5)
    with torch.no_grad():
        assert torch.allclose(net.module(x), model(x), atol=1e-5)


def test_order_of_passes_is_refused_with_a_remedy():
    model = tiny_model("residual")
    with pytest.raises(RecipeError, match="put replace_activations before quantization"):
        applied(model, Quantization(), TABLE)
    net = stored.stored_artifact(container.loads(stored.dumps(Artifact.of(model, TASK.spec))))
    with pytest.raises(RecipeError, match="load the file into the model's class"):
        apply_checked_(TABLE, net, Context.of(TASK, model))


def test_dropout_and_norms_still_train():
    """Calls are routed in the network's own forward: in training it does what its code says."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Flatten(), nn.Linear(16, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 3)
    )

    class Outer(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = model

        def forward(self, x):
            return F.relu(self.inner(x))

    net, _ = applied(Outer().eval(), TABLE, task=TASK)
    module, x = copy.deepcopy(net.module).train(), net.input.example(64)
    mean = module.get_buffer("inner.2.running_mean").clone()
    assert not torch.equal(module(x), module(x))
    assert not torch.equal(module.get_buffer("inner.2.running_mean"), mean)


@pytest.mark.parametrize(
    ("settings", "found"),
    [
        ({"kind": "spline"}, "kind: 'spline'"),
        ({"points": 2}, "points: 2; use a number from 3 to 1024"),
        ({"limit": "guess"}, "limit: 'guess'; use one of observed, batch_norm"),
        ({"limit": -1.0}, "limit: -1.0"),
        ({"init": "zeros"}, "init: 'zeros'; use one of keep, paper"),
        ({"overrides": {"relu": {"skip": ["relu"]}}}, "unknown setting 'skip'"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings, found):
    with pytest.raises(RecipeError) as error:
        ReplaceActivations(**settings)
    assert found in str(error.value)


def test_a_paper_s_start_follows_from_the_seed():
    model = tiny_model("linear")
    spec = InputSpec(shape=(1, 4, 4))
    files = []
    for seed in (1, 1, 2):
        net = Artifact.of(model, spec)
        apply_checked_(ReplaceActivations(init="paper"), net, Context.of(TASK, model, seed=seed))
        files.append(container.dumps(net))
    assert files[0] == files[1] != files[2]
