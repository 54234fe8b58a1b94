"""`lilliput cgp`: experiments in weights that circuits make."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lilliput.cli.console import ConsoleProgress, answer, complain, out
from lilliput.cli.interrupts import STOPS, stopped
from lilliput.cli.options import DataRoot, Json, Quiet

if TYPE_CHECKING:
    from lilliput.bench.generation.experiment import Experiment

cgp = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Search circuits that compute weights: grids of runs that go on where they were, and what they are worth.",
)
Jobs = Annotated[int, typer.Option(min=1, help="processes of one thread each")]
Generations = Annotated[int | None, typer.Option(min=1, help="of each run in all, in place of the experiment's")]
Folder = Annotated[Path, typer.Argument(help="the folder of an experiment, or of one of its runs")]


@cgp.command()
def train(
    experiment: Annotated[Path, typer.Argument(help="network, problems, solver and grid, as YAML")],
    folder: Annotated[
        Path | None, typer.Option("--out", "-o", help="where the runs go [cgp/NAME]; goes on where it was")
    ] = None,
    jobs: Jobs = 1,
    only: Annotated[int | None, typer.Option(min=0, help="this run of the grid alone, counted from 0")] = None,
    data_root: DataRoot = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Do the runs of an experiment that are not done yet."""
    from lilliput.bench.generation.experiment import load

    asked, place = load(experiment), folder or Path("cgp") / experiment.stem
    _run(asked, place, only=only, jobs=jobs, data_root=data_root, as_json=as_json, quiet=quiet)


@cgp.command("continue")
def continue_(
    folder: Folder,
    generations: Generations = None,
    jobs: Jobs = 1,
    data_root: DataRoot = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Go on with the runs of a folder: those that were stopped, that have failed, or that may take longer now."""
    from lilliput.bench.generation.folder import opened

    asked, place, only = opened(folder)
    more: Any = {"jobs": jobs, "data_root": data_root, "as_json": as_json, "quiet": quiet}
    _run(asked, place, only=only, generations=generations, **more)


def _run(
    experiment: "Experiment",
    folder: Path,
    *,
    only: int | None,
    jobs: int,
    data_root: Path | None,
    as_json: bool,
    quiet: bool,
    generations: int | None = None,
) -> None:
    from lilliput.bench.generation.folder import begin
    from lilliput.bench.generation.run import go, plan

    progress = ConsoleProgress(quiet=quiet)
    try:
        planned = plan(experiment, folder, generations=generations, only=only, data_root=data_root)
        begin(experiment, folder)
        progress.say(f"{len(planned.runs)} runs into {folder}")
        records = go(planned, jobs=jobs, progress=progress)
    except STOPS as stop:
        raise typer.Exit(stopped(stop, f"what was found is kept: lilliput cgp continue {folder}")) from None
    answer(records, _table(planned.runs, records), as_json=as_json)
    failed = [record["error"] for record in records.values() if "error" in record]
    if failed:
        complain(f"{len(failed)} of {len(records)} runs have failed; the first: {failed[0]}")
        raise typer.Exit(2)


def _table(runs: dict[str, Any], records: dict[str, dict[str, Any]]) -> str:
    from lilliput.report.text import render

    rows = [["run", "RMS error", "gates", "gate energy", "stored bits", "plainly", "generation"]]
    for name, record in records.items():
        about = f"{runs[name].index} {runs[name].title}"
        if "error" in record:
            rows.append([about, "failed", *["-"] * 5])
            continue
        measures = [f"{record['rms']:.4g}", str(record["gates"]), f"{record['energy_pj']:.3g} pJ"]
        bits = [f"{record[key]:,}" for key in ("stored_bits", "plain_bits")]
        rows.append([about, *measures, *bits, f"{record['generation']:,}" if runs[name].evolves else "-"])
    return render(rows)


@cgp.command()
def evaluate(
    path: Annotated[Path, typer.Argument(help="the folder of an experiment or of a run, or the .txt of a circuit")],
    of: Annotated[Path | None, typer.Option(help="the folder of the run whose problem a .txt is for")] = None,
    data_root: DataRoot = None,
    as_json: Json = False,
) -> None:
    """Measure solutions again from their texts, and say whether they are what is recorded."""
    from lilliput.bench.generation.evaluate import evaluate as measure
    from lilliput.report.text import render

    rows = measure(path, of=of, data_root=data_root)
    table = [["run", "solution", "error", "gates", "gate energy", "delay", "area", "stored bits", "recorded"]]
    for row in rows:
        about = [f"{row['run']} {row['title']}", row["solution"]]
        if "error" not in row:
            table.append([*about, *["-"] * 6, "DAMAGED"])
            continue
        same = "equal" if not row["differences"] else "DIFFERS"
        measures = [f"{row['error']:.6g}", str(row["gates"]), f"{row['energy_pj']:.4g} pJ", f"{row['delay_ns']:.4g} ns"]
        bits = [f"{row['area']:.5g}", f"{row['stored_bits']:,}", same if row["recorded"] else "no"]
        table.append([*about, *measures, *bits])
    wrong = [f"{row['file']}: {'; '.join(row['differences'])}" for row in rows if row["differences"]]
    answer(rows, "\n".join([render(table), *wrong]), as_json=as_json)
    if wrong:
        complain(f"{len(wrong)} of {len(rows)} solutions are not what is recorded of them")
        raise typer.Exit(4)


@cgp.command()
def metrics(
    folder: Folder,
    role: Annotated[str, typer.Option(help="train, validation or test")] = "validation",
    top: Annotated[int | None, typer.Option(min=1, help="so many solutions of each run [all that are kept]")] = None,
    data_root: DataRoot = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Score and loss of the network with the weights of each solution, beside energy and bits."""
    from lilliput.bench.generation.metrics import metrics as measure
    from lilliput.cli.using import role_of
    from lilliput.report.text import render

    progress, known = ConsoleProgress(quiet=quiet), role_of(role)
    rows = measure(folder, known, top=top, data_root=data_root, progress=progress)
    score = list(rows[0])[3]
    table = [["run", "solution", score, "loss", "RMS error", "gate energy", "weights", "stored bits", "verdict"]]
    for row in rows:
        scores = [f"{row[score]:.2f}", f"{row['loss']:.4f}", _shown(row, "rms", ".4g"), _shown(row, "energy_pj", ".3g")]
        costs = [_shown(row, "weights_pj", ".4g"), _shown(row, "stored_bits", ","), _short(row.get("verdict", ""))]
        table.append([f"{row['run']} {row['title']}".strip(), row["solution"], *scores, *costs])
    where = f"on {known}, energies in pJ; written to {folder / f'metrics-{known}.csv'}"
    answer(rows, f"{render(table)}\n{where}", as_json=as_json)


def _shown(row: dict[str, Any], key: str, form: str) -> str:
    return format(row[key], form) if key in row else "-"


def _short(verdict: str) -> str:
    """What each of its warnings begins with."""
    return ", ".join(dict.fromkeys(part.partition(":")[0] for part in verdict.split("; ")))


@cgp.command()
def job(
    experiment: Annotated[Path, typer.Argument(help="network, problems, solver and grid, as YAML")],
    system: Annotated[str, typer.Option(help="pbs or slurm")],
    path: Annotated[Path, typer.Option("--out", "-o", help="the script")],
    folder: Annotated[Path | None, typer.Option("--folder", help="where the runs go [cgp/NAME]")] = None,
    walltime: Annotated[str, typer.Option(help="of each run")] = "24:00:00",
    memory: Annotated[str | None, typer.Option(help="of each run [4gb, 4G]")] = None,
    cores: Annotated[int, typer.Option(min=1, help="of each run: more than one helps islands")] = 1,
    email: Annotated[str | None, typer.Option(help="who is told")] = None,
    queue: Annotated[str | None, typer.Option(help="queue (PBS) or partition (Slurm)")] = None,
    name: Annotated[str | None, typer.Option(help="of the job [that of the experiment]")] = None,
    at_once: Annotated[int | None, typer.Option(min=1, help="so many runs at a time")] = None,
    python: Annotated[str | None, typer.Option(help="the interpreter there [this one]")] = None,
    template: Annotated[Path | None, typer.Option(help="a jinja2 template of your own")] = None,
    data_root: DataRoot = None,
) -> None:
    """Write a job script for a cluster: an array with a task for each run."""
    from lilliput.bench.generation.job import Job, write

    given = {"memory": memory, "email": email, "queue": queue, "name": name, "at_once": at_once, "python": python}
    wanted = Job(
        experiment=experiment,
        system=system,  # pyright: ignore[reportArgumentType] - it is checked there
        folder=folder or Path("cgp") / experiment.stem,
        directory=Path.cwd(),
        walltime=walltime,
        cores=cores,
        data_root=data_root,
        **{key: value for key, value in given.items() if value is not None},
    )
    out(f"{path} is written: {write(wanted, path, template)}")
