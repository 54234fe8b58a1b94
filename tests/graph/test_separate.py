"""A BatchNorm that no layer takes in, as a layer of its own."""

import math

import pytest
import torch
from torch import nn

from lilliput.core.artifact import Artifact
from lilliput.core.container import dumps, loads
from lilliput.core.edits import Separate
from lilliput.core.errors import ArtifactError
from lilliput.core.method import Context, apply_checked_
from lilliput.methods.normalization.batchnorm import FoldBatchNorm
from lowered import calibrated_on
from zoo_networks import randomize_


@pytest.mark.parametrize(("norm", "shape"), [(nn.BatchNorm1d, (3, 5)), (nn.BatchNorm2d, (3, 5, 4))])
def test_what_nothing_takes_in_becomes_a_layer_that_computes_the_same(norm, shape):
    """A norm between a sigmoid and a sum: no layer is beside it."""

    class Between(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = norm(3)
            self.head = nn.Linear(math.prod(shape), 2)

        def forward(self, x):
            x = torch.sigmoid(x)
            return self.head((x + self.norm(x)).flatten(1))

    torch.manual_seed(0)
    model = randomize_(Between()).eval()
    task = calibrated_on(torch.randn(40, *shape))
    net = Artifact.of(model, task.spec)
    kept = apply_checked_(FoldBatchNorm(), net, Context.of(task, model))
    assert "norm" in kept.skipped
    result = apply_checked_(FoldBatchNorm(rest="layer"), net, Context.of(task, model))
    assert "one tap" in result.changed["norm"]
    x = torch.randn(7, *shape)
    with torch.no_grad():
        torch.testing.assert_close(net.module(x), model(x))
        again = loads(dumps(net)).replay(Between()).module.eval()
        assert torch.equal(again(x), net.module(x))


def test_a_separate_layer_needs_a_norm():
    with pytest.raises(ArtifactError, match="it is Linear"):
        Separate(path="0").replay_(nn.Sequential(nn.Linear(2, 2)))
