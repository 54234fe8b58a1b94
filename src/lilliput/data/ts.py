"""The `.ts` text format of the time series archives: one series a line, its channels and label separated by colons.

Source: the format description of the UEA and UCR archives, timeseriesclassification.com.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lilliput.core.errors import DataError
from lilliput.data.files import read_limited

_MAX_BYTES = 1 << 26


@dataclass(frozen=True, kw_only=True, eq=False)
class SeriesFile:
    """`series[i]` is float32 [channels, frames] and has the class `labels[i]`, one of `classes`."""

    series: list[np.ndarray]
    labels: list[str]
    classes: tuple[str, ...]


def read_ts(path: Path) -> SeriesFile:
    """All series of a classification file without time stamps and without missing values."""
    text = read_limited(path, _MAX_BYTES).decode("utf-8", errors="replace")
    lines = [(number, line.strip()) for number, line in enumerate(text.splitlines(), start=1)]
    lines = [(number, line) for number, line in lines if line and not line.startswith("#")]
    tags: dict[str, str] = {}
    rows: list[tuple[int, str]] = []
    for i, (_, line) in enumerate(lines):
        name, _, value = line.partition(" ")
        if name.lower() == "@data":
            rows = lines[i + 1 :]
            break
        tags[name.lower()] = value.strip()
    classes = _classes(path, tags)
    found = [_series(path, number, row, classes) for number, row in rows]
    if not found:
        raise _damaged(path, "there are no series after @data")
    if len({len(series) for series, _ in found}) > 1:
        raise _damaged(path, "series differ in their number of channels")
    return SeriesFile(series=[series for series, _ in found], labels=[label for _, label in found], classes=classes)


def _classes(path: Path, tags: dict[str, str]) -> tuple[str, ...]:
    for tag in ("@timestamps", "@missing"):
        if tags.get(tag, "false").lower() != "false":
            raise _damaged(path, f"{tag} {tags[tag]} is not supported")
    flag, *classes = tags.get("@classlabel", "false").split()
    if flag.lower() != "true" or not classes or len(set(classes)) < len(classes):
        raise _damaged(path, "@classLabel names no classes")
    return tuple(classes)


def _series(path: Path, number: int, row: str, classes: tuple[str, ...]) -> tuple[np.ndarray, str]:
    *channels, label = row.split(":")
    label = label.strip()
    if label not in classes:
        raise _damaged(path, f"line {number} has the label {label[:20]!r}, expected one of {', '.join(classes)}")
    try:
        values = np.array([[float(value) for value in channel.split(",")] for channel in channels], dtype=np.float64)
    except ValueError as error:
        raise _damaged(path, f"line {number} is not a table of numbers ({error})") from error
    if not (np.abs(values) <= np.finfo(np.float32).max).all():
        raise _damaged(path, f"line {number} has a value that is not a finite float32")
    return values.astype(np.float32), label


def _damaged(path: Path, found: str) -> DataError:
    return DataError(f"read time series file {path}", found, "get the file again")
