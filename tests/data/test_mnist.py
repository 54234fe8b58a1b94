import gzip
from pathlib import Path

import numpy as np
import pytest
import torch

from lilliput.core.errors import DataError
from lilliput.data.idx import header
from lilliput.data.mnist import FASHION_MNIST, FILES, MNIST, read_mnist

RNG = np.random.default_rng(0)


def write(folder, *, packed=True, n_train=20, n_test=5, side=28, top=10):
    folder.mkdir(parents=True, exist_ok=True)
    arrays = {}
    for name in FILES:
        n = n_train if "train" in name else n_test
        shape = (n, side, side) if "images" in name else (n,)
        arrays[name] = RNG.integers(0, 256 if "images" in name else top, shape, dtype=np.uint8)
        content = header(shape) + arrays[name].tobytes()
        (folder / (f"{name}.gz" if packed else name)).write_bytes(gzip.compress(content) if packed else content)
    return arrays


@pytest.mark.parametrize("packed", [True, False])
def test_plain_and_packed_files_give_their_images_and_labels(tmp_path, packed):
    arrays = write(tmp_path, packed=packed)
    data = read_mnist(tmp_path)
    assert np.array_equal(data.train[0].squeeze(1).numpy(), arrays[FILES[0]])
    assert np.array_equal(data.test[1].numpy(), arrays[FILES[3]])
    assert (data.train[0].dtype, data.train[1].dtype) == (torch.uint8, torch.int64)
    assert data.validation_rows.tolist() == [18, 19]
    assert data.source.endswith("not the published bytes")


@pytest.mark.parametrize(
    ("wrong", "message"), [({"side": 32}, "32 x 32, expected 28 x 28"), ({"top": 256}, r"expected 0\.\.9")]
)
def test_files_of_another_kind_are_refused(tmp_path, wrong, message):
    write(tmp_path, n_train=200, **wrong)
    with pytest.raises(DataError, match=message):
        read_mnist(tmp_path)


def test_labels_of_another_length_are_refused(tmp_path):
    write(tmp_path, n_train=20)
    (tmp_path / f"{FILES[1]}.gz").write_bytes(gzip.compress(header((19,)) + bytes(19)))
    with pytest.raises(DataError, match="20 samples and labels"):
        read_mnist(tmp_path)


def test_a_missing_file_is_named(tmp_path):
    write(tmp_path)
    (tmp_path / f"{FILES[2]}.gz").unlink()
    with pytest.raises(DataError, match=FILES[2]):
        read_mnist(tmp_path)


def test_layouts_are_those_of_torchvision_and_debian():
    assert MNIST.folders[0] == "MNIST/raw"
    assert FASHION_MNIST.folders[0] == "FashionMNIST/raw"
    assert FASHION_MNIST.elsewhere == (Path("/usr/share/datasets/fashion-mnist"),)


def test_real_mnist_is_complete_and_known_by_its_checksum(real_data):
    data = read_mnist(real_data / "MNIST/raw")
    assert data.train[0].shape == (60_000, 1, 28, 28)
    assert data.test[1].bincount().tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    assert data.train[1][:5].tolist() == [5, 0, 4, 1, 9]
    assert data.source.endswith(", the published bytes")


def test_real_fashion_mnist_is_complete_and_not_taken_for_mnist(real_data):
    folder = next(
        (f for f in (real_data / "FashionMNIST/raw", *FASHION_MNIST.elsewhere) if FASHION_MNIST.fits(f)), None
    )
    if folder is None:
        pytest.skip("Fashion-MNIST is not here: install Debian's dataset-fashion-mnist, or put FashionMNIST/raw there")
    data = read_mnist(folder, "fashion-mnist")
    assert data.test[1].bincount().tolist() == [1000] * 10
    assert data.source.endswith(", the published bytes")
    with pytest.raises(DataError, match="these files are 'fashion-mnist'"):
        read_mnist(folder, "mnist")
