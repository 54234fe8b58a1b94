"""Commands that make a network: compress, apply, demo, train."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lilliput.cli.console import ConsoleProgress, commands_of, complain, out, out_json
from lilliput.cli.interrupts import STOPS, stopped
from lilliput.cli.options import DataName, DataRoot, Device, Download, Json, Model, Quiet, Seed, TargetName, Weights
from lilliput.core.errors import LilliputError, UsageError
from lilliput.core.files import is_disk_trouble

if TYPE_CHECKING:
    from lilliput.pipeline.folder import RunFolder
    from lilliput.report.result import Result


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
    max_latency: Annotated[
        str | None, typer.Option(help='"0.5x" of the float network\'s, or "2ms"; ONNX Runtime')
    ] = None,
    time: Annotated[str | None, typer.Option(help="search for the best recipe so long: 20min")] = None,
    trials: Annotated[int | None, typer.Option(min=1, help="search with so many candidates")] = None,
    runs: Annotated[Path, typer.Option("--out", help="where run folders go")] = Path("runs"),
    resume: Annotated[Path | None, typer.Option(help="go on with this run folder")] = None,
    join: Annotated[Path | None, typer.Option(help="work on the search of another process in this run folder")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="say what a search would do, and how long it takes")
    ] = False,
    seed: Annotated[int | None, typer.Option(min=0, help="in place of the recipe's (0)")] = None,
    device: Device = "cpu",
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Compress a network, compare it with float and plain int8, write .lil, ONNX and a run folder.

    With --time or --trials, or where the default recipe misses a budget, a better recipe is searched for.
    """
    from lilliput.auto.compress import compress as run_compress
    from lilliput.auto.given import as_recipe, as_target, check_recipe
    from lilliput.core.score import parse_drop
    from lilliput.core.target import parse_bytes
    from lilliput.pipeline.folder import RunFolder
    from lilliput.zoo.registry import ZOO, open_model

    progress = ConsoleProgress(quiet=quiet)
    _check_search(
        recipe=recipe, max_latency=max_latency, time=time, trials=trials, join=join, resume=resume, dry_run=dry_run
    )
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
    if dry_run:
        from lilliput.auto.compress import search_plan

        out(
            search_plan(
                net,
                task,
                as_target(target, max_flash, max_ram),
                max_drop=max_drop,
                max_bytes=most_bytes,
                max_latency=max_latency,
                time=time,
                trials=trials,
                seed=seed,
                device=device,
            )
        )
        return
    going_on = resume or join
    folder = (
        RunFolder.open(going_on)
        if going_on is not None
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
            max_latency=max_latency,
            time=time,
            trials=trials,
            recipe=plan,
            seed=seed,
            folder=folder.path,
            join=join is not None,
            progress=progress,
            device=device,
        )
        sources = {"--weights": weights, "--data": data, "--data-root": data_root}
        budgets = {"--max-drop": max_drop, "--max-bytes": max_bytes, "--max-flash": max_flash, "--max-ram": max_ram}
        more = {"--target": target, **budgets, "--seed": seed}
        folder.write_json("command.json", {"commands": commands_of(folder.path, model, recipe, sources, more)})
    except STOPS as stop:
        raise typer.Exit(stopped(stop, _kept(folder))) from None
    except LilliputError as error:
        if is_disk_trouble(error):
            error = type(error)(error.asked, error.found, f"{error.do}, then go on with --resume {folder.path}")
        raise error from error.__cause__
    _show(result, folder, as_json=as_json, joined=join is not None)


def _check_search(
    *,
    recipe: Path | None,
    max_latency: str | None,
    time: str | None,
    trials: int | None,
    join: Path | None,
    resume: Path | None,
    dry_run: bool,
) -> None:
    """What cannot be meant is found before data are read, and before a run folder is made."""
    from lilliput.auto.search.budget import Latency
    from lilliput.auto.search.journal import check_installed
    from lilliput.core.target import parse_seconds
    from lilliput.pipeline.folder import RunFolder

    if max_latency is not None:
        Latency.of(max_latency)
    if time is not None:
        parse_seconds(time)
    if recipe is not None and (time is not None or trials is not None or join is not None):
        raise UsageError("--recipe", "--time, --trials or --join", "leave out the recipe to search for one")
    if time is not None or trials is not None or join is not None:
        check_installed()
    if join is not None and resume is not None:
        raise UsageError("--join", "--resume", "give one of them")
    if dry_run and recipe is not None:
        raise UsageError("--dry-run", "--recipe", "leave out the recipe: it says what a search would do")
    for folder in (join, resume):
        if folder is not None:
            RunFolder.open(folder)


def _kept(folder: "RunFolder") -> str:
    """What an interrupted run leaves."""
    from lilliput.auto.search.find import is_search

    best = folder.path / "net.lil"
    if is_search(folder) and best.is_file():
        size = f"{best.stat().st_size:,} bytes"
        return f"the best so far is {best} ({size}): go on with --resume {folder.path}"
    return f"finished steps are kept: go on with --resume {folder.path}"


def _show(result: "Result", folder: "RunFolder", *, as_json: bool, joined: bool) -> None:
    """The result, and the exit code that says what is wrong with it."""
    if as_json:
        out_json({**result.to_data(), "folder": str(folder.path)})
    else:
        out(result.table())
        files = ["net.lil", "recipe.yaml", "result.json", "table.txt", *(["trials.json"] if result.trials else [])]
        files += [c.onnx.name for c in result.columns if c.onnx is not None]
        out(
            f"\nthe search in {folder.path} has the trials of this process, too"
            if joined
            else f"\nwritten to {folder.path}: {', '.join(files)}"
        )
    if result.mismatches:
        complain(result.mismatches[0])
        raise typer.Exit(4)
    if not result.feasible:
        raise typer.Exit(1)


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
    if Path(model).suffix in (".yaml", ".yml") and not recipe.is_file():
        asked = f"apply {recipe} {model}"
        raise UsageError(asked, "the recipe stands second", f"write: lilliput apply {model} {recipe}")
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


def demo(runs: Annotated[Path, typer.Option("--out")] = Path("runs"), quiet: Quiet = False) -> None:
    """The main job on data and a network that come with the package."""
    compress(model="digits-cnn", runs=runs, quiet=quiet)


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
