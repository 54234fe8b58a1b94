"""The command that puts finished files side by side."""

from pathlib import Path
from typing import Annotated

import typer

from lilliput.cli.console import ConsoleProgress, answer
from lilliput.cli.options import DataName, DataRoot, Download, Json, Quiet, RoleName, TargetName
from lilliput.core.errors import UsageError


def compare(
    files: Annotated[list[Path], typer.Argument(help="two or more .lil files; the first is the reference")],
    data: DataName = None,
    data_root: DataRoot = None,
    download: Download = False,
    role: RoleName = "test",
    target: TargetName = None,
    latency: Annotated[bool, typer.Option(help="time them, in turns")] = True,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Files in one table: bytes, parameters, operations, functions, latency; with --data the score.

    With --target c-host or cortex-m4 networks in integers are written as C too: time on this machine, and instructions
    on an emulated Cortex-M4.
    """
    from lilliput.cli.using import role_of, task_of
    from lilliput.core.target import Target
    from lilliput.report.beside import compare_files
    from lilliput.report.result import rows_of
    from lilliput.report.text import comparison

    if len(files) < 2:
        raise UsageError("compare", "one file", "give two or more; lilliput inspect shows one")
    progress = ConsoleProgress(quiet=quiet)
    where, wanted = Target(target or "onnx-x86"), role_of(role)
    task = None if data is None else task_of(data, data_root, download=download, progress=progress)
    columns = compare_files(files, task=task, role=wanted, target=where, latency=latency, progress=progress)
    answer(rows_of(columns), comparison(columns, task.score.name if task else ""), as_json=as_json)
