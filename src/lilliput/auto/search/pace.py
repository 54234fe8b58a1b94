"""What passes have taken so far, by template and kind."""

from statistics import median

from lilliput.core.method import Pass
from lilliput.training.trained import TrainingPass

JUDGED = "judged"
"""The kind under which stands what a sample takes when candidates are measured."""


def kind_of(method: Pass) -> str:
    """Passes of one kind take about as long as each other: what holds a size is another kind."""
    return f"{method.name} to a size" if method.settings().get("max_bytes") else method.name


def epochs_in(method: Pass) -> int:
    """Of a training; 1 for all else."""
    return method.epochs if isinstance(method, TrainingPass) else 1


class Pace:
    """Seconds of each pass that this process has run; of a training those of an epoch."""

    def __init__(self) -> None:
        self.seen: dict[tuple[str, str], list[float]] = {}

    def note(self, template: str, kind: str, seconds: float) -> None:
        self.seen.setdefault((template, kind), []).append(seconds)

    def correct(self, template: str, kind: str, seconds: float) -> None:
        """It was believed to be faster: what was seen before does not count any more."""
        self.seen[template, kind] = [seconds]

    def of(self, template: str, kind: str) -> float | None:
        """In this template, else in any of them; None if it was never run."""
        own = self.seen.get((template, kind))
        every = own or [s for (_, other), found in self.seen.items() if other == kind for s in found]
        return median(every) if every else None
