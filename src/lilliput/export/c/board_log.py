"""What a board has sent (`bench`): found in its log, checked, and compared with the golden vectors.

A log may start in the middle of a line, hold other text and several runs: the last whole run of the network counts.
"""

import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from lilliput.core.errors import ArtifactError, UsageError, VerificationError
from lilliput.core.files import explained
from lilliput.export.c.golden import Golden

LARGEST_LOG = 100_000_000
TAG = re.compile(r"lilliput (start|vector|end)\b.*")
HEAD = r" (\w{1,31}) ([0-9a-f]{8})"
NUMBERS = {
    "start": re.compile(rf"lilliput start{HEAD} ([0-9]{{1,10}})"),
    "vector": re.compile(rf"lilliput vector{HEAD} ([0-9]{{1,10}}) ([0-9a-f]{{8}}) ([0-9]{{1,10}})"),
    "end": re.compile(rf"lilliput end{HEAD} ([0-9]{{1,10}}) ([0-9]{{1,10}}) ([0-9]{{1,10}})"),
}


@dataclass(frozen=True, kw_only=True)
class BoardRun:
    """Of one run: CRC-32 of the outputs and cycles of each vector, bytes of stack used and painted."""

    name: str
    fingerprint: int
    sums: tuple[int, ...]
    cycles: tuple[int, ...]
    stack: int
    painted: int

    @property
    def counted(self) -> bool:
        """Whether the board has a counter of cycles."""
        return any(self.cycles)

    def text(self) -> str:
        low, middle, high = min(self.cycles), int(median(self.cycles)), max(self.cycles)
        cycles = f"cycles {low:,} / {middle:,} / {high:,} (min / median / max)" if self.counted else "no cycle counter"
        least = "at least " if self.stack >= self.painted else ""
        return f"{len(self.sums)} vectors equal; {cycles}; stack {least}{self.stack:,} bytes"


@dataclass(kw_only=True)
class _Run:
    """As it comes in."""

    name: str
    fingerprint: str
    count: int
    vectors: dict[int, tuple[int, int]] = field(default_factory=dict[int, tuple[int, int]])
    troubles: list[str] = field(default_factory=list[str])
    end: tuple[int, int] | None = None


def check_log(path: Path, golden: Golden) -> BoardRun:
    """The run in the log, all of whose outputs are those of the golden vectors.

    Raises `ArtifactError` for a log that is cut off, damaged or of another network or firmware, `VerificationError`
    where outputs differ.
    """
    run = read_log(path, golden.name)
    if run.fingerprint != golden.fingerprint or len(run.sums) != len(golden.sums):
        found = f"its golden vectors are {run.fingerprint:08x}, those of the folder {golden.fingerprint:08x}"
        raise ArtifactError(f"verify {path}", found, "flash the firmware that has this folder in it")
    wrong = [i for i, (a, b) in enumerate(zip(run.sums, golden.sums, strict=True)) if a != b]
    if wrong:
        found = f"the outputs of {len(wrong)} of {len(run.sums)} vectors differ, first of vector {wrong[0]}"
        raise VerificationError(f"verify {path}", found, "check compiler and flags, and report this model")
    return run


def read_log(path: Path, name: str) -> BoardRun:
    """The last whole run of the network `name`. Raises `UsageError` and `ArtifactError`."""
    asked = f"verify {path}"
    if not path.is_file():
        raise UsageError(asked, "no such file", "store what the board sends in a file")
    with explained(asked, "check the path"):
        if path.stat().st_size > LARGEST_LOG:
            raise ArtifactError(asked, f"more than {LARGEST_LOG:,} bytes", "give the log of one run")
        lines = path.read_bytes().decode("ascii", errors="replace").splitlines()
    runs, others = _runs(lines, name)
    whole = next((run for run in reversed(runs) if run.end is not None), None)
    if whole is None:
        raise ArtifactError(asked, _nothing(runs, others, name), "record it again, from the reset on")
    missing = next((i for i in range(whole.count) if i not in whole.vectors), None)
    if missing is not None:
        whole.troubles.append(f"vector {missing} of {whole.count} is missing")
    if whole.troubles or whole.end is None:
        raise ArtifactError(asked, whole.troubles[0], "record it again")
    rows = [whole.vectors[i] for i in range(whole.count)]
    return BoardRun(
        name=name,
        fingerprint=int(whole.fingerprint, 16),
        sums=tuple(row[0] for row in rows),
        cycles=tuple(row[1] for row in rows),
        stack=whole.end[0],
        painted=whole.end[1],
    )


def _runs(lines: list[str], name: str) -> tuple[list[_Run], set[str]]:
    """The runs of this network, whole or not, and the names of other networks."""
    runs: list[_Run] = []
    others: set[str] = set()
    for number, kind, parts in _tagged(lines):
        if parts is None:
            if runs and runs[-1].end is None:
                runs[-1].troubles.append(f"line {number} is damaged: {kind}")
        elif parts[0] != name:
            others.add(parts[0])
        elif kind == "start":
            runs.append(_Run(name=name, fingerprint=parts[1], count=int(parts[2], 10)))
        elif runs and runs[-1].end is None:
            _add(runs[-1], number, kind, parts)
    return runs, others


def _tagged(lines: list[str]) -> Iterator[tuple[int, str, list[str] | None]]:
    """(line number, kind, name and numbers) of each line of ours; (number, why, None) of a damaged one."""
    for number, text in enumerate(lines, 1):
        tag = TAG.search(text)
        if tag is None:
            continue
        body, _, rest = tag[0].partition(" *")
        found = NUMBERS[tag[1]].fullmatch(body)
        if not re.fullmatch(r"[0-9a-f]{8}\s*", rest) or int(rest, 16) != zlib.crc32(body.encode("ascii", "replace")):
            yield number, "its checksum does not match", None
        elif found is None:
            yield number, "it is not as a bench writes it", None
        else:
            yield number, tag[1], list(found.groups())


def _add(run: _Run, number: int, kind: str, parts: list[str]) -> None:
    if parts[1] != run.fingerprint:
        run.troubles.append(f"line {number} is of another firmware: {parts[1]} after {run.fingerprint}")
    elif kind == "end":
        run.end = int(parts[3]), int(parts[4])
    elif int(parts[2]) in run.vectors or int(parts[2]) >= run.count:
        run.troubles.append(f"line {number} has vector {parts[2]} again, or one of more than {run.count}")
    else:
        run.vectors[int(parts[2])] = int(parts[3], 16), int(parts[4])


def _nothing(runs: list[_Run], others: set[str], name: str) -> str:
    """Why there is no whole run."""
    if runs:
        found = f"its last run ends after {len(runs[-1].vectors)} of {runs[-1].count} vectors"
        return f"{found} ({runs[-1].troubles[0]})" if runs[-1].troubles else found
    if others:
        return f"it is of {', '.join(repr(other) for other in sorted(others))}, not of {name!r}"
    return "no whole run of a bench in it"
