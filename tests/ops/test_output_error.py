"""Grids that change a layer's output least: the error is that of real outputs, and no grid tried by hand is better."""

# pyright: reportCallIssue=false

import itertools

import pytest
import torch

from lilliput.ops.affine import affine_parameters, dequantize_rows, min_max, quantize_rows
from lilliput.ops.fixed_point import integer_range
from lilliput.ops.output_error import Moments, entropy, fit, refine


def samples(seed=0, channels=4, n=6, count=500):
    """Weights, correlated inputs, and wanted outputs that are not quite w x."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn((n, n), generator=generator, dtype=torch.float64)
    x = torch.randn((count, n), generator=generator, dtype=torch.float64) @ mix + 3
    w = torch.randn((channels, n), generator=generator, dtype=torch.float64)
    noise = 0.1 * torch.randn((count, channels), generator=generator, dtype=torch.float64)
    return w, x, x @ w.T + noise


def moments_of(x, y):
    x, y = x - x.mean(0), y - y.mean(0)
    return Moments(covariance=(x.T @ x / len(x))[None], cross=y.T @ x / len(x), variance=y.square().mean(0))


def real_error(w, x, y):
    """Squared error of the outputs with the best bias, from the samples themselves."""
    difference = y - x @ w.T
    return (difference - difference.mean(0)).square().mean(0)


def test_the_error_is_that_of_real_outputs():
    w, x, y = samples()
    other = torch.round(w)
    assert torch.allclose(moments_of(x, y).error(other), real_error(other, x, y))


def test_groups_have_their_own_inputs():
    (w1, x1, y1), (w2, x2, y2) = samples(1), samples(2)
    parts = moments_of(x1, y1), moments_of(x2, y2)
    joined = Moments(
        covariance=torch.cat([p.covariance for p in parts]),
        cross=torch.cat([p.cross for p in parts]),
        variance=torch.cat([p.variance for p in parts]),
    )
    wanted = torch.cat([real_error(w1.round(), x1, y1), real_error(w2.round(), x2, y2)])
    assert torch.allclose(joined.error(torch.cat([w1, w2]).round()), wanted)


def decoded(w, found, bits, symmetric, codes=None, scale=None):
    low, high = integer_range(bits, signed=True, narrow=symmetric)
    spread = [v.expand(len(w)) for v in (found.search, found.zero_point)]
    codes = quantize_rows(w, *spread, low, high) if codes is None else codes
    return dequantize_rows(codes, (found.scale if scale is None else scale).expand(len(w)), spread[1]).double(), codes


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("per_row", [True, False])
def test_the_error_reported_is_the_real_one_and_no_share_of_the_range_is_better(bits, symmetric, per_row):
    w, x, y = samples(bits)
    found = fit(w, moments_of(x, y), bit_width=bits, symmetric=symmetric, per_row=per_row)
    level = y.var(0, correction=0).mean()
    stored, _ = decoded(w, found, bits, symmetric)
    errors = real_error(stored, x, y)
    assert torch.allclose(found.error, errors / level, atol=1e-9)
    ends = min_max(w if per_row else w.reshape(1, -1))
    for share in (1.0, 0.9, 0.75, 0.5):
        scale, zero = affine_parameters(
            ends.low * share, ends.high * share, bit_width=bits, signed=True, symmetric=symmetric, narrow=symmetric
        )
        low, high = integer_range(bits, signed=True, narrow=symmetric)
        scale, zero = scale.expand(len(w)), zero.expand(len(w))
        plain = dequantize_rows(quantize_rows(w, scale, zero, low, high), scale, zero).double()
        there = real_error(plain, x, y)
        # shares are 3.7% apart: between two of them a plain grid may be a little luckier
        assert (
            bool((errors <= there * 1.35 + 1e-6).all()) if per_row else float(errors.sum()) <= 1.35 * float(there.sum())
        )


def test_a_size_weight_gives_integers_of_less_entropy():
    w, x, y = samples(5, channels=3, n=40)
    plain, small = (
        fit(w, moments_of(x, y), bit_width=5, symmetric=True, per_row=True, size_weight=s) for s in (0.0, 0.05)
    )
    bits = [float(entropy(decoded(w, f, 5, True)[1], -15, 15).mean()) for f in (plain, small)]
    assert bits[1] < bits[0] - 0.3
    assert float(small.error.sum()) >= float(plain.error.sum())


def test_entropy_counts_rows_apart():
    codes = torch.tensor([[0, 0, 0, 0], [0, 1, 0, 1], [0, 1, 2, 3]])
    assert entropy(codes, 0, 3).tolist() == [0.0, 1.0, 2.0]


@pytest.mark.parametrize("per_row", [True, False])
def test_refining_never_makes_the_error_larger_and_stays_in_range(per_row):
    for seed in range(6):
        w, x, y = samples(seed, n=12)
        known = moments_of(x, y)
        found = fit(w, known, bit_width=3, symmetric=True, per_row=per_row)
        before, codes = decoded(w, found, 3, True)
        moved, scale = refine(codes, known, found, bit_width=3, narrow=True)
        after, _ = decoded(w, found, 3, True, moved, scale)
        assert float(real_error(after, x, y).sum()) <= float(real_error(before, x, y).sum()) * (1 + 1e-6)
        assert int(moved.min()) >= -3
        assert int(moved.max()) <= 3


def test_refining_finds_the_best_integers_of_a_tiny_layer():
    """Against all 5^3 choices of integers, each with its best scale: coordinate descent is at or near the best."""
    gaps = []
    for seed in range(8):
        w, x, y = samples(seed, channels=1, n=3)
        known = moments_of(x, y)
        found = fit(w, known, bit_width=3, symmetric=True, per_row=True)
        _, codes = decoded(w, found, 3, True)
        moved, scale = refine(codes, known, found, bit_width=3, narrow=True)
        ours = float(known.error(moved.double() * scale.double()[:, None]))
        best = float("inf")
        for q in itertools.product(range(-3, 4), repeat=3):
            row = torch.tensor([q], dtype=torch.float64)
            energy = float((row * known.times(row)).sum())
            if energy > 0:
                best = min(best, float(known.error(row * (float((row * known.cross).sum()) / energy))))
        gaps.append(ours / best)
    assert sorted(gaps)[4] < 1.2
    assert min(gaps) >= 1 - 1e-5


def test_what_is_not_free_does_not_move():
    w, x, y = samples(3)
    w[:, ::2] = 0
    known = moments_of(x, y)
    found = fit(w, known, bit_width=4, symmetric=False, per_row=True)
    _, codes = decoded(w, found, 4, False)
    moved, _ = refine(codes, known, found, bit_width=4, narrow=False, free=w != 0)
    assert torch.equal(moved[:, ::2], found.zero_point[:, None].expand(-1, 3))


def test_a_diagonal_serves_where_the_inputs_are_too_many():
    w, x, y = samples(2)
    known = moments_of(x, y)
    diagonal = Moments(
        covariance=known.covariance.diagonal(dim1=1, dim2=2),
        cross=w * known.covariance.diagonal(dim1=1, dim2=2),
        variance=known.variance,
    )
    found = fit(w, diagonal, bit_width=4, symmetric=True, per_row=True)
    _, codes = decoded(w, found, 4, True)
    moved, _ = refine(codes, diagonal, found, bit_width=4, narrow=True)
    assert int((moved - codes).abs().max()) <= 1


@pytest.mark.parametrize("per_row", [True, False])
def test_layers_of_zeros_and_inputs_that_never_vary_are_ordinary(per_row):
    nothing = Moments(
        covariance=torch.zeros((1, 3, 3), dtype=torch.float64),
        cross=torch.zeros((2, 3), dtype=torch.float64),
        variance=torch.zeros(2, dtype=torch.float64),
    )
    for w in (torch.zeros((2, 3)), torch.tensor([[0.0, 0.0, 0.0], [1.0, -2.0, 3.0]])):
        found = fit(w, nothing, bit_width=4, symmetric=True, per_row=per_row, size_weight=0.01)
        assert bool((found.scale > 0).all())
        low, high = integer_range(4, signed=True, narrow=True)
        codes = quantize_rows(w.double(), found.search.expand(2), found.zero_point.expand(2), low, high)
        moved, scale = refine(codes, nothing, found, bit_width=4, narrow=True, size_weight=0.01)
        assert bool(torch.isfinite(scale).all())
        assert not bool(moved[0].any())
