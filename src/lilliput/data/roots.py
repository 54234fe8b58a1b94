"""Where data is searched: `data_root`, then the variable LILLIPUT_DATA, then ~/.cache/lilliput/data."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from lilliput.core.errors import DataError

VARIABLE = "LILLIPUT_DATA"


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How a data set lies in a folder: each of `files` is one needed file, by any of its alternative names.

    `folders` are relative to a root, in the order of search; a download goes to the first. `elsewhere` are absolute
    folders of system packages, searched last.
    """

    folders: tuple[str, ...]
    files: tuple[tuple[str, ...], ...]
    elsewhere: tuple[Path, ...] = ()

    def fits(self, folder: Path) -> bool:
        return all(first_file(folder, names) is not None for names in self.files)


def first_file(folder: Path, names: tuple[str, ...]) -> Path | None:
    """The first of `names` that is a file in `folder`."""
    return next((folder / name for name in names if (folder / name).is_file()), None)


def roots(data_root: str | Path | None = None) -> tuple[Path, ...]:
    """All roots in the order of search."""
    named = (data_root, os.environ.get(VARIABLE) or None)
    return (*(Path(root).expanduser() for root in named if root is not None), _cache())


def download_root(data_root: str | Path | None = None) -> Path:
    """Where a download goes: the first root."""
    return roots(data_root)[0]


def search(layouts: tuple[Layout, ...], data_root: str | Path | None = None) -> tuple[Layout, Path] | None:
    """The first folder that fits one of `layouts`, or None. A `data_root` that does not exist is a `DataError`."""
    if data_root is not None and not Path(data_root).expanduser().is_dir():
        raise DataError(f"data_root {data_root}", "no such folder", "check the path (--data-root), or make the folder")
    return next(((layout, place) for layout, place in _places(layouts, data_root) if layout.fits(place)), None)


def not_found(name: str, layouts: tuple[Layout, ...], data_root: str | Path | None = None) -> DataError:
    """The error that names every place looked at and how to get the data."""
    places = dict.fromkeys(str(place) for _, place in _places(layouts, data_root))
    files = " or ".join(f"{layout.files[0][0]} and so on" for layout in layouts)
    return DataError(
        f"data set '{name}'",
        f"its files ({files}) are not in {', '.join(places)}",
        f"say where they are (--data-root or {VARIABLE}), or get them (--download)",
    )


def _places(layouts: tuple[Layout, ...], data_root: str | Path | None) -> Iterator[tuple[Layout, Path]]:
    for root in roots(data_root):
        for layout in layouts:
            for folder in layout.folders:
                yield layout, root / folder
    for layout in layouts:
        for folder in layout.elsewhere:
            yield layout, folder


def _cache() -> Path:
    return Path("~/.cache/lilliput/data").expanduser()
