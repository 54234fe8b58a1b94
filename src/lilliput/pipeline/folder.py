"""A run folder: everything about one run, written so that a kill at any moment loses at most the step under way."""

import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from lilliput.core.container import write_atomically
from lilliput.core.errors import ArtifactError, UsageError


def json_text(data: object, *, indent: int | None = None) -> str:
    """JSON that every reader takes: numbers that are not finite become null."""
    return json.dumps(_finite(data), indent=indent, sort_keys=True, default=float, allow_nan=False) + "\n"


class RunFolder:
    """`trail.jsonl` (one line for each finished step), `step-NN.lil` (the network after it), and what the run makes."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @staticmethod
    def create(root: str | Path, name: str) -> "RunFolder":
        """A new numbered folder `root/0007-name`, and the link `root/latest` to it."""
        root = Path(root)
        clean = re.sub(r"[^A-Za-z0-9_.-]+", "-", name).strip("-.") or "run"
        try:
            root.mkdir(parents=True, exist_ok=True)
            numbers = [int(p.name[:4]) for p in root.iterdir() if re.match(r"\d{4}-", p.name)]
            number = max(numbers, default=0) + 1
            while True:
                path = root / f"{number:04d}-{clean}"
                try:
                    path.mkdir()
                    break
                except FileExistsError:
                    number += 1  # another run took it just now
        except OSError as error:
            raise UsageError(
                f"run folder in {root}", error.strerror or str(error), "choose another place with --out"
            ) from error
        _link(root / "latest", path.name)
        return RunFolder(path)

    @staticmethod
    def open(path: str | Path) -> "RunFolder":
        path = Path(path)
        if not (path / "run.json").is_file():
            raise UsageError(
                f"run folder {path}", "there is no run in it", "give a folder that an earlier run has made"
            )
        return RunFolder(path)

    @staticmethod
    def at(path: str | Path) -> "RunFolder":
        """A run folder or an empty folder; for a path that is not there, the next numbered one in its place."""
        path = Path(path)
        if not path.exists():
            return RunFolder.create(path.parent, path.name)
        if path.is_dir() and not any(path.iterdir()):
            return RunFolder(path)
        return RunFolder.open(path)

    def write(self, name: str, data: bytes | str) -> Path:
        write_atomically(self.path / name, data.encode() if isinstance(data, str) else data)
        return self.path / name

    def write_json(self, name: str, data: object) -> Path:
        return self.write(name, json_text(data, indent=2))

    def read_json(self, name: str) -> Any:
        try:
            return json.loads((self.path / name).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ArtifactError(f"read {self.path / name}", "it is missing or damaged", "start a new run") from error

    def append(self, entry: Mapping[str, Any]) -> None:
        """Add a line to the trail, and be sure that it is on the disk."""
        line = json_text(entry)
        try:
            with (self.path / "trail.jsonl").open("a", encoding="utf-8") as file:
                file.write(line)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise UsageError(
                f"write {self.path / 'trail.jsonl'}", error.strerror or str(error), "free space, then --resume"
            ) from error

    def trail(self) -> list[dict[str, Any]]:
        """The finished steps; a torn last line (a kill while it was written) is left out and cut off."""
        path = self.path / "trail.jsonl"
        if not path.exists():
            return []
        entries: list[dict[str, Any]] = []
        whole = 0
        raw = path.read_bytes()
        for line in raw.splitlines(keepends=True):
            try:
                entry = json.loads(line) if line.endswith(b"\n") else None
            except ValueError:
                entry = None
            if not isinstance(entry, dict):
                break
            entries.append(entry)
            whole += len(line)
        if whole < len(raw):
            write_atomically(path, raw[:whole])
        return entries


def _finite(data: Any) -> Any:
    if isinstance(data, Mapping):
        return {str(k): _finite(v) for k, v in cast(Mapping[Any, Any], data).items()}
    if isinstance(data, (list, tuple)):
        return [_finite(v) for v in cast(Sequence[Any], data)]
    return None if isinstance(data, float) and not math.isfinite(data) else data


def _link(link: Path, target: str) -> None:
    """Best effort: some file systems have no links."""
    temporary = link.with_name(f".latest-{os.getpid()}")
    try:
        temporary.symlink_to(target)
        temporary.replace(link)
    except OSError:
        temporary.unlink(missing_ok=True)
