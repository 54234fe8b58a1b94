"""Learned numbers of levels: the rounding by its definition, its gradients by autograd of a form of their own."""

import pytest
import torch

from lilliput.ops.bit_width import bounds, levels, rounded, slopes, width


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def oracle(x, bits, exponent):
    """(integers, values), differentiable: every rounding and every whole bound is passed straight through."""

    def through(real, whole):
        return real + (whole - real).detach()

    low, high = bounds(bits)
    near = x * torch.exp2(-exponent)
    q = through(near, torch.floor(near + 0.5))
    bottom = through(-torch.exp2(bits - 1), low.to(x.dtype))
    top = through(torch.exp2(bits - 1) - 1, high.to(x.dtype))
    q = torch.where(q > top, top, torch.where(q < bottom, bottom, q))
    return q, q * torch.exp2(exponent)


def test_levels_are_whole_and_none_is_missed():
    bits = torch.linspace(0, 4, 4001, dtype=torch.float64)
    found = levels(bits)
    assert found.tolist() == sorted(found.tolist())
    assert set(found.tolist()) == set(range(1, 17))
    assert levels(torch.tensor([-1.0, 0.0, 1.0, 2.0, 8.0])).tolist() == [1, 1, 2, 4, 256]


def test_no_width_is_charged_for_a_level_that_it_does_not_have():
    """The fractional bound of the paper leaves 5 levels down to log2(5) = 2.32 bits, 4 only where it gets to 2."""
    assert levels(torch.tensor(2.3219)).item() == 5
    assert levels(torch.tensor(2.16)).item() == 4  # 2^2.16 = 4.47


@pytest.mark.parametrize(
    ("count", "low", "high", "bits"),
    [(1, 0, 0, 0), (2, -1, 0, 1), (3, -1, 1, 2), (4, -2, 1, 2), (5, -2, 2, 3), (8, -4, 3, 3), (256, -128, 127, 8)],
)
def test_bounds_and_the_twos_complement_that_holds_them(count, low, high, bits):
    found = bounds(torch.log2(torch.tensor([float(count)], dtype=torch.float64)))
    assert [int(v) for v in found] == [low, high]
    assert int(width(torch.tensor([low]), torch.tensor([high]))) == bits


def test_widths_hold_every_pair_and_no_less_does():
    for low in range(-9, 1):
        for high in range(9):
            bits = int(width(torch.tensor(low), torch.tensor(high)))
            if bits == 0:
                assert low == high == 0
                continue
            assert -(2 ** (bits - 1)) <= low
            assert high < 2 ** (bits - 1)
            less = 2 ** (bits - 2) if bits > 1 else 0
            assert bits == 1 or low < -less or high >= less


def drawn(seed):
    x = torch.randn(6, 40, generator=seeded(seed), dtype=torch.float64) * 3
    bits = torch.rand(6, 1, generator=seeded(seed + 1), dtype=torch.float64) * 4
    exponent = torch.randn(6, 1, generator=seeded(seed + 2), dtype=torch.float64)
    return x, bits, exponent


@pytest.mark.parametrize("seed", range(5))
def test_integers_are_the_nearest_inside_of_their_bounds(seed):
    x, bits, exponent = drawn(seed)
    found = rounded(x, bits, exponent)
    low, high = bounds(bits)
    for row in range(len(x)):
        allowed = torch.arange(int(low[row]), int(high[row]) + 1, dtype=torch.float64)
        distance = (x[row][:, None] * 2.0 ** -float(exponent[row]) - allowed).abs()
        assert torch.equal(
            distance.min(1).values, (distance.gather(1, (found.integers[row][:, None] - allowed[0]).long()))[:, 0]
        )


@pytest.mark.parametrize("seed", range(5))
def test_gradients_are_those_of_autograd_through_the_roundings(seed):
    x, bits, exponent = (v.requires_grad_() for v in drawn(seed))
    weights = torch.randn(x.shape, generator=seeded(9), dtype=torch.float64)
    q, value = oracle(x, bits, exponent)
    wanted = torch.autograd.grad((weights * value).sum(), (x, bits, exponent))
    with torch.no_grad():
        at = rounded(x, bits, exponent)
        found = slopes(x, bits, exponent, at)
    assert torch.equal(at.integers, q.detach())
    assert bool(at.below.any())
    assert bool(at.above.any())
    torch.testing.assert_close(weights * found.x, wanted[0], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close((weights * found.bits).sum(1, keepdim=True), wanted[1], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close((weights * found.exponent).sum(1, keepdim=True), wanted[2], rtol=1e-12, atol=1e-12)


def test_a_channel_without_bits_is_0_and_can_come_back():
    """At b = 0 all is 0, and the gradient for b still says which way the lost values lie."""
    x = torch.tensor([[0.2, 3.0, -3.0]], dtype=torch.float64)
    bits, exponent = torch.zeros(1, 1, dtype=torch.float64), torch.zeros(1, 1, dtype=torch.float64)
    at = rounded(x, bits, exponent)
    assert at.integers.tolist() == [[0.0, 0.0, 0.0]]
    found = slopes(x, bits, exponent, at)
    assert found.bits[0, 0] == 0
    assert found.bits[0, 1] > 0 > found.bits[0, 2]
