"""Reading files that nobody vouches for: size first, then bytes."""

import hashlib
from pathlib import Path

from lilliput.core.errors import DataError


def checked_size(path: Path, limit: int) -> int:
    """Size in bytes of a regular, readable file of at most `limit` bytes."""
    try:
        if not path.is_file():
            raise DataError(f"read {path}", "no such file" if not path.exists() else "not a file", "check the path")
        size = path.stat().st_size
    except OSError as error:
        raise unreadable(path, error) from error
    if size > limit:
        raise DataError(
            f"read {path}", f"{size} bytes, at most {limit} can be right", "check that it is the right file"
        )
    return size


def read_limited(path: Path, limit: int) -> bytearray:
    """All bytes of a regular file; `DataError` if there are more than `limit`."""
    size = checked_size(path, limit)
    data = bytearray(size)
    try:
        with path.open("rb") as file:
            read = file.readinto(data)
    except OSError as error:
        raise unreadable(path, error) from error
    if read != size:
        raise DataError(f"read {path}", f"it ended after {read} of {size} bytes", "do not write it while it is read")
    return data


def file_digest(path: Path, algorithm: str) -> str:
    """Hexadecimal `md5` or `sha256` of a file. Checksums find damage; they are no proof against an attacker."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, lambda: hashlib.new(algorithm, usedforsecurity=False)).hexdigest()
    except OSError as error:
        raise unreadable(path, error) from error


def unreadable(path: Path, error: OSError) -> DataError:
    return DataError(f"read {path}", error.strerror or str(error), "check the path and its permissions")
