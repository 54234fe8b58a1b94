"""An evolution as bytes: what its begin does not give again from problem and settings.

A mark, the fingerprint of problem and settings, then zlib of: the generation; of each island its numbers, the state of
its random numbers and its genes; the number of kept circuits and their genes. All sizes follow from the settings.
"""

import hashlib
import json
import struct
import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np

from lilliput.core.errors import DataError
from lilliput.methods.weight_generation.evolution_settings import EvolutionSettings
from lilliput.methods.weight_generation.problem import Problem
from lilliput.ops.cartesian import Circuit
from lilliput.ops.cartesian_goal import Goal
from lilliput.ops.cartesian_search import measured
from lilliput.ops.cartesian_state import State

MARK = b"lilliput evolution 1\n"
NUMBERS = ("generation", "stalled", "stage", "threshold", "tried", "neutral")


@dataclass(frozen=True, kw_only=True, eq=False)
class Content:
    generation: int
    states: tuple[State, ...]
    kept: tuple[Circuit, ...]


def head(problem: Problem, settings: EvolutionSettings) -> bytes:
    """The mark and the fingerprint."""
    gates = problem.gates
    facts = {
        "settings": asdict(settings),
        "bits": problem.bits,
        "given": [problem.given_count, problem.own_inputs, *problem.given.tolist()],
        "wanted": problem.wanted.tolist(),
        "counts": problem.counts.tolist(),
        "importance": problem.importance.tolist(),
        "gates": [list(gates.energy_pj), list(gates.delay_ns), list(gates.area)],
    }
    return MARK + hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).digest()


def pack(start: bytes, content: Content) -> bytes:
    """`start`: see `head`."""
    parts = [struct.pack("<Q", content.generation)]
    for state in content.states:
        parts.append(np.array([getattr(state, name) for name in NUMBERS], dtype="<i8").tobytes())
        parts += [state.random.astype("<u8").tobytes(), _genes(state.circuit)]
    parts.append(struct.pack("<Q", len(content.kept)))
    parts += [_genes(circuit) for circuit in content.kept]
    return start + zlib.compress(b"".join(parts), 6)


def unpack(start: bytes, data: bytes, begun: Sequence[State], goal: Goal, keep: int) -> Content:
    """Inverse of `pack`. `begun`: the islands at generation 0. Raises `DataError`."""
    what = "the state of an evolution"
    if data[: len(MARK)] != MARK:
        raise DataError(what, "other bytes", "give those of Evolution.packed")
    if data[: len(start)] != start:
        do = "give those that it was begun with"
        raise DataError(what, "it belongs to another problem or to other settings", do)
    shape = begun[0].circuit.shape
    genes = 4 * (3 * shape.nodes + shape.outputs)
    most = 16 + len(begun) * (8 * len(NUMBERS) + 32 + genes) + keep * genes
    stream = zlib.decompressobj()
    try:
        payload = stream.decompress(data[len(start) :], most + 1)
        return _read(payload if stream.eof and not stream.unused_data else b"", begun, goal, genes)
    except (zlib.error, struct.error, ValueError) as wrong:
        raise DataError(what, "broken bytes", "use an older copy") from wrong


def _read(payload: bytes, begun: Sequence[State], goal: Goal, genes: int) -> Content:
    at = 0

    def take(count: int) -> bytes:
        nonlocal at
        at += count
        return payload[at - count : at]

    (generation,) = struct.unpack("<Q", take(8))
    states: list[State] = []
    for first in begun:
        numbers = np.frombuffer(take(8 * len(NUMBERS)), "<i8").tolist()
        known = dict(zip(NUMBERS, numbers, strict=True))
        random = np.frombuffer(take(32), "<u8").astype(np.uint64)
        circuit = _circuit(first, take(genes))
        if min(numbers) < 0 or known["stage"] > 2 or known["generation"] > generation:
            raise ValueError("numbers out of range")
        states.append(replace(first, circuit=circuit, random=random, **known, **measured(goal, circuit)))
    (count,) = struct.unpack("<Q", take(8))
    if at + count * genes != len(payload):
        raise ValueError("too many bytes, or too few")
    return Content(
        generation=generation,
        states=tuple(states),
        kept=tuple(_circuit(begun[0], take(genes)) for _ in range(count)),
    )


def _genes(circuit: Circuit) -> bytes:
    return circuit.nodes.astype("<i4").tobytes() + circuit.outputs.astype("<i4").tobytes()


def _circuit(begun: State, data: bytes) -> Circuit:
    """With the locked genes that it must have."""
    shape = begun.circuit.shape
    genes = np.frombuffer(data, "<i4").astype(np.int32)
    nodes, outputs = genes[: 3 * shape.nodes].reshape(shape.nodes, 3), genes[3 * shape.nodes :]
    circuit = Circuit(shape=shape, nodes=nodes, outputs=outputs)
    was, locked = (begun.circuit.nodes, begun.circuit.outputs), begun.locked
    if any(not np.array_equal(a[m], b[m]) for a, b, m in zip((nodes, outputs), was, locked, strict=True)):
        raise ValueError("genes changed that stay")
    return circuit
