"""Circuits that make each distinct wanted integer once: what a weight needs is then looked up by its value.

The published "multiplexed" setting. The last column of the grid is made of identities, one for each distinct value that
is wanted, in ascending order, and each output reads its own. Those whose value is given read that input and are locked;
of the others only the source may change.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from lilliput.ops.cartesian import Circuit, Shape, random_circuit
from lilliput.ops.cartesian_functions import COUNT, IDENTITY, Ints
from lilliput.ops.cartesian_goal import MOST_ERROR, Goal, whole
from lilliput.ops.cartesian_state import Bools


@dataclass(frozen=True, kw_only=True)
class Multiplexed:
    """`values`: distinct wanted integers, ascending, as many as there are outputs; `given`: distinct inputs, ascending.

    `goal` weighs the error of a value by how many weights want it, or by the sum of their own weights.
    """

    circuit: Circuit
    locked: tuple[Bools, Bools]
    goal: Goal
    given: Ints
    values: Ints

    def made(self, circuit: Circuit, wanted: npt.ArrayLike) -> Ints:
        """The integers that a circuit makes in place of `wanted`, all of them among `values`."""
        wanted = np.asarray(wanted, dtype=np.int64)
        place = np.searchsorted(self.values, wanted)
        if (self.values[np.minimum(place, len(self.values) - 1)] != wanted).any():
            raise ValueError("some of these values are not among those that the circuit was made for")
        return circuit.run(self.goal.inputs)[0][place]


def multiplexed(
    given: npt.ArrayLike,
    wanted: npt.ArrayLike,
    *,
    rows: int,
    columns: int,
    seed: int,
    levels_back: int | None = None,
    bits: int = 8,
    weights: npt.ArrayLike | None = None,
    costs: tuple[Ints, Ints] | None = None,
) -> Multiplexed:
    """A random circuit and its goal, for given and wanted weights of any shape, duplicates included.

    `weights` of the shape of `wanted`: how much the error of each matters, from 0 on; without them each counts once.
    Those that are not whole are scaled, see `whole`. `costs`: energy and delay of each function. Without `levels_back`
    nodes read everything before them; where the last column does not reach the inputs, all its sources may change.
    """
    pool, values = np.unique(np.asarray(given, dtype=np.int64)), np.asarray(wanted, dtype=np.int64).reshape(-1)
    values, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    if len(pool) == 0 or not 0 < len(values) <= rows:
        raise ValueError(f"{len(pool)} given and {len(values)} wanted values; give one at least, and want 1 to {rows}")
    if weights is not None:
        sums = np.bincount(place, weights=np.asarray(weights, dtype=np.float64).reshape(-1), minlength=len(values))
        most = MOST_ERROR >> 2 * bits  # of all weights together
        exact = (sums == np.floor(sums)).all() and sums.sum() <= most
        counts = sums.astype(np.int64) if exact else whole(sums, most // len(values))[0]
    back = columns if levels_back is None else levels_back
    shape = Shape(inputs=len(pool), outputs=len(values), rows=rows, columns=columns, levels_back=back, bits=bits)
    circuit = random_circuit(shape, np.random.default_rng(seed))
    last = shape.nodes - rows
    ports = last + np.arange(len(values))
    free, nodes = np.zeros((shape.nodes, 3), dtype=bool), circuit.nodes.copy()
    nodes[last:, :2], nodes[last:, 2] = shape.sources()[0][columns - 1], IDENTITY
    free[:last] = True
    found = np.minimum(np.searchsorted(pool, values), len(pool) - 1)
    here = (pool[found] == values) & (back >= columns)
    nodes[ports[here], 0] = found[here]
    free[ports[~here], 0] = True
    nodes[ports[~here], 0] = circuit.nodes[ports[~here], 0]
    nothing = np.zeros(COUNT, dtype=np.int64)
    energy, delay = (nothing, nothing) if costs is None else costs
    return Multiplexed(
        circuit=Circuit(shape=shape, nodes=nodes, outputs=(len(pool) + ports).astype(np.int32)),
        locked=(~free, np.ones(len(values), dtype=bool)),
        goal=Goal(
            inputs=pool[None],
            targets=values[None],
            bits=bits,
            weights=counts.astype(np.int64),
            energy=energy,
            delay=delay,
        ),
        given=pool,
        values=values,
    )
