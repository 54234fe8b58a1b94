"""The journal of a search: one Optuna study in a file that several processes, or machines, may share."""

import hashlib
import json
import math
import os
import secrets
import socket
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from lilliput.auto.search.budget import Budget
from lilliput.auto.search.record import UNTRAINED, Candidate, Record
from lilliput.auto.search.templates import STRENGTH, Template
from lilliput.core.errors import ArtifactError, MissingExtraError, UsageError
from lilliput.core.files import locked

WINDOW = 0.08
"""Of strength, around where a template's candidates are thought to keep the limits: what the sampler chooses in."""
RANDOM_TRIALS = 6
WORST = 1e9
"""Told of a candidate that could not be measured."""
ABANDONED_S = 5
"""A lock is held while a line is written. One that stays so long, with nothing written, is that of a killed process."""
STALE_SECONDS = 6 * 3600
"""Of a trial of another machine, whose processes cannot be seen from here."""


def check_installed() -> None:
    """Raises `MissingExtraError` without Optuna: to be known before anything is measured."""
    if find_spec("optuna") is None:
        raise MissingExtraError("search", "optuna is not installed", "pip install 'lilliput[search]'")


class Journal:
    """Which candidates were tried, by whom, and what became of them. Ask and tell: the search has the loop."""

    def __init__(self, folder: Path, budget: Budget, seed: int) -> None:
        check_installed()
        import optuna
        from optuna.storages import JournalStorage
        from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock

        self.optuna, self.budget, self.seed = optuna, budget, seed
        self.workers = folder / "workers"
        self.name = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(3)}"
        path = folder / "journal.log"
        folder.mkdir(parents=True, exist_ok=True)
        lock = JournalFileSymlinkLock(str(path), grace_period=ABANDONED_S)
        with self._quiet():
            lock.acquire()
            try:
                _mend(path)
            finally:
                lock.release()
            storage = JournalStorage(JournalFileBackend(str(path), lock))
            self.study = optuna.create_study(
                storage=storage, study_name="search", load_if_exists=True, sampler=optuna.samplers.RandomSampler(seed=0)
            )

    @contextmanager
    def working(self) -> Iterator[None]:
        """While this process is at work: others see that its trials are under way."""
        with locked(self.workers / self.name, "join the search"):
            yield

    def records(self) -> list[Record]:
        """What became of candidates, in order of their numbers."""
        trials = self.study.get_trials(deepcopy=False)
        return [Record.from_data(t.user_attrs["record"]) for t in trials if "record" in t.user_attrs]

    def under_way(self) -> list[Candidate]:
        """Candidates that are waiting, or that somebody is at."""
        state = self.optuna.trial.TrialState
        found: list[Candidate] = []
        for trial in self.study.get_trials(deepcopy=False, states=(state.WAITING, state.RUNNING)):
            params = trial.system_attrs.get("fixed_params") or trial.params
            name = params.get("template")
            if isinstance(name, str):
                values = {k.partition("/")[2]: v for k, v in params.items() if k.startswith(f"{name}/")}
                attrs = trial.user_attrs
                found.append(
                    Candidate(template=name, values=values, effort=attrs.get("effort", UNTRAINED), **_after(attrs))
                )
        return found

    def retake_(self) -> int:
        """Trials whose process has ended are queued again. Returns how many."""
        state = self.optuna.trial.TrialState
        count = 0
        for trial in self.study.get_trials(deepcopy=False, states=(state.RUNNING,)):
            worker = trial.user_attrs.get("worker", "")
            if worker == self.name or self._alive(worker, trial):
                continue
            self.study.tell(trial.number, state=state.FAIL, skip_if_finished=True)
            fixed, attrs = trial.system_attrs.get("fixed_params"), trial.user_attrs
            params = fixed or (
                trial.params if "effort" in attrs else None
            )  # else it had not chosen all, and does so again
            if params:
                kept = {k: v for k, v in attrs.items() if k in ("effort", "of", "epochs")}
                self.study.enqueue_trial(params, user_attrs={**kept, "worker": self.name})
                count += 1
        return count

    def _alive(self, worker: str, trial: Any) -> bool:
        path = self.workers / worker
        if worker and worker.rpartition("-")[0].rpartition("-")[0] != socket.gethostname():
            begun = trial.datetime_start
            return begun is not None and time.time() - begun.timestamp() < STALE_SECONDS
        if not worker or not path.exists():
            return bool(not worker and trial.datetime_start and time.time() - trial.datetime_start.timestamp() < 60)
        try:
            with locked(path, "worker"):
                return False
        except UsageError:
            return True

    def waiting(self) -> bool:
        """Whether a candidate is queued that nobody is at."""
        return bool(self.study.get_trials(deepcopy=False, states=(self.optuna.trial.TrialState.WAITING,)))

    def queue(self, candidate: Candidate) -> None:
        params = {"template": candidate.template} | {
            f"{candidate.template}/{k}": v for k, v in candidate.values.items()
        }
        attrs: dict[str, Any] = {"effort": candidate.effort, "worker": self.name}
        if candidate.of is not None:
            attrs |= {"of": candidate.of, "epochs": candidate.epochs}
        self.study.enqueue_trial(params, user_attrs=attrs)

    def ask(
        self, templates: tuple[Template, ...], around: Mapping[str, float], efforts: Mapping[str, str]
    ) -> tuple[Any, Candidate]:
        """The next that is queued, or else what the sampler chooses: strengths in a window `around` where they count.

        The sampler's randomness follows from the seed and the number of finished trials, so a search that is resumed
        asks what it would have asked.
        """
        from optuna.samplers import TPESampler

        finished = len(self.records())
        digest = hashlib.blake2b(f"{self.seed}/{finished}".encode(), digest_size=4).digest()
        with self._quiet():
            self.study.sampler = TPESampler(
                seed=int.from_bytes(digest, "little"), n_startup_trials=RANDOM_TRIALS, n_ei_candidates=24
            )
            trial = self.study.ask()
            trial.set_user_attr("worker", self.name)
            name = trial.suggest_categorical("template", [t.name for t in templates])
            template = next(t for t in templates if t.name == name)
            fixed = self.study.get_trials(deepcopy=False)[trial.number].system_attrs.get("fixed_params", {})
            middle = around.get(name, template.start)
            low, high = max(0.0, middle - WINDOW), min(1.0, middle + WINDOW)
            if f"{name}/{STRENGTH}" in fixed:
                low, high = 0.0, 1.0
            values = {STRENGTH: round(trial.suggest_float(f"{name}/{STRENGTH}", low, high), 4)}
            for knob in template.knobs:
                values[knob.name] = trial.suggest_float(f"{name}/{knob.name}", knob.low, knob.high, log=knob.log)
        attrs = trial.user_attrs
        effort = attrs.get("effort") or efforts[name]
        if "effort" not in attrs:
            trial.set_user_attr("effort", effort)
        return trial, Candidate(template=name, values=values, effort=effort, **_after(attrs))

    def tell(self, trial: Any, record: Record) -> None:
        state = self.optuna.trial.TrialState
        trial.set_user_attr("record", record.to_data())
        value = math.inf if record.measured is None else self.budget.cost(record.measured)
        if record.measured is None or not math.isfinite(value):
            trial.set_constraint("refused", WORST)  # a failed trial would teach the sampler nothing
            self.study.tell(trial, WORST)
            return
        for name, over in self.budget.excess(record.measured).items():
            trial.set_constraint(name, over)
        if record.refused:
            trial.report(value, step=record.rung)
            self.study.tell(trial, state=state.PRUNED)
        else:
            self.study.tell(trial, value)

    def drop(self, trial: Any) -> None:
        """It was asked for, and will not be run."""
        self.study.tell(trial, state=self.optuna.trial.TrialState.FAIL)

    @contextmanager
    def _quiet(self) -> Iterator[None]:
        """Optuna without its lines, and as the caller had it afterwards."""
        logging = self.optuna.logging
        before = logging.get_verbosity()
        logging.set_verbosity(logging.ERROR)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", self.optuna.exceptions.ExperimentalWarning)
                yield
        finally:
            logging.set_verbosity(before)


def _after(attrs: Mapping[str, Any]) -> dict[str, Any]:
    return {"of": attrs.get("of"), "epochs": attrs.get("epochs", 0)}


def _mend(path: Path) -> None:
    """Cut off a last line that a killed process has not finished. Only while the journal is locked.

    Raises `ArtifactError` where another line is damaged.
    """
    if not path.exists():
        return
    data = path.read_bytes()
    keep = data.rfind(b"\n") + 1
    for number, line in enumerate(data[:keep].splitlines(), 1):
        try:
            whole = isinstance(json.loads(line), dict)
        except ValueError:
            whole = False
        if not whole:
            do = "remove it and the lines after it, or start a new run"
            raise ArtifactError(f"read {path}", f"line {number} is damaged", do)
    if keep < len(data):
        with path.open("r+b") as file:
            file.truncate(keep)
