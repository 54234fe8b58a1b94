"""MNIST and Fashion-MNIST: four IDX files, gzip or plain."""

from pathlib import Path

import numpy as np
import torch

from lilliput.core.errors import DataError
from lilliput.data.dataset import RawData, Split
from lilliput.data.idx import content_md5, read_idx
from lilliput.data.roles import last_rows
from lilliput.data.roots import Layout, first_file

FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
_EITHER = tuple((f"{file}.gz", file) for file in FILES)

MNIST = Layout(folders=("MNIST/raw", "MNIST", "."), files=_EITHER)
FASHION_MNIST = Layout(
    folders=("FashionMNIST/raw", "FashionMNIST", "."),
    files=_EITHER,
    elsewhere=(Path("/usr/share/datasets/fashion-mnist"),),  # Debian's package dataset-fashion-mnist
)

# md5 of the unpacked files: the compressed ones differ from mirror to mirror.
_PUBLISHED = {
    "mnist": (
        "6bbc9ace898e44ae57da46a324031adb",
        "a25bea736e30d166cdddb491f175f624",
        "2646ac647ad5339dbf082846283269ea",
        "27ae3e4e09519cfbb04c329615203637",
    ),
    "fashion-mnist": (
        "f4a8712d7a061bf5bd6d2ca38dc4d50a",
        "9018921c3c673c538a1fc5bad174d6f9",
        "8181f5470baa50b63fa0f6fddb340f0a",
        "15d484375f8d13e6eb1aabb0c3f46965",
    ),
}
_CLOTHES = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")
_LABELS = {"mnist": tuple("0123456789"), "fashion-mnist": _CLOTHES}
_SIDE = 28


def read_mnist(folder: Path, name: str = "mnist") -> RawData:
    """uint8 images [n, 1, 28, 28]; `name` is `mnist` or `fashion-mnist`.

    The two share their file names: files that are known to be the other one are refused. Unknown files of the same
    format are read, and `source` says that they are not the published ones.
    """
    arrays = [_read(folder, names) for names in _EITHER]
    sums = tuple(content_md5(array) for array in arrays)
    for other, published in _PUBLISHED.items():
        if other != name and sums == published:
            raise DataError(f"read '{name}' from {folder}", f"these files are '{other}'", f"load '{other}' from there")
    train, test = _split(folder, *arrays[:2]), _split(folder, *arrays[2:])
    return RawData(
        name=name,
        train=train,
        test=test,
        labels=_LABELS[name],
        validation_rows=last_rows(len(train[1])),
        source=f"{folder}, {'the published bytes' if sums == _PUBLISHED[name] else 'not the published bytes'}",
    )


def _read(folder: Path, names: tuple[str, ...]) -> np.ndarray:
    path = first_file(folder, names)
    if path is None:
        raise DataError(f"read {folder / names[0]}", "no such file", "put all four IDX files there")
    return read_idx(path, n_dimensions=3 if "images" in path.name else 1)


def _split(folder: Path, images: np.ndarray, labels: np.ndarray) -> Split:
    if images.shape[1:] != (_SIDE, _SIDE):
        found = f"images of {images.shape[1]} x {images.shape[2]}, expected {_SIDE} x {_SIDE}"
        raise DataError(f"read IDX files in {folder}", found, "get the files again")
    return torch.from_numpy(images).unsqueeze(1), torch.from_numpy(labels).to(torch.int64)
