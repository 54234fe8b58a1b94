"""`lilliput bench grid.yaml`, and `lilliput bench report FOLDER`."""

from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from lilliput.cli.console import ConsoleProgress, out, out_json
from lilliput.cli.interrupts import STOPS, stopped
from lilliput.cli.options import DataRoot, Json, Quiet


class RunsByDefault(TyperGroup):
    """`bench grid.yaml` is `bench run grid.yaml`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        named = args and (args[0] in self.commands or args[0] == "--help")
        return super().parse_args(ctx, args if named or not args else ["run", *args])


bench = typer.Typer(
    cls=RunsByDefault,
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Compare methods x budgets x seeds on equal terms: bench GRID.yaml, then bench report FOLDER.",
)


@bench.command()
def run(
    grid: Annotated[Path, typer.Argument(help="models, methods, budgets, seeds and limits, as YAML")],
    out_folder: Annotated[
        Path | None, typer.Option("--out", help="where cells and tables go [bench/NAME]; goes on where it was")
    ] = None,
    jobs: Annotated[int, typer.Option(min=1, help="processes of one thread each")] = 1,
    retry: Annotated[bool, typer.Option("--retry", help="run failed cells again")] = False,
    data_root: DataRoot = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Run the cells of a grid that are not done yet, then write the tables."""
    from lilliput.bench.grid import load
    from lilliput.bench.run import plan, run_cells

    progress = ConsoleProgress(quiet=quiet)
    folder = out_folder or Path("bench") / grid.stem
    try:
        planned = plan(load(grid), data_root=None if data_root is None else str(data_root))
        progress.say(f"{len(planned.cells)} cells into {folder}")
        run_cells(planned, folder, jobs=jobs, retry=retry, progress=progress)
    except STOPS as stop:
        raise typer.Exit(stopped(stop, "finished cells are kept: the same command goes on")) from None
    report(folder, as_json=as_json)


@bench.command()
def report(
    folder: Annotated[Path, typer.Argument(help="the folder of a benchmark")],
    as_json: Json = False,
) -> None:
    """Make the tables again from what is done, without running anything."""
    from lilliput.bench.store import read_results
    from lilliput.bench.summary import summarize, to_data
    from lilliput.bench.tables import write_all

    plan, records = read_results(folder)
    text = write_all(folder, plan, records)
    if as_json:
        out_json(to_data(summarize(plan, records)))
    else:
        out(text)
        out(f"\nwritten to {folder}: table.md, table.tex, table.csv, results.json")
