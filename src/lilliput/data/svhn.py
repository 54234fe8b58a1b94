"""Street View House Numbers, cropped digits: MATLAB files with X [32, 32, 3, n] and y [n, 1] in 1..10.

Source: Netzer et al. (2011), "Reading Digits in Natural Images with Unsupervised Feature Learning".
"""

from pathlib import Path

import numpy as np
import torch

from lilliput.core.errors import DataError
from lilliput.data.dataset import RawData, Split
from lilliput.data.files import file_digest
from lilliput.data.mat import MAX_BYTES, read_mat
from lilliput.data.roles import last_rows
from lilliput.data.roots import Layout

TRAIN, TEST, EXTRA = "train_32x32.mat", "test_32x32.mat", "extra_32x32.mat"
_FOLDERS = ("SVHN", "svhn", ".")
SVHN = Layout(folders=_FOLDERS, files=((TRAIN,), (TEST,)))
SVHN_EXTRA = Layout(folders=_FOLDERS, files=((TRAIN,), (TEST,), (EXTRA,)))
PUBLISHED = {
    TRAIN: "e26dedcc434d2e4c54c9b2d4a06d8373",
    TEST: "eb5a983be6a315427106f1b164d9cef3",
    EXTRA: "a93ce644f1a588dc4d68dda5feec44a7",
}
"""md5 of the published files."""

_IMAGE = (32, 32, 3)
_MAX_EXTRA_BYTES = 1 << 31  # the extra images take 1.6 GB
_BATCH = 4096


def read_svhn(folder: Path) -> RawData:
    """uint8 images [n, 3, 32, 32]; the file's label 10 is the digit 0. Published: 73,257 to train, 26,032 to test."""
    return _data("svhn", folder, _read(folder / TRAIN))


def read_svhn_extra(folder: Path) -> RawData:
    """The same, with the 531,131 extra images, somewhat easier ones, before those to train.

    So the validation images are those of `read_svhn`. Needs about 5 GB of memory.
    """
    parts = [_read(folder / name) for name in (EXTRA, TRAIN)]
    images, labels = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
    return _data("svhn-extra", folder, (images, labels), validation=last_rows(len(parts[1][1])) + len(parts[0][1]))


def _data(name: str, folder: Path, train: Split, validation: torch.Tensor | None = None) -> RawData:
    files = (TRAIN, TEST) if name == "svhn" else (TRAIN, TEST, EXTRA)
    published = all(file_digest(folder / file, "md5") == PUBLISHED[file] for file in files)
    return RawData(
        name=name,
        train=train,
        test=_read(folder / TEST),
        labels=tuple("0123456789"),
        validation_rows=last_rows(len(train[1])) if validation is None else validation,
        source=f"{folder}, {'the published bytes' if published else 'not the published bytes'}",
    )


def _read(path: Path) -> Split:
    content = read_mat(path, frozenset("Xy"), limit=_MAX_EXTRA_BYTES if path.name == EXTRA else MAX_BYTES)
    images, labels = content["X"], content["y"].ravel()
    found = f"X is {images.dtype} {list(images.shape)} and y {list(content['y'].shape)}"
    if images.dtype != np.uint8 or images.shape[:-1] != _IMAGE:
        raise DataError(f"read SVHN file {path}", f"{found}, expected uint8 [32, 32, 3, n]", "get the file again")
    if len(labels) != images.shape[-1]:
        raise DataError(f"read SVHN file {path}", f"{found}, expected a label for each image", "get the file again")
    if not np.isin(labels, np.arange(1, 11)).all():
        raise DataError(f"read SVHN file {path}", "it has labels outside of 1..10", "get the file again")
    stacked = images.T  # [n, 3, column, row], as it lies in memory
    for i in range(0, len(stacked), _BATCH):
        stacked[i : i + _BATCH] = stacked[i : i + _BATCH].swapaxes(2, 3).copy()  # in place: a copy takes 1.6 GB
    return torch.from_numpy(stacked), torch.from_numpy(labels.astype(np.int64) % 10)
