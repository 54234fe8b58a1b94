"""Settings, the learning rate of each step, groups of parameters, surgery on the optimizer."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from lilliput.core.errors import RecipeError, UsageError
from lilliput.training.optimizer import make_optimizer, names_of, replace_parameter_
from lilliput.training.settings import SCHEDULES, Factors, FitSettings, learning_rate_factor


@given(schedule=st.sampled_from(SCHEDULES), warmup=st.sampled_from([0.0, 0.1, 0.5, 0.99]), steps=st.integers(1, 60))
def test_learning_rate_rises_then_never_rises_again(schedule, warmup, steps):
    factors = [learning_rate_factor(schedule, warmup, step, steps) for step in range(steps)]
    assert all(0 < f <= 1 for f in factors)
    top = factors.index(max(factors))
    assert factors[: top + 1] == sorted(factors[: top + 1])
    assert factors[top:] == sorted(factors[top:], reverse=True)
    if warmup == 0 and schedule != "one_cycle":
        assert factors[0] == 1


def test_learning_rates_are_the_published_courses():
    cosine = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(cosine, 20)
    for step in range(20):
        assert learning_rate_factor("cosine", 0.0, step, 20) == pytest.approx(cosine.param_groups[0]["lr"])
        cosine.step()
        scheduler.step()
    assert [learning_rate_factor("step", 0.0, s, 8) for s in range(8)] == [1, 1, 1, 1, 0.1, 0.1, 0.01, 0.01]
    assert [learning_rate_factor("constant", 0.5, s, 6) for s in range(6)] == [0.25, 0.5, 0.75, 1, 1, 1]
    cycle = [learning_rate_factor("one_cycle", 0.0, s, 10) for s in range(10)]
    assert cycle[0] == pytest.approx(1 / 25)
    assert cycle.index(max(cycle)) == 3
    assert cycle[3] == 1


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"epochs": 0}, "epochs"),
        ({"epochs": 2.0}, "epochs"),
        ({"batch_size": 0}, "batch_size"),
        ({"optimizer": "lion"}, "optimizer"),
        ({"learning_rate": -1.0}, "learning_rate"),
        ({"learning_rate": float("nan")}, "learning_rate"),
        ({"momentum": 1.0}, "momentum"),
        ({"schedule": "linear"}, "schedule"),
        ({"warmup": 1.0}, "warmup"),
        ({"gradient_clip": 0.0}, "gradient_clip"),
        ({"distillation": 1.5}, "distillation"),
        ({"temperature": 0.0}, "temperature"),
        ({"batch_norm": "eval"}, "batch_norm"),
        ({"keep": "first"}, "keep"),
        ({"patience": 0}, "patience"),
        ({"precision": "float16"}, "precision"),
    ],
)
def test_wrong_settings_are_named(settings, named):
    with pytest.raises(RecipeError, match=f"fit {named}"):
        FitSettings(**({"epochs": 1} | settings))


def groups_of(model, **settings):
    chosen = FitSettings(epochs=1, weight_decay=0.1, **settings)
    optimizer = make_optimizer(dict(model.named_parameters()), names_of(model), chosen)
    named = {id(p): name for name, p in model.named_parameters()}
    return {
        named[id(p)]: (g["factor"], pytest.approx(g["weight_decay"]))
        for g in optimizer.param_groups
        for p in g["params"]
    }


def test_groups_by_name_scale_learning_rate_and_weight_decay_and_the_last_match_counts():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    found = groups_of(
        model,
        parameter_groups={
            "*.bias": Factors(weight_decay=0.0),
            "1.*": Factors(learning_rate=0.5),
            "0.weight": Factors(learning_rate=0.0),
        },
    )
    assert found == {"0.bias": (1.0, 0.0), "1.weight": (0.5, 0.1), "1.bias": (0.5, 0.1)}


def test_any_name_of_a_tied_parameter_puts_it_into_a_group():
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False))
    model[1].weight = model[0].weight
    assert groups_of(model, parameter_groups={"1.*": Factors(learning_rate=2.0)}) == {"0.weight": (2.0, 0.1)}


def test_pattern_without_a_parameter_and_nothing_to_train_are_errors():
    model = nn.Linear(2, 2)
    with pytest.raises(UsageError, match=r"'wieght': no parameter has such a name; did you mean 'weight'\?"):
        groups_of(model, parameter_groups={"wieght": Factors()})
    with pytest.raises(UsageError, match="no parameter that can be trained"):
        groups_of(model, parameter_groups={"*": Factors(learning_rate=0.0)})


@pytest.mark.parametrize("optimizer", ["adamw", "adam", "sgd"])
def test_training_after_surgery_is_that_of_the_small_network(optimizer):
    """A hidden unit that is dead from the start changes nothing: cutting it later must change nothing either."""
    generator = torch.Generator().manual_seed(0)
    kept = torch.tensor([0, 1, 3])

    def network(index):
        model = nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 2)).double()
        with torch.no_grad():
            for i, p in enumerate(model.parameters()):
                p.copy_(torch.randn(p.shape, generator=torch.Generator().manual_seed(i)))
            for name, value in (("0.weight", 0.0), ("0.bias", -1.0)):
                model.get_parameter(name)[2] = value
            model.get_parameter("2.weight")[:, 2] = 0
        return model if index is None else cut(model, index, None)

    def cut(model, index, trained):
        for layer, name, dim in ((0, "weight", 0), (0, "bias", 0), (2, "weight", 1)):
            old = getattr(model[layer], name)
            new = nn.Parameter(old.detach().index_select(dim, index))
            setattr(model[layer], name, new)
            if trained is not None:
                replace_parameter_(trained, old, new, dim=dim, index=index)
        return model

    def train(model, trained, batches):
        for x, y in batches:
            trained.zero_grad()
            nn.functional.mse_loss(model(x), y).backward()
            trained.step()

    settings = FitSettings(epochs=1, optimizer=optimizer, learning_rate=0.05)
    batches = [
        (torch.randn(8, 5, generator=generator).double(), torch.randn(8, 2, generator=generator).double())
        for _ in range(8)
    ]
    models = {"big": network(None), "small": network(kept)}
    optimizers = {k: make_optimizer(dict(m.named_parameters()), names_of(m), settings) for k, m in models.items()}
    for key, model in models.items():
        train(model, optimizers[key], batches[:4])
    old = set(models["big"].parameters())
    cut(models["big"], kept, optimizers["big"])
    assert not old - {models["big"][2].bias} & set(optimizers["big"].state)
    for key, model in models.items():
        train(model, optimizers[key], batches[4:])
    for big, small in zip(models["big"].parameters(), models["small"].parameters(), strict=True):
        torch.testing.assert_close(big, small, rtol=0, atol=1e-12)


def test_surgery_refuses_wrong_shapes_and_strangers():
    old, index = nn.Parameter(torch.zeros(4, 2)), torch.tensor([0, 2])
    optimizer = torch.optim.SGD([old], lr=0.1)
    with pytest.raises(UsageError, match=r"shape \(3, 2\) for slices of shape \(2, 2\)"):
        replace_parameter_(optimizer, old, nn.Parameter(torch.zeros(3, 2)), dim=0, index=index)
    with pytest.raises(UsageError, match="does not train the old one"):
        replace_parameter_(
            optimizer, nn.Parameter(torch.zeros(4, 2)), nn.Parameter(torch.zeros(2, 2)), dim=0, index=index
        )
