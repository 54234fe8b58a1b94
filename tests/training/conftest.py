"""A small real task, and a network small enough to train in a blink."""

import pytest
import torch
from torch import nn

from lilliput.core.artifact import Artifact
from lilliput.core.encoding import Encoding, Grid, Sharing
from lilliput.core.task import Task
from lilliput.data.digits import read_digits
from lilliput.data.roles import by_role


@pytest.fixture(scope="session")
def digits() -> Task:
    """360 training and 120 validation samples of real digits."""
    roles = by_role(read_digits())
    picks = {role: torch.arange(n) * (len(roles[role][1]) // n) for role, n in (("train", 360), ("validation", 120))}
    data = {role: (roles[role][0][rows].float() / 16, roles[role][1][rows]) for role, rows in picks.items()}
    return Task.classification(data["train"], data["validation"])


class Tiny(nn.Module):
    """64-16-10 with BatchNorm and dropout."""

    def __init__(self, dropout=0.0):
        super().__init__()
        self.flatten = nn.Flatten()
        self.hidden = nn.Linear(64, 16)
        self.norm = nn.BatchNorm1d(16)
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(16, 10)

    def forward(self, x):
        return self.linear(self.dropout(torch.relu(self.norm(self.hidden(self.flatten(x))))))


@pytest.fixture
def make_net(digits):
    """Makes an artifact of `Tiny`: plain, or with all slots in use (mask, sharing, grids)."""

    def make(*, encoded=True, dropout=0.0, seed=0):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            net = Artifact.of(Tiny(dropout), digits.spec)
            if not encoded:
                return net
            mask = torch.rand(16, 64) > 0.5
        weight = net.encoding("hidden.weight").with_mask(mask)
        net.encode_("hidden.weight", weight.with_grid(channel_grid(weight.decode(), bits=8)))
        centroids, indices = clusters_of(net.parameter("linear.weight").detach(), 8)
        sharing = Sharing(indices=indices, sizes=torch.tensor([8]))
        net.encode_("linear.weight", net.encoding("linear.weight").with_sharing(sharing, centroids))
        net.encode_("linear.bias", net.encoding("linear.bias").with_grid(tensor_grid(0.01, bits=8)))
        net.check()
        return net

    return make


def tensor_grid(scale, bits):
    return Grid.per_tensor(scale, 0, bits, signed=True)


def channel_grid(weight, bits):
    scale = (weight.flatten(1).abs().amax(1).clamp(min=1e-3) / (2 ** (bits - 1) - 1)).float()
    whole = torch.zeros(len(scale), dtype=torch.int64)
    return Grid(scale=scale, zero_point=whole, bit_width=whole + bits, axis=0)


def clusters_of(values, k):
    """k centroids at quantiles, and the nearest of them for each value."""
    centroids = values.flatten().quantile((torch.arange(k) + 0.5) / k)
    return centroids, (values[..., None] - centroids).abs().argmin(-1)


def masked(shape, generator):
    return Encoding.of(torch.randn(shape, generator=generator)).with_mask(torch.rand(shape, generator=generator) > 0.4)
