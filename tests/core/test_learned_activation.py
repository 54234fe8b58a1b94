"""The module computes what its weights say, whatever was done to them."""

import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from lilliput.core.errors import UsageError
from lilliput.core.learned_activation import KINDS, LearnedActivation
from lilliput.ops.learned_function import piecewise_linear_torch

CURVED = ("cubic", "lerp_psa", "psa")


def samples(*shape, seed=0):
    return 2 * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def randomized(channels, **settings):
    module = LearnedActivation(channels, init="zeros", **settings)
    with torch.no_grad():
        module.weight.normal_(generator=torch.Generator().manual_seed(1))
    return module


@settings(max_examples=30, deadline=None)
@given(
    kind=st.sampled_from([kind for kind in KINDS if kind != "psa"]),
    share=st.sampled_from(["layer", "group", "channel"]),
    layout=st.sampled_from([((5, 6), 1), ((2, 3, 6), -1), ((2, 6, 4), 1), ((2, 6, 3, 5), 1)]),
    points=st.integers(2, 20),
)
def test_inside_its_limit_it_interpolates_its_table(kind, share, layout, points):
    shape, dim = layout
    module = randomized(6, kind=kind, share=share, groups=3, dim=dim, points=points, limit=2.5)
    x = samples(*shape).clamp(-2.5, 2.5)
    y, table = module(x).detach(), module.table().detach()
    assert table.shape == ({"layer": 1, "group": 3, "channel": 6}[share], points)
    for channel in range(6):
        row = table[channel // (6 // len(table))]
        wanted = np.interp(x.select(dim, channel), np.linspace(-2.5, 2.5, points), row)
        np.testing.assert_allclose(y.select(dim, channel), wanted, atol=1e-4 * max(1, float(row.abs().max())))


@pytest.mark.parametrize("like", [nn.ReLU(), F.gelu, nn.SiLU(), F.hardswish, nn.GELU(approximate="tanh"), nn.PReLU()])
@pytest.mark.parametrize("kind", KINDS)
def test_it_starts_as_what_it_replaces(kind, like):
    module, x = LearnedActivation(3, kind=kind, points=65, like=like), samples(50, 3).clamp(-4, 4)
    with torch.no_grad():
        assert float((module(x) - like(x)).abs().max()) < 0.035


def test_without_a_function_it_starts_as_relu():
    x = samples(50, 3)
    assert torch.allclose(LearnedActivation(3, kind="table")(x), torch.relu(x), atol=1e-5)


def changes():
    other = randomized(3, kind="lerp_psa").state_dict()
    other = {"weight": 1.5 * other["weight"], "limit": torch.tensor([3.0])}

    def in_place(module):
        with torch.no_grad():
            module.weight[1] *= -1

    def behind_its_back(module):
        module.weight.data[1] *= -1  # torch does not count this as a change

    def by_step(module):
        module.weight.grad = torch.ones_like(module.weight)
        torch.optim.SGD([module.weight], 0.1).step()

    return {
        "load_state_dict": lambda m: m.load_state_dict(other),
        "in place": in_place,
        "through data": behind_its_back,
        "a step": by_step,
        "another limit": lambda m: m.limit.fill_(1.0),
        "another weight": lambda m: setattr(m, "weight", nn.Parameter(-m.weight.detach())),
        "float64": lambda m: m.double(),
    }


@pytest.mark.parametrize("change", changes())
@pytest.mark.parametrize("kind", CURVED)
def test_what_was_kept_is_forgotten_when_weights_change_in_evaluation(kind, change):
    module, x = randomized(3, kind="lerp_psa" if change == "load_state_dict" else kind).eval(), samples(20, 3)
    with torch.no_grad():
        before = module(x)
        changes()[change](module)
        x = x.to(module.weight.dtype)
        after = module(x)
        fresh = copy.deepcopy(module)
        fresh._kept = None
        assert torch.equal(after, fresh(x))
        assert change == "float64" or not torch.allclose(before, after)


def test_the_kept_table_is_used_again():
    module, x = randomized(3, kind="lerp_psa").eval(), samples(20, 3)
    with torch.no_grad():
        module(x)
        table = module.table()
        assert module.table() is table
    assert module.table().requires_grad


def test_what_inference_mode_has_kept_can_be_trained_through():
    module, x = randomized(3, kind="lerp_psa").eval(), samples(20, 3)
    module.weight.requires_grad_(False)
    with torch.inference_mode():
        module(x)
    x.requires_grad_()
    module(x).sum().backward()
    assert x.grad is not None


@pytest.mark.parametrize("kind", KINDS)
def test_every_number_gets_a_gradient(kind):
    module = randomized(3, kind=kind, points=9)
    module(samples(500, 3)).square().sum().backward()
    assert module.weight.grad is not None
    assert (module.weight.grad.abs() > 0).float().mean() > 0.95


def test_a_copy_learns_on_its_own():
    module = randomized(3, kind="lerp_psa")
    twin, x = copy.deepcopy(module), samples(20, 3)
    with torch.no_grad():
        before = module(x)
        twin.weight.add_(1)
        assert torch.equal(module(x), before)
        assert not torch.equal(twin(x), before)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_precisions_give_their_own(dtype):
    module, x = randomized(3, kind="table").to(dtype), samples(20, 3).to(dtype)
    assert module(x).dtype == dtype
    assert torch.equal(module(x), piecewise_linear_torch(x, module.weight, module.limit))


def test_the_penalty_makes_functions_of_fewer_lines():
    module, x = randomized(2, kind="bspline", points=17), samples(400, 2).clamp(-4, 4)
    wanted, optimizer = x.abs(), torch.optim.Adam(module.parameters(), 0.05)
    for _ in range(300):
        optimizer.zero_grad()
        (F.mse_loss(module(x), wanted) + 1e-3 * module.second_variation()).backward()
        optimizer.step()
    assert F.mse_loss(module(x), wanted).item() < 0.02
    module.straighten_(0.3)
    kinks = (module.bends().abs() > 1e-3).sum(1)
    assert kinks.max() <= 6
    assert F.mse_loss(module(x), wanted).item() < 0.05


def test_paper_starts_are_drawn_from_the_generator_that_is_given():
    state = torch.get_rng_state()
    one, same, other = (
        LearnedActivation(4, kind="psa", init="paper", generator=torch.Generator().manual_seed(s)).weight
        for s in (0, 0, 1)
    )
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert torch.equal(torch.get_rng_state(), state)
    x = samples(30, 4).clamp(-4, 4)
    assert torch.allclose(LearnedActivation(4, kind="bspline", init="paper")(x), F.leaky_relu(x, 0.01), atol=1e-5)


@pytest.mark.parametrize("share", ["group", "indexed"])
def test_a_module_of_its_structure_takes_its_weights(share):
    module = randomized(6, kind="cubic", points=9, share=share, groups=2, dim=-1, limit=3.0)
    if module.owner is not None:
        module.owner.copy_(torch.tensor([0, 1, 0, 0, 1, 1]))
    twin = LearnedActivation(**module.structure())
    twin.load_state_dict(module.state_dict())
    assert torch.equal(twin(samples(4, 6)), module(samples(4, 6)))


@pytest.mark.parametrize(
    ("settings", "found"),
    [
        ({"kind": "spline"}, "kind: 'spline'; use one of table, bspline, cubic, lerp_psa, psa"),
        ({"share": "all"}, "share: 'all'; use one of layer, group, channel"),
        ({"init": "random"}, "init: 'random'; use one of keep, paper, zeros"),
        ({"points": 1}, "points: 1; use a whole number from 2 to 4096"),
        ({"points": 9.0}, "points: 9.0; use a whole number"),
        ({"limit": 0.0}, "limit: 0.0; use a positive number"),
        ({"limit": float("nan")}, "limit: nan; use a positive number"),
        ({"share": "group", "groups": 4}, "groups: 4 of 6 channels; use a divisor of them"),
        ({"terms": 0}, "terms: 0"),
        ({"share": "indexed", "points": 4096, "channels": 1 << 16}, "65536 functions of kind 'lerp_psa'"),
        ({"points": 4096, "terms": 64, "channels": 1 << 16}, "65536 functions of kind 'lerp_psa'"),
        ({"dim": "last"}, "dim: 'last'"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings, found):
    with pytest.raises(UsageError, match="LearnedActivation") as error:
        LearnedActivation(**{"channels": 6, **settings})
    assert found in str(error.value)


def test_values_without_its_channels_are_refused():
    with pytest.raises(UsageError, match=r"of 6 channels: a value of shape \(2, 5\); give them in dimension 1"):
        LearnedActivation(6, kind="table")(torch.zeros(2, 5))
    with pytest.raises(UsageError, match="give them in dimension 2"):
        LearnedActivation(6, kind="table", dim=2)(torch.zeros(2, 6))


def test_straightening_is_of_tables():
    with pytest.raises(UsageError, match="straighten functions of kind 'psa'"):
        randomized(2, kind="psa").straighten_(0.1)
