"""What a Cartesian circuit is for: integers that are given and wanted, what errors weigh, what functions cost."""

from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import numpy.typing as npt

from lilliput.ops.cartesian_functions import COUNT, Ints, limits

MOST_ERROR = 1 << 62


@dataclass(frozen=True, kw_only=True)
class Goal:
    """What circuits are for: `inputs` [rows of data, inputs] are given, `targets` [rows of data, outputs] wanted.

    The error is the sum of weights x squared (or absolute) differences, exactly: `weights`, [outputs] or [rows of data,
    outputs], are whole numbers. `energy` and `delay` are costs of each function, whole as well. See `whole` for others.
    """

    inputs: Ints
    targets: Ints
    bits: int = 8
    weights: Ints | None = None
    error: Literal["squared", "absolute"] = "squared"
    energy: Ints = field(default_factory=lambda: np.zeros(COUNT, dtype=np.int64))
    delay: Ints = field(default_factory=lambda: np.zeros(COUNT, dtype=np.int64))

    def __post_init__(self) -> None:
        low, high = limits(self.bits)
        for name, values in (("inputs", self.inputs), ("targets", self.targets)):
            if values.ndim != 2 or len(values) == 0 or values.min(initial=0) < low or values.max(initial=0) > high:
                raise ValueError(f"{name} must be rows of numbers of {self.bits} bits")
        if len(self.inputs) != len(self.targets):
            raise ValueError(f"{len(self.inputs)} rows of inputs, but {len(self.targets)} of targets")
        if self.error not in ("squared", "absolute"):
            raise ValueError(f"errors are squared or absolute, not {self.error}")
        weights = self.output_weights
        if weights.shape not in (self.targets.shape[1:], self.targets.shape) or (weights < 0).any():
            raise ValueError("weights must be numbers from 0 on, one for each output")
        largest = (1 << self.bits) ** (2 if self.error == "squared" else 1)
        worst = sum(self.row_weights.reshape(-1).tolist()) * largest
        if worst > MOST_ERROR:
            raise ValueError("weights are so large that the error could overflow; scale them with `whole`")
        for name, costs in (("energy", self.energy), ("delay", self.delay)):
            if costs.shape != (COUNT,) or (costs < 0).any() or costs.dtype != np.int64:
                raise ValueError(f"{name} must be {COUNT} whole numbers (int64) from 0 on")

    @property
    def output_weights(self) -> Ints:
        return np.ones(self.targets.shape[1], dtype=np.int64) if self.weights is None else self.weights

    @property
    def row_weights(self) -> Ints:
        """[rows of data, outputs]"""
        return np.broadcast_to(self.output_weights, self.targets.shape)


def whole(values: npt.ArrayLike, most: int) -> tuple[Ints, float]:
    """Numbers from 0 on times the largest power of two that keeps them at most `most`, rounded; and that power."""
    x = np.asarray(values, dtype=np.float64)
    if (x < 0).any() or not np.isfinite(x).all():
        raise ValueError("costs and weights must be finite numbers from 0 on")
    largest = float(x.max(initial=0.0))
    scale = 2.0 ** np.floor(np.log2(most / largest)) if largest > 0 else 1.0
    return np.rint(x * scale).astype(np.int64), float(scale)
