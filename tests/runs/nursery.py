"""A process that has torch and Lilliput loaded, and forks a child for each run that is to be killed.

A run in a child is a real process: it gets real signals and dies as one. Only the seconds of importing are saved.
Reads one job a line (JSON) from standard input, writes what became of it to standard output.

A job: "arguments" of the command, or "short": a folder for a run without measurements. "log": for its standard error.
"signals": pairs of seconds and number, to send. "limit": bytes that a file may have. "fault": {"call": how many-th file
operation, "kind": "exit" or the number of an OSError, "once": bool}.
"""

import contextlib
import errno
import io
import json
import os
import resource
import signal
import sys
import time
import traceback
from pathlib import Path


class Faults:
    """Counts the calls that change the folder `below`, and breaks the n-th (and, unless once, all after it)."""

    def __init__(self, below, call, kind, *, once=True, log=None):
        self.below, self.call, self.kind, self.once, self.log = str(below), call, kind, once, log
        self.count = 0

    def hit(self, operation, path):
        if not str(path).startswith(self.below):
            return
        self.count += 1
        if self.log is not None:
            with io.open(self.log, "a") as file:  # noqa: UP020 - a path's own is replaced
                file.write(f"{operation} {str(path).rpartition('/')[2]}\n")
        if self.call is None or self.count < self.call or (self.once and self.count > self.call):
            return
        if self.kind == "exit":
            os.kill(os.getpid(), signal.SIGKILL)
        if operation not in ("unlink", "truncate") or self.kind != errno.ENOSPC:  # those need no space
            raise OSError(self.kind, os.strerror(int(self.kind)), str(path))

    def install(self):
        faults = self
        real_open, real_fsync, real_os_open = Path.open, os.fsync, os.open

        class Torn(io.FileIO):
            """Writes half before the fault, as a full disk does."""

            def write(self, data):
                try:
                    faults.hit("write", self.name)
                except OSError:
                    super().write(bytes(data)[: len(data) // 2])
                    raise
                return super().write(data)

            def truncate(self, size=None):
                faults.hit("truncate", self.name)
                return super().truncate(size)

        def fault_open(path, mode="r", *more, **named):
            if set(mode) & set("wxa+"):
                self.hit("open", path)
                raw = Torn(str(path), mode.replace("b", ""))
                return io.BufferedWriter(raw) if "b" in mode else io.TextIOWrapper(io.BufferedWriter(raw), "utf-8")
            return real_open(path, mode, *more, **named)

        def fault_os_open(path, flags, *more, **named):
            if flags & os.O_CREAT:
                self.hit("open", path)
            return real_os_open(path, flags, *more, **named)

        def before(operation, real):
            def call(path, *more, **named):
                if path.exists() != (operation == "mkdir"):  # else nothing is done
                    self.hit(operation, path)
                return real(path, *more, **named)

            return call

        def fault_fsync(number):
            self.hit("fsync", Path(f"/proc/self/fd/{number}").readlink())
            return real_fsync(number)

        new = {"open": fault_open, "replace": before("replace", Path.replace), "unlink": before("unlink", Path.unlink)}
        for name, function in (new | {"mkdir": before("mkdir", Path.mkdir)}).items():
            setattr(Path, name, function)
        os.fsync, os.open = fault_fsync, fault_os_open


def child(job):
    from lilliput.cli.main import main

    with open(job["log"], "ab", buffering=0) as log, open(os.devnull, "wb") as nothing:  # noqa: PTH123
        os.dup2(log.fileno(), 2)
        os.dup2(nothing.fileno(), 1)
    sys.stderr, sys.stdout = (
        io.TextIOWrapper(io.FileIO(2, "w"), write_through=True),
        io.TextIOWrapper(io.FileIO(1, "w")),
    )
    if "limit" in job:
        resource.setrlimit(resource.RLIMIT_FSIZE, (job["limit"], resource.RLIM_INFINITY))
    if "fault" in job:
        Faults(**job["fault"]).install()
    sys.argv = ["lilliput", *job["arguments"]]
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT, signal.SIGTERM])
    if "short" in job:
        sys.exit(short_run(job["short"]))
    main()


def short_run(path):
    """Two steps with training and nothing slow: every single file operation of it can be the last one."""
    from lilliput.core import container
    from lilliput.core.errors import LilliputError
    from lilliput.pipeline.folder import RunFolder
    from lilliput.pipeline.recipe import from_data
    from lilliput.pipeline.run import run
    from lilliput.testing import tiny_model, tiny_task

    tune = {"fine_tune": {"epochs": 2, "batch_size": 32}}
    passes = [[{"magnitude_pruning": {"sparsity": 0.4}}, tune], [{"weight_clustering": {"n_clusters": 4}}, tune]]
    try:
        folder = RunFolder.at(path)
        with folder.held():
            recipe = from_data({"lilliput": 1, "seed": 1, "threads": 1, "passes": passes})
            outcome = run(tiny_model("linear"), tiny_task(96), recipe, folder=folder)
            folder.write("net.lil", container.dumps(outcome.artifact))
    except LilliputError as error:
        sys.stderr.write(f"error: {error}\n")
        return error.exit_code
    return 0


def warm_up():
    """Import what a run imports, and trace once; nothing that starts threads, for they would not survive a fork."""
    import onnx  # noqa: F401
    import onnxruntime  # noqa: F401
    import pydantic.fields  # noqa: F401
    import torch

    torch.set_num_threads(1)
    import lilliput.graph.trace
    from lilliput.auto import compress  # noqa: F401
    from lilliput.cli.main import run as command
    from lilliput.pipeline.recipe import from_data
    from lilliput.pipeline.run import run
    from lilliput.testing import tiny_model, tiny_task
    from traced_once import TracedOnce

    lilliput.graph.trace.trace = TracedOnce()  # for all children: tracing takes half of a run, and writes nothing
    passes = ["fold_batchnorm", "magnitude_pruning", {"weight_clustering": {"n_clusters": 4}}, "quantization"]
    recipe = from_data({"lilliput": 1, "passes": passes})
    recipe.to_yaml()
    run(tiny_model("batch_norm"), tiny_task(), recipe)
    with contextlib.redirect_stderr(io.StringIO()):
        command(["compress", "missing.py:make"])


def serve():
    warm_up()
    for line in sys.stdin:
        job = json.loads(line)
        started = time.monotonic()
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT, signal.SIGTERM])  # until the child is ready for them
        pid = os.fork()
        if pid == 0:
            status = 70
            try:
                child(job)
            except SystemExit as end:
                status = end.code or 0
            except BaseException:  # noqa: BLE001 - of a child that must not come back
                traceback.print_exc()
            finally:
                sys.stderr.flush()
                os._exit(status if isinstance(status, int) else 71)
        status = None
        for after, number in job.get("signals", []):
            while status is None and time.monotonic() - started < after:
                time.sleep(0.001)
                done, found = os.waitpid(pid, os.WNOHANG)
                status = found if done else None
            if status is None:
                os.kill(pid, number)
        if status is None:
            _, status = os.waitpid(pid, 0)
        answer = {"code": os.waitstatus_to_exitcode(status), "seconds": time.monotonic() - started}
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    serve()
