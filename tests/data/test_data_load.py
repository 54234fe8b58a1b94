import gzip
import hashlib
import shutil
import tarfile
from dataclasses import replace

import numpy as np
import pytest

from lilliput.core.errors import DataError
from lilliput.core.progress import Progress
from lilliput.data import load as load_module
from lilliput.data.cifar10 import TEST, TRAIN
from lilliput.data.idx import header
from lilliput.data.load import DATA_SETS, load, obtain
from lilliput.data.mnist import FILES
from lilliput.data.sources import REMOTES, Remote


@pytest.fixture
def mirror(tmp_path, monkeypatch):
    """A folder in place of the network: `fetch` copies from it by the last part of the URL, and counts."""
    folder = tmp_path / "mirror"
    folder.mkdir()
    fetched = []

    def fetch(url, path, *, checksum, progress):
        source = folder / url.rpartition("/")[2]
        fetched.append(url)
        if "broken" in url:
            raise DataError(f"download {url}", "HTTP 500", "later")
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, path)
        return path

    monkeypatch.setattr(load_module, "fetch", fetch)
    return folder, fetched


def write_mnist(folder):
    for name in FILES:
        shape = (10, 28, 28) if "images" in name else (10,)
        (folder / f"{name}.gz").write_bytes(gzip.compress(header(shape) + bytes(np.prod(shape))))


def test_digits_need_no_file(empty_home):
    assert load("digits").name == "digits"


@pytest.mark.parametrize(
    ("asked", "near"), [("minst", "mnist"), ("CIFAR_10", "cifar10"), ("fashion", "fashion-mnist"), ("digit", "digits")]
)
def test_an_unknown_name_is_refused_with_the_nearest(asked, near):
    with pytest.raises(DataError, match=f"did you mean '{near}'"):
        load(asked)


def test_a_name_like_no_other_is_refused_with_all_names():
    with pytest.raises(DataError, match=", ".join(DATA_SETS)):
        load("xyz")


@pytest.mark.parametrize("name", ["mnist", "fashion-mnist", "cifar10", "svhn", "svhn-extra"])
def test_missing_data_is_told_with_the_places_and_the_way_to_get_it(empty_home, tmp_path, name):
    if name == "fashion-mnist" and load_module.search(load_module._PUBLISHED[name].layouts):
        pytest.skip("the package dataset-fashion-mnist is installed: it is always found")
    with pytest.raises(DataError, match=f"{tmp_path}.*--download"):
        load(name, data_root=tmp_path)


def test_download_goes_to_the_first_root_and_only_once(empty_home, tmp_path, mirror):
    folder, fetched = mirror
    write_mnist(folder)
    data = load("mnist", data_root=tmp_path / "new", download=True)
    assert data.source.startswith(str(tmp_path / "new/MNIST/raw"))
    assert len(fetched) == 4
    load("mnist", data_root=tmp_path / "new", download=True)
    assert len(fetched) == 4


def test_archive_is_unpacked_and_deleted(empty_home, tmp_path, mirror):
    folder, _ = mirror
    with tarfile.open(folder / "cifar-10-binary.tar.gz", "w:gz") as tar:
        (folder / "batch").write_bytes(bytes(3073))
        for name in TRAIN + TEST:
            tar.add(folder / "batch", f"cifar-10-batches-bin/{name}.bin")
    data = load("cifar10", data_root=tmp_path / "new", download=True)
    assert len(data.train[0]) == 5
    assert sorted(path.name for path in (tmp_path / "new/cifar-10-batches-bin").iterdir()) == sorted(
        f"{name}.bin" for name in TRAIN + TEST
    )


def test_next_mirror_is_tried_and_the_last_one_is_told(tmp_path, mirror):
    folder, fetched = mirror
    (folder / "a").write_bytes(b"1")
    said = []

    class Saying(Progress):
        def say(self, text):
            said.append(text)

    remote = Remote(file="a", checksum="md5:0", urls=("http://broken/a", "http://good/a"))
    obtain((remote,), tmp_path / "out", Saying())
    assert fetched == ["http://broken/a", "http://good/a"]
    assert len(said) == 1
    with pytest.raises(DataError, match="HTTP 500"):
        obtain((replace(remote, urls=("http://good/b/broken",)),), tmp_path / "other")


def test_folder_that_cannot_be_made_is_refused(empty_home, tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(DataError, match="another --data-root"):
        load("mnist", data_root=tmp_path / "file/root", download=True)


def test_every_remote_has_a_checksum_and_web_addresses():
    for remotes in REMOTES.values():
        for remote in remotes:
            algorithm, _, digest = remote.checksum.partition(":")
            assert len(bytes.fromhex(digest)) == hashlib.new(algorithm).digest_size
            assert all(url.startswith(("https://", "http://")) and url.endswith(remote.file) for url in remote.urls)


@pytest.mark.parametrize("name", ["mnist", "cifar10"])
def test_real_data_is_found_by_its_name(empty_home, real_data, monkeypatch, name):
    monkeypatch.setenv("LILLIPUT_DATA", str(real_data))
    assert load(name).name == name
