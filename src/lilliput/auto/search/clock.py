"""How long a candidate will take: by what its passes have taken before, or by what was timed at the start."""

import time
from collections.abc import Callable

from lilliput.auto.search.pace import JUDGED, epochs_in, kind_of
from lilliput.auto.search.record import Candidate
from lilliput.auto.search.setup import Setup, usual_values
from lilliput.auto.search.stages import looked_at_first
from lilliput.core.method import Pass
from lilliput.methods.second_order.layers import SecondOrder
from lilliput.training.trained import TrainingPass

PRICED = 4.0
"""A method that reads the graph takes about so many times what finding the usual price took."""
SLOWER = {
    "second_order_pruning": 5.0,
    "rate_distortion to a size": 6.0,
    "fine_tune to a size": 2.0,
    "quantization_aware_training": 3.0,
}
"""Than others of their sort, until they were timed."""
SPARE = 1.15
LEAST = 0.05
COMPARED = 5.0
"""Seconds for ONNX files, their checks and latencies, of a small network."""
EXPORTED = 1000
"""Samples on which exports are compared with what they were made from."""


class Clock:
    """The time that is given: `seconds` None = as long as it takes."""

    def __init__(self, seconds: float | None, now: Callable[[], float] | None = None) -> None:
        self.seconds, self.now = seconds, now or time.monotonic
        self.started = self.now()

    @property
    def used(self) -> float:
        return self.now() - self.started

    @property
    def left(self) -> float | None:
        return None if self.seconds is None else self.seconds - self.used


def predicted(setup: Setup, candidate: Candidate) -> float:
    """Seconds for a candidate, without what others have left in the cache."""
    passes = setup.passes(candidate)
    done = setup.cache.steps_of(setup.recipe(candidate))
    work = [(m, epochs_in(m)) for m in passes[done:]]
    looks = 1
    begun = next((i for i, m in enumerate(passes) if isinstance(m, TrainingPass)), len(passes))
    if looked_at_first(candidate):
        looks = 2
        work += [(m, 1) for m in passes[begun:] if not isinstance(m, TrainingPass)]
    seconds = sum(times * _one(setup, candidate.template, method) for method, times in work)
    judged = looks * len(setup.task.data("validation")) * _judged(setup)
    return max(SPARE * (seconds + judged), LEAST)


def usual(name: str, effort: str) -> Candidate:
    """What a template's candidates are like, for a prediction."""
    return Candidate(template=name, values=usual_values(name), effort=effort)


def _judged(setup: Setup) -> float:
    """Seconds that a sample takes in a candidate."""
    return setup.pace.of("", JUDGED) or setup.seconds.get("sample", 0.0)


def _one(setup: Setup, template: str, method: Pass) -> float:
    """Seconds of one pass, of a training those of an epoch."""
    known = setup.pace.of(template, kind_of(method))
    if known is not None:
        return known
    slower = SLOWER.get(kind_of(method), 1.0)
    sample = setup.seconds.get("sample", 0.0)
    if isinstance(method, TrainingPass):
        steps = setup.seconds.get("step", 0.0) * len(setup.task.data("train"))
        return slower * (steps + sample * len(setup.task.data("validation")))
    if isinstance(method, SecondOrder):
        return slower * PRICED * setup.seconds.get("price", 0.0)
    return 0.5 * slower * setup.seconds.get("int8", 0.0)


def reserve(setup: Setup, seconds: float) -> float:
    """What the comparison at the end takes of the time: at most half of it. Three networks meet the test role."""
    last = setup.task.data("test") if setup.task.has("test") else setup.task.data("validation")
    float_network = setup.seconds.get("sample", 0.0)
    needed = COMPARED + setup.seconds.get("int8", 0.0)
    needed += (len(last) + EXPORTED) * (float_network + 2 * max(_judged(setup), float_network))
    return min(SPARE * needed, 0.5 * seconds)
