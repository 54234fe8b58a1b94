import pytest
import torch
from torch import nn

from lilliput.core.artifact import Artifact, InputSpec
from lilliput.graph.trace import trace
from lilliput.measure.memory import plan_memory
from lilliput.measure.peak import peak_tensor_bytes
from lilliput.nn.models.resnet import CifarResNet


def test_an_mlp_holds_its_input_and_two_neighbours():
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
    found = peak_tensor_bytes(model, torch.zeros(1, 8))
    assert found.value == 4 * (8 + 16 + 16)  # the caller keeps the input; relu reads 16 and writes 16
    assert (found.unit, found.origin) == ("B", "measured")
    assert "batch 1" in found.note


def test_in_place_functions_and_views_take_nothing():
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(inplace=True), nn.Unflatten(1, (4, 4)), nn.Flatten())
    assert peak_tensor_bytes(model, torch.zeros(1, 8)).value == 4 * (8 + 16)


class Forgets(nn.Module):
    """Frees a large value before it makes another."""

    def forward(self, x):
        big = x.repeat(1, 100)
        small = big.sum()
        del big
        return x.repeat(1, 30) + small


def test_freed_tensors_no_longer_count():
    found = peak_tensor_bytes(Forgets(), torch.zeros(1, 10))
    assert found.value == 4 * (10 + 1000 + 1)  # at the sum; later 10 + 300 + 1 + 300


def test_a_batch_takes_its_multiple():
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
    assert peak_tensor_bytes(model, torch.zeros(5, 8)).value == 5 * 4 * (8 + 16 + 16)


def test_parameters_do_not_count_even_when_they_are_the_output():
    class Constant(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.zeros(1000))

        def forward(self, x):
            return self.w.view(10, 100)

    assert peak_tensor_bytes(Constant(), torch.zeros(1, 2)).value == 8


def test_the_plan_of_the_same_network_needs_no_more_than_eager_torch():
    torch.manual_seed(0)
    artifact = Artifact.of(CifarResNet(depth=8), InputSpec(shape=(3, 32, 32)))
    x = artifact.input.example()
    plan = plan_memory(trace(artifact.module, x), artifact)
    measured = peak_tensor_bytes(artifact.module, x).value
    assert plan.lower_bound_bytes <= plan.ram_bytes <= measured


def test_the_module_keeps_its_modes_even_when_forward_fails():
    model = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16))
    model[1].eval()
    peak_tensor_bytes(model, torch.zeros(1, 8))
    with pytest.raises(RuntimeError):
        peak_tensor_bytes(model, torch.zeros(1, 9))
    assert [m.training for m in model.modules()] == [True, True, False]
