"""The search for a circuit that makes wanted integers from given ones, with little error and then with little energy.

(1 + lambda) evolution as in Vasicek and Bidlo (2011): first the error counts alone, until it is at most a threshold;
then energy, error, delay and number of gates, in this order. Single active mutation: Goldman and Punch (2013),
"Reducing wasted evaluations in Cartesian genetic programming". A search is a function of its state: `advance` gives the
next one, the same in one stretch or in many, in any process.
"""

from dataclasses import dataclass, replace
from math import log1p
from typing import Literal

import numpy as np
import numpy.typing as npt

from lilliput.ops.cartesian import Circuit, Genes, Shape
from lilliput.ops.cartesian_functions import COUNT, DRAWN, READS, Ints
from lilliput.ops.cartesian_goal import Goal
from lilliput.ops.cartesian_state import Bools, State

Words = npt.NDArray[np.uint64]
NEVER = 1 << 62
MUTATIONS = ("rate", "probability", "single_active")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """`rate`: a number of genes from 0 to floor(strength x genes) changes; `probability`: each with chance strength.

    `single_active` takes no strength: genes change until one has that is active. `offspring` is lambda. Among equals
    the child replaces its parent: always, or with drift=False in the first stage alone, as published. `patience`: after
    so many generations without a better one a stage ends; if the first did not get there, its threshold becomes the
    error that it reached. With stages=1 the search ends where the second would begin.
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


def _evolve(
    goal: Goal, settings: Settings, circuit: Circuit, free: Genes, random: Words, counters: Ints, generations: int
) -> tuple[Circuit, dict[str, int]]:
    """The circuit that the kernel makes of this one, and its measures; it changes `random` and `counters`."""
    from lilliput.ops.cartesian_search_kernels import evolve_

    shape = circuit.shape
    if (shape.bits, shape.inputs, shape.outputs) != (goal.bits, goal.inputs.shape[1], goal.targets.shape[1]):
        raise ValueError("the circuit has other bits, inputs or outputs than its goal")
    if max(int(goal.energy.max()) * shape.nodes, int(goal.delay.max()) * shape.columns) > NEVER:
        raise ValueError("costs are so large that their sum could overflow; scale them with `whole`")
    pins = _pins(circuit)
    values = np.zeros((len(pins), len(goal.inputs)), dtype=np.int16)
    values[: shape.inputs] = goal.inputs.T
    costs = np.zeros((COUNT + 1, 3), dtype=np.int64)
    costs[:-1] = np.stack([goal.energy, goal.delay, np.asarray(READS)], axis=1)
    costs[-1, 2] = 1
    targets = np.ascontiguousarray(goal.targets.T, dtype=np.int32)
    weights = np.ascontiguousarray(goal.row_weights.T, dtype=np.int64)
    most = int(settings.strength * len(free)) if settings.mutation == "rate" else 16 * len(free)
    patience = NEVER if settings.patience is None else settings.patience
    mutation = MUTATIONS.index(settings.mutation)
    how = np.array([mutation, most, settings.offspring, settings.drift, settings.stages, patience], dtype=np.int64)
    scale, last = 1.0 / log1p(-settings.strength), min(int(counters[0]) + generations, NEVER)
    totals, absolute = np.zeros(4, dtype=np.int64), goal.error == "absolute"
    evolve_(
        pins, values, shape.inputs, free, costs, 64 - goal.bits, targets, weights, absolute, how, scale, random,
        counters, totals, last,
    )  # fmt: skip
    end = shape.inputs + shape.nodes
    evolved = replace(circuit, nodes=pins[shape.inputs : end, :3].copy(), outputs=pins[end:-1, 0].copy())
    error, energy, gates, delay = totals.tolist()
    return evolved, {"error": error, "energy": energy, "delay": delay, "gates": gates}


def measured(goal: Goal, circuit: Circuit) -> dict[str, int]:
    """Error, energy, delay and gates of a circuit: active nodes alone count, identities are no gates."""
    counters, random = np.zeros(6, dtype=np.int64), np.zeros(4, dtype=np.uint64)
    return _evolve(goal, Settings(), circuit, np.zeros((0, 3), dtype=np.int32), random, counters, 0)[1]


def start(
    goal: Goal, circuit: Circuit, settings: Settings, seed: int, locked: tuple[Bools, Bools] | None = None
) -> State:
    """A search from this circuit. `locked` as in `State`; without it all genes may change. Seeds: 0 to 2^64 - 1."""
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
    kept = [state.generation, state.stalled, state.stage, state.threshold, state.tried, state.neutral]
    counters, random = np.array(kept, dtype=np.int64), state.random.copy()
    free = _free(state.circuit.shape, state.locked)
    circuit, measures = _evolve(goal, settings, state.circuit, free, random, counters, generations)
    generation, stalled, stage, threshold, tried, neutral = counters.tolist()
    return State(
        circuit=circuit, locked=state.locked, random=random, generation=generation, stalled=stalled, stage=stage,
        threshold=threshold, tried=tried, neutral=neutral, **measures,
    )  # fmt: skip
