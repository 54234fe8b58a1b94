"""What the commands print: progress on stderr, results on stdout, errors in one line."""

import shlex
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lilliput.core.files import refused
from lilliput.core.progress import Progress


class ConsoleProgress(Progress):
    """Lines and a bar on a terminal's stderr; only the lines, without colour, where stderr is not a terminal."""

    def __init__(self, *, quiet: bool = False) -> None:
        from rich.console import Console

        self.quiet = quiet
        self.console: Any = Console(stderr=True, highlight=False, soft_wrap=True)
        self.started = time.monotonic()

    def say(self, text: str) -> None:
        if not self.quiet:
            self.console.print(f"[{time.monotonic() - self.started:6.1f}s] {text}", markup=False)

    @contextmanager
    def task(self, title: str, total: int | None = None) -> Iterator[Callable[[int], None]]:
        if self.quiet or not self.console.is_terminal:
            yield lambda steps: None
            return
        from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Bars

        columns = (
            TextColumn("          {task.description}"),
            BarColumn(bar_width=30),
            TextColumn("{task.percentage:>3.0f}%"),
            TimeRemainingColumn(),
        )
        with Bars(*columns, console=self.console, transient=True) as bars:
            row = bars.add_task(title, total=total)
            yield lambda steps: bars.advance(row, steps)


def out(text: str) -> None:
    """A line of the result."""
    _write(text + "\n")


def out_json(data: object) -> None:
    from lilliput.pipeline.folder import json_text

    _write(json_text(data, indent=2))


def answer(data: object, text: str, *, as_json: bool) -> None:
    """What a command has found: for machines with --json, else for people."""
    if as_json:
        out_json(data)
    else:
        out(text)


def commands_of(
    folder: Path, model: str, recipe: Path | None, sources: Mapping[str, object], more: Mapping[str, object]
) -> list[str]:
    """The lines that give the run of a folder again: as it was asked for, and by its recipe."""
    used = folder / "recipe.yaml"
    given = {"--recipe": used if recipe is not None else None, **sources, **more}
    return [command_line("compress", [model], given), command_line("apply", [used, model], sources)]


def command_line(command: str, arguments: Sequence[object], options: Mapping[str, object]) -> str:
    """The line that gives these options, without those that are None."""
    given = [word for name, value in options.items() if value is not None for word in (name, str(value))]
    return shlex.join(["lilliput", command, *map(str, arguments), *given])


def complain(text: str) -> None:
    sys.stderr.write(f"error: {text}\n")


def _write(text: str) -> None:
    try:
        sys.stdout.write(text)
    except BrokenPipeError:  # nobody reads: not worth a word
        raise
    except OSError as error:
        raise refused("write standard output", error) from error
