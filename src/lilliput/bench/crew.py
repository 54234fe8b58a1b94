"""Jobs for several worker processes: each is claimed in the folder, done by one of them, and its record kept."""

import selectors
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from lilliput.bench.processes import Process
from lilliput.bench.store import Store
from lilliput.core.progress import Progress

RENEW_SECONDS = 30.0


@dataclass(kw_only=True)
class Crew:
    """`waiting`: names of jobs to do, in this order. `watch` sees the names that are under way, every half minute."""

    store: Store
    jobs: Mapping[str, Mapping[str, Any]]
    waiting: list[str]
    progress: Progress
    start: Callable[[], Process]
    watch: Callable[[list[str]], None] = lambda names: None
    busy: dict[str, Process] = field(default_factory=dict[str, Process])
    idle: list[Process] = field(default_factory=list[Process])

    def run(self, processes: int, finished: Callable[[str, dict[str, Any]], None]) -> None:
        """Until nothing waits that nobody has claimed; whatever ends this, no process and no claim of ours is left."""
        with self.progress.task("cells", len(self.waiting)) as advance:
            renewed = time.monotonic()
            try:
                while True:
                    while len(self.busy) < processes and self._start():
                        pass
                    if not self.busy:
                        return
                    for name in self._ready():
                        record = self._finish(name)
                        if record is not None:
                            finished(name, record)
                            advance(1)
                    if time.monotonic() - renewed > RENEW_SECONDS:
                        renewed = time.monotonic()
                        for name in self.busy:
                            self.store.renew(name)
                        self.watch(list(self.busy))
            finally:
                everyone = [*self.busy.values(), *self.idle]
                for process in everyone:
                    process.kill()
                for name in self.busy:  # before anything that waits: an interrupt comes again until it is answered
                    self.store.release(name)
                for process in everyone:
                    process.end()

    def _start(self) -> bool:
        """Begin the next job that nobody has; False if there is none."""
        while self.waiting:
            name = self.waiting.pop(0)
            if self.store.claim(name):
                process = self.idle.pop() if self.idle else self.start()
                self.busy[name] = process
                process.give(self.jobs[name])
                return True
        return False

    def _ready(self) -> list[str]:
        with selectors.DefaultSelector() as selector:
            for name, process in self.busy.items():
                selector.register(process, selectors.EVENT_READ, name)
            return [key.data for key, _ in selector.select(timeout=1.0)]

    def _finish(self, name: str) -> dict[str, Any] | None:
        process = self.busy[name]
        record = process.answer()
        if record is None:
            return None
        self.store.write(name, record)
        del self.busy[name]
        self.store.release(name)
        if record.pop("died", False):
            process.end()
        else:
            self.idle.append(process)
        return record
