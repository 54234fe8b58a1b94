"""What a circuit is to make of what: integer weights of any layers, their values with counts, and what errors cost."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lilliput.core.artifact import Artifact
from lilliput.core.encoding import Encoding
from lilliput.core.errors import UsageError
from lilliput.measure.energy import PUBLISHED, GateTable
from lilliput.methods.weight_generation.selection import Chosen, Place, choose
from lilliput.ops.cartesian_functions import limits

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, eq=False)
class Problem:
    """`given` and `wanted` are ascending and distinct; a circuit makes each wanted value once.

    `counts` and `importance` belong to the values of `wanted`: how many weights have it, and what a squared error of 1
    costs, added up over these. `given_count` weights stay stored, and `own_inputs` values that none of these has;
    `places` are where the wanted values come from.
    """

    bits: int
    given: Ints
    wanted: Ints
    counts: Ints
    importance: Floats
    gates: GateTable
    given_count: int = 0
    own_inputs: int = 0
    places: tuple[Place, ...] = ()
    low: int | None = None
    """The least integer that some wanted weight can hold, where it is not that of all `bits`: narrow grids."""

    @staticmethod
    def of_values(
        given: Sequence[int], wanted: Sequence[int], *, bits: int = 8, gates: GateTable = PUBLISHED
    ) -> "Problem":
        """From plain lists: values that come twice count twice."""
        _check_range(np.asarray([*given, *wanted], dtype=np.int64), bits, "values")
        values, counts = np.unique(np.asarray(wanted, dtype=np.int64), return_counts=True)
        return Problem(
            bits=bits,
            given=np.unique(np.asarray(given, dtype=np.int64)),
            wanted=values,
            counts=counts.astype(np.int64),
            importance=counts.astype(np.float64),
            gates=gates.at(bits),
            given_count=len(given),
        )

    @property
    def wanted_count(self) -> int:
        return int(self.counts.sum())

    def error(self, made: npt.ArrayLike) -> float:
        """The sum over weights of importance x squared error, if wanted value i comes out as made[i]."""
        return float((self.importance * (np.asarray(made, dtype=np.float64) - self.wanted) ** 2).sum())

    def squared_error(self, made: npt.ArrayLike) -> int:
        """The same with every weight's importance 1: of integers."""
        return int((self.counts * (np.asarray(made, dtype=np.int64) - self.wanted) ** 2).sum())


def problem_of(
    net: Artifact,
    *,
    given: str | Sequence[str] = (),
    wanted: str | Sequence[str] = "given",
    importance: Mapping[str, Tensor] | None = None,
    gates: GateTable = PUBLISHED,
) -> Problem:
    """From the integers of a network's layers, chosen as in `selection`; `wanted="given"` makes a layer from itself.

    A layer that makes itself needs its distinct values alone: its weights are wanted, and none of them stays stored.
    Weights that are pruned, or of channels without bits, take no part. `importance` [parameter's shape] by name: what a
    squared error of a weight, in its own unit, costs; scales of channels then count. Without it, every squared error of
    an integer costs 1.
    """
    itself = wanted == "given"
    source = choose(net, given)
    target = Chosen(places=source.places) if itself else choose(net, wanted)
    if not target.places:
        raise UsageError("weights to generate", "none", "name at least one layer in wanted")
    bits = max(_grid_bits(net, place.name) for place in (*source.places, *target.places))
    _check_apart(source.places, () if itself else target.places)
    given_values = [_kept(net, place)[1] for place in source.places]
    kept = [_kept(net, place) for place in target.places]
    values = np.concatenate([integers for _, integers in kept])
    _check_range(np.asarray(source.constants, dtype=np.int64), bits, "constants")
    costs = np.concatenate([_costs(net, place, importance) for place, _ in kept])
    known = np.unique(np.concatenate([*given_values, np.asarray(source.constants, dtype=np.int64)]))
    stored = np.unique(np.concatenate([np.empty(0, dtype=np.int64), *([] if itself else given_values)]))
    distinct, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    return Problem(
        bits=bits,
        given=known,
        wanted=distinct,
        counts=counts.astype(np.int64),
        importance=np.bincount(inverse.reshape(-1), weights=costs, minlength=len(distinct)).astype(np.float64),
        gates=gates.at(bits),
        given_count=0 if itself else sum(len(v) for v in given_values),
        own_inputs=len(known) - len(stored),
        places=tuple(place for place, _ in kept),
        low=min(_lowest(net, place.name) for place in target.places),
    )


def _grid_bits(net: Artifact, name: str) -> int:
    grid = net.encoding(name).grid
    if grid is None:
        raise UsageError(f"integers of {name!r}", "it has no grid", "quantize the weights first")
    low, high, bits = grid.common()
    if not grid.signed:
        raise UsageError(f"integers of {name!r}", f"{low} to {high}", "use signed integers of weights")
    return max(bits, 2)


def _lowest(net: Artifact, name: str) -> int:
    grid = net.encoding(name).grid
    return 0 if grid is None else grid.common()[0]


def live(encoding: Encoding) -> Tensor:
    """bool [entries]: neither pruned nor of a channel without bits."""
    grid, found = encoding.grid, torch.ones(encoding.shape, dtype=torch.bool)
    if encoding.mask is not None:
        found &= encoding.mask.cpu()
    if grid is not None:
        found &= grid.spread(grid.bit_width > 0, len(encoding.shape)).cpu()
    return found.reshape(-1)


def _kept(net: Artifact, place: Place) -> tuple[Place, Ints]:
    """The place without weights that are gone, and its integers."""
    encoding = net.encoding(place.name)
    positions = place.positions[live(encoding)[place.positions]]
    return Place(name=place.name, positions=positions), encoding.integers().reshape(-1).cpu()[positions].numpy()


def _costs(net: Artifact, place: Place, importance: Mapping[str, Tensor] | None) -> Floats:
    if importance is None:
        return np.ones(len(place.positions))
    encoding = net.encoding(place.name)
    grid, weights = encoding.grid, importance.get(place.name)
    if grid is None or weights is None or tuple(weights.shape) != encoding.shape or bool((weights < 0).any()):
        found = "none" if weights is None else f"a tensor of shape {tuple(weights.shape)}"
        do = f"give numbers of at least 0, of shape {encoding.shape}"
        raise UsageError(f"importance of {place.name!r}", found, do)
    scale = grid.spread(grid.scale, len(encoding.shape)).double().expand(encoding.shape)
    return (weights.double() * scale**2).reshape(-1).cpu()[place.positions].numpy()


def _check_apart(given: tuple[Place, ...], wanted: tuple[Place, ...]) -> None:
    """A weight cannot stay stored and be made."""
    stored = {place.name: place.positions for place in given}
    for place in wanted:
        if place.name in stored and bool(torch.isin(place.positions, stored[place.name]).any()):
            found = f"weights of {place.name!r} in both"
            do = 'choose others, or wanted="given" for a layer from itself'
            raise UsageError("given and wanted weights", found, do)


def _check_range(values: Ints, bits: int, what: str) -> None:
    low, high = limits(bits)
    if values.size and not low <= values.min() <= values.max() <= high:
        raise UsageError(what, f"{values.min()} to {values.max()} in {bits} bits", f"use {low} to {high}")
