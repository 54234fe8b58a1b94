import importlib.machinery
import importlib.util
import sys

import pytest
import torch

from lilliput.core.errors import DataError, MissingExtraError
from lilliput.data.roles import by_role
from lilliput.data.speech import TEST, TRAIN, find_japanese_vowels, read_japanese_vowels


def write(folder, channels=12, frames=5, speakers=9, n_each=7):
    folder.mkdir(parents=True, exist_ok=True)
    names = " ".join(str(i + 1) for i in range(speakers))
    head = f"@timeStamps false\n@missing false\n@classLabel true {names}\n@data\n"
    channel = ",".join(["0.5"] * frames)
    rows = [":".join([channel] * channels + [str(i + 1)]) for i in range(speakers) for _ in range(n_each)]
    for name in (TRAIN, TEST):
        (folder / name).write_text(head + "\n".join(rows))
    return folder


def installed(monkeypatch, spec):
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec if name == "aeon" else real(name))


def test_short_series_are_padded_with_zeros_at_the_end(tmp_path):
    data = read_japanese_vowels(write(tmp_path))
    assert data.train[0].shape == (63, 12, 29)
    assert data.train[0].dtype == torch.float32
    assert bool((data.train[0][:, :, :5] == 0.5).all())
    assert not data.train[0][:, :, 5:].any()


def test_validation_has_the_last_six_utterances_of_each_speaker(tmp_path):
    roles = by_role(read_japanese_vowels(write(tmp_path)))
    assert roles["train"][1].tolist() == list(range(9))
    assert roles["validation"][1].bincount().tolist() == [6] * 9


@pytest.mark.parametrize("wrong", [{"channels": 11}, {"frames": 30}, {"speakers": 8}])
def test_other_series_are_refused(tmp_path, wrong):
    with pytest.raises(DataError, match="expected 9, 12 and 29"):
        read_japanese_vowels(write(tmp_path, **wrong))


def test_a_data_root_wins_over_the_package(tmp_path, empty_home):
    folder = write(tmp_path / "root/JapaneseVowels")
    assert find_japanese_vowels(tmp_path / "root") == folder


def test_the_files_are_found_inside_the_package(tmp_path, empty_home, monkeypatch):
    folder = write(tmp_path / "aeon/datasets/data/JapaneseVowels")
    spec = importlib.machinery.ModuleSpec("aeon", None, is_package=True)
    spec.submodule_search_locations = [str(tmp_path / "aeon")]
    installed(monkeypatch, spec)
    assert find_japanese_vowels() == folder


def test_a_missing_package_is_named_with_the_way_to_install_it(empty_home, monkeypatch):
    installed(monkeypatch, None)
    with pytest.raises(MissingExtraError, match=r"'aeon'.*not installed; `pip install --no-deps aeon`"):
        find_japanese_vowels()


def test_a_package_without_the_files_is_named(tmp_path, empty_home, monkeypatch):
    installed(monkeypatch, importlib.machinery.ModuleSpec("aeon", None, is_package=True))
    with pytest.raises(MissingExtraError, match="installed without them"):
        find_japanese_vowels()


def test_real_japanese_vowels_are_complete_and_aeon_is_not_imported(empty_home):
    if importlib.util.find_spec("aeon") is None:
        pytest.skip("aeon, which ships JapaneseVowels, is not installed: pip install --no-deps aeon")
    data = read_japanese_vowels(find_japanese_vowels())
    assert data.train[0].shape == (270, 12, 29)
    assert data.train[1].bincount().tolist() == [30] * 9
    assert data.test[1].bincount().tolist() == [31, 35, 88, 44, 29, 24, 40, 50, 29]
    assert float(data.train[0][0, 0, 0]) == pytest.approx(1.860936)
    assert "aeon" not in sys.modules
