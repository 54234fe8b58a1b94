import contextlib
import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from lilliput.core.errors import UsageError
from lilliput.measure.latency import CPU, WALL, Clock, interleaved, session_runner, single_thread, torch_runner


class FakeTime:
    """A clock that runners move: no timing of the machine is in these tests."""

    def __init__(self):
        self.now, self.calls = 0.0, []
        self.clock = Clock("fake clock", lambda: self.now)

    def runner(self, name, milliseconds):
        durations = iter(milliseconds) if isinstance(milliseconds, list) else itertools.repeat(milliseconds)

        def call():
            self.calls.append(name)
            self.now += next(durations) / 1000

        return call


def test_runners_take_turns():
    fake = FakeTime()
    runners = {name: fake.runner(name, 1.0) for name in "abc"}
    interleaved(runners, repeats=3, warmup=1, clock=fake.clock)
    assert "".join(fake.calls) == "aabbcc" + "abc" * 3  # a warm-up and a trial each, then turns


@given(st.floats(0.001, 5), st.floats(0.001, 5))
def test_latency_is_the_time_of_one_call_however_many_fill_a_sample(one, other):
    fake = FakeTime()
    found = interleaved({"a": fake.runner("a", one), "b": fake.runner("b", other)}, repeats=3, clock=fake.clock)
    assert found.latency("a").value == pytest.approx(one)
    assert found.latency("b").unit == "ms"
    assert found.ratio("a", "b").value == pytest.approx(one / other)
    assert found.ratio("a", "a").value == 1
    assert fake.calls.count("a") * one >= 3 * 0.5


def test_short_calls_fill_the_minimum_time():
    fake = FakeTime()
    interleaved({"a": fake.runner("a", 0.01)}, repeats=1, warmup=0, min_time_ms=0.5, clock=fake.clock)
    assert len(fake.calls) == (1 + 2 + 4 + 8 + 16 + 32 + 64) + 64


def test_the_ratio_compares_within_turns():
    """The machine gets ten times slower half-way: the median of ratios does not see it, the ratio of medians would."""
    fake = FakeTime()
    trial = 1.0  # finds out how many calls fill a sample
    a = fake.runner("a", [trial, 1.0, 1.0, 10.0, 10.0, 10.0])
    b = fake.runner("b", [trial, 2.0, 2.0, 2.0, 20.0, 20.0])
    found = interleaved({"a": a, "b": b}, repeats=5, warmup=0, clock=fake.clock)
    assert found.ratio("a", "b").value == pytest.approx(0.5)
    assert found.latency("a").value == pytest.approx(10)
    assert found.latency("b").value == pytest.approx(2)
    assert found.latency("a").spread == pytest.approx((1.0, 10.0))


def test_what_a_runner_raises_goes_through():
    def broken():
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        interleaved({"a": broken})


@pytest.mark.parametrize("settings", [{"repeats": 0}, {"warmup": -1}])
def test_impossible_settings_are_refused(settings):
    with pytest.raises(UsageError):
        interleaved({"a": lambda: None}, **settings)


def test_no_runner_no_such_runner_and_no_time_are_clear_errors():
    with pytest.raises(UsageError, match="0 runners"):
        interleaved({})
    fake = FakeTime()
    found = interleaved({"a": fake.runner("a", 1.0), "b": lambda: None}, repeats=1, min_time_ms=0, clock=fake.clock)
    with pytest.raises(UsageError, match="measured are a, b"):
        found.latency("c")
    with pytest.raises(UsageError, match="took no time"):
        found.ratio("a", "b")


def test_a_clock_that_stands_still_does_not_hang(monkeypatch):
    monkeypatch.setattr("lilliput.measure.latency.MAX_LOOPS", 8)
    found = interleaved({"a": lambda: None}, repeats=1, clock=Clock("stopped", lambda: 0.0))
    assert found.latency("a").value == 0


class FakeSession:
    def __init__(self):
        self.seen = []

    def run(self, output_names, input_feed):
        self.seen.append((output_names, input_feed))
        return []


def test_notes_say_runtime_threads_and_clock():
    session = FakeSession()
    runners = {
        "torch": torch_runner(nn.Linear(4, 2), torch.zeros(1, 4)),
        "onnx": session_runner(session, {"input": 1}, threads=2, runtime="ONNX Runtime 9"),
        "python": lambda: None,
    }
    with single_thread():
        found = interleaved(runners, repeats=2, warmup=1, min_time_ms=0.01, clock=WALL)
    assert found.notes == {
        "torch": f"torch {torch.__version__}, 1 thread, wall clock",
        "onnx": "ONNX Runtime 9, 2 threads, wall clock",
        "python": "Python call, wall clock",
    }
    assert session.seen[0] == (None, {"input": 1})
    measured = found.latencies()
    assert list(measured) == list(runners)
    assert all(m.origin == "measured" and m.value > 0 for m in measured.values())
    assert "to torch (" in found.ratio("onnx", "torch").note


def test_a_torch_runner_keeps_no_graph_and_the_modules_mode():
    layer = nn.Dropout()
    out = torch_runner(layer, torch.ones(1, 4, requires_grad=True))()
    assert isinstance(out, torch.Tensor)
    assert not out.requires_grad
    assert layer.training


def test_single_thread_gives_the_threads_back_after_an_error():
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        inside = 0
        with contextlib.suppress(ZeroDivisionError), single_thread():
            inside = torch.get_num_threads()
            raise ZeroDivisionError
        assert (inside, torch.get_num_threads()) == (1, 2)
    finally:
        torch.set_num_threads(before)


def test_the_clocks_move():
    for clock in (CPU, WALL):
        start = clock.read()
        while clock.read() == start:
            pass
        assert clock.read() > start
