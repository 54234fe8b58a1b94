"""Commands that use files: evaluate, predict, inspect, export, report."""

import copy
from pathlib import Path
from typing import Any, cast, get_args

import numpy as np
import torch
from torch import Tensor, nn

from lilliput.auto.load import load_artifact
from lilliput.core import container
from lilliput.core.artifact import Artifact, InputSpec
from lilliput.core.cost import format_quantity
from lilliput.core.errors import ArtifactError, DataError, UsageError, one_line
from lilliput.core.files import write_atomically
from lilliput.core.guard import FullForward
from lilliput.core.progress import SILENT, Progress
from lilliput.core.task import Role, Task
from lilliput.export import onnx as onnx_export
from lilliput.graph.integer import runnable
from lilliput.graph.trace import graph_of
from lilliput.measure import runtime
from lilliput.measure.size import file_sizes, overhead
from lilliput.pipeline.folder import RunFolder
from lilliput.report.compare import agreement, samples_of
from lilliput.report.result import made
from lilliput.report.text import render
from lilliput.zoo.registry import open_model


class OnnxModule(nn.Module):
    """An ONNX file as a module, so that tasks can evaluate it."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        if not path.is_file():
            raise UsageError(f"open {path}", "no such file", "check the path")
        self.session = runtime.session(path)

    @property
    def spec(self) -> InputSpec | None:
        """The shape of one sample, if the file fixes it."""
        shape = tuple(self.session.get_inputs()[0].shape[1:])
        return InputSpec(shape=shape) if all(isinstance(size, int) for size in shape) else None

    def forward(self, x: Tensor) -> Tensor:
        return torch.from_numpy(np.asarray(runtime.predict(self.session, x.cpu().numpy())))


def role_of(name: str) -> Role:
    if name not in get_args(Role):
        raise UsageError(f"--role {name}", "not a role", f"use one of {', '.join(get_args(Role))}")
    return cast(Role, name)


def network_and_task(
    command: str,
    file: str,
    into: str | None,
    *,
    weights: Path | None,
    data: str | None,
    data_root: Path | None,
    download: bool,
    progress: Progress,
) -> tuple[nn.Module, Task, str]:
    """What runs, its task, and the runtime's name: of a `.lil` or `.onnx` with `--data` or `--into`, or of a model."""
    is_file = file.endswith((".lil", ".onnx"))
    if is_file and into is None and data is None:
        raise UsageError(
            f"{command} {file}",
            "no data",
            "name them, or the model with this task: --data digits or --into digits-cnn",
        )
    module, name = None, f"torch {torch.__version__}"
    if file.endswith(".lil"):
        module = runnable(artifact_of(file, into))
        name += ", .lil"
    elif file.endswith(".onnx"):
        module, name = OnnxModule(Path(file)), "ONNX Runtime"
    if module is not None and into is None and data is not None:
        return module, task_of(data, data_root, download=download, progress=progress), name
    net, task = open_model(
        into if is_file and into is not None else file,
        weights=weights,
        data=data,
        data_root=data_root,
        download=download,
        trained=not is_file,
        progress=progress,
    )
    return net if module is None else module, task, name


def evaluate_file(file: str, into: str | None, role: str, *, progress: Progress, **where: Any) -> dict[str, Any]:
    """`where` says which weights and data, as `network_and_task` takes them."""
    module, task, name = network_and_task("evaluate", file, into, progress=progress, **where)
    evaluation = FullForward(task, module, progress=progress)(module, role_of(role))
    score = task.score
    value, interval = score.value(evaluation.rows), score.interval(evaluation.rows)
    return {
        "score": score.name,
        "value": value,
        "unit": score.unit,
        "interval": list(interval),
        "samples": len(evaluation.rows),
        "runtime": name,
        "text": f"{score.name} {score.format(value)} [{score.format(interval[0])}, {score.format(interval[1])}]",
    }


def predict_file(file: Path, inputs: Path, into: str | None) -> list[dict[str, Any]]:
    """One dictionary for each sample: outputs, and class and label where the outputs are class scores."""
    labels: tuple[str, ...] = ()
    module: nn.Module
    if file.suffix == ".onnx":
        module = OnnxModule(file)
        spec = module.spec
    else:
        artifact = artifact_of(file, into)
        module, spec, labels = runnable(artifact), artifact.input, artifact.input.labels
    x = read_inputs(inputs, spec)
    with torch.no_grad():
        outputs = module(x)
    rows: list[dict[str, Any]] = []
    for i, row in enumerate(outputs):
        values = row.reshape(-1).tolist()
        if row.dim() == 1 and len(values) > 1:
            best = int(row.argmax())
            name = labels[best] if best < len(labels) else str(best)
            rows.append(
                {
                    "sample": i,
                    "class": best,
                    "label": name,
                    "outputs": values,
                    "text": f"{i}: {name} (outputs {_short(values)})",
                }
            )
        else:
            rows.append({"sample": i, "outputs": values, "text": f"{i}: {_short(values)}"})
    return rows


def read_inputs(path: Path, spec: InputSpec | None) -> Tensor:
    """float32 [n, ...] from .npy (never pickled), or one grey or RGB image scaled to 0..1 and then normalized."""
    asked = f"inputs {path}"
    if not path.is_file():
        raise DataError(asked, "no such file", "check the path")
    shape = None if spec is None else spec.shape
    if path.suffix == ".npy":
        x = _read_array(path, asked)
    else:
        x = _read_image(path, asked, shape)
        if spec is not None and spec.mean:
            x = (x - torch.tensor(spec.mean).reshape(-1, 1, 1)) / torch.tensor(spec.std).reshape(-1, 1, 1)
    if shape is not None and tuple(x.shape) == shape:
        x = x[None]
    if len(x.shape) == 0 or len(x) == 0:
        raise DataError(asked, "no samples in it", "give at least one")
    if shape is not None and tuple(x.shape[1:]) != shape:
        raise DataError(asked, f"shape {tuple(x.shape)}", f"give one sample of shape {shape}, or a batch of them")
    if not bool(torch.isfinite(x).all()):
        raise DataError(asked, "NaN or infinity", "clean the inputs")
    return x


def _read_array(path: Path, asked: str) -> Tensor:
    try:
        array: Any = np.load(path, allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise DataError(asked, f"not a .npy file of numbers ({error})", "save it with numpy.save") from error
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "fiub":
        found = f"an array of {array.dtype}" if isinstance(array, np.ndarray) else "several arrays"
        raise DataError(asked, found, "save one array of numbers with numpy.save")
    return torch.from_numpy(np.array(array, dtype=np.float32, order="C"))


def inspect_file(file: Path) -> dict[str, Any]:
    contents = container.read(file)
    table = file_sizes(contents)
    rows = [["tensor", "shape", "stored as", "bytes", "bits/entry", "slots"]]
    tensors: list[dict[str, Any]] = []
    for name, e in contents.tensors.items():
        row = table[name]
        count, entries = int(row["total"].value), max(1, int(np.prod(e.shape)))
        slots = {slot: int(m.value) for slot, m in row.items() if slot not in ("total", "packed")}
        tensors.append({"name": name, "shape": list(e.shape), "stored": e.describe(), "bytes": count, "slots": slots})
        rows.append(
            [
                name,
                "x".join(map(str, e.shape)),
                e.describe(),
                f"{count:,}",
                f"{8 * count / entries:.2f}",
                " ".join(f"{k}:{v}" for k, v in slots.items()),
            ]
        )
    rest = overhead(contents)
    lines = [
        f"{file}: {contents.size:,} bytes: {contents.size - rest:,} of tensors, {rest} of header, grids and checksum",
        f"input {contents.input.shape} {contents.input.layout}, architecture {contents.origin or 'not named'}",
        render(rows),
    ]
    graph = None if contents.wiring is None else container.graph_bytes(contents)
    lines.insert(
        1,
        "no graph: it runs with the code of its model (--into)"
        if graph is None or contents.wiring is None
        else f"graph of {len(contents.wiring.nodes)} operations in {graph} bytes: it runs as it is",
    )
    functions = _functions(contents)
    if functions:
        lines.insert(2, functions.pop("text"))
    lines += [f"edit: {edit}" for edit in contents.edits]
    for name, g in contents.activations.items():
        kind = f"{int(g.bit_width)} bits {'signed' if g.signed else 'unsigned'}"
        lines.append(f"activation {name}: {kind}, scale {float(g.scale):.6g}, zero point {int(g.zero_point)}")
    return {
        "file": str(file),
        "bytes": contents.size,
        "overhead": rest,
        "graph": graph,
        "functions": functions,
        "tensors": tensors,
        "recipe": contents.recipe,
        "activations": list(contents.activations),
        "edits": [str(e) for e in contents.edits],
        "text": "\n".join(lines),
    }


def _functions(contents: container.Contents) -> dict[str, Any]:
    """What learned functions take of a file; empty where its graph has none, or it has no graph."""
    wires = [] if contents.wiring is None else [w for w in contents.wiring.nodes if w.op == "learned_function"]
    if not wires:
        return {}
    sizes = container.sizes(contents)
    count = sum(sum(sizes[name].values()) for name in {n for w in wires for n in w.tensors.values()} if name in sizes)
    shapes = [contents.tensors[name].shape for name in {w.tensors["weight"] for w in wires} if name in contents.tensors]
    rows, numbers = sum(shape[0] for shape in shapes), sum(shape[0] * shape[1] for shape in shapes)
    text = f"{rows:,} learned functions at {len(wires)} places: {numbers:,} numbers in {count:,} bytes"
    return {"places": len(wires), "functions": rows, "numbers": numbers, "bytes": count, "text": text}


def export_file(
    file: Path, into: str | None, folder: Path, target: str | None, static_batch: int | None
) -> dict[str, Any]:
    artifact = artifact_of(file, into)
    graph = graph_of(artifact)
    path = made(folder) / f"{file.stem}.onnx"
    onnx_export.export(artifact, path, target=target or "onnx-x86", batch=static_batch, graph=graph)
    left = onnx_export.layers_in_float(artifact, graph)
    size = path.stat().st_size
    lines = [f"{path}: {size:,} bytes ({format_quantity(size, 'B')})"]
    lines += (
        [f"in float: {name}: {reason}" for name, reason in left.items()]
        if artifact.activations
        else ["the whole network is in float"]
    )
    return {"file": str(path), "bytes": size, "in_float": left, "text": "\n".join(lines)}


def verify_file(
    file: Path, onnx: Path, into: str | None, samples: int, *, data: str | None, data_root: Path | None
) -> str:
    from lilliput.export.onnx_check import check_with_runtime

    net, task = None, None
    if into is not None:
        net, task = open_model(into, trained=False, data=data, data_root=data_root)
    elif data is not None:
        task = task_of(data, data_root)
    artifact = load_artifact(file, net)
    if task is None:
        x = artifact.input.example(samples)
    else:
        x = samples_of(task, "test" if task.has("test") else "validation", samples)
    on = f", on {len(x)} random samples" if task is None else ""
    return f"{onnx} computes what {file} computes{on}: {agreement(check_with_runtime(onnx, artifact, x))}"


def _trail_lines(entry: dict[str, Any]) -> list[str]:
    verdict = entry["verdict"]
    state = "no effect" if not entry["effect"] else "kept" if verdict["accepted"] else "REFUSED"
    lines = [f"{entry['step']}. {entry['name']}: {state}; {verdict['reason']}; {entry['bytes']:,} bytes"]
    for p in entry["passes"]:
        reasons: dict[str, list[str]] = {}
        for layer, reason in p["skipped"].items():
            reasons.setdefault(reason, []).append(layer)
        lines += [
            f"     skipped by {p['name']}: {', '.join(layers[:6])}{' ...' if len(layers) > 6 else ''}: {reason}"
            for reason, layers in reasons.items()
        ]
    return lines


def report_folder(folder: Path) -> str:
    run = RunFolder.begun(folder)
    lines: list[str] = []
    for entry in run.trail():
        try:
            lines += _trail_lines(entry)
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            found = f"the trail has a line that is none: {entry!r:.60}"
            raise ArtifactError(f"report of {folder}", found, "run the recipe again in a new folder") from error
    table = folder / "table.txt"
    lines.append("")
    lines.append(
        table.read_text(encoding="utf-8")
        if table.is_file()
        else f"the run is not finished: go on with --resume {folder}"
    )
    return "\n".join(one_line(line) for text in lines for line in text.split("\n"))


def report_page(folder: Path, path: Path) -> str:
    """Write the page of a run folder; returns what to say about it."""
    from lilliput.report.html.page import folder_page

    data = folder_page(folder).encode()
    write_atomically(path, data)
    return f"{path}: {len(data):,} bytes"


def report_statistics(folder: Path, excel: Path | None) -> str:
    """What methods noted beside the trail; as a workbook too, one for each method where there are several."""
    from lilliput.methods.consolidation.statistics import text, write_excel

    run = RunFolder.begun(folder)
    names = [p["statistics"] for entry in run.trail() for p in entry.get("passes", []) if "statistics" in p]
    kept = {name: data for name in names if "global" in (data := run.read_json(name))}
    if not kept:
        raise UsageError(f"statistics of {folder}", "none of its methods keeps any by neuron", "use a recipe with sic")
    lines: list[str] = []
    for name, data in kept.items():
        lines += ["", f"{folder / name}", *text(data)]
        if excel is not None:
            path = excel if len(kept) == 1 else excel.with_stem(f"{excel.stem}-{Path(name).stem}")
            write_excel(data, path)
            lines.append(f"{path}: {path.stat().st_size:,} bytes")
    return "\n".join(one_line(line) for line in lines)


def artifact_of(file: str | Path, into: str | None) -> Artifact:
    """The network of a `.lil`: from its own graph, or put into the untrained module `into`."""
    return load_artifact(file, None if into is None else fresh(into))


def task_of(data: str, data_root: Path | None, *, download: bool = False, progress: Progress = SILENT) -> Task:
    """The task of a data set of the zoo."""
    from lilliput.zoo.registry import DATA

    if data not in DATA:
        raise UsageError(f"--data {data}", "not a data set", f"use one of {', '.join(DATA)}, or --into a model")
    return DATA[data](data_root, download=download, progress=progress)


def fresh(source: str) -> nn.Module:
    """The untrained module of a zoo name or file.py:make."""
    from lilliput.zoo.registry import ZOO

    return ZOO[source].model() if source in ZOO else copy.deepcopy(open_model(source, trained=False)[0])


def _read_image(path: Path, asked: str, shape: tuple[int, ...] | None) -> Tensor:
    from lilliput.core.errors import MissingExtraError

    try:
        from PIL import Image, UnidentifiedImageError
    except ImportError as error:
        raise MissingExtraError(
            asked, "reading images needs Pillow", "pip install 'lilliput[report]', or give a .npy file"
        ) from error
    channels = shape[0] if shape is not None and len(shape) == 3 else 3
    try:
        with Image.open(path) as image:
            pixels = np.asarray(image.convert("L" if channels == 1 else "RGB"), dtype=np.float32) / 255
    except (UnidentifiedImageError, OSError) as error:
        raise DataError(asked, "it is not an image that can be read", "give a PNG, or a .npy file") from error
    x = torch.from_numpy(pixels.copy())
    return x[None] if x.dim() == 2 else x.movedim(-1, 0).contiguous()


def _short(values: list[float]) -> str:
    return ", ".join(f"{v:.3g}" for v in values[:10]) + (", ..." if len(values) > 10 else "")
