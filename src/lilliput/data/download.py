"""Downloads that survive a cut: into `name.part`, resumed by range, checked, then renamed into place."""

import gzip
import http.client
import os
import tarfile
import urllib.error
import urllib.request
import zlib
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from urllib.parse import urlsplit

from lilliput.core.errors import DataError, UsageError
from lilliput.core.progress import SILENT, Progress
from lilliput.data.files import file_digest

MAX_BYTES = 1 << 31
_TIMEOUT_SECONDS = 30
_TRIES = 5
_CHUNK = 1 << 16


def fetch(url: str, path: Path, *, checksum: str, progress: Progress = SILENT) -> Path:
    """Downloads `url` to `path` and returns `path`; `checksum` is "md5:..." or "sha256:...".

    An existing `path` with the right checksum is not fetched again; with another one it is a `DataError`, not
    overwritten. A cut connection is resumed as long as each try brings something; after that `path` + ".part" stays,
    and the next call goes on from there. Nothing appears at `path` before its checksum is right.
    """
    algorithm, _, wanted = checksum.partition(":")
    if algorithm not in ("md5", "sha256") or urlsplit(url).scheme not in ("http", "https"):
        raise UsageError(f"download {url}", f"checksum '{checksum}'", "give a http(s) URL and md5:... or sha256:...")
    if path.exists():
        if file_digest(path, algorithm) == wanted:
            return path
        raise DataError(f"download {url}", f"{path} is there with another checksum", "move that file away")
    part = path.with_name(path.name + ".part")
    resumed = part.exists()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _receive_all(url, part, progress)
        found = file_digest(part, algorithm)
        if found != wanted:
            part.unlink()
        else:
            part.replace(path)
    except OSError as error:
        raise _unwritable(url, part, error) from error
    if found == wanted:
        return path
    if resumed:  # the old part may have been of another file
        return fetch(url, path, checksum=checksum, progress=progress)
    raise DataError(f"download {url}", f"its {algorithm} is {found}, expected {wanted}", "try again later")


def extract_members(archive: Path, members: tuple[str, ...], folder: Path) -> None:
    """Takes regular files out of a .tar.gz by their full names and puts them into `folder` by their last names.

    No path of the archive is ever used for writing; links, devices and files that are not asked for are passed over.
    All members arrive, or none.
    """
    asked = f"unpack {archive}"
    missing = dict.fromkeys(members)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=folder, prefix=".unpack-") as work:
            with gzip.open(archive) as stream, tarfile.open(fileobj=stream, mode="r:") as tar:
                for info in tar:
                    if info.name in missing and info.isreg():
                        _extract_one(asked, tar, info, Path(work))
                        del missing[info.name]
                while stream.read(_CHUNK):  # to the end, where gzip has its checksum
                    pass
            if missing:
                raise DataError(asked, f"it has no regular file {', '.join(missing)}", "get the archive again")
            for name in (PurePosixPath(member).name for member in members):
                Path(work, name).replace(folder / name)
    except (tarfile.TarError, EOFError, zlib.error) as error:
        raise DataError(asked, f"the archive is damaged ({error})", "get it again") from error
    except OSError as error:
        raise DataError(asked, f"{error.strerror or error}", f"check the archive and the room in {folder}") from error


def _extract_one(asked: str, tar: tarfile.TarFile, info: tarfile.TarInfo, work: Path) -> None:
    source = tar.extractfile(info)
    if source is None or info.size > MAX_BYTES:
        raise DataError(asked, f"{info.name} of {info.size} bytes cannot be right", "get the archive again")
    with source, (work / PurePosixPath(info.name).name).open("wb") as target:
        while chunk := source.read(_CHUNK):
            target.write(chunk)


def _receive_all(url: str, part: Path, progress: Progress) -> None:
    for _ in range(_TRIES):
        before = _size(part)
        if _receive(url, part, progress):
            return
        if _size(part) <= before:
            break
    raise DataError(
        f"download {url}", f"the connection ended after {_size(part)} bytes", "run it again: it goes on from there"
    )


def _receive(url: str, part: Path, progress: Progress) -> bool:
    """One request for what is missing in `part`; True if the server had no more to send."""
    start = _size(part)
    headers = {"User-Agent": "lilliput", **({"Range": f"bytes={start}-"} if start else {})}
    request = urllib.request.Request(url, headers=headers)  # noqa: S310 (`fetch` has checked the scheme)
    try:
        response = urllib.request.urlopen(request, timeout=_TIMEOUT_SECONDS)  # noqa: S310
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 416 and start:  # nothing after `start`: all of it is here, which the checksum will tell
            return True
        raise DataError(f"download {url}", f"HTTP {error.code} {error.reason}", "check the URL, or later") from error
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", error)
        raise DataError(f"download {url}", f"no connection ({reason})", "check the network, or later") from error
    with response:
        if start and response.status == 206 and not _continues(response.headers.get("Content-Range", ""), start):
            part.unlink()
            return _receive(url, part, progress)
        if response.status != 206:
            start = 0  # the server does not resume: from the beginning
        length = response.headers.get("Content-Length", "")
        total = start + int(length) if length.isascii() and length.isdigit() else None
        with progress.task(f"download {part.stem}", total) as advance, part.open("ab" if start else "wb") as file:
            advance(start)
            received, whole = start, True
            while True:
                try:
                    chunk = response.read(_CHUNK)
                except (OSError, http.client.HTTPException):
                    whole = False
                    break
                if not chunk:
                    break
                received += len(chunk)
                if received > MAX_BYTES:
                    raise DataError(f"download {url}", f"more than {MAX_BYTES} bytes came", "check the URL")
                file.write(chunk)
                advance(len(chunk))
            file.flush()
            os.fsync(file.fileno())
    return whole and (total is None or received >= total)


def _continues(content_range: str, start: int) -> bool:
    return content_range.startswith(f"bytes {start}-")


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _unwritable(url: str, part: Path, error: OSError) -> DataError:
    return DataError(
        f"download {url}", f"cannot write {part} ({error.strerror or error})", "make room, or use another folder"
    )
