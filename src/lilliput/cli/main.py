"""The command `lilliput`."""

import os
import sys
import traceback
from pathlib import Path
from typing import Annotated, Any

import typer

from lilliput.cli import benching, cgp, changing, comparing, exporting, guarding, looking
from lilliput.cli.console import complain, out
from lilliput.cli.interrupts import STOPS, catch_signals, ignore_signals, received, stopped
from lilliput.core.errors import BUG, LilliputError
from lilliput.core.files import refused

app = typer.Typer(
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Make neural networks small enough for the device they must run on, and prove it.",
)

DEBUG, DEBUG_VARIABLE = "--debug", "LILLIPUT_DEBUG"
WRONG_USE: Any = typer.BadParameter.__mro__[2]
"""What typer raises for wrong options; it has no public name of its own."""


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


for command in (
    changing.compress,
    changing.apply,
    changing.demo,
    looking.check,
    looking.analyse,
    guarding.safety_set,
    changing.train,
    looking.evaluate,
    looking.predict,
    looking.inspect,
    comparing.compare,
    looking.diff,
    exporting.export,
    exporting.verify,
    looking.report,
    looking.methods,
    looking.zoo,
):
    app.command()(command)
app.add_typer(benching.bench, name="bench")
app.add_typer(cgp.cgp, name="cgp")


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
