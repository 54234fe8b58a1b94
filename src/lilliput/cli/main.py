"""The command `lilliput`."""

import os
import sys
import traceback
from pathlib import Path
from typing import Annotated, Any

import typer

from lilliput.cli.console import ConsoleProgress, commands_of, complain, out, out_json
from lilliput.cli.interrupts import STOPS, catch_signals, ignore_signals, received, stopped
from lilliput.core.errors import BUG, LilliputError, UsageError
from lilliput.core.files import is_disk_trouble, refused

app = typer.Typer(
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Make neural networks small enough for the device they must run on, and prove it.",
)

DEBUG, DEBUG_VARIABLE = "--debug", "LILLIPUT_DEBUG"
WRONG_USE: Any = typer.BadParameter.__mro__[2]
"""What typer raises for wrong options; it has no public name of its own."""


def known_device(name: str) -> str:
    import torch

    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError, ImportError) as error:
        raise UsageError(
            f"--device {name}", str(error).splitlines()[0][:160], "use cpu, or cuda where torch has it"
        ) from error
    return name


Model = Annotated[str, typer.Argument(help="a name of the zoo (lilliput zoo), or file.py:make")]
Weights = Annotated[Path | None, typer.Option(help=".pt (state dict), .safetensors or .lil to load into the model")]
DataName = Annotated[
    str | None, typer.Option(help="another data set for a network of the zoo: digits, mnist, fashion-mnist, cifar10")
]
DataRoot = Annotated[
    Path | None, typer.Option(help="folder with data sets (else LILLIPUT_DATA and ~/.cache/lilliput/data)")
]
Download = Annotated[bool, typer.Option(help="fetch a missing data set")]
Json = Annotated[bool, typer.Option("--json", help="JSON on standard output")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="no progress")]
Seed = Annotated[int, typer.Option(min=0)]
Device = Annotated[str, typer.Option(help="where torch computes", callback=known_device)]
TargetName = Annotated[str | None, typer.Option(help="onnx-x86 (default), onnx-arm, c-host or cortex-m4")]
Into = Annotated[
    str | None,
    typer.Option(help="the model that a .lil file was made from, if it holds no graph: a zoo name or file.py:make"),
]
RoleName = Annotated[str, typer.Option(help="train, validation or test")]


def version_only(value: bool) -> None:
    if value:
        import lilliput

        out(f"lilliput {lilliput.__version__}")
        raise typer.Exit


@app.callback()
def common(
    version: Annotated[bool, typer.Option("--version", callback=version_only, is_eager=True)] = False,
    debug: Annotated[
        bool, typer.Option(DEBUG, help=f"show the traceback of a bug; as {DEBUG_VARIABLE}=1 does. Anywhere on the line")
    ] = False,
) -> None:
    """Nothing to do before a command."""


@app.command()
def compress(
    model: Model,
    recipe: Annotated[Path | None, typer.Option(help="YAML recipe in place of the default")] = None,
    weights: Weights = None,
    data: DataName = None,
    data_root: DataRoot = None,
    download: Download = False,
    target: TargetName = None,
    max_drop: Annotated[
        str | None, typer.Option(help='"0.5pt" (points), "1%" (relative), or a number in the score\'s unit')
    ] = None,
    max_bytes: Annotated[str | None, typer.Option(help="of the .lil file: 60kB, 64KiB")] = None,
    max_flash: Annotated[str | None, typer.Option(help="planned flash: 256KiB")] = None,
    max_ram: Annotated[str | None, typer.Option(help="planned RAM: 64KiB")] = None,
    runs: Annotated[Path, typer.Option("--out", help="where run folders go")] = Path("runs"),
    resume: Annotated[Path | None, typer.Option(help="go on with this run folder")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="in place of the recipe's (0)")] = None,
    device: Device = "cpu",
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Compress a network, compare it with float and plain int8, write .lil, ONNX and a run folder."""
    from lilliput.auto.compress import as_recipe, as_target, check_recipe
    from lilliput.auto.compress import compress as run_compress
    from lilliput.core.score import parse_drop
    from lilliput.core.target import parse_bytes
    from lilliput.pipeline.folder import RunFolder
    from lilliput.zoo.registry import ZOO, open_model

    progress = ConsoleProgress(quiet=quiet)
    plan = None if recipe is None else as_recipe(recipe, seed)  # what is wrong is found before data is read
    if plan is not None and model in ZOO:
        check_recipe(plan, ZOO[model].model())
    as_target(target, max_flash, max_ram)
    most_bytes = None if max_bytes is None else parse_bytes(max_bytes)
    net, task = open_model(model, weights=weights, data=data, data_root=data_root, download=download, progress=progress)
    if max_drop is not None:
        parse_drop(max_drop, task.score, 0.0)
    if plan is not None:
        check_recipe(plan, net)  # and before a run folder is made
    for line in task.roles():
        progress.say(line)
    folder = (
        RunFolder.open(resume)
        if resume is not None
        else RunFolder.create(runs, model.rpartition("/")[2].replace(".py:", "-"))
    )
    progress.say(f"run folder {folder.path}")
    try:
        result = run_compress(
            net,
            task,
            target,
            max_drop=max_drop,
            max_bytes=most_bytes,
            max_flash=max_flash,
            max_ram=max_ram,
            recipe=plan,
            seed=seed,
            folder=folder.path,
            progress=progress,
            device=device,
        )
        sources = {"--weights": weights, "--data": data, "--data-root": data_root}
        budgets = {"--max-drop": max_drop, "--max-bytes": max_bytes, "--max-flash": max_flash, "--max-ram": max_ram}
        more = {"--target": target, **budgets, "--seed": seed}
        folder.write_json("command.json", {"commands": commands_of(folder.path, model, recipe, sources, more)})
    except STOPS as stop:
        raise typer.Exit(stopped(stop, f"finished steps are kept: go on with --resume {folder.path}")) from None
    except LilliputError as error:
        if is_disk_trouble(error):
            error = type(error)(error.asked, error.found, f"{error.do}, then go on with --resume {folder.path}")
        raise error from error.__cause__
    if as_json:
        out_json({**result.to_data(), "folder": str(folder.path)})
    else:
        out(result.table())
        out(
            f"\nwritten to {folder.path}: net.lil, recipe.yaml, result.json, table.txt"
            + "".join(f", {c.onnx.name}" for c in result.columns if c.onnx is not None)
        )
    if result.mismatches:
        complain(result.mismatches[0])
        raise typer.Exit(4)
    if not result.feasible:
        raise typer.Exit(1)


@app.command()
def apply(
    recipe: Annotated[Path, typer.Argument(help="recipe.yaml, such as that of a run folder")],
    model: Model,
    weights: Weights = None,
    data: DataName = None,
    data_root: DataRoot = None,
    download: Download = False,
    runs: Annotated[Path, typer.Option("--out")] = Path("runs"),
    resume: Annotated[Path | None, typer.Option()] = None,
    device: Device = "cpu",
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Run exactly this recipe: the same bytes each time."""
    compress(
        model=model,
        recipe=recipe,
        weights=weights,
        data=data,
        data_root=data_root,
        download=download,
        runs=runs,
        resume=resume,
        device=device,
        as_json=as_json,
        quiet=quiet,
    )


@app.command()
def demo(runs: Annotated[Path, typer.Option("--out")] = Path("runs"), quiet: Quiet = False) -> None:
    """The main job on data and a network that come with the package."""
    compress(model="digits-cnn", runs=runs, quiet=quiet)


@app.command()
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
    if as_json:
        out_json(found.to_data())
    else:
        out(str(found))
    if not found.supported:
        raise typer.Exit(3)
    if found.misses:
        raise typer.Exit(1)


@app.command()
def analyse(
    model: Model,
    weights: Weights = None,
    data: DataName = None,
    data_root: DataRoot = None,
    download: Download = False,
    kinds: Annotated[str, typer.Option(help="of bits, sparsity and clusters, with commas")] = "bits,sparsity,clusters",
    samples: Annotated[int, typer.Option(min=1, help="calibration samples that measure the outputs")] = 256,
    max_drop: Annotated[str, typer.Option(help="what the proposals may lose on validation: 0.5pt, or 1%")] = "1%",
    picture: Annotated[Path | None, typer.Option(help="draw the curves here: .png, .svg or .pdf")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="only say what it does, and how long it takes")] = False,
    seed: Seed = 0,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """How far each layer's bits, sparsity and shared values move the outputs, and how much of it the score bears."""
    from lilliput.auto.analyse import analyse as run_analysis
    from lilliput.auto.analyse import plan
    from lilliput.report.curves import check_picture
    from lilliput.zoo.registry import open_model

    progress = ConsoleProgress(quiet=quiet)
    if picture is not None:
        check_picture(picture)
    net, task = open_model(model, weights=weights, data=data, data_root=data_root, download=download, progress=progress)
    chosen = [kind.strip() for kind in kinds.split(",") if kind.strip()]
    if dry_run:
        out(str(plan(net, task, kinds=chosen, samples=samples)))
        return
    found = run_analysis(net, task, kinds=chosen, samples=samples, max_drop=max_drop, seed=seed, progress=progress)
    if picture is not None:
        found.draw(picture)
    if as_json:
        out_json(found.to_data())
    else:
        out(str(found))


@app.command()
def train(
    model: Model,
    out_file: Annotated[Path | None, typer.Option("--out", help="where the trained .lil goes")] = None,
    epochs: Annotated[int | None, typer.Option(min=1)] = None,
    learning_rate: Annotated[float | None, typer.Option()] = None,
    batch_size: Annotated[int | None, typer.Option(min=1)] = None,
    weights: Weights = None,
    data: DataName = None,
    data_root: DataRoot = None,
    download: Download = False,
    seed: Seed = 0,
    device: Device = "cpu",
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Train a network (from scratch, or from --weights) into a float .lil. An interrupted training goes on."""
    from lilliput.cli.training import train_model

    progress = ConsoleProgress(quiet=quiet)
    path = out_file or Path(f"{model.rpartition('/')[2].replace('.py:', '-')}.lil")
    try:
        found = train_model(
            model,
            path,
            epochs=epochs,
            learning_rate=learning_rate,
            batch_size=batch_size,
            weights=weights,
            data=data,
            data_root=data_root,
            download=download,
            seed=seed,
            device=device,
            progress=progress,
        )
    except STOPS as stop:
        raise typer.Exit(stopped(stop, "the same command goes on after the last finished epoch")) from None
    if as_json:
        out_json(found)
    else:
        out("\n".join(f"{k}: {v:.4g}" if isinstance(v, float) else f"{k}: {v}" for k, v in found.items()))
        out(f"next: lilliput compress {model} --weights {path}")


@app.command()
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
    if as_json:
        out_json(found)
    else:
        out(f"{found['text']} ({role}, {found['samples']} samples, {found['runtime']})")


@app.command()
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
    if as_json:
        out_json(rows)
    else:
        for row in rows:
            out(row["text"])


@app.command()
def inspect(file: Annotated[Path, typer.Argument(help="net.lil")], as_json: Json = False) -> None:
    """What is in a .lil file: every tensor's slots and bytes."""
    from lilliput.cli.using import inspect_file

    found = inspect_file(file)
    if as_json:
        out_json(found)
    else:
        out(found["text"])


@app.command()
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
    if as_json:
        out_json(asdict(found))
    else:
        out(str(found))


@app.command()
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
    if as_json:
        out_json(found)
    else:
        out(found["text"])


@app.command()
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
        if as_json:
            out_json({"text": text})
        else:
            out(text)
        return
    if not file.is_dir():
        do = "give a folder that lilliput export --to c has written, or a .lil with --onnx"
        raise UsageError(f"verify {file}", "neither a folder nor --onnx", do)
    if into is not None or data is not None:
        raise UsageError(f"verify {file}", "--into or --data", "leave them out: a folder of C has its own vectors")
    found, wrong = verify_folder(file, uart, deadline=deadline, progress=ConsoleProgress(quiet=quiet))
    if as_json:
        out_json(found)
    else:
        out(found["text"])
    if wrong is not None:
        raise wrong


@app.command()
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


@app.command()
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


@app.command()
def zoo(as_json: Json = False) -> None:
    """Names of networks, their data and whether weights come with the package."""
    from lilliput.zoo.registry import ZOO

    if as_json:
        out_json({name: {"data": e.data, "summary": e.summary, "weights": bool(e.weights)} for name, e in ZOO.items()})
        return
    for name, e in ZOO.items():
        out(f"{name:16} {e.summary}; data: {e.data}{'; weights included' if e.weights else ''}")


def main() -> None:
    """Entry point: errors in one line, exit codes as documented."""
    catch_signals()
    code = run()
    ignore_signals()  # the work is done
    try:
        sys.stdout.flush()
    except OSError as error:
        if not isinstance(error, BrokenPipeError) and code in (0, 1):  # nobody reads, or all is said
            complain(str(refused("write standard output", error)))
            code = 2
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # so that the exit says nothing either
    sys.exit(code)


def bug(error: Exception) -> str:
    """One line about an exception that nobody expected."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    text = " ".join(str(error).split())[:200]
    what = f"unexpected {type(error).__name__} at {Path(frame.filename).name}:{frame.lineno}: {text or 'no message'}"
    return f"{what}; this is a bug, in Lilliput or in your own code: please report it with what {DEBUG} shows"


def run(arguments: list[str] | None = None) -> int:
    """The exit code: 0 done, 1 budget missed, 2 wrong use, 3 unsupported, 4 mismatch, 70 a bug, 128 + n signal n."""
    given = sys.argv[1:] if arguments is None else arguments
    debug = DEBUG in given or os.environ.get(DEBUG_VARIABLE, "") not in ("", "0")
    given = [a for a in given if a != DEBUG]
    try:
        code = app(given or ["--help"], prog_name="lilliput", standalone_mode=False)
    except LilliputError as error:
        if (stop := received()) is not None:
            return stopped(stop)
        complain(str(error))
        return error.exit_code
    except (*STOPS, typer.Abort) as stop:
        return stopped(stop)
    except OSError as error:  # what no one closer to it knew how to explain
        asked = f"use {error.filename}" if error.filename else "read or write"
        complain(str(refused(asked, error, "mend it, then try again")))
        return 2
    except SystemExit:  # how typer answers a reader that left early
        return 0
    except typer.Exit as error:
        return error.exit_code
    except WRONG_USE as error:
        complain(error.format_message())
        return 2
    except Exception as error:  # noqa: BLE001 - the last resort: whatever it is, it must not look like a missed budget
        if (stop := received()) is not None:
            return stopped(stop)
        if debug:
            traceback.print_exception(error)
        complain(bug(error))
        return BUG
    return code if isinstance(code, int) else 0


if __name__ == "__main__":
    main()
