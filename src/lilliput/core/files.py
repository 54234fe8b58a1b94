"""Writing files: whole or not at all, by one process at a time, and with one clear line where the disk refuses.

A kill at any moment leaves the old file or the new one. What it may leave beside them is a hidden temporary file
(`is_temporary`), and the file of a lock; the lock itself ends with its process.
"""

import errno
import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from lilliput.core.errors import LilliputError, UsageError

_REMEDIES = {
    errno.ENOSPC: "free space",
    errno.EDQUOT: "free space within your quota",
    errno.EFBIG: "raise the limit on file sizes (ulimit -f)",
    errno.ENAMETOOLONG: "choose a shorter name",
    **dict.fromkeys((errno.EROFS, errno.EACCES, errno.EPERM), "make it writable, or choose another place"),
}
_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL}


@contextmanager
def explained(asked: str, do: str = "choose another place; nothing was changed") -> Iterator[None]:
    """Any `OSError` in here becomes a `UsageError`; `do` is for those without a remedy of their own."""
    try:
        yield
    except OSError as error:
        raise refused(asked, error, do) from error


def refused(asked: str, error: OSError, do: str = "choose another place; nothing was changed") -> UsageError:
    return UsageError(asked, error.strerror or str(error), _REMEDIES.get(error.errno or 0, do))


def is_disk_trouble(error: LilliputError) -> bool:
    """Whether the machine is at fault, and not what was asked for."""
    return isinstance(error.__cause__, OSError)


def write_atomically(path: str | os.PathLike[str], data: bytes) -> None:
    """Temporary file beside the target, fsync, rename: a reader sees the old file or the new one."""
    path = Path(path)
    temporary = path.parent / f".{path.name[:50]}.{secrets.token_hex(4)}.part"
    with explained(f"write {path}"):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
        _sync(path.parent)


def is_temporary(name: str) -> bool:
    """Whether a name in a folder is that of a file which a killed process was writing."""
    return re.fullmatch(r"\..{1,50}\.[0-9a-f]{8}\.part", name, re.DOTALL) is not None


@contextmanager
def locked(path: Path, asked: str) -> Iterator[None]:
    """Hold the lock file `path`; raises `UsageError` naming the process that holds it already.

    The kernel ends a lock with its process, so a killed one leaves at most the file. Where the file system has no
    locks, nothing is held.
    """
    descriptor = _lock(path, asked)
    try:
        yield
    finally:
        if descriptor is not None:
            with suppress(OSError):
                path.unlink()  # while it is held: who opened it meanwhile sees that it is gone
            os.close(descriptor)


def _lock(path: Path, asked: str) -> int | None:
    import fcntl  # not on every system

    while True:
        with explained(asked, "choose another place"):
            path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_at(path, descriptor):
                os.ftruncate(descriptor, 0)
                os.pwrite(descriptor, f"{os.getpid()} {os.uname().nodename}\n".encode(), 0)
                return descriptor
        except BlockingIOError:
            owner = os.pread(descriptor, 200, 0).decode(errors="replace").split()
            os.close(descriptor)
            who = f"process {owner[0]} on {owner[1]} is at it" if len(owner) == 2 else "another process is at it"
            raise UsageError(asked, who, "wait until it has ended, or use another folder") from None
        except OSError as error:
            os.close(descriptor)
            if error.errno in _NO_LOCKS:
                return None
            raise refused(asked, error) from error
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)  # its holder removed the file between our two calls


def _is_at(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _sync(folder: Path) -> None:
    """Make a rename outlive a power cut, where the file system can."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
