"""Is validation what it should be: data that the network has not been trained on? What speaks against it is said.

Two signs, neither of which needs to know how the network was trained: samples of validation (or test) that are in train
too, bit by bit; and a score on validation far above that on test. Where guards look at such a validation they are too
kind; `MinAgreement` on augmented inputs needs neither labels nor fresh data.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence

import torch

from lilliput.core.guard import Evaluation
from lilliput.core.task import Data, Role, Task

MOST_BYTES = 1 << 30
"""Data sets beyond this are not compared sample by sample."""
REMEDY = "give validation data of its own, or use a guard of agreement: {agreement: 99%}"


def doubts(task: Task, evaluations: Mapping[str, Evaluation]) -> list[str]:
    """Sentences for the report; `evaluations` of the original network by role, as far as there are any."""
    found: list[str] = []
    score = task.score
    known, fresh = evaluations.get("validation"), evaluations.get("test")
    if known is not None and fresh is not None:
        ours, theirs = score.interval(known.rows), score.interval(fresh.rows)
        better = ours[0] > theirs[1] if score.higher_is_better else ours[1] < theirs[0]
        if better:
            values = score.value(known.rows), score.value(fresh.rows)
            numbers = f"{score.format(values[0])} on validation, {score.format(values[1])} on test"
            looks = f"validation looks like data that the network was trained on ({numbers})"
            found.append(f"{looks}, so guards are too kind: {REMEDY}")
    if task.train is not None:
        given: list[Role] = [role for role in ("validation", "test") if getattr(task, role) is not None]
        counts = repeated(task.data("train"), [task.data(role) for role in given])
        for role, count in zip(given, counts, strict=True):
            if count:
                found.append(f"{count:,} of {len(task.data(role)):,} samples of {role} are in train too")
    return found


def repeated(known: Data, asked: Sequence[Data]) -> list[int]:
    """How many samples of each of `asked` are in `known`, bit by bit; 0 where the sets are too large to look."""
    if len(known) == 0 or not any(len(data) for data in asked):
        return [0] * len(asked)
    size = known.batch(torch.tensor([0]))[0].nbytes
    if size * (len(known) + sum(len(data) for data in asked)) > MOST_BYTES:
        return [0] * len(asked)
    seen = set(_keys(known))
    return [sum(key in seen for key in _keys(data)) for data in asked]


def _keys(data: Data) -> Iterator[bytes]:
    for index in torch.arange(len(data)).split(512):
        for row in data.batch(index)[0].detach().cpu().contiguous().numpy():
            yield hashlib.blake2b(row.tobytes(), digest_size=12).digest()


def roles_of(task: Task, *, judged: bool) -> tuple[Role, ...]:
    """What `doubts` compares: validation is looked at only if a guard has looked at it anyway."""
    return ("validation", "test") if judged and task.test is not None else ()
