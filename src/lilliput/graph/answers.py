"""What the outputs of a program mean: classes, and the score of an anomaly. The generated C says the same.

Both decode to float32, and sum in float64, one sample after the other: their decisions agree, not only their numbers.
"""

import math

import numpy as np
import numpy.typing as npt
import torch

from lilliput.core.errors import DataError, ExportError
from lilliput.core.program import Ints, Program
from lilliput.core.task import Task
from lilliput.graph.interpreter import decode, quantize_input, run

NORMAL_SHARE = 0.95
BATCH = 64

Floats = npt.NDArray[np.float32]


def classes(program: Program, outputs: Ints) -> Ints:
    """The class with the largest output, of equal ones the first: [n], or [n, *places] of [n, classes, *places].

    A network that ends in argmax gives its classes itself.
    """
    if program.operations and program.operations[-1].kind == "argmax":
        return outputs
    return decode(program.values[program.outputs[0]], outputs).argmax(axis=1)


def anomaly_scores(program: Program, codes: Ints, outputs: Ints) -> Floats:
    """[n]: the mean squared error with which the network rebuilds its input.

    As `Task.anomaly` scores it, but against the input as the network sees it: on its grid, saturated.
    """
    x, y = program.values[program.input], program.values[program.outputs[0]]
    if math.prod(x.shape) != math.prod(y.shape) or program.tail:
        found = f"{math.prod(x.shape)} inputs and {math.prod(y.shape)} outputs"
        raise ExportError("anomaly scores", found, "give a network that rebuilds its input")
    n = len(codes)
    error = decode(y, outputs).reshape(n, -1).astype(np.float64) - decode(x, codes).reshape(n, -1)
    total = np.cumsum(error * error, axis=1)[:, -1]  # not `sum`: its order is another
    return (total / error.shape[1]).astype(np.float32)


def anomaly_threshold(program: Program, task: Task) -> float:
    """The least score that at least 95% of the normal validation samples do not exceed; anomalies choose nothing."""
    found: list[Floats] = []
    for x, labels in task.data("validation").batches(BATCH):
        normal = x[torch.as_tensor(labels).reshape(-1) <= 0]
        if len(normal):
            codes = quantize_input(program, normal.numpy())
            found.append(anomaly_scores(program, codes, run(program, codes)[0]))
    if not found:
        raise DataError("anomaly threshold", "no normal samples in validation", "give --threshold")
    scores = np.sort(np.concatenate(found))
    return float(scores[math.ceil(NORMAL_SHARE * len(scores)) - 1])
