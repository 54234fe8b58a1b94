import numpy as np
import pytest
import torch
from scipy.io import savemat

from lilliput.core.errors import DataError
from lilliput.data.svhn import TEST, TRAIN, read_svhn

RNG = np.random.default_rng(0)


def write(folder, name, n=12, packed=True, labels=None, **changed):
    images = RNG.integers(0, 256, (32, 32, 3, n), dtype=np.uint8)
    labels = np.arange(n, dtype=np.uint8)[:, None] % 10 + 1 if labels is None else labels
    savemat(folder / name, {"X": images, "y": labels} | changed, do_compression=packed)
    return images, labels


@pytest.mark.parametrize("packed", [True, False])
def test_images_keep_their_place_and_label_10_is_the_digit_0(tmp_path, packed):
    images, _ = write(tmp_path, TRAIN, packed=packed)
    write(tmp_path, TEST, n=3, packed=packed)
    data = read_svhn(tmp_path)
    assert data.train[0].shape == (12, 3, 32, 32)
    assert data.train[0].dtype == torch.uint8
    assert int(data.train[0][7, 2, 30, 1]) == int(images[30, 1, 2, 7])
    assert data.train[1].tolist() == [1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1, 2]
    assert data.source.endswith("not the published bytes")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"X": np.zeros((32, 32, 3, 12))}, "X is float64"),
        ({"X": np.zeros((32, 31, 3, 12), np.uint8)}, "expected uint8"),
        ({"X": np.zeros((32, 32), np.uint8)}, "expected uint8"),
        ({"labels": np.zeros((12, 1), np.uint8)}, r"outside of 1\.\.10"),
        ({"labels": np.full((12, 1), 1.5)}, r"outside of 1\.\.10"),
        ({"labels": np.ones((11, 1), np.uint8)}, "12 samples and labels"),
    ],
)
def test_svhn_file_of_another_kind_is_refused(tmp_path, changed, message):
    write(tmp_path, TRAIN, **changed)
    write(tmp_path, TEST)
    with pytest.raises(DataError, match=message):
        read_svhn(tmp_path)
