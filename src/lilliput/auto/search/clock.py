"""How long a candidate will take: as those before it, or by what was timed at the start."""

import time
from collections.abc import Sequence
from statistics import median

from lilliput.auto.search.record import FULL, SHORT, Record
from lilliput.auto.search.setup import Setup, named

BACKWARD = 4.0
"""A training step takes about so many forwards, that of the teacher among them."""
PRICED = 4.0
"""A method that reads the graph takes about so many times what finding the usual price took."""
SPARE = 1.15
LEAST = 0.05
COMPARED = 6.0
"""Seconds for ONNX files, their checks and latencies, of a small network."""


class Clock:
    """The time that is given: `seconds` None = as long as it takes."""

    def __init__(self, seconds: float | None) -> None:
        self.started, self.seconds = time.monotonic(), seconds

    @property
    def used(self) -> float:
        return time.monotonic() - self.started

    @property
    def left(self) -> float | None:
        return None if self.seconds is None else self.seconds - self.used


def predicted(setup: Setup, name: str, effort: str, records: Sequence[Record]) -> float:
    """Seconds for one candidate of a template."""
    own = [r for r in records if r.name == name and not r.refused and r.same_as is None]
    alike = [r.seconds for r in own if r.effort == effort]
    if alike:
        return max(SPARE * median(alike), LEAST)
    if effort == FULL and (short := [r.seconds for r in own if r.effort == SHORT]):
        return SPARE * median(short) * setup.epochs / setup.short_epochs
    sample = setup.seconds.get("sample", 0.0)
    template = named(name)
    untrained = setup.seconds.get("int8", 0.0) + template.reads_graph * template.work * PRICED * setup.seconds.get(
        "price", 0.0
    )
    seconds = untrained + sample * len(setup.task.data("validation"))
    if template.trains:
        each = BACKWARD * len(setup.task.data("train")) + len(setup.task.data("validation"))
        seconds += untrained + setup.trainings(template) * setup.epochs_of(effort) * sample * each
    return max(seconds, LEAST)


def reserve(setup: Setup, seconds: float) -> float:
    """What the comparison at the end takes of the time: at most a fifth."""
    last = setup.task.data("test") if setup.task.has("test") else setup.task.data("validation")
    needed = COMPARED + 3 * setup.seconds.get("int8", 0.0) + 4 * len(last) * setup.seconds.get("sample", 0.0)
    return min(needed, 0.2 * seconds)
