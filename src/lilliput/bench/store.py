"""The folder of a benchmark: what is planned, a file for each finished cell, a claim for each that is under way.

Several processes and machines may work in one folder: a claim is made by creating a file that is not there. A claim
whose owner is gone (its process has ended, or it has not been renewed for long) is taken over.
"""

import json
import os
import secrets
import socket
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

from lilliput.core.errors import ArtifactError, UsageError
from lilliput.core.files import explained, write_atomically
from lilliput.pipeline.folder import json_text

PLAN, CELLS, CLAIMS, RESULTS = "plan.json", "cells", "claims", "results.json"
STALE_SECONDS = 600
"""After so long without a sign of life a claim of another machine counts as given up."""


class Store:
    def __init__(self, path: Path, what: str = "benchmark folder") -> None:
        self.path, self.what = path, what
        self.owner = f"{socket.gethostname()} {os.getpid()}"

    def begin(self, plan: Mapping[str, Any]) -> None:
        """Note what is planned; cells of an earlier plan stay, and count where the new one has them too."""
        with explained(f"{self.what} {self.path}"):
            for name in (CELLS, CLAIMS):
                (self.path / name).mkdir(parents=True, exist_ok=True)
            for claim in list((self.path / CLAIMS).iterdir()):
                if self.is_done(claim.name):  # its owner may have been killed between its record and its release
                    self._take_away(claim)
        write_atomically(self.path / PLAN, json_text(plan, indent=1).encode())

    def plan(self) -> dict[str, Any]:
        return _read(self.path / PLAN, f"{self.what} {self.path}", "cells", "order")

    def records(self, names: Iterable[str]) -> dict[str, dict[str, Any]]:
        """The finished cells of these names."""
        paths = {name: self._cell(name) for name in names}
        found = {name: _read(path, f"cell {path}") for name, path in paths.items() if path.exists()}
        for name, record in found.items():
            if not ("error" in record or "score" in record):
                raise _damaged(paths[name], f"cell {paths[name]}", "damaged")
        return found

    def is_done(self, name: str) -> bool:
        return self._cell(name).exists()

    def write(self, name: str, record: Mapping[str, Any]) -> None:
        write_atomically(self._cell(name), json_text(record).encode())

    def drop(self, name: str) -> None:
        with explained(f"{self.what} {self.path}"):
            self._cell(name).unlink(missing_ok=True)

    def claim(self, name: str) -> bool:
        """Whether the cell is ours now: it is not done, and nobody else is at it."""
        path = self._claim(name)
        if self.is_done(name):
            return False
        with explained(f"claim {path}"):
            self._take_away(path)
            try:
                descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
            except FileExistsError:
                return False
            with os.fdopen(descriptor, "w") as file:
                file.write(self.owner)
        if self.is_done(name):  # its owner finished between our two looks
            self.release(name)
            return False
        return True

    def renew(self, name: str) -> None:
        """A sign of life."""
        with suppress(FileNotFoundError):
            os.utime(self._claim(name))

    def release(self, name: str) -> None:
        with suppress(FileNotFoundError):
            self._claim(name).unlink()

    def _take_away(self, path: Path) -> None:
        """Remove a claim whose owner is gone; not that of somebody who has done the same a moment ago."""
        with suppress(FileNotFoundError, FileExistsError):
            host, _, process = path.read_text(encoding="utf-8").partition(" ")
            found = path.stat()
            gone = host == socket.gethostname() and process.isdigit() and not _runs(int(process))
            if not gone and self._now() - found.st_mtime <= STALE_SECONDS:
                return
            taken = path.with_name(f".{secrets.token_hex(8)}")
            path.rename(taken)
            try:
                now = taken.stat()  # numbers of files are used again; times with them are not
                if (now.st_ino, now.st_mtime_ns) != (found.st_ino, found.st_mtime_ns):
                    os.link(taken, path)
            finally:
                taken.unlink()

    def _now(self) -> float:
        """By the clock that stamps files here, which may be another machine's."""
        probe = self.path / CLAIMS / f".{secrets.token_hex(8)}"
        probe.touch()
        try:
            return probe.stat().st_mtime
        finally:
            probe.unlink()

    def _cell(self, name: str) -> Path:
        return self.path / CELLS / f"{name}.json"

    def _claim(self, name: str) -> Path:
        return self.path / CLAIMS / name


def read_results(path: Path) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """Plan and finished cells by name: of a folder that cells are run in, or of one with the written results alone."""
    store = Store(path)
    if (path / PLAN).exists():
        plan = store.plan()
        return plan, store.records(plan["cells"])
    if not (path / RESULTS).exists():
        raise UsageError(f"benchmark folder {path}", "there is no benchmark in it", "run: lilliput bench grid.yaml")
    data = _read(path / RESULTS, f"benchmark folder {path}", "plan", "records")
    return data["plan"], data["records"]


def _runs(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _read(path: Path, asked: str, *keys: str) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise _damaged(path, asked, "missing or damaged") from error
    if not isinstance(data, dict) or not set(keys) <= set(cast(dict[str, Any], data)):
        raise _damaged(path, asked, "damaged")
    return cast(dict[str, Any], data)


def _damaged(path: Path, asked: str, what: str) -> ArtifactError:
    return ArtifactError(asked, f"{path.name} is {what}", "remove it, then run the grid again")
