"""Compilers, emulators, and what they have built, as processes that cannot run on: a deadline, and so much to say."""

import os
import selectors
import shutil
import signal
import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from lilliput.core.files import explained

MOST_OUTPUT = 1 << 20
FIRST_LINES = 3


@dataclass(frozen=True, kw_only=True)
class Ended:
    """`code` is None for a process that was stopped; `text` is what it wrote, on either stream."""

    code: int | None
    text: str
    seconds: float
    reason: str = ""

    @property
    def first_lines(self) -> str:
        lines = [line.strip() for line in self.text.splitlines() if line.strip()]
        return self.reason or " | ".join(line[:200] for line in lines[:FIRST_LINES]) or f"exit code {self.code}"


def found(*names: str) -> str | None:
    """The first of these tools that is installed."""
    return next((path for name in names if (path := shutil.which(name)) is not None), None)


def call(command: Sequence[str | Path], folder: Path, *, deadline: float) -> Ended:
    """Run without a shell and without input. The process and all of its group are gone afterwards."""
    started = time.monotonic()
    with explained(f"run {Path(command[0]).name}", "check its installation"):
        process = subprocess.Popen(  # noqa: S603 - no shell; a tool that the machine has, or what it built here
            [str(part) for part in command],
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env={**os.environ, "LC_ALL": "C", "ASAN_OPTIONS": "detect_leaks=0"},
        )
    data, reason = bytearray(), ""
    try:
        if not _read_(data, process, started + deadline):
            reason = f"more than {MOST_OUTPUT:,} bytes of output"
    except TimeoutError:
        reason = f"not done after {deadline:g} s"
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        if process.stdout is not None:
            process.stdout.close()
    seconds = time.monotonic() - started
    text = data.decode("ascii", errors="replace")
    return Ended(code=None if reason else process.returncode, text=text, seconds=seconds, reason=reason)


def _read_(data: bytearray, process: subprocess.Popen[bytes], until: float) -> bool:
    """Add what it writes until it ends; False if that is too much. Raises `TimeoutError`."""
    assert process.stdout is not None  # noqa: S101 - a pipe was asked for
    with selectors.DefaultSelector() as waiting:
        waiting.register(process.stdout, selectors.EVENT_READ)
        while True:
            left = until - time.monotonic()
            if left <= 0 or not waiting.select(left):
                raise TimeoutError
            part = os.read(process.stdout.fileno(), 1 << 16)
            data += part
            if len(data) > MOST_OUTPUT:
                return False
            if not part:
                break
    try:
        process.wait(max(0.0, until - time.monotonic()))
    except subprocess.TimeoutExpired:
        raise TimeoutError from None
    return True
