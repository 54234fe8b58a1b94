"""The command for samples that a training must not forget."""

from pathlib import Path
from typing import Annotated

import typer

from lilliput.cli.console import ConsoleProgress, out, out_json
from lilliput.cli.options import DataName, DataRoot, Download, Into, Json, Quiet, Seed, Weights
from lilliput.core.errors import UsageError


def safety_set(
    model: Annotated[str, typer.Argument(help="a name of the zoo, file.py:make, or net.lil (with --data or --into)")],
    size: Annotated[int, typer.Option(min=1, help="samples in the set, or all there are")] = 200,
    source: Annotated[str, typer.Option(help="train, validation or train+validation")] = "train",
    methods: Annotated[
        str | None,
        typer.Option(
            help="of grad_cam, margin, diversity, loss and random, with commas "
            "(default: the first three; loss,diversity where there are no classes)"
        ),
    ] = None,
    output: Annotated[Path | None, typer.Option("--out", help="write the set here as JSON")] = None,
    html: Annotated[
        Path | None, typer.Option(help="write a page here that shows each sample, and why it is in")
    ] = None,
    into: Into = None,
    weights: Weights = None,
    data: DataName = None,
    data_root: DataRoot = None,
    download: Download = False,
    seed: Seed = 0,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Few samples that a training must not forget: of every class, unsure, unlike each other; never of test."""
    from lilliput.cli.using import network_and_task
    from lilliput.core.files import write_atomically
    from lilliput.data.safety import safety_set as choose
    from lilliput.pipeline.folder import json_text
    from lilliput.report.html.safety import safety_page
    from lilliput.report.safety import count_rows, safety_details
    from lilliput.report.text import render

    files = [path for path in (output, html) if path is not None]
    for path in files:
        if not path.absolute().parent.is_dir():
            raise UsageError(f"write {path}", f"there is no folder {path.parent}", "make it first")
    progress = ConsoleProgress(quiet=quiet)
    net, task, _ = network_and_task(
        "safety-set", model, into, weights=weights, data=data, data_root=data_root, download=download, progress=progress
    )
    names = None if methods is None else [name.strip() for name in methods.split(",") if name.strip()]
    chosen = choose(task, net, size=size, source=source, methods=names, seed=seed, progress=progress)
    if output is not None:
        write_atomically(output, json_text(chosen.to_data(), indent=2).encode())
    if html is not None:
        write_atomically(html, safety_page(safety_details(chosen, task, net, Path(model).name)).encode())
    if as_json:
        out_json(chosen.to_data())
        return
    out(f"{len(chosen):,} of {chosen.seen:,} samples of {source}")
    out(render(count_rows(chosen, task)))
    for line in (*chosen.notes, *(f"written: {path}" for path in files)):
        out(line)
