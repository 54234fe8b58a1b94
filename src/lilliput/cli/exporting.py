"""Commands for what leaves Lilliput: export, verify."""

from pathlib import Path
from typing import Annotated

import typer

from lilliput.cli.console import ConsoleProgress, answer
from lilliput.cli.options import DataName, DataRoot, Into, Json, Quiet, TargetName
from lilliput.core.errors import UsageError


def export(
    file: Annotated[Path, typer.Argument(help="net.lil")],
    into: Into = None,
    folder: Annotated[Path, typer.Option("--out")] = Path("export"),
    target: TargetName = None,
    static_batch: Annotated[int | None, typer.Option(min=1, help="fix the batch size (default: any)")] = None,
    to: Annotated[str, typer.Option(help="onnx, or c: C99 without floats that builds by itself")] = "onnx",
    name: Annotated[str | None, typer.Option(help="prefix of all names in C (default: net)")] = None,
    threshold: Annotated[
        float | None, typer.Option(help="C: the score above which a sample is an anomaly (default: from validation)")
    ] = None,
    product_of_sums: Annotated[
        bool, typer.Option("--product-of-sums", help="C: add inputs that meet one shared weight, then multiply")
    ] = False,
    data_root: DataRoot = None,
    as_json: Json = False,
) -> None:
    """Write a deployable ONNX file and say which layers are in float; or integer-only C99 with golden vectors."""
    from lilliput.cli.generated import export_c
    from lilliput.cli.using import export_file

    if to not in ("onnx", "c"):
        raise UsageError(f"export --to {to!r}", "not a format", "use onnx or c")
    if to == "c" and (target is not None or static_batch is not None):
        raise UsageError("export --to c", "--target or --static-batch", "leave them out: they count for ONNX files")
    only_c = {"--name": name is not None, "--threshold": threshold is not None, "--product-of-sums": product_of_sums}
    if to == "onnx" and any(only_c.values()):
        found = next(option for option, given in only_c.items() if given)
        raise UsageError("export --to onnx", found, "leave it out: it counts for C")
    found = (
        export_c(
            file,
            into,
            folder,
            name or "net",
            threshold=threshold,
            product_of_sums=product_of_sums,
            data_root=data_root,
        )
        if to == "c"
        else export_file(file, into, folder, target, static_batch)
    )
    answer(found, found["text"], as_json=as_json)


def verify(
    file: Annotated[Path, typer.Argument(help="a folder that export --to c has written, or net.lil with --onnx")],
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
    That runs the code of the folder.
    """
    from lilliput.cli.generated import verify_folder
    from lilliput.cli.using import verify_file

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
    found, wrong = verify_folder(file, uart, deadline=deadline, progress=ConsoleProgress(quiet=quiet))
    answer(found, found["text"], as_json=as_json)
    if wrong is not None:
        raise wrong
