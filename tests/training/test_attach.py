"""Trained is stored, and the gradient that reaches the raw copies is the right one."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from lilliput.core.artifact import Artifact, InputSpec
from lilliput.core.encoding import Encoding, Grid, Sharing
from lilliput.core.errors import DataError
from lilliput.training.attach import Attached, straight_through

SHAPE = (3, 6)


@st.composite
def encodings(draw, *, grids=True):
    """Encodings of a [3, 6] tensor with any of the slots."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**16)))
    encoding = Encoding.of(torch.randn(SHAPE, generator=generator))
    if draw(st.booleans()):
        encoding = encoding.with_mask(torch.rand(SHAPE, generator=generator) > 0.4)
    shared, axis = draw(st.booleans()), draw(st.sampled_from([None, 0]))
    if shared:
        tables = 1 if axis is None else SHAPE[0]
        sizes = torch.full((tables,), 3)
        indices = torch.randint(3, SHAPE, generator=generator)
        sharing = Sharing(indices=indices, sizes=sizes, axis=axis)
        encoding = encoding.with_sharing(sharing, torch.randn(3 * tables, generator=generator))
    per_channel = (axis == 0 or not shared) and draw(st.booleans())
    if grids and draw(st.booleans()):
        n = SHAPE[0] if per_channel else 1
        scale = torch.rand(n, generator=generator) * 0.2 + 0.05
        grid = Grid(
            scale=scale,
            zero_point=torch.full((n,), draw(st.integers(-2, 1))),
            bit_width=torch.full((n,), draw(st.integers(2, 8))),
            axis=0 if per_channel else None,
        )
        encoding = encoding.with_grid(grid)
    return encoding


def artifact_of(weight, encoding=None):
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    net = Artifact.of(layer, InputSpec(shape=(weight.shape[1],)))
    net.encode_("weight", encoding or Encoding.of(weight))
    return net


@given(encoding=encodings(), seed=st.integers(0, 1000))
@settings(max_examples=60, deadline=None)
def test_forward_weight_is_bitwise_the_stored_form_while_training(encoding, seed):
    net = artifact_of(torch.zeros(SHAPE), encoding)
    attached = Attached(net)
    generator = torch.Generator().manual_seed(seed)
    trainable = attached.trainable()
    optimizer = torch.optim.Adam(trainable.values(), lr=0.1)
    assert torch.equal(net.module.get_parameter("weight").detach(), encoding.decode())
    for _ in range(3):
        x = torch.randn(4, SHAPE[1], generator=generator)
        net.module.zero_grad()
        net.module(x).square().sum().backward()
        attached.pull_()
        optimizer.step()
        attached.project_()
        stored = encoding.encode(trainable["weight"]) if not encoding.is_plain else Encoding.of(trainable["weight"])
        assert torch.equal(net.module.get_parameter("weight").detach(), stored.decode())
    weight = net.module.get_parameter("weight").detach().clone()
    attached.bake_(net)
    net.check()
    assert torch.equal(net.parameter("weight").detach(), weight)


@given(encoding=encodings(grids=False), seed=st.integers(0, 1000))
@settings(max_examples=60, deadline=None)
def test_gradient_of_masks_and_sharing_is_that_of_finite_differences(encoding, seed):
    generator = torch.Generator().manual_seed(seed)
    raw, gradient = torch.randn(SHAPE, generator=generator), torch.randn(SHAPE, generator=generator)
    found = straight_through(encoding, raw, gradient)
    for i in range(raw.numel()):
        step = torch.zeros(raw.numel())
        step[i] = 1.0
        up, down = (encoding.encode(raw + s * step.reshape(SHAPE)).decode().double() for s in (1, -1))
        slope = float(((up - down) / 2 * gradient).sum())
        assert slope == pytest.approx(float(found.reshape(-1)[i]), abs=1e-5)


@given(seed=st.integers(0, 1000), per_row=st.booleans())
@settings(max_examples=40, deadline=None)
def test_gradient_of_sharing_on_a_grid_is_that_without_the_rounding(seed, per_row):
    generator = torch.Generator().manual_seed(seed)
    mask = torch.rand(SHAPE, generator=generator) > 0.3
    indices = torch.where(mask, torch.randint(2, SHAPE, generator=generator), 0)
    tables = SHAPE[0] if per_row else 1
    scale = torch.rand(SHAPE[0], generator=generator) + 0.1
    encoding = Encoding(
        shape=SHAPE,
        values=torch.zeros(2 * tables, dtype=torch.int64),
        mask=mask,
        sharing=Sharing(indices=indices, sizes=torch.full((tables,), 2), axis=0 if per_row else None),
        grid=Grid(scale=scale, zero_point=torch.tensor([0, 2, -1]), bit_width=torch.full((3,), 16), axis=0),
    )
    raw = torch.randn(SHAPE, generator=generator)
    gradient = torch.randn(SHAPE, generator=generator)
    x = raw.double().requires_grad_()
    s, z = scale.double()[:, None], torch.tensor([0.0, 2, -1]).double()[:, None]
    total = torch.zeros((), dtype=torch.float64)
    row = torch.arange(SHAPE[0])[:, None].expand(SHAPE)
    for table in range(tables):
        for cluster in range(2):
            members = mask & (indices == cluster) & ((row == table) | torch.tensor(not per_row))
            if members.any():
                mean = (x / s + z)[members].mean()
                total = total + (gradient * (mean - z) * s)[members].sum()
    total.backward()
    torch.testing.assert_close(straight_through(encoding, raw, gradient).double(), x.grad, atol=1e-5, rtol=1e-4)


@given(seed=st.integers(0, 1000), bits=st.lists(st.sampled_from([0, 2, 3, 16]), min_size=3, max_size=3))
@settings(max_examples=60, deadline=None)
def test_gradient_of_a_table_over_slices_of_several_widths_is_that_of_what_the_narrowest_holds(seed, bits):
    generator = torch.Generator().manual_seed(seed)
    mask = torch.rand(SHAPE, generator=generator) > 0.3
    live = mask & (torch.tensor(bits) > 0)[:, None]
    indices = torch.where(live, torch.randint(2, SHAPE, generator=generator), 0)
    grid = Grid(
        scale=torch.rand(3, generator=generator) + 0.3,
        zero_point=torch.zeros(3, dtype=torch.int64),
        bit_width=torch.tensor(bits),
        axis=0,
    )
    sharing = Sharing(indices=indices, sizes=torch.tensor([2]))
    encoding = Encoding(shape=SHAPE, values=torch.zeros(2).long(), mask=mask, sharing=sharing, grid=grid)
    raw, gradient = torch.randn(SHAPE, generator=generator), torch.randn(SHAPE, generator=generator)
    x, s = raw.double().requires_grad_(), grid.scale.double()[:, None]
    total = (0 * x).sum()
    for cluster in range(2):
        members = live & (indices == cluster)
        if members.any():
            used = [b for b, row in zip(bits, members, strict=True) if row.any()]
            mean = (x / s)[members].mean()
            if -(2 ** (min(used) - 1)) - 0.5 <= mean < 2 ** (min(used) - 1) - 0.5:
                total = total + (gradient * mean * s)[members].sum()
    total.backward()
    assert not straight_through(encoding, raw, gradient)[~live].any()
    torch.testing.assert_close(straight_through(encoding, raw, gradient).double(), x.grad, atol=1e-5, rtol=1e-4)


def test_no_gradient_where_the_grid_saturates_or_has_no_bits():
    grid = Grid(scale=torch.tensor([0.5, 0.5]), zero_point=torch.tensor([0, 0]), bit_width=torch.tensor([3, 0]), axis=0)
    raw = torch.tensor([[-2.3, -2.2, 0.1, 1.7, 1.8], [-2.3, -2.2, 0.1, 1.7, 1.8]])
    encoding = Encoding.of(raw).with_grid(grid)
    got = straight_through(encoding, raw, torch.full_like(raw, 7.0))
    assert got.tolist() == [[0, 7, 7, 7, 0], [0, 0, 0, 0, 0]]  # -4..3 times 0.5, and half a step beyond


def test_no_gradient_for_clusters_beyond_the_grid():
    grid = Grid.per_tensor(1.0, 0, 2, signed=True)
    sharing = Sharing(indices=torch.tensor([[0, 0, 1, 1]]), sizes=torch.tensor([2]))
    encoding = Encoding.of(torch.zeros(1, 4)).with_sharing(sharing, torch.tensor([-1.0, 1.0])).with_grid(grid)
    raw = torch.tensor([[-1.0, -1.0, 1.0, 4.0]])
    assert straight_through(encoding, raw, torch.ones(1, 4)).tolist() == [[1, 1, 0, 0]]


def test_entries_of_a_cluster_move_together():
    sharing = Sharing(indices=torch.tensor([[0, 0, 1], [1, 1, 0]]), sizes=torch.tensor([2]))
    encoding = Encoding.of(torch.zeros(2, 3)).with_sharing(sharing, torch.tensor([-0.5, 0.5]))
    attached = Attached(net := artifact_of(torch.zeros(2, 3), encoding))
    raw = attached.trainable()["weight"]
    optimizer = torch.optim.Adam([raw], lr=0.1, weight_decay=0.01)
    for _ in range(5):
        net.module(torch.tensor([[1.0, 2.0, 3.0]])).square().sum().backward()
        attached.pull_()
        optimizer.step()
        attached.project_()
    assert raw.unique().numel() == 2
    assert torch.equal(raw.detach(), net.parameter("weight").detach())


class Tied(nn.Module):
    """An autoencoder whose decoder is the transposed encoder's parameter, and one module used twice."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.Linear(4, 4, bias=False)
        self.decoder = nn.Linear(4, 4, bias=False)
        self.decoder.weight = self.encoder.weight
        self.first = nn.Linear(4, 4)
        self.second = self.first

    def forward(self, x):
        return self.decoder(self.encoder(self.second(torch.relu(self.first(x)))))


def test_tied_parameters_and_shared_modules_stay_tied_and_collect_all_gradients():
    torch.manual_seed(0)
    net = Artifact.of(Tied(), InputSpec(shape=(4,)))
    mask = torch.rand(4, 4) > 0.3
    for name in ("encoder.weight", "first.weight"):
        net.encode_(name, net.encoding(name).with_mask(mask))
    module, x = net.module, torch.randn(5, 4)
    module(x).square().sum().backward()
    gradients = {name: module.get_parameter(name).grad for name in ("encoder.weight", "first.weight")}
    wanted = {name: g * mask for name, g in gradients.items() if g is not None}
    assert len(wanted) == 2
    attached = Attached(net)
    trainable = attached.trainable()
    assert list(trainable) == ["encoder.weight", "first.weight", "first.bias"]
    attached.pull_()
    for name, gradient in wanted.items():
        torch.testing.assert_close(trainable[name].grad, gradient, rtol=0, atol=0)
    torch.optim.SGD(trainable.values(), lr=0.1).step()
    attached.project_()
    attached.bake_(net)
    net.check()
    assert module.get_parameter("decoder.weight") is module.get_parameter("encoder.weight")
    assert module.second is module.first
    assert bool((module.get_parameter("decoder.weight")[~mask] == 0).all())


def test_parameters_without_requires_grad_are_not_attached():
    net = artifact_of(torch.zeros(SHAPE), Encoding.of(torch.ones(SHAPE)).with_mask(torch.eye(3, 6) > 0))
    net.module.requires_grad_(False)
    assert Attached(net).trainable() == {}


def test_weights_that_are_no_numbers_are_refused():
    net = artifact_of(torch.zeros(SHAPE), Encoding.of(torch.ones(SHAPE)).with_mask(torch.eye(3, 6) > 0))
    attached = Attached(net)
    with torch.no_grad():
        attached.trainable()["weight"][0, 0] = torch.nan
    with pytest.raises(DataError, match=r"training of 'weight': NaN or infinity .* lower the learning rate"):
        attached.project_()
