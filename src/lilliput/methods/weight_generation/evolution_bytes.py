"""An evolution as bytes: what its begin does not give again from problem and settings.

A mark, the fingerprint of problem and settings, then zlib of: the generation; of each island its numbers, the state of
its random numbers and its genes; the number of kept circuits and their genes; the number of archived solutions, and of
each its name, its packed netlist and the output of each wanted value. What all that may take follows from the settings.
"""

import hashlib
import io
import json
import struct
import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np
import numpy.typing as npt

from lilliput.core.errors import DataError
from lilliput.methods.weight_generation.evolution_settings import EvolutionSettings
from lilliput.methods.weight_generation.problem import Problem
from lilliput.methods.weight_generation.solution import Solution
from lilliput.ops.cartesian import Circuit
from lilliput.ops.cartesian_goal import Goal
from lilliput.ops.cartesian_search import measured
from lilliput.ops.cartesian_state import State
from lilliput.ops.netlist import Netlist

MARK = b"lilliput evolution 1\n"
NUMBERS = ("generation", "stalled", "stage", "threshold", "tried", "neutral")


@dataclass(frozen=True, kw_only=True, eq=False)
class Content:
    generation: int
    states: tuple[State, ...]
    kept: tuple[Circuit, ...]
    archive: tuple[tuple[str, Solution], ...]


@dataclass(frozen=True, kw_only=True)
class Limits:
    """How many circuits may be kept, and how many solutions archived."""

    kept: int
    archived: int


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
    parts.append(struct.pack("<Q", len(content.archive)))
    for name, solution in content.archive:
        for part in (name.encode(), solution.netlist.pack(), solution.outputs.astype("<u2").tobytes()):
            parts += [struct.pack("<I", len(part)), part]
    return start + zlib.compress(b"".join(parts), 6)


def unpack(start: bytes, data: bytes, problem: Problem, goal: Goal, begun: Sequence[State], limits: Limits) -> Content:
    """Inverse of `pack`. `begun`: the islands at generation 0. Raises `DataError`."""
    what = "the state of an evolution"
    if data[: len(MARK)] != MARK:
        raise DataError(what, "other bytes", "give those of Evolution.packed")
    if data[: len(start)] != start:
        do = "give those that it was begun with"
        raise DataError(what, "it belongs to another problem or to other settings", do)
    shape = begun[0].circuit.shape
    genes = 4 * (3 * shape.nodes + shape.outputs)
    solution = 64 + 8 * (shape.inputs + shape.nodes + shape.outputs)
    most = 24 + len(begun) * (8 * len(NUMBERS) + 32 + genes) + limits.kept * genes + limits.archived * solution
    stream = zlib.decompressobj()
    try:
        payload = stream.decompress(data[len(start) :], most + 1)
        return _read(payload if stream.eof and not stream.unused_data else b"", problem, goal, begun, limits)
    except (zlib.error, struct.error, ValueError) as wrong:
        raise DataError(what, "broken bytes", "use an older copy") from wrong


def _read(payload: bytes, problem: Problem, goal: Goal, begun: Sequence[State], limits: Limits) -> Content:
    stream = io.BytesIO(payload)

    def number(form: str) -> int:
        return struct.unpack(form, stream.read(struct.calcsize(form)))[0]

    generation = number("<Q")
    states: list[State] = []
    for first in begun:
        numbers = np.frombuffer(stream.read(8 * len(NUMBERS)), "<i8").tolist()
        known = dict(zip(NUMBERS, numbers, strict=True))
        random = np.frombuffer(stream.read(32), "<u8").astype(np.uint64)
        circuit = _circuit(first, stream)
        if min(numbers) < 0 or known["stage"] > 2 or known["generation"] > generation:
            raise ValueError("numbers out of range")
        states.append(replace(first, circuit=circuit, random=random, **known, **measured(goal, circuit)))
    kept = [_circuit(begun[0], stream) for _ in range(min(number("<Q"), limits.kept))]
    archive: list[tuple[str, Solution]] = []
    for _ in range(min(number("<Q"), limits.archived)):
        name, net, outputs = (stream.read(number("<I")) for _ in range(3))
        archive.append((name.decode(), _solution(problem, Netlist.unpack(net), np.frombuffer(outputs, "<u2"))))
    if stream.read(1):
        raise ValueError("too many bytes")
    return Content(generation=generation, states=tuple(states), kept=tuple(kept), archive=tuple(archive))


def _solution(problem: Problem, net: Netlist, outputs: npt.NDArray[np.uint16]) -> Solution:
    fits = (net.bits, net.inputs, len(outputs)) == (problem.bits, len(problem.given), len(problem.wanted))
    if not fits or outputs.max(initial=0) >= len(net.outputs):
        raise ValueError("a circuit of another problem")
    return Solution(problem=problem, netlist=net, outputs=outputs.astype(np.int64))


def _genes(circuit: Circuit) -> bytes:
    return circuit.nodes.astype("<i4").tobytes() + circuit.outputs.astype("<i4").tobytes()


def _circuit(begun: State, stream: io.BytesIO) -> Circuit:
    """With the locked genes that it must have."""
    shape = begun.circuit.shape
    genes = np.frombuffer(stream.read(4 * (3 * shape.nodes + shape.outputs)), "<i4").astype(np.int32)
    nodes, outputs = genes[: 3 * shape.nodes].reshape(shape.nodes, 3), genes[3 * shape.nodes :]
    circuit = Circuit(shape=shape, nodes=nodes, outputs=outputs)
    was, locked = (begun.circuit.nodes, begun.circuit.outputs), begun.locked
    if any(not np.array_equal(a[m], b[m]) for a, b, m in zip((nodes, outputs), was, locked, strict=True)):
        raise ValueError("genes changed that stay")
    return circuit
