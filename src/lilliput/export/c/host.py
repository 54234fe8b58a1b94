"""Generated C in this process: how long one sample takes on the machine that we are on."""

import ctypes
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from lilliput.core.errors import ArtifactError, UsageError
from lilliput.export.c.golden import read
from lilliput.export.c.tools import call, found
from lilliput.measure.latency import Runner

FLAGS = ("-std=c99", "-O2", "-shared", "-fPIC")
DEADLINE = 600.0


@contextmanager
def host_runner(folder: Path, *, deadline: float = DEADLINE) -> Iterator[Runner]:
    """The network of a folder of C on one golden vector, as a library that this process loads: it runs that code.

    Raises `UsageError` where there is no compiler, `ArtifactError` where it does not build or computes something else.
    """
    asked, compiler = f"time {folder}", found("cc", "gcc", "clang")
    if compiler is None:
        raise UsageError(asked, "no C compiler is installed (cc, gcc or clang)", "install one")
    golden = read(folder)
    x, wanted = golden.inputs[-1].copy(), golden.outputs[-1]
    y = np.zeros_like(wanted)
    with tempfile.TemporaryDirectory(prefix="lilliput-") as scratch:
        library = Path(scratch) / "net.so"
        built = call([compiler, *FLAGS, f"{golden.name}.c", "-o", library], folder.resolve(), deadline=deadline)
        if built.code != 0:
            said = f"{Path(compiler).name}: {built.first_lines}"
            raise ArtifactError(asked, said, "mend the tool, or export the network again")
        once = _called(ctypes.CDLL(str(library)), f"{golden.name}_run", x.ctypes.data, y.ctypes.data)
        once()
        if not np.array_equal(y, wanted):
            raise ArtifactError(asked, "it differs from its golden vectors", "verify the folder")
        yield Runner(once, lambda: f"C99, {Path(compiler).name} -O2, 1 thread")


def _called(library: ctypes.CDLL, name: str, x: int, y: int) -> Callable[[], None]:
    run = library[name]
    run.restype, run.argtypes = None, (ctypes.c_void_p, ctypes.c_void_p)
    return lambda: run(x, y)
