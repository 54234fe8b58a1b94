"""A user's own arrays: what is in them arrives, what cannot be used is refused with what to give instead."""

import numpy as np
import pytest
import torch

from lilliput.core.errors import DataError
from lilliput.data.arrays import Features, read_features

WORDS = Features(name="words", shape=(1, 4, 3), n_labels=5)
SOUNDS = Features(name="sounds", shape=(6,), n_labels=2, anomaly=True)


def arrays(features, n=8, seed=0):
    rng = np.random.default_rng(seed)
    return rng.standard_normal((n, *features.shape)).astype(np.float32), np.arange(n) % features.n_labels


def write(folder, features, packed=False, roles=("train", "test"), **changed):
    folder.mkdir(exist_ok=True)
    for role in roles:
        x, y = changed.get(role) or arrays(features, seed=len(role))
        if packed:
            np.savez(folder / f"{role}.npz", x=x, y=y)
        else:
            np.save(folder / f"{role}_x.npy", x)
            np.save(folder / f"{role}_y.npy", y)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("roles", [("train", "test"), ("train", "validation", "test")])
def test_arrays_arrive_as_they_were_written(packed, inside, roles, tmp_path):
    write(tmp_path / "words" if inside else tmp_path, WORDS, packed, roles)
    read = read_features(WORDS, tmp_path)
    assert tuple(read) == roles
    for role, (x, y) in read.items():
        wanted = arrays(WORDS, seed=len(role))
        assert np.array_equal(x.numpy(), wanted[0])
        assert y.tolist() == wanted[1].tolist()
        assert y.dtype == torch.int64


@pytest.mark.parametrize("kind", [np.uint8, np.int8, np.int32, np.float16, np.float64, bool])
def test_pixels_stay_bytes_and_every_other_number_becomes_a_float(kind, tmp_path):
    x = (np.arange(96).reshape(8, 1, 4, 3) % 2).astype(kind)
    write(tmp_path, WORDS, train=(x, np.arange(8, dtype=np.uint8)[:, None] % 5))
    found, labels = read_features(WORDS, tmp_path)["train"]
    assert found.dtype == (torch.uint8 if kind is np.uint8 else torch.float32)
    assert np.array_equal(found.numpy().astype(np.float64), x.astype(np.float64))
    assert labels.tolist() == [0, 1, 2, 3, 4, 0, 1, 2]


def test_normal_sounds_need_no_labels_to_train_on(tmp_path):
    write(tmp_path, SOUNDS, roles=("validation", "test"))
    np.save(tmp_path / "train_x.npy", arrays(SOUNDS)[0])
    assert read_features(SOUNDS, tmp_path)["train"][1].tolist() == [0] * 8


def test_files_that_are_nowhere_are_named_with_what_belongs_into_them(tmp_path, monkeypatch):
    monkeypatch.delenv("LILLIPUT_DATA", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(DataError) as error:
        read_features(SOUNDS, tmp_path)
    assert str(error.value) == (
        "data set 'sounds': no train.npz, validation.npz, test.npz (or train_x.npy, train_y.npy and so on) in "
        f"{tmp_path}/sounds, {tmp_path}/.cache/lilliput/data/sounds; make them from your own data: x of shape "
        "[n, 6] and y [n] with 0 normal, 1 anomaly; name their root (--data-root or LILLIPUT_DATA)"
    )


def changed(features, x=None, y=None):
    own = arrays(features)
    return own[0] if x is None else x(own[0]), own[1] if y is None else y(own[1])


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(
    ("features", "role", "change", "text"),
    [
        (WORDS, "train", {"x": lambda x: x[:, 0]}, r".*\[8, 4, 3\]; give x of shape \[n, 1, 4, 3\] and y \[n\]"),
        (WORDS, "test", {"x": lambda x: x.transpose(0, 2, 3, 1)}, r".*; put channels first: x.transpose\(0, 3, 1, 2\)"),
        (WORDS, "train", {"x": lambda x: x[:0]}, "x has no samples; give at least one"),
        (WORDS, "train", {"x": lambda x: np.float32(1)}, "x has no samples"),
        (WORDS, "train", {"x": lambda x: x.astype("<U4")}, "x is an array of <U4; give numbers"),
        (WORDS, "train", {"x": lambda x: x.astype(np.complex64)}, "x is an array of complex64; give numbers"),
        (WORDS, "train", {"y": lambda y: y[:-1]}, "8 samples and 7 labels; give one label for each sample"),
        (WORDS, "train", {"y": lambda y: y + 1}, r"labels 1\.\.5; number them 0\.\.4"),
        (WORDS, "train", {"y": lambda y: y - 1}, r"labels -1\.\.3; number them 0\.\.4"),
        (WORDS, "train", {"y": lambda y: y.astype(float)}, r"y is float64 of shape \[8\]; give one integer"),
        (WORDS, "train", {"y": lambda y: np.eye(5, dtype=int)[y]}, r"y is int64 of shape \[8, 5\]; give one integer"),
        (SOUNDS, "train", {}, "4 of its 8 samples are anomalies; train on normal samples alone"),
        (SOUNDS, "validation", {"y": lambda y: y * 0}, "all of its samples are labelled 0; give normal samples and"),
    ],
)  # fmt: skip
def test_arrays_that_do_not_fit_are_refused(features, role, change, text, packed, tmp_path):
    normal = changed(features, y=lambda y: y * 0)
    write(tmp_path, features, packed, features.roles, **({"train": normal} | {role: changed(features, **change)}))
    with pytest.raises(DataError, match=f"{role} of data set .*: {text}"):
        read_features(features, tmp_path)


def test_a_file_without_labels_or_with_other_names_is_refused(tmp_path):
    write(tmp_path, WORDS)
    (tmp_path / "test_y.npy").unlink()
    with pytest.raises(DataError, match=r"test of data set 'words' .*: no y in it; give x of shape"):
        read_features(WORDS, tmp_path)
    for role in ("train", "test"):
        (tmp_path / f"{role}_x.npy").unlink()
        np.savez(tmp_path / f"{role}.npz", images=np.ones(3))
    with pytest.raises(DataError, match=r"train of data set 'words' .*: no x in it"):
        read_features(WORDS, tmp_path)


def header(shape):
    text = repr({"descr": "<f4", "fortran_order": False, "shape": shape}).ljust(117).encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text


@pytest.mark.parametrize(
    "content",
    [b"", b"hello", b"\x93NUMPY\x01\x00", b"PK\x03\x04 torn", header((1 << 50, 1, 4, 3)), header((8, 1, 4, 3)) + b"xx"],
)
@pytest.mark.parametrize("name", ["train_x.npy", "train.npz"])
def test_files_that_hold_no_arrays_are_refused(name, content, tmp_path):
    write(tmp_path, WORDS)
    if name == "train.npz":
        (tmp_path / "train_x.npy").unlink()
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=f"{name} holds no arrays of numbers .*; write it with numpy.save"):
        read_features(WORDS, tmp_path)


def test_pickled_objects_are_never_read(tmp_path):
    write(tmp_path, WORDS)
    np.save(tmp_path / "train_x.npy", np.array([{}, {}], dtype=object), allow_pickle=True)
    with pytest.raises(DataError, match=r"train_x.npy holds no arrays of numbers"):
        read_features(WORDS, tmp_path)
