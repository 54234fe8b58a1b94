"""A user's own features for a network whose data set nobody may hand on: arrays in .npy or .npz files, by role.

`train_x.npy` and `train_y.npy`, or `train.npz` with the arrays x and y; so for `test` and, if wanted, `validation`.
x [n, *shape] as the network expects it: float, or uint8 images, which stay uint8 here; y [n]: labels from 0.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast
from zipfile import BadZipFile

import numpy as np
import torch
from numpy.lib.npyio import NpzFile

from lilliput.core.errors import DataError
from lilliput.data.dataset import Split
from lilliput.data.roots import VARIABLE, Layout, roots, search


@dataclass(frozen=True, kw_only=True)
class Features:
    """What is searched below a data root, in the folder `name` or in the root itself.

    In an `anomaly` set, y is 1 for an anomaly; `train` has none, and needs no y. Then validation must be given.
    """

    name: str
    shape: tuple[int, ...]
    n_labels: int
    anomaly: bool = False

    @property
    def asked(self) -> str:
        return f"data set {self.name!r}"

    @property
    def roles(self) -> tuple[str, ...]:
        """Those that must be there."""
        return ("train", "validation", "test") if self.anomaly else ("train", "test")

    def wanted(self) -> str:
        kind = "0 normal, 1 anomaly" if self.anomaly else f"labels 0..{self.n_labels - 1}"
        return f"x of shape [n, {', '.join(map(str, self.shape))}] and y [n] with {kind}"


def read_features(features: Features, data_root: str | Path | None = None) -> dict[str, Split]:
    """{role: (x, int64 labels)}: x float32 or uint8."""
    files = tuple((f"{role}_x.npy", f"{role}.npz") for role in features.roles)
    found = search((Layout(folders=(features.name, "."), files=files),), data_root)
    if found is None:
        names = ", ".join(f"{role}.npz" for role in features.roles)
        places = ", ".join(str(root / features.name) for root in roots(data_root))
        raise DataError(
            features.asked,
            f"no {names} (or {features.roles[0]}_x.npy, {features.roles[0]}_y.npy and so on) in {places}",
            f"make them from your own data: {features.wanted()}; name their root (--data-root or {VARIABLE})",
        )
    folder = found[1]
    given = [r for r in ("train", "validation", "test") if r in features.roles or _given(folder, r)]
    return {role: _split(features, folder, role) for role in given}


def _given(folder: Path, role: str) -> bool:
    return any((folder / name).is_file() for name in (f"{role}_x.npy", f"{role}.npz"))


def _split(features: Features, folder: Path, role: str) -> Split:
    asked = f"{role} of {features.asked} ({folder})"
    single, packed = folder / f"{role}_x.npy", folder / f"{role}.npz"
    if single.is_file():
        labels = folder / f"{role}_y.npy"
        arrays = {"x": _load(single, asked)} | ({"y": _load(labels, asked)} if labels.is_file() else {})
    else:
        arrays = cast(Mapping[str, Any], _load(packed, asked))
    normal = features.anomaly and role == "train"
    missing = [key for key in "xy" if key not in arrays and not (key == "y" and normal)]
    if missing:
        raise DataError(asked, f"no {missing[0]} in it", f"give {features.wanted()}")
    x = _inputs(features, _numbers(arrays["x"], asked, "x"), asked)
    y = _labels(features, _numbers(arrays["y"], asked, "y"), asked) if "y" in arrays else torch.zeros(len(x)).long()
    if len(x) != len(y):
        raise DataError(asked, f"{len(x)} samples and {len(y)} labels", "give one label for each sample")
    if normal and bool(y.any()):
        raise DataError(asked, f"{int(y.sum())} of its {len(y)} samples are anomalies", "train on normal samples alone")
    if features.anomaly and not normal and len(y.unique()) < 2:
        raise DataError(asked, f"all of its samples are labelled {int(y[0])}", "give normal samples and anomalies")
    return x, y


def _load(path: Path, asked: str) -> Any:
    """An array, or {name: array}. Mapped: a header that promises more than the file has allocates nothing."""
    try:
        if path.suffix == ".npy":
            return np.array(np.lib.format.open_memmap(path, mode="r"))
        with path.open("rb") as file, NpzFile(file, allow_pickle=False) as loaded:
            return {key: loaded[key] for key in ("x", "y") if key in loaded}
    except (ValueError, OSError, EOFError, BadZipFile, MemoryError) as error:
        do = "write it with numpy.save or numpy.savez"
        raise DataError(asked, f"{path.name} holds no arrays of numbers ({error})", do) from error


def _numbers(array: Any, asked: str, name: str) -> np.ndarray[Any, Any]:
    if array.dtype.kind not in "fiub":
        raise DataError(asked, f"{name} is an array of {array.dtype}", "give numbers")
    if array.ndim == 0 or len(array) == 0:
        raise DataError(asked, f"{name} has no samples", "give at least one")
    return array


def _inputs(features: Features, x: np.ndarray[Any, Any], asked: str) -> torch.Tensor:
    shape = features.shape
    if x.shape[1:] != shape:
        last = len(shape) == 3 and x.shape[1:] == (*shape[1:], shape[0])
        do = "put channels first: x.transpose(0, 3, 1, 2)" if last else f"give {features.wanted()}"
        raise DataError(asked, f"x of shape {list(x.shape)}", do)
    return torch.from_numpy(x if x.dtype == np.uint8 else x.astype(np.float32))


def _labels(features: Features, y: np.ndarray[Any, Any], asked: str) -> torch.Tensor:
    if y.ndim == 2 and y.shape[1] == 1:
        y = y[:, 0]
    if y.ndim != 1 or y.dtype.kind == "f":
        raise DataError(asked, f"y is {y.dtype} of shape {list(y.shape)}", "give one integer for each sample")
    low, high = int(y.min()), int(y.max())
    if low < 0 or high >= features.n_labels:
        raise DataError(asked, f"labels {low}..{high}", f"number them 0..{features.n_labels - 1}")
    return torch.from_numpy(y.astype(np.int64))
