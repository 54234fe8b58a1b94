"""A process that does runs of experiments, one after the other."""

from pathlib import Path
from typing import Any

from lilliput.bench.generation.experiment import load
from lilliput.bench.generation.folder import RUNS
from lilliput.bench.generation.one import EXPERIMENT, fingerprint, work
from lilliput.bench.generation.subject import Subject, open_subject
from lilliput.bench.worker import attempted, serve
from lilliput.core.errors import UsageError


class Worker:
    """Keeps the experiment that it has opened."""

    def __init__(self) -> None:
        self.opened: tuple[str, Subject] | None = None

    def answer(self, job: dict[str, Any]) -> dict[str, Any]:
        """A record, or {"error": one line}."""
        return attempted(self._done, job)

    def _done(self, job: dict[str, Any]) -> dict[str, Any]:
        folder = Path(job["folder"])
        if self.opened is None or self.opened[0] != job["folder"]:
            self.opened = job["folder"], open_subject(load(folder / EXPERIMENT), job["data_root"])
        subject = self.opened[1]
        run = subject.experiment.grid()[job["run"]]
        if fingerprint(subject.problem(run), run) != job["fingerprint"]:
            do = "let it load weights, or make it with a generator that it seeds"
            raise UsageError(f"model {subject.experiment.model}", "its weights are others each time it is made", do)
        path = folder / RUNS / run.name
        return work(subject, run, path, generations=job["generations"], processes=job["processes"])


if __name__ == "__main__":
    serve(Worker().answer)
