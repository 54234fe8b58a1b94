"""`lilliput` and `python -m lilliput`: from the first moment on, an interrupt is one line."""

import sys

from lilliput.cli.interrupts import STOPS, catch_signals, stopped


def main() -> None:
    catch_signals()
    try:
        from lilliput.cli.main import main as command

        command()
    except STOPS as stop:
        sys.exit(stopped(stop))


if __name__ == "__main__":
    main()
