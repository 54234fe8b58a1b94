"""Commands that look, and write nothing but pictures, tables and proposed recipes."""

from pathlib import Path
from typing import Annotated, Any

import typer

from lilliput.cli.console import ConsoleProgress, answer, out, out_json
from lilliput.cli.options import (
    DataName,
    DataRoot,
    Download,
    Into,
    Json,
    Model,
    Quiet,
    RoleName,
    Seed,
    TargetName,
    Weights,
)
from lilliput.core.errors import UsageError
from lilliput.core.files import write_atomically


def check(
    model: Model,
    recipe: Annotated[Path | None, typer.Option(help="YAML recipe: do its patterns match, what does it leave?")] = None,
    target: TargetName = None,
    max_flash: Annotated[str | None, typer.Option()] = None,
    max_ram: Annotated[str | None, typer.Option()] = None,
    as_json: Json = False,
) -> None:
    """Operators, layers that would stay in float, planned memory: in seconds, before any data is read."""
    from lilliput.auto.check import check as run_check
    from lilliput.auto.compress import as_recipe, as_target
    from lilliput.zoo.registry import ZOO, entry, open_model

    plan = None if recipe is None else as_recipe(recipe)
    chosen = as_target(target or (None if plan is None else plan.target), max_flash, max_ram)
    if ":" in model or model not in ZOO:
        if ":" not in model:
            entry(model)
        net, task = open_model(model, trained=False)
        found = run_check(net, task, chosen, recipe=plan)
    else:
        found = run_check(entry(model).model(), entry(model).shape, chosen, recipe=plan)
    answer(found.to_data(), str(found), as_json=as_json)
    if not found.supported:
        raise typer.Exit(3)
    if found.misses:
        raise typer.Exit(1)


def analyse(
    model: Model,
    weights: Weights = None,
    data: DataName = None,
    data_root: DataRoot = None,
    download: Download = False,
    kinds: Annotated[
        str, typer.Option(help="of bits, sparsity, channels and clusters, with commas")
    ] = "bits,sparsity,channels,clusters",
    samples: Annotated[int, typer.Option(min=1, help="calibration samples that measure the outputs")] = 256,
    max_drop: Annotated[
        str | None, typer.Option(help="what the proposals may lose on validation: 0.5pt, or 1% (default)")
    ] = None,
    agreement: Annotated[
        str | None, typer.Option(help="guard without labels, in place of --max-drop: 99% of the answers")
    ] = None,
    max_bytes: Annotated[
        str | None, typer.Option(help="coded bytes of all weights: one choice for each layer that moves outputs least")
    ] = None,
    recipe: Annotated[
        Path | None, typer.Option(help="write what was proposed as YAML: of --max-bytes, or of the one kind")
    ] = None,
    picture: Annotated[Path | None, typer.Option(help="draw the curves here: .png, .svg or .pdf")] = None,
    run: Annotated[
        Path | None, typer.Option(help="keep it in this run folder, whose page then shows the curves (report --html)")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="only say what it does, and how long it takes")] = False,
    seed: Seed = 0,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """How far bits, zeros, channels and shared values of each part move the outputs, and what the score bears of it."""
    from lilliput.auto.analyse import analyse as run_analysis
    from lilliput.auto.analyse import check_writable, plan, run_of
    from lilliput.pipeline.folder import RunFolder
    from lilliput.report.curves import check_picture
    from lilliput.zoo.registry import open_model

    progress = ConsoleProgress(quiet=quiet)
    if picture is not None:
        check_picture(picture)
    chosen = [kind.strip() for kind in kinds.split(",") if kind.strip()]
    if recipe is not None:
        check_writable(recipe, chosen, max_bytes)
    if run is not None:
        RunFolder.begun(run)  # before data are read
    net, task = open_model(model, weights=weights, data=data, data_root=data_root, download=download, progress=progress)
    kept = None if run is None else run_of(run, net)
    if dry_run:
        out(str(plan(net, task, kinds=chosen, samples=samples, max_bytes=max_bytes)))
        return
    found = run_analysis(
        net,
        task,
        kinds=chosen,
        samples=samples,
        max_drop=max_drop,
        agreement=agreement,
        max_bytes=max_bytes,
        seed=seed,
        progress=progress,
    )
    if kept is not None:
        kept.write_json("analysis.json", found.to_data())
    if picture is not None:
        found.draw(picture)
    answer(found.to_data(), str(found), as_json=as_json)
    if recipe is not None:
        write_atomically(recipe, found.recipe().to_yaml().encode())


def evaluate(
    file: Annotated[str, typer.Argument(help="net.lil or net.onnx (with --data or --into), or a model")],
    into: Into = None,
    role: RoleName = "test",
    weights: Weights = None,
    data: DataName = None,
    data_root: DataRoot = None,
    download: Download = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """The score of a file or a model on its task, with a 95% interval."""
    from lilliput.cli.using import evaluate_file

    found = evaluate_file(
        file,
        into,
        role,
        weights=weights,
        data=data,
        data_root=data_root,
        download=download,
        progress=ConsoleProgress(quiet=quiet),
    )
    answer(found, f"{found['text']} ({role}, {found['samples']} samples, {found['runtime']})", as_json=as_json)


def predict(
    file: Annotated[Path, typer.Argument(help="net.lil or net.onnx")],
    inputs: Annotated[
        Path, typer.Argument(help=".npy of one sample or a batch, as the network expects it, or an image")
    ],
    into: Into = None,
    as_json: Json = False,
) -> None:
    """What the network answers."""
    from lilliput.cli.using import predict_file

    rows = predict_file(file, inputs, into)
    answer(rows, "\n".join(row["text"] for row in rows), as_json=as_json)


def inspect(file: Annotated[Path, typer.Argument(help="net.lil")], as_json: Json = False) -> None:
    """What is in a .lil file: every tensor's slots and bytes."""
    from lilliput.cli.using import inspect_file

    found = inspect_file(file)
    answer(found, found["text"], as_json=as_json)


def diff(
    file: Annotated[Path, typer.Argument(help="small.lil")],
    against: Annotated[str, typer.Option(help="the original: a zoo name or file.py:make")],
    weights: Weights = None,
    role: RoleName = "validation",
    data: DataName = None,
    data_root: DataRoot = None,
    as_json: Json = False,
) -> None:
    """How far each layer's output moved (SQNR), and which samples flipped."""
    from dataclasses import asdict

    from lilliput.auto.load import load_artifact
    from lilliput.cli.using import role_of
    from lilliput.report.difference import difference
    from lilliput.zoo.registry import open_model

    net, task = open_model(against, weights=weights, data=data, data_root=data_root)
    found = difference(load_artifact(file, net), net, task, role=role_of(role))
    answer(asdict(found), str(found), as_json=as_json)


def report(
    folder: Annotated[Path, typer.Argument(help="a run folder")] = Path("runs/latest"),
    statistics: Annotated[bool, typer.Option(help="how many neurons share how many values, layer by layer")] = False,
    excel: Annotated[Path | None, typer.Option(help="write the statistics of a method here as .xlsx")] = None,
    html: Annotated[bool, typer.Option("--html", help="write the run as one page for a browser")] = False,
    output: Annotated[
        Path | None, typer.Option(help="where the page goes (default: report.html of the folder)")
    ] = None,
) -> None:
    """The table of a run, and what each of its steps did; or all of it as a page."""
    from lilliput.cli.using import report_folder, report_page, report_statistics

    if output is not None and not html:
        raise UsageError("report --output", "no --html", "add --html: it is where the page goes")
    if html:
        out(report_page(folder, output or folder / "report.html"))
        return
    out(report_folder(folder))
    if statistics or excel is not None:
        out(report_statistics(folder, excel))


def methods(as_json: Json = False) -> None:
    """Every method, with its settings and sources."""
    import dataclasses

    from lilliput.pipeline.recipe import methods as known

    rows: list[dict[str, Any]] = []
    for name, cls in known().items():
        settings = {
            f.name: f.default_factory() if callable(f.default_factory) else f.default
            for f in dataclasses.fields(cls)
            if f.name not in ("include", "skip", "overrides")
        }
        rows.append({"name": name, "summary": cls.summary, "settings": settings, "citations": list(cls.citations)})
    if as_json:
        out_json(rows)
        return
    for row in rows:
        out(f"{row['name']}: {row['summary']}")
        if row["settings"]:
            out("    " + ", ".join(f"{k}={v!r}" for k, v in row["settings"].items()))
        for citation in row["citations"]:
            out(f"    {citation}")


def zoo(as_json: Json = False) -> None:
    """Names of networks, their data and whether weights come with the package."""
    from lilliput.zoo.registry import ZOO

    if as_json:
        out_json({name: {"data": e.data, "summary": e.summary, "weights": bool(e.weights)} for name, e in ZOO.items()})
        return
    for name, e in ZOO.items():
        out(f"{name:16} {e.summary}; data: {e.data}{'; weights included' if e.weights else ''}")
