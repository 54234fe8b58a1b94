"""Commands on generated C and headers: write them, replay golden vectors, read the log of a board."""

import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lilliput.cli.using import artifact_of, read_inputs
from lilliput.core.artifact import Artifact
from lilliput.core.errors import DataError, LilliputError
from lilliput.core.program import Program
from lilliput.core.progress import Progress
from lilliput.export import circuit_folder
from lilliput.export.c import project
from lilliput.export.c.board_log import check_log
from lilliput.export.c.golden import read
from lilliput.export.c.interface import Interface
from lilliput.export.c.replay import Replay, replay, trouble
from lilliput.export.hls import header
from lilliput.graph.answers import NORMAL_SHARE, anomaly_threshold
from lilliput.graph.lower import lower
from lilliput.graph.trace import graph_of
from lilliput.measure.macs import count_macs, of_layers
from lilliput.report.result import made
from lilliput.report.text import render
from lilliput.zoo.registry import open_model


def export_c(
    file: Path,
    into: str | None,
    folder: Path,
    name: str,
    *,
    threshold: float | None = None,
    product_of_sums: bool = False,
    data_root: Path | None = None,
) -> dict[str, Any]:
    """A folder of C. Where the task of `into` looks for anomalies, its normal validation samples give a threshold."""
    artifact = artifact_of(file, into)
    program = lower(artifact, product_of_sums=product_of_sums)
    notes: list[str] = []
    if threshold is None and into is not None and _rebuilds(program):
        threshold, notes = _threshold(program, into, data_root)
    paths = project.write(program, made(folder), name=name, interface=Interface.of(artifact.input, threshold))
    if product_of_sums:
        notes.append(_multiplies(artifact))
    lines = [f"{path}: {path.stat().st_size:,} bytes" for path in paths] + notes
    lines.append(f"build it and run its golden vectors: make -C {folder} test, or lilliput verify {folder}")
    return {"files": [str(path) for path in paths], "threshold": threshold, "text": "\n".join(lines)}


def export_hls(file: Path, into: str | None, folder: Path, name: str, inputs: Path | None) -> dict[str, Any]:
    """Two headers, and a word on what is no right shift."""
    artifact = artifact_of(file, into)
    program = lower(artifact)
    real = None if inputs is None else read_inputs(inputs, artifact.input).numpy()
    paths = header.write(program, made(folder), name=name, inputs=real)
    multiplies = header.multiplying(program)
    lines = [f"{path}: {path.stat().st_size:,} bytes" for path in paths]
    if multiplies:
        do = "quantization with requantization: power_of_two gives right shifts alone"
        lines.append(f"{len(multiplies)} operations multiply to rescale ({multiplies[0]} is the first); {do}")
    else:
        lines.append("every rescaling is a right shift")
    return {"files": [str(path) for path in paths], "multiplies": multiplies, "text": "\n".join(lines)}


def export_circuit(file: Path, into: str | None, folder: Path, name: str) -> dict[str, Any]:
    """The circuits of a network, each in several files."""
    paths = circuit_folder.write(artifact_of(file, into), made(folder), name=name)
    lines = [f"{path}: {path.stat().st_size:,} bytes" for path in paths]
    lines.append(f"compile and compare them: lilliput verify {folder}")
    return {"files": [str(path) for path in paths], "text": "\n".join(lines)}


def verify_circuits(folder: Path) -> dict[str, Any]:
    results = circuit_folder.verify(folder)
    rows = [asdict(checked) for checked in results]
    return {"folder": str(folder), "circuits": rows, "text": "\n".join(checked.text() for checked in results)}


def verify_folder(
    folder: Path, uart: Path | None, *, deadline: float, progress: Progress
) -> tuple[dict[str, Any], LilliputError | None]:
    """What was found, and what is wrong with it."""
    if uart is not None:
        golden = read(folder)
        run = check_log(uart, golden)
        text = f"{golden.name} {golden.fingerprint:08x}: {run.text()}"
        return {"folder": str(folder), "log": str(uart), **asdict(run), "text": text}, None
    golden, results = replay(folder, deadline=deadline, progress=progress)
    rows = [["target", "vectors", "differ", "seconds", "instructions", "stack", ""], *map(_row, results)]
    text = f"{golden.name} {golden.fingerprint:08x}: {len(golden.inputs)} golden vectors\n{render(rows)}"
    found = {"folder": str(folder), "name": golden.name, "fingerprint": golden.fingerprint}
    return {**found, "targets": [asdict(r) for r in results], "text": text}, trouble(folder, results)


def _multiplies(artifact: Artifact) -> str:
    """What a product of sums saves, and what it does not."""
    graph = graph_of(artifact)
    layers = of_layers(count_macs(graph, artifact), graph)
    dense, sums = (int(layers.total(name).value) for name in ("multiplies", "product_of_sums_multiplies"))
    return (
        f"product of sums: {sums:,} multiplies in place of {dense:,}; it runs longer where multiplies are instructions"
    )


def _rebuilds(program: Program) -> bool:
    sizes = [math.prod(program.values[v].shape) for v in (program.input, program.outputs[0])]
    return sizes[0] == sizes[1] and not program.tail


def _threshold(program: Program, into: str, data_root: Path | None) -> tuple[float | None, list[str]]:
    """The threshold and a line about it; None without data, or where the task is another one."""
    try:
        task = open_model(into, trained=False, data_root=data_root)[1]
        if task.kind != "anomaly":
            return None, []
        value = anomaly_threshold(program, task)
    except DataError as error:
        return None, [f"no threshold for anomalies: {error.asked}: {error.found}; give --threshold"]
    rule = f"{100 * NORMAL_SHARE:.0f}% of the normal validation samples score no more"
    return value, [f"threshold for anomalies {value:.6g}: {rule}"]


def _row(r: Replay) -> list[str]:
    seconds = "-" if r.seconds is None else f"{r.seconds:.3f}"
    numbers = ["-" if n is None else f"{n:,}" for n in (r.vectors, r.differences, r.instructions, r.stack)]
    note = r.status if not r.reason else f"{r.status}: {r.reason}"
    return [r.target, numbers[0], numbers[1], seconds, numbers[2], numbers[3], note]
