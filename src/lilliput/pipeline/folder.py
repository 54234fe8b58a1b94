"""A run folder: everything about one run, written so that a kill at any moment loses at most the step under way."""

import json
import math
import os
import re
import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, cast

from lilliput.core.errors import ArtifactError, UsageError
from lilliput.core.files import explained, is_temporary, locked, write_atomically

LOCK = ".lock"
NUMBERED = re.compile(r"(\d{4,})-")
UNBEGUN = {LOCK, "recipe.yaml"}
"""What may be in a folder whose run was stopped before it could say in `run.json` what it is."""


def json_text(data: object, *, indent: int | None = None) -> str:
    """JSON that every reader takes: numbers that are not finite become null."""
    return json.dumps(_finite(data), indent=indent, sort_keys=True, default=float, allow_nan=False) + "\n"


class RunFolder:
    """`trail.jsonl` (one line for each finished step), `step-NN.lil` (the network after it), and what the run makes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._held = 0

    @staticmethod
    def create(root: str | Path, name: str) -> "RunFolder":
        """A new numbered folder `root/0007-name`, and the link `root/latest` to it. No two runs get one number."""
        root = Path(root)
        clean = re.sub(r"[^A-Za-z0-9_.-]+", "-", name).strip("-.") or "run"
        with explained(f"run folder in {root}", "choose another place with --out"):
            root.mkdir(parents=True, exist_ok=True)
            number = max(_numbers(root), default=0) + 1
            while not _made(root, number, clean):
                number += 1
        _link(root / "latest", f"{number:04d}-{clean}")
        return RunFolder(root / f"{number:04d}-{clean}")

    @staticmethod
    def open(path: str | Path) -> "RunFolder":
        """The folder of a run, also of one that was stopped before its first step."""
        path = Path(path)
        with explained(f"run folder {path}"):
            begun = (path / "run.json").is_file()
            if not begun and not (path.is_dir() and all(_is_unbegun(p.name) for p in path.iterdir())):
                raise UsageError(
                    f"run folder {path}", "there is no run in it", "give a folder that an earlier run has made"
                )
        return RunFolder(path)

    @staticmethod
    def begun(path: str | Path) -> "RunFolder":
        """The folder of a run that has said what it is: for those who read it, or add to it."""
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
        with explained(f"run folder {path}"):
            there = path.exists()
        if not there:
            return RunFolder.create(path.parent, path.name)
        folder, latest = RunFolder.open(path), path.parent / "latest"
        if NUMBERED.match(path.name) and not latest.exists():  # it was stopped before it could be linked
            _link(latest, path.name)
        return folder

    @contextmanager
    def held(self) -> Iterator[None]:
        """Only this run writes here meanwhile; raises `UsageError` if another process does. May be nested."""
        if self._held:
            yield
            return
        with locked(self.path / LOCK, f"run folder {self.path}"):
            self._held += 1
            try:
                yield
            finally:
                self._held -= 1

    def tidy(self) -> None:
        """Remove what a killed process was writing. Only while the folder is held."""
        with explained(f"run folder {self.path}"):
            for path in self.path.iterdir():
                if is_temporary(path.name):
                    path.unlink(missing_ok=True)

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
        with (
            explained(f"write {self.path / 'trail.jsonl'}", "see that the folder is there; finished steps are kept"),
            (self.path / "trail.jsonl").open("a", encoding="utf-8") as file,
        ):
            file.write(json_text(entry))
            file.flush()
            os.fsync(file.fileno())

    def trail(self) -> list[dict[str, Any]]:
        """The finished steps. A torn last line (a kill while it was written) is left out."""
        entries: list[dict[str, Any]] = []
        for line in self._lines():
            try:
                entry = json.loads(line) if line.endswith(b"\n") else None
            except ValueError:
                entry = None
            if not isinstance(entry, dict):
                break
            entries.append(entry)
        return entries

    def cut_trail(self, steps: int) -> None:
        """Keep the first lines only. Needs no space: in place. Only while the folder is held."""
        keep = sum(len(line) for line in self._lines()[:steps])
        path = self.path / "trail.jsonl"
        with explained(f"write {path}"):
            if path.exists() and path.stat().st_size > keep:
                with path.open("r+b") as file:
                    file.truncate(keep)
                    os.fsync(file.fileno())

    def _lines(self) -> list[bytes]:
        try:
            return (self.path / "trail.jsonl").read_bytes().splitlines(keepends=True)
        except FileNotFoundError:
            return []
        except OSError as error:
            raise ArtifactError(
                f"read {self.path / 'trail.jsonl'}", error.strerror or str(error), "check its permissions"
            ) from error


def _finite(data: Any) -> Any:
    if isinstance(data, Mapping):
        return {str(k): _finite(v) for k, v in cast(Mapping[Any, Any], data).items()}
    if isinstance(data, (list, tuple)):
        return [_finite(v) for v in cast(Sequence[Any], data)]
    return None if isinstance(data, float) and not math.isfinite(data) else data


def _numbers(root: Path) -> list[int]:
    return [int(found[1]) for p in root.iterdir() if (found := NUMBERED.match(p.name))]


def _made(root: Path, number: int, name: str) -> bool:
    """Make the folder, unless another run has this number or is about to."""
    claim = root / f".{number:04d}"
    try:
        claim.mkdir()
    except FileExistsError:
        return False
    try:
        if number in _numbers(root):
            return False
        (root / f"{number:04d}-{name}").mkdir()
        return True
    except FileExistsError:
        return False
    finally:
        claim.rmdir()


def _is_unbegun(name: str) -> bool:
    return name in UNBEGUN or is_temporary(name)


def _link(link: Path, target: str) -> None:
    """Best effort: some file systems have no links."""
    temporary = link.with_name(f".latest-{secrets.token_hex(4)}")
    with suppress(OSError):
        temporary.symlink_to(target)
        try:
            temporary.replace(link)
        finally:
            temporary.unlink(missing_ok=True)
