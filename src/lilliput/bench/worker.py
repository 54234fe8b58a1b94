"""A process that measures cells: a job a line (JSON) on standard input, its record a line on standard output."""

import json
import os
import sys
from collections.abc import Callable
from typing import Any

import torch

from lilliput.bench.cell import Subject, measure, open_subject
from lilliput.bench.grid import Limits, ModelSource
from lilliput.core.errors import LilliputError, UsageError
from lilliput.core.task import Role


class Worker:
    """Keeps the models that it has opened."""

    def __init__(self) -> None:
        self.subjects: dict[str, Subject] = {}

    def answer(self, job: dict[str, Any]) -> dict[str, Any]:
        """A record, or {"error": one line}."""
        return attempted(self._measured, job)

    def _measured(self, job: dict[str, Any]) -> dict[str, Any]:
        role: Role = job["role"]
        subject = self._subject(job["source"], role, job["data_root"])
        if subject.identity != job["identity"]:
            raise UsageError(
                f"model {job['source']['source']}",
                "its weights or its data are others each time it is made",
                "let it load weights, or make it with a generator that it seeds",
            )
        return measure(subject, job["recipe"], Limits(**job["limits"]), role)

    def _subject(self, source: dict[str, Any], role: Role, data_root: str | None) -> Subject:
        key = json.dumps([source, role, data_root], sort_keys=True)
        if key not in self.subjects:
            self.subjects[key] = open_subject(ModelSource(**source), role, data_root)
        return self.subjects[key]


def attempted(work: Callable[[dict[str, Any]], dict[str, Any]], job: dict[str, Any]) -> dict[str, Any]:
    """The record, or {"error": one line}: whatever happens in a job, the others go on."""
    try:
        return work(job)
    except LilliputError as error:
        return {"error": str(error)}
    except Exception as error:  # noqa: BLE001 - a method's bug is a row of the table
        return {"error": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"}


def serve(answer: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """Answer the jobs on standard input until it ends."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what methods or the user's code print is no answer
    torch.set_num_threads(1)
    for line in sys.stdin:
        answers.write(json.dumps(answer(json.loads(line))) + "\n")
        answers.flush()


if __name__ == "__main__":
    serve(Worker().answer)
