"""`statistics.csv` of a run: a line for each improvement, in the published columns.

Lines are appended, so a kill may leave half of one; a run that goes on cuts it off, with whatever is newer than the
state that it goes on from.
"""

import csv
import io
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lilliput.core.errors import ArtifactError
from lilliput.core.files import explained

NAME = "statistics.csv"
MEASURES = (
    "error",
    "quantized_energy",
    "energy",
    "area",
    "quantized_delay",
    "delay",
    "depth",
    "gate_count",
    "chromosome",
)
COLUMNS = ("run", "generation", "timestamp", *MEASURES)
COMPARED = ("error", "quantized_energy", "quantized_delay", "gate_count")
"""A line is written when one of these has changed."""
TAIL_BYTES = 1 << 18
AGAIN = "remove it with the state of the run, then continue"


@dataclass(kw_only=True)
class Statistics:
    """`last`: the line before, as text, or None."""

    path: Path
    run: int
    last: dict[str, str] | None = None

    @staticmethod
    def at(path: Path, run: int, generation: int | None, round_generations: int = 1) -> "Statistics":
        """To go on at this generation (None: before the first), without what came later and what is half written.

        Lines between rounds are of where a run was stopped: one that goes on has none there, as if it had never been.
        """
        last, keep = None, 0
        if path.exists():
            with explained(f"read {path}"):
                lines = path.read_bytes().splitlines(keepends=True)
            keep, last = _kept(path, lines, run, generation, round_generations)
        with explained(f"write {path}"), path.open("ab") as file:
            file.truncate(keep)
            if keep == 0:
                file.write(_line(COLUMNS))
            file.flush()
            os.fsync(file.fileno())
        return Statistics(path=path, run=run, last=last)

    def is_news(self, found: Mapping[str, Any]) -> bool:
        """Whether something is other than in the last line."""
        return self.last is None or any(self.last[key] != str(found[key]) for key in COMPARED)

    def note(self, found: Mapping[str, Any]) -> None:
        """Append a line."""
        stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        shown = {key: str(found[key]) for key in ("generation", *MEASURES)}
        row = {"run": str(self.run), "timestamp": stamp, **shown}
        with explained(f"write {self.path}"), self.path.open("ab") as file:
            file.write(_line([row[key] for key in COLUMNS]))
            file.flush()
            os.fsync(file.fileno())
        self.last = row


def last_line(path: Path) -> dict[str, str] | None:
    """The last whole line of a file that may be growing; None if there is none yet."""
    try:
        with path.open("rb") as file:
            end = file.seek(0, os.SEEK_END)
            file.seek(max(0, end - TAIL_BYTES))
            lines = file.read().split(b"\n")
    except OSError:
        return None
    cells = _cells(lines[-2]) if len(lines) > 2 else None
    return None if cells is None or not cells[0].isdigit() else _row(cells)


def _kept(
    path: Path, lines: list[bytes], run: int, generation: int | None, round_generations: int
) -> tuple[int, dict[str, str] | None]:
    """How many bytes stay, and the last line of them."""
    if lines and lines[0] != _line(COLUMNS) and not _line(COLUMNS).startswith(lines[0]):
        raise ArtifactError(f"continue {path}", "its columns are others", AGAIN)
    keep, last = 0, None
    for number, line in enumerate(lines):
        if not line.endswith(b"\n"):
            break
        if number:
            cells = _cells(line)
            if cells is None or not (cells[0].isdigit() and cells[1].isdigit()):
                raise ArtifactError(f"continue {path}", f"line {number + 1} is damaged", AGAIN)
            if int(cells[0]) != run:
                raise ArtifactError(f"continue {path}", f"line {number + 1} is of run {cells[0]}, not {run}", AGAIN)
            at = int(cells[1])
            if generation is None or at > generation or at % round_generations:
                break
            last = _row(cells)
        elif generation is None:
            continue
        keep += len(line)
    return keep, last


def _cells(line: bytes) -> list[str] | None:
    """None for what is no line of ours."""
    limit = csv.field_size_limit(1 << 24)
    try:
        rows = list(csv.reader([line.decode("ascii")], strict=True))
    except (csv.Error, UnicodeDecodeError):
        return None
    finally:
        csv.field_size_limit(limit)
    return rows[0] if len(rows) == 1 and len(rows[0]) == len(COLUMNS) else None


def _row(cells: list[str]) -> dict[str, str]:
    names: tuple[str, ...] = COLUMNS
    return dict(zip(names, cells, strict=True))


def _line(cells: Any) -> bytes:
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerow(cells)
    return buffer.getvalue().encode("ascii")
