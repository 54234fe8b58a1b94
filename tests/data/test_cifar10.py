import os
import pickle
import struct

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lilliput.core.errors import DataError
from lilliput.data.cifar10 import BINARY, LABELS, PICKLED, TEST, TRAIN, read_cifar10

RECORD = 3073
BATCH = np.random.default_rng(0).integers(0, 256, (2, RECORD), dtype=np.uint8)
BATCH[:, 0] = (3, 9)
fuzz = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def write_binary(folder, n=2):
    rng = np.random.default_rng(1)
    batches = {}
    for name in TRAIN + TEST:
        records = rng.integers(0, 256, (n, RECORD), dtype=np.uint8)
        records[:, 0] %= 10
        (folder / f"{name}.bin").write_bytes(records.tobytes())
        batches[name] = records
    return batches


def python_2_pickle(records):
    """The instructions that Python 2 wrote into the published files."""
    images, labels = records[:, 1:].tobytes(), records[:, 0]
    shape = b"M" + struct.pack("<H", len(records)) + b"M" + struct.pack("<H", 3072) + b"\x86"
    dtype = b"cnumpy\ndtype\nq\x05U\x02u1K\x00K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    array = b"cnumpy.core.multiarray\n_reconstruct\nq\x02cnumpy\nndarray\nK\x00\x85U\x01b\x87R(K\x01" + shape + dtype
    array += b"\x89T" + struct.pack("<I", len(images)) + images + b"tb"
    entries = b"U\x04data" + array + b"U\x06labels](" + b"".join(b"K" + bytes([label]) for label in labels) + b"e"
    return b"\x80\x02}q\x01(" + entries + b"U\x0bbatch_labelU\x17training batch 1 of 5..u."


def write_pickled(folder, batches, encode):
    for name, records in batches.items():
        (folder / name).write_bytes(encode(records))


def test_binary_files_give_their_images_and_labels(tmp_path):
    batches = write_binary(tmp_path)
    data = read_cifar10(tmp_path)
    whole = np.concatenate([batches[name] for name in TRAIN])
    assert data.train[0].shape == (10, 3, 32, 32)
    assert np.array_equal(data.train[0].flatten(1).numpy(), whole[:, 1:])
    assert np.array_equal(data.train[1].numpy(), whole[:, 0])
    assert np.array_equal(data.test[1].numpy(), batches["test_batch"][:, 0])
    assert (data.train[0].dtype, data.train[1].dtype) == (torch.uint8, torch.int64)
    assert data.validation_rows.tolist() == [9]
    assert data.labels == LABELS


@pytest.mark.parametrize("writer", ["python 2", "numpy, protocol 2", "numpy, protocol 4"])
def test_pickled_files_hold_what_the_binary_files_hold(tmp_path, writer):
    (tmp_path / "bin").mkdir()
    (tmp_path / "py").mkdir()
    batches = write_binary(tmp_path / "bin")

    def encode(records):
        if writer == "python 2":
            return python_2_pickle(records)
        content = {"data": np.ascontiguousarray(records[:, 1:]), "labels": records[:, 0].tolist()}
        return pickle.dumps(content, int(writer[-1]))

    write_pickled(tmp_path / "py", batches, encode)
    assert PICKLED.fits(tmp_path / "py")
    assert not BINARY.fits(tmp_path / "py")
    binary, pickled = read_cifar10(tmp_path / "bin"), read_cifar10(tmp_path / "py")
    assert binary.source.endswith("bin, binary version")
    assert pickled.source.endswith("py, pickled version, not the published bytes")
    for role in ("train", "test"):
        assert all(torch.equal(a, b) for a, b in zip(getattr(binary, role), getattr(pickled, role), strict=True))


def test_python_2_pickle_of_this_test_is_one_that_python_reads():
    read = pickle.loads(python_2_pickle(BATCH), encoding="bytes")
    assert np.array_equal(read[b"data"], BATCH[:, 1:])
    assert read[b"labels"] == [3, 9]


@given(st.data())
@fuzz
def test_damaged_binary_file_is_refused_or_read_as_it_stands(tmp_path, data):
    write_binary(tmp_path)
    content = bytearray(BATCH.tobytes())
    content = content[: data.draw(st.just(len(content)) | st.integers(0, len(content)), label="cut")]
    places = st.sampled_from([0, RECORD]) | st.integers(0, 2 * RECORD - 1)
    for at in (
        data.draw(st.lists(places.filter(lambda at: at < len(content)), max_size=3), label="at") if content else ()
    ):
        content[at] ^= data.draw(st.integers(1, 255), label="flip")
    (tmp_path / "test_batch.bin").write_bytes(content)
    n, rest = divmod(len(content), RECORD)
    if n == 0 or rest or max(content[::RECORD]) > 9:
        with pytest.raises(DataError, match=r"test_batch\.bin"):
            read_cifar10(tmp_path)
        return
    images, labels = read_cifar10(tmp_path).test
    records = np.frombuffer(content, np.uint8).reshape(n, RECORD)
    assert np.array_equal(images.flatten(1).numpy(), records[:, 1:])
    assert np.array_equal(labels.numpy(), records[:, 0])


@given(st.data())
@fuzz
def test_damaged_pickled_file_is_refused_or_holds_whole_images(tmp_path, data):
    write_pickled(tmp_path, dict.fromkeys(TRAIN + TEST, BATCH), python_2_pickle)
    content = bytearray(python_2_pickle(BATCH))
    content = content[: data.draw(st.just(len(content)) | st.integers(0, len(content)), label="cut")]
    near_the_code = st.integers(0, 230) | st.integers(len(content) - 70, len(content) - 1)
    for at in data.draw(st.lists(near_the_code, min_size=1, max_size=3), label="at"):
        if 0 <= at < len(content):
            content[at] ^= data.draw(st.integers(1, 255), label="flip")
    (tmp_path / "test_batch").write_bytes(content)
    try:
        images, labels = read_cifar10(tmp_path).test
    except DataError as error:
        assert "test_batch" in str(error)  # noqa: PT017
    else:
        assert images.shape[1:] == (3, 32, 32)
        assert len(images) == len(labels)


class Attack:
    def __reduce__(self):
        return os.system, ("touch attacked",)


IMAGES = np.zeros((2, 3072), np.uint8)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"data": Attack(), "labels": [0, 1]}, "posix system"),
        ([1], "dictionary"),
        ({"labels": [0, 1]}, "lacks 'data'"),
        ({"data": IMAGES}, "lacks 'data' or 'labels'"),
        ({"data": IMAGES, "labels": [0, 10]}, r"whole numbers 0\.\.9"),
        ({"data": IMAGES, "labels": [True, 1]}, r"whole numbers 0\.\.9"),
        ({"data": IMAGES, "labels": (0, 1)}, r"whole numbers 0\.\.9"),
        ({"data": IMAGES, "labels": [0]}, "2 images and 1 labels"),
        ({"data": IMAGES.astype(np.float32), "labels": [0, 1]}, "plain uint8 array"),
        ({"data": IMAGES[:, :3071], "labels": [0, 1]}, "plain uint8 array"),
        ({"data": np.asfortranarray(IMAGES), "labels": [0, 1]}, "plain uint8 array"),
        ({"data": [0] * 6144, "labels": [0, 1]}, "plain uint8 array"),
        ({"data": np.array([object()]), "labels": [0]}, "object"),
    ],
)
def test_each_fault_of_a_pickled_file_is_named(tmp_path, monkeypatch, content, message):
    monkeypatch.chdir(tmp_path)
    write_pickled(tmp_path, dict.fromkeys(TRAIN + TEST, BATCH), python_2_pickle)
    (tmp_path / "data_batch_3").write_bytes(pickle.dumps(content, 2))
    with pytest.raises(DataError, match=message):
        read_cifar10(tmp_path)
    assert not (tmp_path / "attacked").exists()


@pytest.mark.parametrize("claimed", [0, 1, 3, 60_000])
def test_pickled_array_must_hold_what_its_shape_claims(tmp_path, claimed):
    content = python_2_pickle(BATCH)
    shape = b"M\x02\x00M\x00\x0c\x86"
    assert content.count(shape) == 1
    write_pickled(tmp_path, dict.fromkeys(TRAIN + TEST, BATCH), python_2_pickle)
    (tmp_path / "data_batch_1").write_bytes(content.replace(shape, b"M" + struct.pack("<H", claimed) + shape[3:]))
    with pytest.raises(DataError, match="plain uint8 array"):
        read_cifar10(tmp_path)


def test_huge_file_is_refused_by_its_size(tmp_path):
    write_binary(tmp_path)
    with (tmp_path / "data_batch_2.bin").open("wb") as file:
        file.truncate(RECORD * 10_000_000)
    with pytest.raises(DataError, match="at most"):
        read_cifar10(tmp_path)


def test_real_cifar10_is_complete(real_data):
    data = read_cifar10(real_data / "cifar-10-batches-bin")
    assert data.train[0].shape == (50_000, 3, 32, 32)
    assert data.train[1].bincount().tolist() == [5000] * 10
    assert data.test[1].bincount().tolist() == [1000] * 10
    assert data.validation_rows.tolist() == list(range(45_000, 50_000))
