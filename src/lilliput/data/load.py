"""Data sets by name."""

from collections.abc import Callable
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

from lilliput.core.errors import DataError
from lilliput.core.progress import SILENT, Progress
from lilliput.data import cifar10, mnist, svhn
from lilliput.data.dataset import RawData
from lilliput.data.digits import read_digits
from lilliput.data.download import extract_members, fetch
from lilliput.data.roots import Layout, download_root, not_found, search
from lilliput.data.sources import REMOTES, Remote
from lilliput.data.speech import find_japanese_vowels, read_japanese_vowels


@dataclass(frozen=True, kw_only=True)
class _Published:
    layouts: tuple[Layout, ...]
    read: Callable[[Path], RawData]


_PUBLISHED = {
    "mnist": _Published(layouts=(mnist.MNIST,), read=lambda folder: mnist.read_mnist(folder, "mnist")),
    "fashion-mnist": _Published(
        layouts=(mnist.FASHION_MNIST,), read=lambda folder: mnist.read_mnist(folder, "fashion-mnist")
    ),
    "cifar10": _Published(layouts=(cifar10.BINARY, cifar10.PICKLED), read=cifar10.read_cifar10),
    "svhn": _Published(layouts=(svhn.SVHN,), read=svhn.read_svhn),
    "svhn-extra": _Published(layouts=(svhn.SVHN_EXTRA,), read=svhn.read_svhn_extra),
}
DATA_SETS = ("digits", *_PUBLISHED, "japanese-vowels")


def load(
    name: str, *, data_root: str | Path | None = None, download: bool = False, progress: Progress = SILENT
) -> RawData:
    """The data set `name`, one of `DATA_SETS`.

    Files are searched in `data_root`, LILLIPUT_DATA and ~/.cache/lilliput/data, in this order. With `download`, what is
    nowhere there goes into the first of them, which is made if needed. `digits` and `japanese-vowels` come with
    Python packages and are never downloaded.
    """
    if name == "digits":
        return read_digits()
    if name == "japanese-vowels":
        return read_japanese_vowels(find_japanese_vowels(data_root))
    if name not in _PUBLISHED:
        near = get_close_matches(name.lower().replace("_", "-"), DATA_SETS, n=1, cutoff=0.5)
        known = ", ".join(DATA_SETS)
        raise DataError(f"data set '{name}'", "no such name", f"did you mean '{near[0]}'?" if near else f"use {known}")
    published = _PUBLISHED[name]
    if download:
        _make(download_root(data_root))
    found = search(published.layouts, data_root)
    if found is not None:
        return published.read(found[1])
    if not download:
        raise not_found(name, published.layouts, data_root)
    folder = download_root(data_root) / published.layouts[0].folders[0]
    obtain(REMOTES[name], folder, progress)
    return published.read(folder)


def obtain(remotes: tuple[Remote, ...], folder: Path, progress: Progress = SILENT) -> None:
    """Downloads all files into `folder`; the files of an archive are unpacked there and the archive is deleted."""
    for remote in remotes:
        archive = _first_that_works(remote, folder / remote.file, progress)
        if remote.members:
            extract_members(archive, remote.members, folder)
            archive.unlink()


def _first_that_works(remote: Remote, path: Path, progress: Progress) -> Path:
    *others, last = remote.urls
    for url in others:
        try:
            return fetch(url, path, checksum=remote.checksum, progress=progress)
        except DataError as error:
            progress.say(f"{error}; trying the next mirror")
    return fetch(last, path, checksum=remote.checksum, progress=progress)


def _make(root: Path) -> None:
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"download into {root}", error.strerror or str(error), "use another --data-root") from error
