"""Rate-distortion rounding: what is stored, what it costs, and what it keeps."""

import dataclasses

import pytest
import torch
from torch import nn

from lilliput.core import container
from lilliput.core.artifact import Artifact, InputSpec
from lilliput.core.encoding import Encoding
from lilliput.core.errors import RecipeError
from lilliput.core.method import Context, apply_checked_
from lilliput.core.task import Task
from lilliput.graph.trace import graph_of, trace
from lilliput.methods.normalization.batchnorm import FoldBatchNorm
from lilliput.methods.pruning.magnitude import MagnitudePruning
from lilliput.methods.quantization.post_training import Quantization
from lilliput.methods.second_order.layers import damped, refitted
from lilliput.methods.second_order.rate_distortion import RateDistortion
from lilliput.methods.second_order.search import best_price
from lilliput.testing import TINY, tiny_model, tiny_task
from lilliput.training.layer_targets import importance, products_of, sum_after

TASK = tiny_task()


def applied(model, *methods, task=TASK):
    net = Artifact.of(model, task.spec)
    results = [apply_checked_(m, net, Context.of(task, model)) for m in methods]
    return net, results[-1]


def integers(net):
    return {n: e.integers() for n, e in net.encodings.items() if n.endswith("weight")}


class Separable(nn.Module):
    """Depthwise, pointwise, linear: without a bias in the middle."""

    def __init__(self) -> None:
        super().__init__()
        self.deep = nn.Conv2d(4, 8, 3, padding=1, groups=4)
        self.point = nn.Conv2d(8, 6, 1, bias=False)
        self.head = nn.Linear(6, 3)

    def forward(self, x):
        x = torch.relu(self.point(torch.relu(self.deep(x))))
        return self.head(x.mean((2, 3)))


def regression(samples=64):
    generator = torch.Generator().manual_seed(5)
    x = torch.randn((samples, 4, 6, 6), generator=generator)
    return Task.regression((x, torch.randn((samples, 3), generator=generator)), validation=(x, torch.zeros(samples, 3)))


@pytest.mark.parametrize("name", TINY)
def test_weights_are_integers_on_a_grid_for_each_channel(name):
    model = tiny_model(name)
    net, result = applied(model, FoldBatchNorm(), RateDistortion(price=1e-4, samples=48))
    for path in result.changed:
        e = net.encodings[net.canonical(f"{path}.weight")]
        assert e.grid is not None
        assert e.grid.axis == 0
        assert torch.equal(net.parameter(f"{path}.weight"), e.decode())


def test_a_task_without_classes_needs_no_labels():
    torch.manual_seed(0)
    model, task = Separable().eval(), regression()
    blank = dataclasses.replace(task, train=(task.data("train").inputs, torch.zeros(64, 3)))
    files = []
    for given in (task, blank):
        net, result = applied(model, RateDistortion(min_agreement=0.95), task=given)
        assert set(result.changed) == {"deep", "point", "head"}
        files.append(container.dumps(net, strip=True))
    assert files[0] == files[1]
    x = torch.randn((512, 4, 6, 6), generator=torch.Generator().manual_seed(9))
    with torch.no_grad():
        wanted = model(x)
        miss = (net.module(x) - wanted).square().sum() / (wanted - wanted.mean(0)).square().sum()
    assert 0 < miss < 0.15


@pytest.mark.parametrize("limit", [480, 420])
def test_the_file_is_no_larger_than_asked_and_nearly_as_large(limit):
    model = tiny_model("residual")
    net, _ = applied(model, FoldBatchNorm(), RateDistortion(max_bytes=limit))
    assert 0.8 * limit < len(container.dumps(net, strip=True)) <= limit


def test_a_limit_that_cannot_be_kept_is_refused_with_what_is_possible():
    with pytest.raises(
        RecipeError,
        match=r"^rate_distortion max_bytes 20: the smallest file reached has [0-9]+ bytes; allow more bytes$",
    ):
        applied(tiny_model("conv"), RateDistortion(max_bytes=20))


def test_same_seed_same_bytes_and_a_higher_price_a_smaller_file():
    model = tiny_model("conv")
    files = [
        container.dumps(applied(model, RateDistortion(price=price))[0], strip=True) for price in (1e-5, 1e-5, 1e-3)
    ]
    assert files[0] == files[1]
    assert len(files[2]) < len(files[0])


def test_what_is_masked_stays_zero():
    net, _ = applied(tiny_model("conv"), MagnitudePruning(sparsity=0.5), RateDistortion(price=1e-5))
    before, _ = applied(tiny_model("conv"), MagnitudePruning(sparsity=0.5))
    for name, q in integers(net).items():
        mask = before.encodings[name].mask
        assert mask is not None
        assert not q[~mask].any()
        assert bool(q[mask].any())


@pytest.mark.parametrize("bits", [2, 4])
def test_given_bits_are_kept_and_beat_nearest_rounding(bits):
    model, task = Separable().eval(), regression()
    x = torch.randn((256, 4, 6, 6), generator=torch.Generator().manual_seed(3))
    nearest, _ = applied(model, Quantization(weight_bits=bits, activation_bits=0, weight_range="mse"), task=task)
    net, _ = applied(model, RateDistortion(weight_bits=bits), task=task)
    for q in integers(net).values():
        assert int(q.abs().max()) <= 2 ** (bits - 1) - 1
    with torch.no_grad():
        errors = [float((m(x) - model(x)).square().mean()) for m in (net.module, nearest.module)]
    assert errors[0] < errors[1]


def test_activations_can_be_quantized_afterwards():
    net, _ = applied(tiny_model("conv"), RateDistortion(price=1e-5))
    before = integers(net)
    apply_checked_(Quantization(), net, Context.of(TASK, tiny_model("conv")))
    assert net.activations
    assert all(torch.equal(q, before[name]) for name, q in integers(net).items())


def test_two_goals_are_refused():
    with pytest.raises(RecipeError, match="price and weight_bits"):
        RateDistortion(price=1.0, weight_bits=4)


def test_refitting_is_ridge_regression_on_the_patches():
    torch.manual_seed(2)
    conv = nn.Conv2d(3, 4, 3, padding=1)
    x, y = torch.randn(20, 3, 5, 5), torch.randn(20, 4, 5, 5)
    node = next(n for n in trace(conv, x[:2]).nodes if n.op == "conv")
    seen = products_of(node, [x[:8], x[8:]], [y[:8], y[8:]], centred=True, most=10**6)
    system = damped(seen.inner, 0.01)
    found = refitted(conv.weight.detach().flatten(1), seen, seen.cross, system)
    rows = nn.functional.unfold(x, 3, padding=1).mT.reshape(-1, 27).double()
    goal = y.movedim(1, -1).reshape(-1, 4).double()
    rows, goal = rows - rows.mean(0), goal - goal.mean(0)
    ridge = (0.01 * rows.square().mean() * len(rows)).sqrt() * torch.eye(27).double()
    start = conv.weight.detach().flatten(1).double()
    expected = torch.linalg.lstsq(torch.cat([rows, ridge]), torch.cat([goal, ridge @ start.T])).solution.T
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("most", [10**6, 40])
def test_products_are_those_of_the_places_that_are_looked_at(most):
    torch.manual_seed(1)
    conv = nn.Conv1d(4, 6, 3, stride=2, padding=1, groups=2)
    x = torch.randn(10, 4, 20) + 3
    y = conv(x).detach()
    node = next(n for n in trace(conv, x[:2]).nodes if n.op == "conv")
    seen = products_of(node, [x], [y], centred=False, most=most)
    step = 1 if most > 100 else 3  # 100 places: every second would be the same columns of each sample, of 10
    for g in range(2):
        wide = nn.functional.pad(x[:, 2 * g : 2 * g + 2], (1, 1)).unfold(2, 3, 2).permute(0, 2, 1, 3)
        rows = wide.reshape(100, 6).double()[::step]
        torch.testing.assert_close(seen.inner[g], rows.T @ rows / len(rows), rtol=1e-4, atol=1e-4)
        goal = y[:, 3 * g : 3 * g + 3].movedim(1, -1).reshape(100, 3).double()[::step]
        torch.testing.assert_close(seen.cross[3 * g : 3 * g + 3], goal.T @ rows / len(rows), rtol=1e-4, atol=1e-4)


def test_the_importance_of_a_linear_head_is_one_for_each_output():
    """d (r . W x) / d (W x) = r, so the mean of r r' over samples."""
    net = Artifact.of(nn.Sequential(nn.Linear(5, 3)), InputSpec(shape=(5,)))
    graph = trace(net.module, torch.zeros(2, 5))
    state = {n: t.detach() for n, t in net.module.state_dict().items()}
    node = next(n for n in graph.nodes if n.op == "linear")
    found = importance(graph, [(torch.randn(4000, 5),)], state, [node], torch.Generator().manual_seed(0))
    torch.testing.assert_close(found[node.name], torch.eye(3).double(), rtol=0, atol=0.1)


def test_a_residual_sum_is_the_target_of_the_layer_before_it():
    graph = graph_of(applied(tiny_model("residual"), FoldBatchNorm())[0])
    found = {n.name: sum_after(graph, n) for n in graph.nodes if n.op == "conv"}
    assert any(s is not None for s in found.values())
    for name, s in found.items():
        if s is not None:
            assert set(graph[s.node].inputs) == {name, s.other}


@pytest.mark.parametrize("rising", [True, False])
@pytest.mark.parametrize("start", [1e-9, 1.0, 1e6])
def test_the_price_at_a_limit_is_found(rising, start):
    def value(price):
        return 100 * price**0.4 if rising else 100 * price**-0.4

    price = best_price(value, 50.0, start, rising=rising)
    assert price is not None
    assert 49 < value(price) <= 50


def test_a_bias_of_zeros_stays_as_it_is():
    assert Encoding.on_one_grid(torch.zeros(3), 8).is_plain
    assert Encoding.on_one_grid(torch.ones(3), 0).is_plain
    assert not Encoding.on_one_grid(torch.ones(3), 8).is_plain


def test_agreement_may_be_given_as_the_guard_has_it():
    assert RateDistortion(min_agreement="98%").min_agreement == "98%"
    for wrong in ("most", "120%", 1.0, -0.1):
        with pytest.raises(RecipeError, match="rate_distortion min_agreement"):
            RateDistortion(min_agreement=wrong)
    model = tiny_model("conv")
    files = [container.dumps(applied(model, RateDistortion(min_agreement=a))[0], strip=True) for a in ("90%", 0.9)]
    assert files[0] == files[1]


def test_an_agreement_of_nothing_is_not_the_default():
    model = tiny_model("conv")
    sizes = [len(container.dumps(applied(model, RateDistortion(min_agreement=a))[0], strip=True)) for a in (0.0, None)]
    assert sizes[0] < sizes[1]


def test_an_agreement_that_is_not_reached_is_refused_with_the_highest_that_is():
    torch.manual_seed(0)
    message = r"^rate_distortion min_agreement 0.9999999: the highest agreement reached, on 16 samples held out, is 0\."
    with pytest.raises(RecipeError, match=message):
        applied(Separable().eval(), RateDistortion(min_agreement=0.9999999), task=regression())
