"""CIFAR-10: the binary version, and the pickled Python version without unpickling it.

Binary: records of one label byte and 3,072 pixel bytes (the red, green and blue planes, each 32 rows of 32).
Source: Krizhevsky (2009), "Learning Multiple Layers of Features from Tiny Images".
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from lilliput.core.errors import DataError
from lilliput.data.dataset import RawData, Split
from lilliput.data.files import file_digest, read_limited
from lilliput.data.plain_pickle import Call, Name, read_plain_pickle
from lilliput.data.roles import last_rows
from lilliput.data.roots import Layout

LABELS = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
TRAIN = tuple(f"data_batch_{i}" for i in range(1, 6))
TEST = ("test_batch",)

BINARY = Layout(folders=("cifar-10-batches-bin", "."), files=tuple((f"{name}.bin",) for name in TRAIN + TEST))
PICKLED = Layout(folders=("cifar-10-batches-py", "."), files=tuple((name,) for name in TRAIN + TEST))

PUBLISHED_PICKLES = dict(
    zip(
        TRAIN + TEST,
        (
            "c99cafc152244af753f735de768cd75f",
            "d4bba439e000b95fd0a9bffe97cbabec",
            "54ebc095f3ab1f0389bbae665268c751",
            "634d18415352ddfa80567beed471001a",
            "482c414d41f54cd18b22e5b47cb7c3cb",
            "40351d587109b95175f43aff81a1287e",
        ),
        strict=True,
    )
)
"""md5 of the pickled files; for the binary files only that of their archive is published."""

_IMAGE = (3, 32, 32)
_PIXELS = 3 * 32 * 32
_MAX_BYTES = 1 << 26  # twice a batch of 10,000
_MODULES = ("numpy.core.multiarray", "numpy._core.multiarray")
_RECONSTRUCT = frozenset(f"{module} _reconstruct" for module in _MODULES)
_ALLOWED = _RECONSTRUCT | {"numpy ndarray", "numpy dtype", "_codecs encode"}


def read_cifar10(folder: Path) -> RawData:
    """uint8 images [n, 3, 32, 32], training batches in the order of their numbers; binary files win over pickles."""
    if BINARY.fits(folder):
        read, form = _read_binary, "binary version"
    else:
        read, form = _read_pickled, f"pickled version, {_whose_bytes(folder)}"
    train, test = ([read(folder, name) for name in names] for names in (TRAIN, TEST))
    n_train = sum(len(labels) for _, labels in train)
    return RawData(
        name="cifar10",
        train=_joined(train),
        test=_joined(test),
        labels=LABELS,
        validation_rows=last_rows(n_train),
        source=f"{folder}, {form}",
    )


def _whose_bytes(folder: Path) -> str:
    published = all(file_digest(folder / name, "md5") == md5 for name, md5 in PUBLISHED_PICKLES.items())
    return "the published bytes" if published else "not the published bytes"


def _joined(batches: list[tuple[np.ndarray, np.ndarray]]) -> Split:
    images = np.concatenate([images for images, _ in batches])
    labels = np.concatenate([labels for _, labels in batches]).astype(np.int64)
    return torch.from_numpy(images).view(-1, *_IMAGE), torch.from_numpy(labels)


def _read_binary(folder: Path, name: str) -> tuple[np.ndarray, np.ndarray]:
    path = folder / f"{name}.bin"
    data = read_limited(path, _MAX_BYTES)
    if not data or len(data) % (1 + _PIXELS):
        raise _damaged(path, f"{len(data)} bytes are not a whole number of records of {1 + _PIXELS} bytes")
    records = np.frombuffer(data, dtype=np.uint8).reshape(-1, 1 + _PIXELS)
    return records[:, 1:], _checked_labels(path, records[:, 0])


def _read_pickled(folder: Path, name: str) -> tuple[np.ndarray, np.ndarray]:
    path = folder / name
    content = read_plain_pickle(read_limited(path, _MAX_BYTES), _ALLOWED, f"read CIFAR-10 file {path}")
    if not isinstance(content, dict):
        raise _damaged(path, "it does not hold a dictionary")
    entries = {key.decode("latin-1") if isinstance(key, bytes) else key: value for key, value in content.items()}
    if not {"data", "labels"} <= entries.keys():
        raise _damaged(path, "its dictionary lacks 'data' or 'labels'")
    images = _array(path, entries["data"])
    labels = entries["labels"]
    if not isinstance(labels, list) or not all(type(label) is int and 0 <= label < len(LABELS) for label in labels):
        raise _damaged(path, f"its labels are not a list of whole numbers 0..{len(LABELS) - 1}")
    if len(labels) != len(images):
        raise _damaged(path, f"{len(images)} images and {len(labels)} labels")
    return images, np.array(labels, dtype=np.uint8)


def _checked_labels(path: Path, labels: np.ndarray) -> np.ndarray:
    if labels.max() >= len(LABELS):
        raise _damaged(path, f"label {labels.max()}, expected 0..{len(LABELS) - 1}")
    return labels


def _array(path: Path, call: Any) -> np.ndarray:
    """The uint8 array [n, 3072] of a pickled numpy array, whose state is version, shape, dtype, order and bytes."""
    match call:
        case Call(path=function, arguments=(Name("numpy ndarray"), _, _), state=(1, (n, pixels), kind, False, raw)) if (
            function in _RECONSTRUCT and _is_uint8(kind)
        ):
            data = _raw_bytes(raw)
            if type(n) is int and n > 0 and pixels == _PIXELS and data is not None and len(data) == n * _PIXELS:
                return np.frombuffer(data, dtype=np.uint8).reshape(n, _PIXELS)
    raise _damaged(path, f"'data' is not a plain uint8 array [n, {_PIXELS}]")


def _is_uint8(kind: Any) -> bool:
    match kind:
        case Call(path="numpy dtype", arguments=("u1" | b"u1" | "|u1" | b"|u1", *_)):
            return True
    return False


def _raw_bytes(raw: Any) -> bytes | None:
    """Byte strings come as they are, or as Python 3 writes them for protocol 2: text to be encoded."""
    match raw:
        case bytes():
            return raw
        case Call(path="_codecs encode", arguments=(str() as text, "latin1" | "latin-1")):
            try:
                return text.encode("latin-1")
            except UnicodeEncodeError:
                return None
    return None


def _damaged(path: Path, found: str) -> DataError:
    return DataError(f"read CIFAR-10 file {path}", found, "get the file again")
