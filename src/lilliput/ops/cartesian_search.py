"""The search for a circuit that makes wanted integers from given ones, with little error and then with little energy.

(1 + lambda) evolution as in Vasicek and Bidlo (2011): first the error counts alone, until it is at most a threshold; then
energy, error, delay and number of gates, in this order. Single active mutation: Goldman and Punch (2013), "Reducing
wasted evaluations in Cartesian genetic programming". A search is a function of its state: `advance` gives the next one,
the same in one stretch or in many, in any process.
"""

from dataclasses import dataclass, field, replace
from math import inf, log1p
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from lilliput.ops.cartesian import Circuit, Shape
from lilliput.ops.cartesian_functions import COUNT, DRAWN, READS, Ints, limits

Bools = npt.NDArray[np.bool_]
NEVER = 1 << 62
MUTATIONS = ("rate", "probability", "single_active")


@dataclass(frozen=True, kw_only=True)
class Goal:
    """What circuits are for: `inputs` [rows of data, inputs] are given, `targets` [rows of data, outputs] wanted.

    The error is the sum of weights x squared (or absolute) differences, exactly: `weights` [outputs] are whole numbers.
    `energy` and `delay` are costs of each function, whole as well. See `whole` for others.
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
        if weights.shape != (self.targets.shape[1],) or (weights < 0).any():
            raise ValueError("weights must be numbers from 0 on, one for each output")
        worst = sum(int(w) for w in weights) * len(self.targets) << (
            2 * self.bits if self.error == "squared" else self.bits
        )
        if worst > NEVER:
            raise ValueError("weights are so large that the error could overflow; scale them with `whole`")
        for name, costs in (("energy", self.energy), ("delay", self.delay)):
            if costs.shape != (COUNT,) or (costs < 0).any() or int(costs.max()) >= 1 << 53:
                raise ValueError(f"{name} must be {COUNT} whole numbers from 0 on, below 2^53")

    @property
    def output_weights(self) -> Ints:
        return np.ones(self.targets.shape[1], dtype=np.int64) if self.weights is None else self.weights


def whole(values: npt.ArrayLike, most: int) -> tuple[Ints, float]:
    """Numbers from 0 on times the largest power of two that keeps them at most `most`, rounded; and that power."""
    x = np.asarray(values, dtype=np.float64)
    if (x < 0).any() or not np.isfinite(x).all():
        raise ValueError("costs and weights must be finite numbers from 0 on")
    largest = float(x.max(initial=0.0))
    scale = 2.0 ** np.floor(np.log2(most / largest)) if largest > 0 else 1.0
    return np.rint(x * scale).astype(np.int64), float(scale)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """`rate`: a number of genes from 0 to floor(strength x genes) changes; `probability`: each with chance strength.

    `single_active` takes no strength: genes change until one has that is active. `offspring` is lambda. Among equals the
    child replaces its parent: always, or with drift=False in the first stage alone, as published. `patience`: after so
    many generations without a better one a stage ends; if the first did not get there, its threshold becomes the error
    that it reached. With stages=1 the search ends where the second would begin.
    """

    mutation: Literal["rate", "probability", "single_active"] = "single_active"
    strength: float = 0.01
    offspring: int = 4
    threshold: int = 0
    patience: int | None = None
    drift: bool = True
    stages: Literal[1, 2] = 2

    def __post_init__(self) -> None:
        if self.mutation not in MUTATIONS:
            raise ValueError(f"mutations are {', '.join(MUTATIONS)}, not {self.mutation}")
        if not 0 < self.strength < 1 or self.offspring < 1 or self.threshold < 0 or self.stages not in (1, 2):
            raise ValueError("strength is in (0, 1), offspring 1 at least, threshold 0 at least, stages 1 or 2")
        if self.patience is not None and self.patience < 1:
            raise ValueError(f"patience is at least 1, not {self.patience}")


@dataclass(frozen=True, kw_only=True)
class State:
    """All that a search knows: enough to go on. `locked`: genes that stay, of nodes [nodes, 3] and of outputs."""

    circuit: Circuit
    locked: tuple[Bools, Bools]
    random: npt.NDArray[np.uint64]
    generation: int = 0
    stalled: int = 0
    stage: int = 0
    threshold: int = 0
    tried: int = 0
    neutral: int = 0
    error: int
    energy: int
    delay: int
    gates: int

    @property
    def ready(self) -> bool:
        """Patience is at an end, or there is no other stage."""
        return self.stage == 2


def _pins(circuit: Circuit) -> npt.NDArray[np.int32]:
    """The records of `ops.cartesian_kernels`."""
    shape = circuit.shape
    pins = np.zeros((shape.inputs + shape.nodes + shape.outputs + 1, 8), dtype=np.int32)
    pins[shape.inputs : shape.inputs + shape.nodes, :3] = circuit.nodes
    pins[shape.inputs + shape.nodes : -1, 0] = circuit.outputs
    pins[shape.inputs + shape.nodes :, 2] = COUNT
    return pins


def _free(shape: Shape, locked: tuple[Bools, Bools]) -> npt.NDArray[np.int32]:
    """Genes that are not locked: number, first value, count of values."""
    first, count = shape.sources()
    gene = 8 * np.arange(shape.inputs, shape.inputs + shape.nodes + shape.outputs)[:, None] + np.arange(3)
    column = np.minimum(np.arange(shape.nodes + shape.outputs) // shape.rows, shape.columns)
    column[shape.nodes :] = shape.columns
    low = np.stack([first[column], first[column], np.zeros_like(column)], axis=1)
    span = np.stack([count[column], count[column], np.full_like(column, len(DRAWN))], axis=1)
    frozen = np.ones(gene.shape, dtype=bool)
    frozen[: shape.nodes], frozen[shape.nodes :, 0] = locked
    return np.stack([x[~frozen] for x in (gene, low, span)], axis=1).astype(np.int32)


def _arrays(goal: Goal, circuit: Circuit) -> tuple[Any, ...]:
    """What both kernels take: values, inputs, costs, shift, targets, weights, absolute."""
    shape = circuit.shape
    if (shape.bits, shape.inputs, shape.outputs) != (goal.bits, goal.inputs.shape[1], goal.targets.shape[1]):
        raise ValueError("the circuit has other bits, inputs or outputs than its goal")
    values = np.zeros((shape.inputs + shape.nodes + shape.outputs + 1, len(goal.inputs)), dtype=np.int16)
    values[: shape.inputs] = goal.inputs.T
    costs = np.zeros((COUNT + 1, 3), dtype=np.int64)
    costs[:-1] = np.stack([goal.energy, goal.delay, np.asarray(READS)], axis=1)
    costs[-1, 2] = 1
    targets = np.ascontiguousarray(goal.targets.T, dtype=np.int32)
    return values, shape.inputs, costs, 64 - goal.bits, targets, goal.output_weights, goal.error == "absolute"


def measured(goal: Goal, circuit: Circuit) -> dict[str, int]:
    """Error, energy, delay and gates of a circuit: active nodes alone count, identities are no gates."""
    from lilliput.ops.cartesian_search_kernels import measure_

    values, inputs, costs, shift, targets, weights, absolute = _arrays(goal, circuit)
    totals = np.zeros(4, dtype=np.int64)
    measure_(_pins(circuit), values, inputs, costs, shift, targets, weights, absolute, totals)
    return _named(totals)


def _named(totals: Ints) -> dict[str, int]:
    error, energy, gates, delay = (int(x) for x in totals)
    return {"error": error, "energy": energy, "delay": delay, "gates": gates}


def start(
    goal: Goal, circuit: Circuit, settings: Settings, seed: int, locked: tuple[Bools, Bools] | None = None
) -> State:
    """A search from this circuit. `locked` as in `State`; without it all genes may change."""
    from lilliput.ops.cartesian_random_kernels import seed_

    shape = circuit.shape
    random = np.zeros(4, dtype=np.uint64)
    seed_(random, np.uint64(seed))
    if locked is None:
        locked = np.zeros((shape.nodes, 3), dtype=bool), np.zeros(shape.outputs, dtype=bool)
    if locked[0].shape != (shape.nodes, 3) or locked[1].shape != (shape.outputs,) or all(x.all() for x in locked):
        raise ValueError("locked must be masks of the genes of nodes and outputs, and leave some of them free")
    return State(circuit=circuit, locked=locked, random=random, threshold=settings.threshold, **measured(goal, circuit))


def advance(goal: Goal, settings: Settings, state: State, generations: int) -> State:
    """The state so many generations later, or where the search is ready."""
    from lilliput.ops import cartesian_search_kernels as kernels

    circuit, shape = state.circuit, state.circuit.shape
    pins, free = _pins(circuit), _free(shape, state.locked)
    most = int(settings.strength * len(free)) if settings.mutation == "rate" else 16 * len(free)
    patience = NEVER if settings.patience is None else settings.patience
    mutation = MUTATIONS.index(settings.mutation)
    how = np.array([mutation, most, settings.offspring, settings.drift, settings.stages, patience], dtype=np.int64)
    scale = 1.0 / log1p(-settings.strength)
    kept = [state.generation, state.stalled, state.stage, state.threshold, state.tried, state.neutral]
    counters, totals, random = np.array(kept, dtype=np.int64), np.zeros(4, dtype=np.int64), state.random.copy()
    values, inputs, *rest = _arrays(goal, circuit)
    last = min(state.generation + generations, NEVER)
    kernels.evolve_(pins, values, inputs, free, *rest, how, scale, random, counters, totals, last)
    generation, stalled, stage, threshold, tried, neutral = (int(x) for x in counters)
    end = shape.inputs + shape.nodes
    evolved = replace(circuit, nodes=pins[shape.inputs : end, :3].copy(), outputs=pins[end:-1, 0].copy())
    return State(
        circuit=evolved, locked=state.locked, random=random, generation=generation, stalled=stalled, stage=stage,
        threshold=threshold, tried=tried, neutral=neutral, **_named(totals),
    )  # fmt: skip
