"""Commands for what leaves Lilliput: export, verify."""

from pathlib import Path
from typing import Annotated

import typer

from lilliput.cli.console import ConsoleProgress, answer
from lilliput.cli.options import DataName, DataRoot, Into, Json, Quiet, TargetName
from lilliput.core.errors import UsageError

FORMATS = {"onnx": "ONNX", "c": "C", "hls": "HLS", "circuit": "circuits"}
COUNT_FOR = {
    "--target": ("onnx",),
    "--static-batch": ("onnx",),
    "--name": ("c", "hls", "circuit"),
    "--threshold": ("c",),
    "--product-of-sums": ("c",),
    "--inputs": ("hls",),
}


def export(
    file: Annotated[Path, typer.Argument(help="net.lil")],
    into: Into = None,
    folder: Annotated[Path, typer.Option("--out")] = Path("export"),
    target: TargetName = None,
    static_batch: Annotated[int | None, typer.Option(min=1, help="fix the batch size (default: any)")] = None,
    to: Annotated[
        str,
        typer.Option(
            help="onnx; c: C99 without floats that builds by itself; hls: constants for FPGAs; circuit: of weights"
        ),
    ] = "onnx",
    name: Annotated[
        str | None, typer.Option(help="C: prefix of all names; HLS, circuits: of the files (default: net, circuit)")
    ] = None,
    threshold: Annotated[
        float | None, typer.Option(help="C: the score above which a sample is an anomaly (default: from validation)")
    ] = None,
    product_of_sums: Annotated[
        bool, typer.Option("--product-of-sums", help="C: add inputs that meet one shared weight, then multiply")
    ] = False,
    inputs: Annotated[
        Path | None, typer.Option(help="HLS: .npy of samples for the golden vectors (default: noise)")
    ] = None,
    data_root: DataRoot = None,
    as_json: Json = False,
) -> None:
    """Write a deployable ONNX file and say which layers are in float; or integer-only C99 with golden vectors.

    Or the constants of an integer network as C++ headers with ap_int types, which FPGA designs read (hls). Or each
    circuit that makes weights (weight_generation) as C, Graphviz and SVG (circuit).
    """
    from lilliput.cli.generated import export_c, export_circuit, export_hls
    from lilliput.cli.using import export_file

    if to not in FORMATS:
        raise UsageError(f"export --to {to!r}", "not a format", "use onnx, c, hls or circuit")
    options = (target, static_batch, name, threshold, product_of_sums or None, inputs)
    for (option, where), value in zip(COUNT_FOR.items(), options, strict=True):
        if value is not None and to not in where:
            known = " and ".join(FORMATS[f] for f in where)
            raise UsageError(f"export --to {to}", option, f"leave it out: it counts for {known}")
    if to == "c":
        found = export_c(
            file,
            into,
            folder,
            name or "net",
            threshold=threshold,
            product_of_sums=product_of_sums,
            data_root=data_root,
        )
    elif to == "hls":
        found = export_hls(file, into, folder, name or "net", inputs)
    elif to == "circuit":
        found = export_circuit(file, into, folder, name or "circuit")
    else:
        found = export_file(file, into, folder, target, static_batch)
    answer(found, found["text"], as_json=as_json)


def verify(
    file: Annotated[
        Path, typer.Argument(help="a folder that export --to c or circuit has written, or net.lil with --onnx")
    ],
    onnx: Annotated[Path | None, typer.Option(help="the exported file")] = None,
    into: Into = None,
    samples: Annotated[int, typer.Option(min=1)] = 1000,
    data: DataName = None,
    data_root: DataRoot = None,
    uart: Annotated[Path | None, typer.Option(help="the log of a board that has run bench/ of the folder")] = None,
    deadline: Annotated[float, typer.Option(min=1, help="seconds for each compiler or test")] = 600,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Run what was exported, and compare; exit code 4 where it differs.

    An ONNX file: with the .lil, on samples of --data or of the model --into, without either on random ones. A folder
    of C: its golden vectors on this machine (as users build it, and with sanitizers) and on an emulated Cortex-M4.
    A folder of circuits: its functions on this machine, on all inputs or on many. That runs the code of the folder.
    """
    from lilliput.cli.generated import verify_circuits, verify_folder
    from lilliput.cli.using import verify_file
    from lilliput.export.circuit_folder import INDEX

    if onnx is not None:
        if uart is not None:
            raise UsageError("verify --onnx", "--uart", "leave it out: it counts for folders of C")
        text = verify_file(file, onnx, into, samples, data=data, data_root=data_root)
        answer({"text": text}, text, as_json=as_json)
        return
    if not file.is_dir():
        do = "give a folder that lilliput export --to c has written, or a .lil with --onnx"
        raise UsageError(f"verify {file}", "neither a folder nor --onnx", do)
    if into is not None or data is not None:
        raise UsageError(f"verify {file}", "--into or --data", "leave them out: a folder of C has its own vectors")
    if (file / INDEX).is_file():
        if uart is not None:
            raise UsageError(f"verify {file}", "--uart", "leave it out: it counts for networks in C")
        found = verify_circuits(file)
        answer(found, found["text"], as_json=as_json)
        return
    found, wrong = verify_folder(file, uart, deadline=deadline, progress=ConsoleProgress(quiet=quiet))
    answer(found, found["text"], as_json=as_json)
    if wrong is not None:
        raise wrong
