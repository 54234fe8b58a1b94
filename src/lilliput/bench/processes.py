"""Worker processes: one job each at a time, replaced when they die."""

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, cast

from lilliput.core.errors import one_line

PART_BYTES = 65536
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS"), "1")


class Process:
    """A worker: `module` serves jobs. `fileno` is readable when it has said something, or has died."""

    def __init__(self, module: str = "lilliput.bench.worker", what: str = "cell") -> None:
        self.what = what
        self.log = tempfile.TemporaryFile()  # noqa: SIM115 - closed in `end`
        self.process = subprocess.Popen(  # noqa: S603 - a module of ours
            [sys.executable, "-m", module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log,
            env=os.environ | ONE_THREAD,
            start_new_session=True,  # Ctrl-C is for the one who started us
        )
        self.heard = b""

    def fileno(self) -> int:
        return cast(Any, self.process.stdout).fileno()

    def give(self, job: Mapping[str, Any]) -> None:
        pipe = cast(Any, self.process.stdin)
        with suppress(BrokenPipeError):  # it has died: `answer` will say so
            pipe.write(json.dumps(job).encode() + b"\n")
            pipe.flush()

    def answer(self) -> dict[str, Any] | None:
        """To be called when it is readable. None: not all of it is there yet. A process that died answers its error."""
        part = os.read(self.fileno(), PART_BYTES)
        self.heard += part
        if part and not self.heard.endswith(b"\n"):
            return None
        line, self.heard = self.heard, b""
        return json.loads(line) if line.endswith(b"\n") else {"error": self._last_words(), "died": True}

    def kill(self) -> None:
        """With the processes that it has started; does not wait."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)

    def end(self) -> None:
        self.kill()
        self.process.wait()
        for file in (self.process.stdin, self.process.stdout, self.log):
            with suppress(BrokenPipeError):
                cast(Any, file).close()

    def _last_words(self) -> str:
        code = self.process.wait()
        if code == -signal.SIGPROF:
            return f"{self.what}: out of CPU time; do less, or raise limits: {{seconds: ...}}"
        self.log.seek(0)
        lines = self.log.read()[-2000:].decode(errors="replace").strip().splitlines()
        how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        return one_line(f"{self.what}: its process has died ({how}); {lines[-1][:200] if lines else 'it said nothing'}")
