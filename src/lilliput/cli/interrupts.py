"""Ctrl-C, SIGTERM and a closed terminal: one line that says how to go on, whatever was under way.

Imports nothing heavy: signals are caught before the rest of Lilliput is loaded.
"""

import os
import signal
import sys
from contextlib import suppress
from typing import Any

from lilliput.cli.console import complain

NUMBERS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
ASIDE = (signal.SIG_DFL, signal.default_int_handler)
AGAIN_SECONDS = 0.3
SOON_SECONDS, MOST_WAITS = 0.01, 150
"""Inside of torch the signal waits: its C++ cannot take an exception at every moment, and would end the process."""


class Interrupted(BaseException):
    """A signal asks the process to end. Not a KeyboardInterrupt: the option parser would swallow that."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


STOPS = (KeyboardInterrupt, Interrupted)


class _Handler:
    """Raises `Interrupted` at the first signal, and ends the process at the second.

    What the first one interrupts may swallow it: a destructor, an extension that is being loaded. So it is raised again
    until someone has answered (`ignore_signals`).
    """

    def __init__(self) -> None:
        self.first: int | None = None
        self.waits = 0

    def __call__(self, number: int, frame: Any) -> None:
        if self.first is not None:
            with suppress(OSError):  # not sys.stderr, which may be in the middle of something
                os.write(2, b"error: interrupted twice; what was finished is kept\n")
            os._exit(128 + number)
        self.first = number
        self.again(number, frame)

    def again(self, number: int, frame: Any) -> None:
        if self.first is None:
            return
        inside = frame is not None and str(frame.f_globals.get("__name__", "")).startswith("torch")
        if inside and self.waits < MOST_WAITS:
            self.waits += 1
            signal.setitimer(signal.ITIMER_REAL, SOON_SECONDS)
            return
        signal.setitimer(signal.ITIMER_REAL, AGAIN_SECONDS)
        raise Interrupted(self.first)

    def unraisable(self, report: Any) -> None:
        if not isinstance(report.exc_value, Interrupted):  # that one comes again
            sys.__unraisablehook__(report)


def catch_signals() -> None:
    """From now on the first signal raises `Interrupted`, and a second one ends the process on the spot.

    What the caller has set to be ignored (`nohup`, jobs in the background) stays ignored.
    """
    handler = _Handler()
    for number in NUMBERS:
        if signal.getsignal(number) in ASIDE:
            signal.signal(number, handler)
            signal.signal(signal.SIGALRM, handler.again)
            sys.unraisablehook = handler.unraisable


def ignore_signals() -> None:
    """For the last moments, when everything is said."""
    for number in NUMBERS:
        if isinstance(signal.getsignal(number), _Handler):
            signal.signal(signal.SIGALRM, signal.SIG_IGN)
            signal.signal(number, signal.SIG_IGN)


def received() -> Interrupted | None:
    """The signal that came. Code that it interrupts may turn it into another error."""
    handlers = [h for h in map(signal.getsignal, NUMBERS) if isinstance(h, _Handler)]
    return Interrupted(handlers[0].first) if handlers and handlers[0].first is not None else None


def stopped(stop: BaseException, then: str = "") -> int:
    """Say that the command was interrupted, and what to do; gives the exit code: 128 and the number of the signal."""
    ignore_signals()
    with suppress(OSError):  # a terminal that is gone
        complain(f"interrupted; {then}" if then else "interrupted")
    return 128 + (stop.number if isinstance(stop, Interrupted) else int(signal.SIGINT))
