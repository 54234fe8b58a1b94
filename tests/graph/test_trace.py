"""Traces name, run and describe what the model does."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lilliput.core.errors import UnsupportedError
from lilliput.graph.trace import Graph, run, trace
from lilliput.testing import TINY, tiny_model


def traced(model: nn.Module, shape: tuple[int, ...] = (1, 4, 4)) -> Graph:
    graph = trace(model, torch.randn(2, *shape))
    x = torch.randn(5, *shape)
    with torch.no_grad():
        assert torch.equal(run(graph, model.state_dict(), x), model.eval()(x))
    return graph


@pytest.mark.parametrize("name", TINY)
def test_running_the_trace_is_running_the_model(name: str) -> None:
    traced(tiny_model(name))


def test_names_follow_modules_and_functional_code() -> None:
    names = [n.name for n in traced(tiny_model("residual")).nodes]
    assert {"first", "norm1", "relu", "slice", "pad", "add", "relu_1", "mean", "head"} <= set(names)
    assert [n for n in (n.name for n in traced(tiny_model("shared")).nodes) if n.startswith("middle")] == [
        "middle",
        "middle#1",
    ]


def test_tied_weights_have_one_name() -> None:
    graph = traced(tiny_model("shared"))
    assert [n.name for n in graph.users_of("middle.weight")] == ["middle", "middle#1", "tied"]


def test_training_mode_and_weights_are_left_as_they_were() -> None:
    model = tiny_model("batch_norm").train()
    before = {n: t.clone() for n, t in model.state_dict().items()}
    trace(model, torch.randn(2, 1, 4, 4))
    assert model.training
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())


class ReusesWritten(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        x = x * 2
        y = F.relu(x, inplace=True)
        return x + y  # x is the relu'd value here


class WritesFlattened(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        y = (x * 2).flatten(1)
        y.relu_()
        return y + 1


class WritesIntoViewThatIsRead(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        x = x * 2
        y = x.flatten(1)
        y.relu_()
        return y + x.flatten(1)


def test_values_written_in_place_are_the_new_ones_everywhere() -> None:
    traced(ReusesWritten())
    traced(WritesFlattened())


def test_writing_into_a_view_whose_base_is_read_later_is_refused() -> None:
    with pytest.raises(UnsupportedError, match=r"writes into .*; use the form that does not write in place"):
        trace(WritesIntoViewThatIsRead(), torch.randn(2, 1, 4, 4))


class Constants(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.shift: Tensor
        self.register_buffer("shift", torch.full((4,), 0.5), persistent=False)
        self.scale = nn.Parameter(torch.full((4,), 2.0))

    def forward(self, x: Tensor) -> Tensor:
        return (x + self.shift) * self.scale + torch.tensor(1.0)


def test_constants_that_are_not_in_the_state_dict_run() -> None:
    traced(Constants())


class ComputedWeight(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.randn(3, 16))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x.flatten(1), self.w * 2)


def test_a_computed_weight_is_not_taken_for_a_parameter() -> None:
    assert [n.op for n in traced(ComputedWeight()).nodes][-1] == "other"


class Tokens(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(-1, 4)


def test_shapes_are_those_of_a_batch_of_one() -> None:
    graph = trace(Tokens(), torch.randn(2, 7, 4))
    assert graph.nodes[-1].shape == (7, 4)


class DataDependent(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * 2 if bool(x.sum() > 0) else x


def test_control_flow_on_data_is_an_error_that_says_so() -> None:
    with pytest.raises(UnsupportedError, match=r"trace of DataDependent: torch.export stopped with: .*data-dependent"):
        trace(DataDependent(), torch.randn(2, 1, 4, 4))
