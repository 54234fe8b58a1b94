"""Circuits for wanted values: exact, never below the optimum of an exhaustive search over sets of values."""

import heapq
import json
import os
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lilliput.core.errors import UsageError
from lilliput.methods.weight_generation.constructive import generate, reachable
from lilliput.ops.cartesian_functions import (
    CONSTANTS,
    COUNT,
    FLIP_SIGN,
    IDENTITY,
    LEFT_1,
    MULTIPLEXER,
    NEGATE,
    READS,
    evaluate,
    limits,
)

EVERY = [f for f in range(COUNT) if f not in (IDENTITY, MULTIPLEXER)]


@cache
def results(bits):
    """{(function, a, b): what it gives}, with 0 for what a function does not read."""
    low, high = limits(bits)
    numbers = range(low, high + 1)
    return {(f, a, b): int(evaluate(f, a, b, bits)) for f in EVERY for a in numbers for b in numbers}


def best_price(given_values, wanted, bits, prices):
    """The least sum of prices at which gates make all wanted values: Dijkstra over all sets of available values."""
    start, goal = frozenset(given_values), frozenset(wanted)
    best, pending, count = {start: 0.0}, [(0.0, 0, start)], 1
    steps = results(bits)
    while pending:
        cost, _, have = heapq.heappop(pending)
        if goal <= have:
            return cost
        if cost > best[have]:
            continue
        cheapest = {}
        for f in EVERY:
            for a in have if READS[f] else (0,):
                for b in have if READS[f] == 2 else (0,):
                    value = steps[f, a, b]
                    cheapest[value] = min(prices[f], cheapest.get(value, np.inf))
        for value, price in cheapest.items():
            more = have | {value}
            if value not in have and cost + price < best.get(more, np.inf):
                best[more] = cost + price
                heapq.heappush(pending, (cost + price, count, more))
                count += 1
    return np.inf


def price_of(net, prices):
    return sum(prices[gate.function] for gate in net.gates)


few = st.lists(st.integers(-4, 3), max_size=3, unique=True)


@settings(deadline=None, max_examples=25)
@given(few, st.lists(st.integers(-4, 3), min_size=1, max_size=8, unique=True), st.integers(0, 99))
def test_circuits_are_exact_and_never_below_the_optimum(have, wanted, seed):
    prices = np.random.default_rng(seed).choice([0.0, 1.0, 2.0, 5.0], COUNT)
    net = generate(have, wanted, bits=3, prices=prices)
    assert net.evaluate(have).tolist() == wanted
    best = best_price(have, wanted, 3, prices)
    assert best - 1e-9 <= price_of(net, prices) <= 2 * best + 1e-9


@settings(deadline=None, max_examples=25)
@given(few, st.integers(-4, 3), st.integers(0, 99))
def test_one_missing_value_is_made_at_the_least_price_by_functions_of_one_number(have, wanted, seed):
    prices = np.random.default_rng(seed).choice([0.0, 1.0, 2.0, 5.0], COUNT)
    prices[[f for f in range(COUNT) if READS[f] == 2]] = np.inf
    net = generate(have, [wanted], bits=3, prices=prices)
    assert price_of(net, prices) == best_price(have, [wanted], 3, prices)


@settings(deadline=None, max_examples=15)
@given(st.integers(2, 7), st.integers(0, 999))
def test_any_width_and_the_same_circuit_again(bits, seed):
    random = np.random.default_rng(seed)
    low, high = limits(bits)
    have, wanted = (random.integers(low, high + 1, n).tolist() for n in (3, 9))
    prices = random.random(COUNT)
    net = generate(have, wanted, bits=bits, prices=prices)
    assert net.evaluate(have).tolist() == wanted
    assert net == generate(have, wanted, bits=bits, prices=prices)
    assert net.inputs == 3
    assert len(net.gates) == len(set(net.values(have).tolist()) - set(have))  # no value is made twice


def test_what_is_given_takes_no_gate():
    assert generate([5, -7], [-7, 5, 5], bits=8, prices=np.ones(COUNT)).gates == ()


@settings(deadline=None, max_examples=25)
@given(few, st.integers(0, 99), st.sampled_from([0.0, 2.0]))
def test_reachable_values_are_those_with_a_single_derivation_that_cheap(have, seed, most):
    prices = np.random.default_rng(seed).choice([0.0, 1.0, 3.0, np.inf], COUNT)
    prices[[f for f in range(COUNT) if READS[f] == 2]] = np.inf
    expected = [v for v in range(-4, 4) if best_price(have, [v], 3, prices) <= most]
    assert reachable(have, bits=3, prices=prices, most=most).tolist() == expected


def test_unreachable_values_and_bad_input_are_refused():
    prices = np.full(COUNT, np.inf)
    prices[[LEFT_1, *CONSTANTS]] = 0.0
    with pytest.raises(UsageError, match="a circuit for 3: the functions allowed do not reach it"):
        generate([], [2, 3], bits=8, prices=prices)
    with pytest.raises(UsageError, match="128 does not fit in 8 bits"):
        generate([], [128], bits=8, prices=prices)
    with pytest.raises(UsageError, match="use at most 12"):
        generate([], [1], bits=13, prices=prices)
    for bad in (np.zeros(3), np.full(COUNT, np.nan), np.full(COUNT, -1.0)):
        with pytest.raises(UsageError, match="prices of functions"):
            generate([], [1], bits=8, prices=bad)


def test_of_equal_energy_the_smaller_circuit_wins():
    prices = np.full(COUNT, np.inf)
    prices[[LEFT_1, LEFT_1 + 6, FLIP_SIGN, NEGATE]] = 0.0, 0.0, 1.0, 1.0  # a << 1 twice, or a << 2 once
    assert len(generate([1], [4], bits=8, prices=prices).gates) == 1


def test_published_instance_is_made_within_the_published_energy():
    folder = os.environ.get("LILLIPUT_TEST_DATA")
    path = Path(folder or "") / "cgp" / "published_instances.json"
    if folder is None or not path.is_file():
        pytest.skip("needs LILLIPUT_TEST_DATA with cgp/published_instances.json")
    from lilliput.measure.energy import PUBLISHED

    for instance in json.loads(path.read_text())["layer_bypass"]:
        net = generate(instance["x"], instance["y"], bits=8, prices=PUBLISHED.energy_pj)
        assert net.evaluate(instance["x"]).tolist() == instance["y"]
        assert price_of(net, PUBLISHED.energy_pj) <= 1e-4
