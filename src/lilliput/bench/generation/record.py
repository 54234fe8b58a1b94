"""Solutions on disk: each as the published text of its circuit, with an output for each wanted value, and its measures.

The text has the gates that are used, one in each column. What is recorded is measured on the circuit that is read back
from it.
"""

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import numpy as np

from lilliput.core.artifact import Artifact
from lilliput.core.errors import ArtifactError
from lilliput.core.files import explained, write_atomically
from lilliput.methods.weight_generation.grid import solution_of
from lilliput.methods.weight_generation.problem import Problem
from lilliput.methods.weight_generation.solution import Solution, substitute_
from lilliput.ops.cartesian import Circuit, Shape
from lilliput.ops.cartesian_functions import IDENTITY, NAMES
from lilliput.ops.cartesian_text import read, written
from lilliput.ops.netlist import sources
from lilliput.pipeline.folder import json_text

SOLUTIONS, WEIGHTS, GATES = "solutions", "weights.npz", "gates.csv"
MOST_BYTES = 1 << 24
"""Of a text or its measures; a whole grid of 256 x 31 takes 0.2 MB."""
AGAIN = "remove the record of the run in cells, then continue: it writes its solutions again"
CLOSE = 1e-9
"""Relative: sums of the same numbers in another order."""


def text_of(solution: Solution) -> str:
    """The circuit in the published form, which wants an input: where no value is given, one that nothing reads."""
    net, inputs = solution.netlist, max(len(solution.problem.given), 1)
    shift = inputs - net.inputs
    nodes: list[tuple[int, int, int]] = []
    for gate in net.gates:
        a, b, *_ = [*(pin + shift if pin >= net.inputs else pin for pin in sources(gate)), 0, 0]
        nodes.append((a, b, gate.function))
    nodes = nodes or [(0, 0, IDENTITY)]
    pins = [pin + shift if pin >= net.inputs else pin for pin in net.outputs]
    columns = len(nodes)
    shape = Shape(
        inputs=inputs,
        outputs=len(solution.outputs),
        rows=1,
        columns=columns,
        levels_back=columns + 1,
        bits=net.bits,
    )
    outputs = np.array(pins, dtype=np.int32)[solution.outputs]
    return written(Circuit(shape=shape, nodes=np.array(nodes, dtype=np.int32), outputs=outputs))


def solution_from(text: str, problem: Problem, where: str) -> Solution:
    """The circuit as a solution of the problem. Raises `ArtifactError` for what is none."""
    try:
        circuit = read(text, problem.bits)
    except ValueError as error:
        raise ArtifactError(where, str(error), "give the text of a circuit in the published form") from error
    wanted = max(len(problem.given), 1), len(problem.wanted)
    if (circuit.shape.inputs, circuit.shape.outputs) != wanted:
        found = f"{circuit.shape.inputs} inputs and {circuit.shape.outputs} outputs"
        do = f"give a circuit for this problem: {wanted[0]} inputs, {wanted[1]} outputs"
        raise ArtifactError(where, found, do)
    return solution_of(problem, circuit)


def measures(solution: Solution) -> dict[str, Any]:
    """Plain data. `error` is weighted by importance, `rms` is of all wanted weights; weights are read from DRAM."""
    problem, made, cost = solution.problem, solution.made, solution.cost()
    circuit, squared = cost.circuit, problem.squared_error(made)
    return {
        "error": problem.error(made),
        "squared_error": squared,
        "rms": math.sqrt(squared / problem.wanted_count),
        "gates": circuit.gates,
        "depth": circuit.depth,
        "energy_pj": circuit.energy_pj,
        "delay_ns": circuit.delay_ns,
        "area": circuit.area,
        "values": len(solution.netlist.outputs),
        "stored_bits": cost.stored.total,
        "plain_bits": cost.plain_bits,
        "table_bits": cost.table_bits,
        "weights_pj": cost.energy_pj,
        "plain_weights_pj": cost.plain_energy_pj,
        "bits": asdict(cost.stored),
        "functions": dict(circuit.by_function),
        "verdict": cost.verdict,
    }


def differences(recorded: Mapping[str, Any], found: Mapping[str, Any]) -> list[str]:
    """What is recorded otherwise than it is; floats may differ by what another order of a sum does."""
    return [
        f"{key} is {found.get(key)!r}, recorded {recorded.get(key)!r:.60}"
        for key in found
        if not _same(recorded.get(key), found.get(key))
    ]


def _same(a: Any, b: Any) -> bool:
    if isinstance(b, float):
        known = isinstance(a, int | float) and not isinstance(a, bool)
        return known and math.isclose(float(a), b, rel_tol=CLOSE, abs_tol=0.0)
    return a == b


def write_solutions(folder: Path, solutions: Sequence[Solution], net: Artifact) -> dict[str, Any]:
    """The solutions, the best first, weights and gates of the best; its measures. `net` has the run's integers."""
    place = folder / SOLUTIONS
    known: list[str] = []
    best: dict[str, Any] = {}
    for k, solution in enumerate(solutions, start=1):
        text = text_of(solution)
        found = measures(solution_from(text, solution.problem, f"solution {k}"))
        best = best or found
        for name, data in ((f"{k:02d}.txt", text + "\n"), (f"{k:02d}.json", json_text(found, indent=1))):
            write_atomically(place / name, data.encode())
            known.append(name)
    with explained(f"write {place}"):
        for path in place.iterdir():
            if path.name not in known:
                path.unlink()
    write_atomically(folder / WEIGHTS, weights_of(net, solutions[0]))
    write_atomically(folder / GATES, _histogram(best, solutions[0].problem).encode())
    return best


def weights_of(net: Artifact, solution: Solution) -> bytes:
    """A .npz with the integers of each parameter that the circuit makes weights of, as they become."""
    changed = net.copy()
    names = substitute_(changed, solution)
    kind = np.int8 if solution.problem.bits <= 8 else np.int16
    arrays: dict[str, Any] = {name: changed.encoding(name).integers().cpu().numpy().astype(kind) for name in names}
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    return buffer.getvalue()


def solution_paths(folder: Path) -> list[Path]:
    """The texts of a run's folder, the best first."""
    return sorted((folder / SOLUTIONS).glob("*.txt"), key=lambda path: (len(path.name), path.name))


def read_text(path: Path) -> str:
    """Raises `ArtifactError` for what cannot be a text of ours."""
    try:
        if path.stat().st_size > MOST_BYTES:
            raise ArtifactError(f"read {path}", "it is too large for a circuit", "give the text of one circuit")
        return path.read_text(encoding="ascii")
    except FileNotFoundError:
        raise ArtifactError(f"read {path}", "no such file", "check the path") from None
    except (OSError, UnicodeDecodeError) as error:
        found = "it is no text" if isinstance(error, UnicodeDecodeError) else error.strerror or str(error)
        raise ArtifactError(f"read {path}", found, "give the text of a circuit") from error


def read_measures(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        raise ArtifactError(f"read {path}", "it is damaged", AGAIN) from error
    if not isinstance(data, dict):
        raise ArtifactError(f"read {path}", "it holds no measures", AGAIN)
    return cast(dict[str, Any], data)


def _histogram(best: Mapping[str, Any], problem: Problem) -> str:
    """One line for each function that is used."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(("function", "count", "energy_pj", "area"))
    for name, count in best["functions"].items():
        function = NAMES.index(name)
        writer.writerow((name, count, count * problem.gates.energy_pj[function], count * problem.gates.area[function]))
    return buffer.getvalue()
