"""A search ends when its time is over: what cannot be ready is stopped early, made shorter, or not begun."""

from contextlib import contextmanager
from functools import partial

import pytest

from lilliput.auto.compress import compress
from lilliput.auto.search import find
from lilliput.auto.search.clock import Clock
from lilliput.auto.search.deadline import Deadline, OutOfTimeError, Quiet
from lilliput.auto.search.pace import Pace, epochs_in, kind_of
from lilliput.core.progress import Progress
from lilliput.methods.second_order.rate_distortion import RateDistortion
from lilliput.methods.tuning.fine_tune import FineTune
from searched import Lines, three_roles, trained


class Ticking(Lines):
    """A clock that goes on with the work: a second for each piece of work and each step of a training."""

    def __init__(self):
        super().__init__()
        self.time, self.step, self.trainings = 0.0, 1.0, []

    def now(self):
        return self.time

    @contextmanager
    def task(self, title, total=None):
        trains = title.startswith("train")
        self.time += 1
        if trains:
            self.trainings.append(total)

        def advance(steps):
            self.time += self.step * steps if trains else 0.0

        yield advance


AFTER = 20.0
"""For the comparison at the end, whose pieces are more than what its prediction in real seconds allows for."""


def work(deadline, title, steps, *, known):
    with deadline.task(title, steps if known else None) as advance:
        for _ in range(steps):
            advance(1)


def test_work_that_cannot_be_ready_is_stopped_after_a_few_steps_with_what_it_would_take():
    clock = Ticking()
    deadline = Deadline(clock, now=clock.now)
    with deadline.by(50), pytest.raises(OutOfTimeError) as late:
        work(deadline, "train 1 epochs", 100, known=True)
    assert late.value.seconds == pytest.approx(100)
    assert clock.time <= 3


@pytest.mark.parametrize("seconds", [None, 102.0])
def test_work_that_is_ready_in_time_is_left_alone(seconds):
    clock = Ticking()
    deadline = Deadline(clock, now=clock.now)
    with deadline.by(seconds):
        work(deadline, "train 1 epochs", 100, known=True)
    work(deadline, "train 1 epochs", 500, known=True)  # nobody waits any more
    assert clock.time == 602


def test_work_of_unknown_length_is_stopped_at_the_end_and_nothing_begins_after_it():
    clock = Ticking()
    deadline = Deadline(clock, now=clock.now)
    with deadline.by(10):
        with pytest.raises(OutOfTimeError):
            work(deadline, "train", 100, known=False)
        assert clock.time == 11
        with pytest.raises(OutOfTimeError):
            Quiet(deadline).say("quantization ...")


def test_pace_is_the_median_of_the_template_else_of_all_until_it_is_corrected():
    pace = Pace()
    assert pace.of("one", "fine_tune") is None
    for seconds in (1.0, 2.0, 9.0):
        pace.note("one", "fine_tune", seconds)
    assert pace.of("one", "fine_tune") == pace.of("two", "fine_tune") == 2.0
    pace.correct("one", "fine_tune", 30.0)
    assert pace.of("one", "fine_tune") == 30.0


def test_what_holds_a_size_is_another_kind_and_trainings_count_by_epochs():
    assert kind_of(FineTune(epochs=3)) == "fine_tune"
    assert kind_of(RateDistortion(max_bytes=500)) != kind_of(RateDistortion(price=1.0))
    assert (epochs_in(FineTune(epochs=3)), epochs_in(RateDistortion())) == (3, 1)


@pytest.fixture
def ticking(monkeypatch):
    clock = Ticking()
    monkeypatch.setattr(find, "Deadline", partial(Deadline, now=clock.now))
    monkeypatch.setattr(find, "Clock", partial(Clock, now=clock.now))
    return clock


def searched(ticking, seconds):
    task = three_roles()
    found = compress(trained("batch_norm", task), task, max_bytes=700, time=seconds, progress=ticking)
    return found, ticking


def test_trainings_that_take_longer_than_the_time_are_left_and_the_time_is_kept(ticking, monkeypatch):
    """Each step of a training takes half of the time; untrained candidates fit."""
    monkeypatch.setattr(ticking, "step", 30.0)
    found, clock = searched(ticking, 60.0)
    assert found.feasible
    assert clock.time <= 60.0 + AFTER + 30.0  # no training goes on for two steps
    tried = [t for t in found.trials if t["trial"] is not None]
    assert tried
    assert all(t["training"] == "untrained" for t in tried)
    assert any("left, as it takes" in line for line in clock.lines)


def test_the_second_half_trains_the_best_longer_within_the_time(ticking):
    found, clock = searched(ticking, 150.0)
    assert clock.time <= 150.0 + AFTER
    long = [t for t in found.trials if t["training"] == "long"]
    assert long
    assert {t["rung"] for t in long} == {4}
    assert max(ticking.trainings) >= 24  # twice the 12 epochs of a full training


def test_a_progress_that_only_listens_stays_as_it_was():
    lines = Lines()
    Deadline(lines).say("hello")
    assert lines.lines == ["hello"]
    assert isinstance(Deadline(lines), Progress)
