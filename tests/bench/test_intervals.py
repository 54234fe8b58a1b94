"""Intervals of differences: against `Score.difference`, a bootstrap, and their coverage where the truth is known."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lilliput.bench.intervals import Scored, difference, mean_and_deviation
from lilliput.core.score import accuracy, mean_absolute_error


def scored(samples, one=None):
    samples = torch.as_tensor(samples, dtype=torch.float64)
    return Scored(score=float(samples.mean()), samples=samples, one=one)


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=2, max_size=60))
def test_with_one_seed_the_interval_of_a_share_is_that_of_agresti_and_min(pairs):
    ours, theirs = (torch.tensor([p[i] for p in pairs]).double()[:, None] for i in (0, 1))
    value, interval = difference({0: scored(ours[:, 0] * 100, 100.0)}, {0: scored(theirs[:, 0] * 100, 100.0)})
    wanted, wanted_interval = accuracy().difference(ours, theirs)
    assert value == pytest.approx(wanted, abs=1e-9)
    assert interval == pytest.approx(wanted_interval, abs=1e-9)


def test_with_one_seed_the_interval_of_a_mean_is_the_normal_one():
    generator = torch.Generator().manual_seed(0)
    ours, theirs = torch.rand(2, 50, 1, generator=generator, dtype=torch.float64)
    value, interval = difference({3: scored(ours[:, 0])}, {3: scored(theirs[:, 0])})
    wanted, wanted_interval = mean_absolute_error().difference(ours, theirs)
    assert value == pytest.approx(wanted)
    assert interval == pytest.approx(wanted_interval)


def test_the_part_of_the_samples_is_that_of_a_paired_bootstrap():
    """Three seeds that agree: what is left is the choice of samples."""
    generator = torch.Generator().manual_seed(1)
    ours, theirs = (
        torch.rand(2, 400, generator=generator, dtype=torch.float64) < torch.tensor([[0.9], [0.8]])
    ).double()
    _, interval = difference({s: scored(ours, 1.0) for s in range(3)}, {s: scored(theirs, 1.0) for s in range(3)})
    picks = torch.randint(400, (4000, 400), generator=generator)
    resampled = (ours - theirs)[picks].mean(1)
    assert interval is not None
    assert interval == pytest.approx([float(resampled.quantile(q)) for q in (0.025, 0.975)], abs=0.008)


def test_the_part_of_the_seeds_is_a_paired_t_interval():
    """Samples say nothing here: three differences 1, 2 and 3, as in any table of t: 4.303 x 1 / sqrt(3) around 2."""
    ours = {s: Scored(score=10.0 + 2 * s, samples=None) for s in (1, 2, 3)}
    theirs = {s: Scored(score=10.0 + s, samples=None) for s in (1, 2, 3)}
    value, interval = difference(ours, theirs)
    assert value == 2.0
    assert interval == pytest.approx((2 - 4.3027 / math.sqrt(3), 2 + 4.3027 / math.sqrt(3)), abs=1e-4)


def test_other_seeds_are_no_pairs():
    """Welch: variances 1 over 3 seeds each, four degrees of freedom."""
    ours = {s: Scored(score=float(s), samples=None) for s in (1, 2, 3)}
    theirs = {s: Scored(score=float(s), samples=None) for s in (2, 3, 4)}
    value, interval = difference(ours, theirs)
    half = 2.7764 * math.sqrt(2 / 3)
    assert value == -1.0
    assert interval == pytest.approx((-1 - half, -1 + half), abs=1e-4)


def test_one_seed_without_samples_has_no_interval():
    assert difference({0: Scored(score=2.0, samples=None)}, {0: Scored(score=1.0, samples=None)}) == (1.0, None)


def test_intervals_cover_the_truth_where_samples_and_seeds_both_vary():
    """Each seed moves all its samples; each sample has a difference of its own: the mean of both is 0.3."""
    generator = torch.Generator().manual_seed(2)
    covered = 0
    for _ in range(600):
        of_sample = torch.randn(100, generator=generator, dtype=torch.float64)
        of_seed = 0.1 * torch.randn(3, generator=generator, dtype=torch.float64)
        noise = 0.2 * torch.randn(3, 100, generator=generator, dtype=torch.float64)
        ours = {s: scored(0.3 + of_sample + of_seed[s] + noise[s]) for s in range(3)}
        _, interval = difference(ours, {s: scored(torch.zeros(100)) for s in range(3)})
        assert interval is not None
        covered += interval[0] <= 0.3 <= interval[1]
    assert 0.93 <= covered / 600 <= 0.99


@given(st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=9))
def test_means_and_deviations_are_those_of_torch(values):
    mean, deviation = mean_and_deviation(values)
    assert mean == pytest.approx(float(torch.tensor(values, dtype=torch.float64).mean()), abs=1e-9)
    assert deviation == pytest.approx(float(torch.tensor(values, dtype=torch.float64).std()), abs=1e-9)
    assert mean_and_deviation(values[:1]) == (values[0], None)
