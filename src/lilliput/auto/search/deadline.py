"""The end of the time, for everything that tells its progress: what cannot be ready by then is stopped early."""

import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager

from lilliput.core.progress import Progress

LOOKED_AT = 1.5
"""Seconds after which the pace of a piece of work tells when it ends."""


class OutOfTimeError(Exception):
    """A piece of work was stopped: it takes so many `seconds`, as far as one can tell."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        super().__init__(f"it takes {seconds:,.1f} s")


class Deadline(Progress):
    """Passes progress on. Within `by(...)` it raises `OutOfTimeError` as soon as the end is sure to be missed."""

    def __init__(self, inner: Progress, now: Callable[[], float] | None = None) -> None:
        self.inner, self.now = inner, now or time.monotonic
        self.until: float | None = None

    @contextmanager
    def by(self, seconds: float | None) -> Iterator[None]:
        """For so many seconds from now; None = as long as it takes."""
        self.until = None if seconds is None else self.now() + seconds
        try:
            yield
        finally:
            self.until = None

    def say(self, text: str) -> None:
        self.inner.say(text)

    def check(self) -> None:
        """Between two pieces of work."""
        self._ends_at(self.now(), 0.0)

    @contextmanager
    def task(self, title: str, total: int | None = None) -> Generator[Callable[[int], None]]:
        with self.inner.task(title, total) as advance:
            begun, done = self.now(), 0

            def step(steps: int) -> None:
                nonlocal done
                done += steps
                advance(steps)
                taken = self.now() - begun
                if total is not None and 0 < done < total and taken >= LOOKED_AT:
                    taken *= total / done
                self._ends_at(begun + taken, taken)

            yield step

    def _ends_at(self, end: float, seconds: float) -> None:
        if self.until is not None and end > self.until:
            raise OutOfTimeError(seconds)


class Quiet(Progress):
    """The bars of a search's runs, without their lines: a search has its own."""

    def __init__(self, deadline: Deadline) -> None:
        self.deadline, self.task = deadline, deadline.task

    def say(self, text: str) -> None:
        self.deadline.check()
