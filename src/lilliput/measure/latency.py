"""How long calls take, compared fairly on a machine that does other things too.

Runners take turns (A B C A B C ...), so that what slows the machine slows all of them; a comparison is the median of
the ratios within each turn. Short calls are repeated inside a sample until the clock can tell.

Which clock: `CPU` (of the whole process) does not count the time when others have the processor, and adds up the
threads of a runner, so one that secretly uses two cores gains nothing. It is the default, with one thread for every
runner (`single_thread` for torch). For several threads take `WALL`, and a quiet machine.
"""

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from lilliput.core.cost import Measurement
from lilliput.core.errors import UsageError

MAX_LOOPS = 1_000_000


@dataclass(frozen=True)
class Clock:
    """`read()` gives seconds."""

    name: str
    read: Callable[[], float]


CPU = Clock("process CPU time", time.process_time)
WALL = Clock("wall clock", time.perf_counter)


@dataclass(frozen=True)
class Runner:
    """A call and, when asked, what it runs on: "torch 2.13.0, 1 thread"."""

    call: Callable[[], object]
    describe: Callable[[], str]

    def __call__(self) -> object:
        return self.call()


class Session(Protocol):
    """What is needed of an ONNX Runtime session."""

    def run(self, output_names: Any, input_feed: Any) -> Any: ...


def torch_runner(module: nn.Module, x: Tensor) -> Runner:
    """One forward without gradients, in the module's present mode; threads as torch has them when it runs."""

    def call() -> object:
        with torch.inference_mode():
            return module(x)

    return Runner(call, lambda: f"torch {torch.__version__}, {_threads(torch.get_num_threads())}")


def session_runner(session: Session, feed: Mapping[str, Any], *, threads: int, runtime: str = "ONNX Runtime") -> Runner:
    """`session.run(None, feed)`; `threads` is what the session was made with: a session does not change it."""
    inputs = dict(feed)
    return Runner(lambda: session.run(None, inputs), lambda: f"{runtime}, {_threads(threads)}")


@contextlib.contextmanager
def single_thread() -> Iterator[None]:
    """torch computes on one thread inside, and on as many as before afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@dataclass(frozen=True, kw_only=True)
class Timings:
    """`samples[name]` are milliseconds a call, turn by turn; `notes[name]` says runtime, threads and clock."""

    samples: Mapping[str, tuple[float, ...]]
    notes: Mapping[str, str]

    def latency(self, name: str) -> Measurement:
        """Median, and the 10th to 90th percentile of the turns."""
        return _summary("latency", self._samples(name), "ms", self.notes[name])

    def ratio(self, name: str, baseline: str) -> Measurement:
        """Time of `name` by time of `baseline`, each turn for itself: 0.5 is twice as fast."""
        pairs = list(zip(self._samples(name), self._samples(baseline), strict=True))
        if any(b <= 0 for _, b in pairs):
            raise UsageError(f"ratio to {baseline!r}", "a sample that took no time", "measure with more min_time_ms")
        note = f"to {baseline} ({self.notes[baseline]}); {self.notes[name]}"
        return _summary("latency_ratio", tuple(a / b for a, b in pairs), "x", note)

    def latencies(self) -> dict[str, Measurement]:
        return {name: self.latency(name) for name in self.samples}

    def _samples(self, name: str) -> tuple[float, ...]:
        if name not in self.samples:
            raise UsageError(f"latency of {name!r}", "it was not measured", f"measured are {', '.join(self.samples)}")
        return self.samples[name]


def interleaved(
    runners: Mapping[str, Callable[[], object]],
    *,
    repeats: int = 30,
    warmup: int = 3,
    min_time_ms: float = 0.5,
    clock: Clock = CPU,
) -> Timings:
    """`repeats` turns; in each, every runner once, called as often as it takes to fill `min_time_ms`.

    How many calls that are is found once, after `warmup` calls. What a runner raises goes through.
    """
    if not runners or repeats < 1 or warmup < 0:
        raise UsageError(
            "interleaved timing",
            f"{len(runners)} runners, repeats={repeats}, warmup={warmup}",
            "give a runner at least, repeats from 1 and warmup from 0",
        )
    loops: dict[str, int] = {}
    for name, runner in runners.items():
        for _ in range(warmup):
            runner()
        loops[name] = _loops(runner, min_time_ms, clock)
    samples: dict[str, list[float]] = {name: [] for name in runners}
    for _ in range(repeats):
        for name, runner in runners.items():
            samples[name].append(_milliseconds(runner, loops[name], clock) / loops[name])
    notes = {
        name: f"{runner.describe() if isinstance(runner, Runner) else 'Python call'}, {clock.name}"
        for name, runner in runners.items()
    }
    return Timings(samples={name: tuple(taken) for name, taken in samples.items()}, notes=notes)


def _loops(runner: Callable[[], object], min_time_ms: float, clock: Clock) -> int:
    """Doubled until the clock shows `min_time_ms`."""
    loops = 1
    while loops < MAX_LOOPS and _milliseconds(runner, loops, clock) < min_time_ms:
        loops *= 2
    return loops


def _milliseconds(runner: Callable[[], object], loops: int, clock: Clock) -> float:
    call = runner.call if isinstance(runner, Runner) else runner
    start = clock.read()
    for _ in range(loops):
        call()
    return (clock.read() - start) * 1000


def _summary(name: str, values: tuple[float, ...], unit: str, note: str) -> Measurement:
    low, middle, high = (float(v) for v in np.quantile(values, (0.1, 0.5, 0.9)))
    return Measurement(name, middle, unit, "measured", spread=(low, high), note=note)


def _threads(count: int) -> str:
    return f"{count} thread" if count == 1 else f"{count} threads"
