"""Learned bit widths behind weights: what computes is what is stored, gradients, surgery, memory."""

import copy
from typing import Any

import pytest
import torch

from lilliput.core.artifact import Artifact
from lilliput.core.container import dumps, loads
from lilliput.core.edits import Slice
from lilliput.core.errors import DataError
from lilliput.ops.bit_width import bounds
from lilliput.testing import tiny_model, tiny_task
from lilliput.training.attach import CELL
from lilliput.training.learned_bits import BITS, EXPONENT, LearnedBits, Widths, after, memory_after

TASK = tiny_task()


def owners(channels, size=1):
    return torch.arange(channels) // size


def widths_of(net, *, bits=4.0, size=1):
    names = [n for n, p in net.module.named_parameters() if p.dim() > 1]
    return {
        n: Widths.of(net.encoding(n), axis=0, bits=bits, owner=owners(net.parameter(n).shape[0], size)) for n in names
    }


def net_of(name="residual"):
    return Artifact.of(tiny_model(name), TASK.spec)


def test_weights_start_on_so_many_bits_that_reach_to_the_largest():
    net = net_of()
    before = {n: net.parameter(n).detach().clone() for n in widths_of(net)}
    attached = LearnedBits(net, widths=widths_of(net, bits=5.0))
    for name, old in before.items():
        new = net.parameter(name).detach()
        step = old.abs().flatten(1).amax(1) / 2**4
        assert bool(((new - old).abs().flatten(1).amax(1) <= 1.001 * step).all())
        assert int(attached.integers(name).abs().max()) in (15, 16)


def test_what_computes_is_what_is_stored_and_read_again():
    net = net_of()
    attached = LearnedBits(net, widths=widths_of(net, bits=3.3), exponents="whole")
    computed = {n: net.parameter(n).detach().clone() for n in attached.widths}
    attached.bake_(net)
    net.check()
    again = loads(dumps(net)).replay(tiny_model("residual"))
    for name, values in computed.items():
        assert torch.equal(net.parameter(name).detach(), values)
        assert torch.equal(again.parameter(name).detach(), values)
        grid = net.encodings[name].grid
        assert grid is not None
        assert torch.equal(torch.log2(grid.scale), torch.log2(grid.scale).round())


def test_a_weight_on_grids_starts_from_them():
    net = net_of()
    LearnedBits(net, widths=widths_of(net, bits=3.0)).bake_(net)
    stored = {n: e.values.clone() for n, e in net.encodings.items()}
    attached = LearnedBits(net, widths=widths_of(net, bits=8.0))
    for name, values in stored.items():
        assert torch.equal(attached.integers(name).long(), values)


def test_with_dither_raw_numbers_count_in_steps_and_integers_stay():
    net = net_of()
    LearnedBits(net, widths=widths_of(net, bits=3.0), exponents="short").bake_(net)
    dither = torch.Generator().manual_seed(0)
    found = {
        n: Widths.of(net.encoding(n), axis=0, bits=8.0, owner=owners(len(net.parameter(n))), dither=dither)
        for n in widths_of(net)
    }
    before = {n: net.parameter(n).detach().clone() for n in found}
    attached = LearnedBits(net, widths=found)
    for name, w in attached.widths.items():
        assert torch.equal(attached.integers(name).long(), net.encoding(name).values)
        torch.testing.assert_close(net.parameter(name).detach(), before[name])
        apart = (w.raw.detach() - net.encoding(name).values).abs()
        assert 0.2 < float(apart.max()) <= CELL
        assert len(apart.unique()) > 3
        net.parameter(name).grad = torch.ones_like(before[name])
    attached.pull_()
    for name, w in attached.widths.items():
        grid = net.encoding(name).grid
        assert grid is not None
        assert w.raw.grad is not None
        inside = w.raw.grad != 0
        assert torch.equal(w.raw.grad[inside], grid.spread(grid.scale, w.raw.dim()).expand_as(w.raw)[inside])


def test_short_exponents_are_those_of_scales_with_three_bits():
    net = net_of()
    LearnedBits(net, widths=widths_of(net, bits=3.0), exponents="short").bake_(net)
    scales = torch.cat([e.grid.scale for e in net.encodings.values() if e.grid is not None])
    mantissa = torch.frexp(scales).mantissa * 8
    assert torch.equal(mantissa, mantissa.round())
    assert len(mantissa.unique()) > 1


def test_units_leave_with_their_channels():
    net = net_of()
    LearnedBits(net, widths=widths_of(net, bits=3.0)).bake_(net)
    name = next(iter(widths_of(net)))
    dither = torch.Generator().manual_seed(0)
    whole = Widths.of(net.encoding(name), axis=0, bits=8.0, owner=owners(len(net.parameter(name))), dither=dither)
    left = whole.select(0, torch.tensor([1, 2]))
    assert torch.equal(left.real(), whole.real()[1:3])
    assert torch.equal(whole.select(1, torch.tensor([0])).real(), whole.real()[:, :1])


@pytest.mark.parametrize("size", [1, 2, 100])
def test_gradients_of_widths_are_sums_over_their_channels(size):
    net = net_of()
    attached = LearnedBits(net, widths=widths_of(net, bits=2.0, size=size))
    for name in attached.widths:
        net.parameter(name).grad = torch.randn(net.parameter(name).shape, generator=torch.Generator().manual_seed(1))
    given: dict[str, Any] = {name: net.parameter(name).grad for name in attached.widths}
    attached.pull_()
    for name, w in attached.widths.items():
        assert net.parameter(name).grad is None
        e, b = w.spread(w.exponent.detach()), w.spread(w.bits.detach())
        low, high = (v.float() for v in bounds(b))
        near = torch.floor(w.raw.detach() / torch.exp2(e) + 0.5)
        inside = (near >= low) & (near <= high)
        assert w.raw.grad is not None
        assert torch.equal(w.raw.grad, given[name] * inside)
        reach = torch.log(torch.tensor(2.0)) * torch.exp2(b - 1 + e) * ((near > high).float() - (near < low).float())
        each = (given[name] * reach).flatten(1).sum(1)
        wanted = torch.stack([each[w.owner == k].sum() for k in range(len(w.bits))])
        torch.testing.assert_close(w.bits.grad, wanted)


def test_what_integers_cost_reaches_numbers_bits_and_exponents():
    """Against autograd of the integers themselves, straight through their rounding."""
    net = net_of()
    attached = LearnedBits(net, widths=widths_of(net, bits=2.5))
    attached.pull_()
    for name, w in attached.widths.items():
        cost = torch.randn(w.raw.shape, generator=torch.Generator().manual_seed(2))
        attached.charge_(name, cost)
        x, b, e = (v.detach().double().requires_grad_() for v in (w.raw, w.spread(w.bits), w.spread(w.exponent)))
        low, high = bounds(b)
        near = x / torch.exp2(e)
        whole = torch.floor(near + 0.5)
        top, bottom = torch.exp2(b - 1), -torch.exp2(b - 1)
        q = torch.where(whole > high, top, torch.where(whole < low, bottom, near))
        wanted = torch.autograd.grad((cost * q).sum(), (x, b, e))
        assert w.raw.grad is not None
        torch.testing.assert_close(w.raw.grad.double(), wanted[0], rtol=1e-4, atol=1e-5)
        for found, each in ((w.bits.grad, wanted[1]), (w.exponent.grad, wanted[2])):
            assert found is not None
            torch.testing.assert_close(found.double(), each.flatten(1).sum(1), rtol=1e-3, atol=1e-4)


def test_state_brings_everything_back():
    net = net_of()
    attached = LearnedBits(net, widths=widths_of(net))
    state = copy.deepcopy(attached.state())
    values = {n: p.detach().clone() for n, p in net.module.named_parameters()}
    with torch.no_grad():
        for tensor in attached.trainable().values():
            tensor.add_(0.3)
    attached.project_()
    assert any(not torch.equal(p.detach(), values[n]) for n, p in net.module.named_parameters())
    attached.load_(state)
    assert all(torch.equal(p.detach(), values[n]) for n, p in net.module.named_parameters())


def test_a_number_that_is_none_is_named():
    net = net_of()
    attached = LearnedBits(net, widths=widths_of(net))
    name, w = next(iter(attached.widths.items()))
    with torch.no_grad():
        w.bits[0] = torch.nan
    with pytest.raises(DataError, match=name):
        attached.project_()


def test_widths_and_memory_follow_slices():
    net = net_of()
    name = next(n for n in widths_of(net) if net.parameter(n).dim() == 4 and net.parameter(n).shape[0] >= 4)
    widths = {name: widths_of(net, size=2)[name]}
    w = widths[name]
    kept = [c for c in range(len(w.owner)) if c not in (0, 1, 3)]
    edits = [Slice(path=name, dim=0, index=tuple(kept))]
    memory = {
        name + BITS: {"step": torch.tensor(3.0), "exp_avg": torch.arange(len(w.bits)).float()},
        name + EXPONENT: {"exp_avg": torch.arange(len(w.bits)).float() + 10},
        "fc.bias": {"exp_avg": torch.zeros(2)},
    }
    left, known = after(widths, edits)[name], memory_after(memory, widths, edits)
    assert torch.equal(left.raw, w.raw[kept])
    assert torch.equal(left.bits, w.bits[1:])
    assert torch.equal(left.exponent, w.exponent[1:])
    assert left.owner.tolist() == [int(w.owner[c]) - 1 for c in kept]
    assert known[name + BITS]["exp_avg"].tolist() == list(range(1, len(w.bits)))
    assert known[name + BITS]["step"] == 3
    assert known["fc.bias"] is memory["fc.bias"]
    inputs = after(widths, [Slice(path=name, dim=1, index=(0,))])[name]
    assert torch.equal(inputs.raw, w.raw[:, :1])
    assert torch.equal(inputs.bits, w.bits)
