import hashlib

import numpy as np
import pytest
import torch
from scipy.io import savemat

from lilliput.core.errors import DataError
from lilliput.data import svhn
from lilliput.data.load import load
from lilliput.data.roles import by_role
from lilliput.data.svhn import EXTRA, TEST, TRAIN, read_svhn, read_svhn_extra

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


def test_every_pixel_of_every_batch_is_turned(tmp_path, monkeypatch):
    monkeypatch.setattr(svhn, "_BATCH", 5)
    images, _ = write(tmp_path, TRAIN)
    write(tmp_path, TEST)
    assert np.array_equal(read_svhn(tmp_path).train[0].numpy(), images.transpose(3, 2, 0, 1))


def test_extra_images_come_first_and_leave_validation_as_it_is(tmp_path):
    for name, n in ((TRAIN, 30), (TEST, 3), (EXTRA, 7)):
        write(tmp_path, name, n=n)
    plain, more = read_svhn(tmp_path), read_svhn_extra(tmp_path)
    assert (plain.name, more.name) == ("svhn", "svhn-extra")
    assert len(more.train[0]) == len(more.train[1]) == 37
    assert torch.equal(more.train[0][7:], plain.train[0])
    held, again = by_role(plain)["validation"], by_role(more)["validation"]
    assert len(held[1]) == 3
    assert all(torch.equal(a, b) for a, b in zip(held, again, strict=True))
    assert torch.equal(plain.test[0], more.test[0])


def test_data_sets_are_found_by_name_where_their_files_are(empty_home, tmp_path):
    (tmp_path / "SVHN").mkdir()
    for name in (TRAIN, TEST):
        write(tmp_path / "SVHN", name)
    assert load("svhn", data_root=tmp_path).source == f"{tmp_path / 'SVHN'}, not the published bytes"
    with pytest.raises(DataError, match="--download"):
        load("svhn-extra", data_root=tmp_path)
    write(tmp_path / "SVHN", EXTRA)
    assert len(load("svhn-extra", data_root=tmp_path).train[1]) == 24


def test_the_published_bytes_are_known_by_their_checksums(tmp_path, monkeypatch):
    for name in (TRAIN, TEST, EXTRA):
        write(tmp_path, name)
    sums = {name: hashlib.md5((tmp_path / name).read_bytes()).hexdigest() for name in (TRAIN, TEST, EXTRA)}
    monkeypatch.setattr(svhn, "PUBLISHED", sums | {EXTRA: "0"})
    assert read_svhn(tmp_path).source.endswith(", the published bytes")
    assert read_svhn_extra(tmp_path).source.endswith(", not the published bytes")


@pytest.mark.parametrize("name", [TRAIN, TEST])
def test_a_truncated_file_is_refused(tmp_path, name):
    for file in (TRAIN, TEST):
        write(tmp_path, file)
    (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:-1000])
    with pytest.raises(DataError, match=rf"{name}: .* are left; get the file again"):
        read_svhn(tmp_path)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"X": np.zeros((32, 32, 3, 12))}, "X is float64"),
        ({"X": np.zeros((32, 31, 3, 12), np.uint8)}, "expected uint8"),
        ({"X": np.zeros((32, 32), np.uint8)}, "expected uint8"),
        ({"labels": np.zeros((12, 1), np.uint8)}, r"outside of 1\.\.10"),
        ({"labels": np.full((12, 1), 1.5)}, r"outside of 1\.\.10"),
        ({"labels": np.ones((11, 1), np.uint8)}, "a label for each image"),
    ],
)
def test_svhn_file_of_another_kind_is_refused(tmp_path, changed, message):
    write(tmp_path, TRAIN, **changed)
    write(tmp_path, TEST)
    with pytest.raises(DataError, match=message):
        read_svhn(tmp_path)
