"""Street View House Numbers, cropped digits: MATLAB files with X [32, 32, 3, n] and y [n, 1] in 1..10.

Source: Netzer et al. (2011), "Reading Digits in Natural Images with Unsupervised Feature Learning".
"""

from pathlib import Path

import numpy as np
import torch

from lilliput.core.errors import DataError
from lilliput.data.dataset import RawData, Split
from lilliput.data.files import file_digest
from lilliput.data.mat import read_mat
from lilliput.data.roles import last_rows
from lilliput.data.roots import Layout

TRAIN, TEST = "train_32x32.mat", "test_32x32.mat"
SVHN = Layout(folders=("SVHN", "svhn", "."), files=((TRAIN,), (TEST,)))
PUBLISHED = {TRAIN: "e26dedcc434d2e4c54c9b2d4a06d8373", TEST: "eb5a983be6a315427106f1b164d9cef3"}  # md5

_IMAGE = (32, 32, 3)


def read_svhn(folder: Path) -> RawData:
    """uint8 images [n, 3, 32, 32]; the file's label 10 is the digit 0."""
    train, test = _read(folder / TRAIN), _read(folder / TEST)
    published = all(file_digest(folder / name, "md5") == md5 for name, md5 in PUBLISHED.items())
    return RawData(
        name="svhn",
        train=train,
        test=test,
        labels=tuple("0123456789"),
        validation_rows=last_rows(len(train[1])),
        source=f"{folder}, {'the published bytes' if published else 'not the published bytes'}",
    )


def _read(path: Path) -> Split:
    content = read_mat(path, frozenset("Xy"))
    images, labels = content["X"], content["y"].ravel()
    found = f"X is {images.dtype} {list(images.shape)} and y {list(content['y'].shape)}"
    if images.dtype != np.uint8 or images.shape[:-1] != _IMAGE:
        raise DataError(f"read SVHN file {path}", f"{found}, expected uint8 [32, 32, 3, n]", "get the file again")
    if not np.isin(labels, np.arange(1, 11)).all():
        raise DataError(f"read SVHN file {path}", "it has labels outside of 1..10", "get the file again")
    return (
        torch.from_numpy(np.array(images.transpose(3, 2, 0, 1), order="C")),
        torch.from_numpy(labels.astype(np.int64) % 10),
    )
