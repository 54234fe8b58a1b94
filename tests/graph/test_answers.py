"""Classes and scores of programs: ties, places, and the sum in the order in which C adds."""

import numpy as np
import pytest
import torch

from lilliput.core.errors import DataError, ExportError
from lilliput.core.program import Program, Value
from lilliput.core.task import Task
from lilliput.graph.answers import anomaly_scores, anomaly_threshold, classes


def program_of(y, x=None, tail=""):
    x = x or Value(name="x", shape=(3,), low=0, high=255, scale=(0.5,), zero_point=2)
    return Program(values={"x": x, "y": y}, operations=(), input="x", outputs=("y",), tensors={}, tail=tail)


def test_of_equal_outputs_the_first_counts_and_scales_do_too():
    y = Value(name="y", shape=(3,), low=-100, high=100, scale=(1.0, 2.0, 0.5))
    q = np.array([[2, 1, 4], [-2, -1, -4], [0, 0, 1], [5, 3, 20]])
    assert classes(program_of(y), q).tolist() == [0, 0, 2, 2]


def test_outputs_that_float32_cannot_tell_apart_are_equal():
    y = Value(name="y", shape=(3,), low=0, high=2**31 - 1, scale=(1.0,))
    q = np.array([[2**30, 2**30 + 1, 2**30 + 2], [2**20, 2**20 + 1, 2**20]])
    assert classes(program_of(y), q).tolist() == [0, 1]


def test_scores_are_mean_squared_errors_of_what_codes_are_worth():
    y = Value(name="y", shape=(3,), low=-100, high=100, scale=(1.0, 2.0, 0.5))
    codes, q = np.array([[2, 4, 6], [0, 0, 0]]), np.array([[0, 0, 0], [-1, 0, 4]])
    assert anomaly_scores(program_of(y), codes, q).tolist() == [np.float32(5 / 3), np.float32((0 + 1 + 9) / 3)]


def test_sums_run_from_the_first_output_to_the_last():
    """4096 x 4096 + 1 lies between two float32; what is too small to move it one by one would, together."""
    n = 64
    y = Value(name="y", shape=(n,), low=0, high=2**31 - 1, scale=(2.0**-15,))
    x = Value(name="x", shape=(n,), low=0, high=255, scale=(1.0,))
    q = np.array([[2**27, 2**15, *[1] * (n - 2)]])
    assert anomaly_scores(program_of(y, x), np.zeros_like(q), q)[0] * n == 2**24


@pytest.mark.parametrize(("shape", "tail"), [((4,), ""), ((3,), "softmax")])
def test_a_network_that_does_not_rebuild_its_input_has_no_score(shape, tail):
    y = Value(name="y", shape=shape, low=-100, high=100, scale=(1.0,))
    with pytest.raises(ExportError, match=r"anomaly scores: 3 inputs and . outputs"):
        anomaly_scores(program_of(y, tail=tail), np.zeros((1, 3), np.int64), np.zeros((1, *shape), np.int64))


def test_without_normal_samples_there_is_no_threshold():
    y = Value(name="y", shape=(3,), low=-100, high=100, scale=(1.0,))
    task = Task.anomaly(validation=(torch.zeros(5, 3), torch.ones(5)))
    with pytest.raises(DataError, match="no normal samples in validation; give --threshold"):
        anomaly_threshold(program_of(y), task)
