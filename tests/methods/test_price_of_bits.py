"""The price of a bit: fixed, on a ramp, for a size, for a score; and the runs that it leads."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lilliput.core.artifact import Artifact
from lilliput.core.container import dumps
from lilliput.core.errors import RecipeError, UsageError
from lilliput.core.method import Context, apply_checked_
from lilliput.core.score import Score
from lilliput.methods.self_compression.price import Bound, Course, Price, PriceForScore, PriceForSize, RampedPrice
from lilliput.methods.self_compression.self_compression import SelfCompression
from lilliput.methods.tuning.fine_tune import FineTune
from lilliput.testing import tiny_model, tiny_task

TASK = tiny_task(48)
FOUND = SelfCompression(
    steps=120, batch_size=16, rounds=8, learning_rate=3e-3, bit_rate=0.3, gamma=1.0, distillation=0.0
)
CROSS_ENTROPY = Score(
    name="cross-entropy",
    higher_is_better=False,
    statistics=lambda outputs, targets: F.cross_entropy(outputs, torch.as_tensor(targets), reduction="none")[:, None],
)


def wide():
    """3,267 weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layers = [nn.Linear(16, 48), nn.ReLU(), nn.Linear(48, 48), nn.ReLU(), nn.Linear(48, 3)]
        return nn.Sequential(nn.Flatten(), *layers)


@pytest.fixture(scope="module")
def trained():
    """Networks that are right about every sample."""
    found = {}
    for name, model, rate in (("conv", tiny_model("conv"), 3e-2), ("wide", wide(), 1e-2)):
        net = Artifact.of(model, TASK.spec)
        method = FineTune(epochs=40, batch_size=16, learning_rate=rate)
        apply_checked_(method, net, Context.of(TASK, model))
        found[name] = net.module
    return found


def run(model, method, task=TASK):
    net = Artifact.of(model, task.spec)
    result = apply_checked_(method, net, Context.of(task, model))
    data = task.data("validation")
    right = float((net.module(data.inputs).argmax(1) == data.targets).float().mean())
    assert result.statistics is not None
    return len(dumps(net, strip=True)), 100 * right, result.statistics["rounds"], result.notes


def test_a_fixed_price_stands():
    price = Price(0.5)
    price.count_(10, 1e6)
    price.judge_(10, 0.0)
    assert price.now == 0.5


def test_a_ramp_rises_in_a_line_and_stays():
    price = RampedPrice(0.5, 40)
    found = []
    for step in (0, 10, 20, 40, 60):
        price.count_(step, 1000.0)
        found.append(price.now)
    assert found == [0, 0.125, 0.25, 0.5, 0.5]


def test_a_price_that_was_lowered_for_the_safety_set_does_not_rise_for_a_while():
    ramp, score = RampedPrice(1.0, 40), PriceForScore(1.0, Bound(reference=90.0, limit=2.0, higher_is_better=True))
    ramp.count_(20, 1000.0)
    for price in (ramp, score):
        price.calm_(0.5, 30)
    ramp.count_(25, 1000.0)
    score.judge_(25, 90.0)
    assert (ramp.now, score.now) == (0.25, 0.5)
    ramp.count_(30, 1000.0)
    score.judge_(30, 90.0)
    assert ramp.now == 0.5 * 0.75
    assert score.now == pytest.approx(1.5)


def followed(sizes, steps=5, start=1000.0, goal=250.0, arrive=10):
    """The log of the price after these sizes, one every five steps from the first count on."""
    price = PriceForSize(1.0, Course(start=start, goal=goal, arrive=arrive))
    for k, size in enumerate(sizes):
        price.count_(10 + steps * k, size)
    return math.log(price.now)


def test_a_price_for_a_size_follows_its_course_from_both_sides():
    assert followed([275.0]) == pytest.approx(0.25 * math.log(1.1))
    assert followed([225.0]) == pytest.approx(0.25 * math.log(0.9))
    assert followed([250.0]) == pytest.approx(0.0)
    assert followed([1e6]) == pytest.approx(0.3)
    assert followed([1.0]) == pytest.approx(-0.3)


def test_a_price_for_a_size_falls_in_time_where_the_size_is_above_its_course_but_falls_fast():
    standing, falling = followed([300.0, 300.0]), followed([330.0, 300.0])
    assert standing > 0
    trend = 0.5 * math.log(300 / 330) / 5
    assert falling - followed([330.0]) == pytest.approx(0.25 * (math.log(300 / 250) + 20 * trend))
    assert falling - followed([330.0]) < 0


def test_a_price_for_a_size_does_not_take_the_channels_that_go_between_rounds_for_a_trend():
    price = PriceForSize(1.0, Course(start=1000.0, goal=250.0, arrive=10))
    price.count_(10, 250.0)
    price.begin_()
    price.count_(15, 200.0)
    assert math.log(price.now) == pytest.approx(0.25 * math.log(200 / 250))


@pytest.mark.parametrize("higher", [True, False])
def test_a_price_for_a_score_rises_with_the_room_that_is_left(higher):
    def now(drop, limit=2.0):
        price = PriceForScore(1.0, Bound(reference=90.0, limit=limit, higher_is_better=higher))
        price.judge_(0, 90.0 - drop if higher else 90.0 + drop)
        return price.now

    assert now(0.0) == pytest.approx(3)
    assert now(-5.0) == pytest.approx(3)
    assert now(1.0) == pytest.approx(math.sqrt(3))
    assert now(2.0) == pytest.approx(1)
    assert now(4.0) == pytest.approx(1 / 3)
    assert now(40.0) == pytest.approx(1 / 3)
    assert now(0.0, limit=0.0) == pytest.approx(3)
    assert now(0.1, limit=0.0) == pytest.approx(1 / 3)


def test_where_the_rounds_lose_the_score_the_last_network_that_kept_it_is_tuned(trained):
    _, score, rounds, _ = run(trained["conv"], replace(FOUND, max_drop=5.0))
    assert rounds[-1]["score"] < 95.0
    assert score >= 95.0


def test_a_score_that_is_lost_from_the_start_is_told(trained):
    method = replace(
        FOUND, max_drop=0.0, start_bits=1.0, per="tensor", learning_rate=1e-9, bit_rate=0.0, step_rate=1e-9
    )
    _, score, _, notes = run(trained["conv"], method)
    assert score < 100.0
    told = f"accuracy {score:.2f}% on validation; at most 0.0 worse than 100.00% was wanted"
    assert told in notes


def held(model, drop, method=FOUND):
    """(bytes, by how much the cross-entropy on validation has risen, what the method says) of a run with this drop."""
    task = replace(TASK, score=CROSS_ENTROPY)
    data = task.data("validation")
    net = Artifact.of(model, task.spec)
    result = apply_checked_(replace(method, max_drop=drop), net, Context.of(task, model))
    before, after = (
        CROSS_ENTROPY.value(CROSS_ENTROPY.statistics(m(data.inputs), data.targets).detach())
        for m in (model, net.module)
    )
    return len(dumps(net, strip=True)), after - before, result


def test_a_score_is_kept_and_a_lower_one_gives_a_smaller_file(trained):
    sizes = []
    for drop in (0.01, 0.8):
        size, risen, result = held(trained["wide"], drop, replace(FOUND, gamma=0.1))
        assert risen <= drop + 1e-6
        assert not any("wanted" in note for note in result.notes)
        sizes.append(size)
    assert sizes[1] < 0.7 * sizes[0]


def test_a_ramp_raises_the_price_over_its_share_of_the_rounds():
    method = replace(FOUND, steps=60, rounds=6, gamma=2.0, ramp=0.5, settle=0.0)
    _, _, rounds, _ = run(tiny_model("conv"), method)
    gammas = [row["gamma"] for row in rounds]
    assert gammas[0] < gammas[1] < gammas[2] < 2.0
    assert gammas[3:] == [2.0] * 3


@pytest.mark.parametrize(
    ("settings", "found"),
    [
        ({"max_bytes": 900, "max_drop": 1.0}, "max_bytes and max_drop: one price cannot serve both"),
        ({"max_bytes": 900, "ramp": 0.5}, "ramp: 0.5 with max_bytes"),
        ({"max_drop": 1.0, "ramp": 0.5}, "ramp: 0.5 with max_drop"),
        ({"max_bytes": 900, "gamma": 0.0}, "gamma: 0 with max_bytes"),
        ({"max_drop": "1pt", "gamma": 0.0}, "gamma: 0 with max_drop"),
        ({"max_drop": "1pt", "settle": 0.0}, "settle: 0 with max_drop"),
        ({"max_drop": "1pt", "keep": "last"}, "keep: last with max_drop"),
        ({"max_drop": "a little"}, "max_drop='a little'"),
        ({"max_drop": -1.0}, "max_drop=-1.0"),
        ({"ramp": 1.5}, "ramp: 1.5"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(settings, found):
    with pytest.raises(RecipeError, match=f"self_compression {found}"):
        SelfCompression(**settings)


def test_points_of_a_score_that_has_none_are_refused_before_training():
    task = replace(TASK, score=replace(TASK.score, unit=""))
    net = Artifact.of(tiny_model("conv"), task.spec)
    with pytest.raises(UsageError, match="not in percent"):
        apply_checked_(replace(FOUND, max_drop="1pt"), net, Context.of(task, tiny_model("conv")))
