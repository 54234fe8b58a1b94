"""Progress comes in as an argument; the default is silent."""

from collections.abc import Callable, Generator
from contextlib import contextmanager


class Progress:
    """Silent progress, and the interface of those that show something.

    >>> with Progress().task("calibrate", total=3) as advance:
    ...     advance(1)
    """

    def say(self, text: str) -> None:
        """One line for the user."""

    @contextmanager
    def task(self, title: str, total: int | None = None) -> Generator[Callable[[int], None]]:
        """A piece of work with `total` steps (None = unknown); call the yielded function with the steps done."""
        yield lambda steps: None


SILENT = Progress()
