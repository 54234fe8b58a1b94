from dataclasses import replace
from pathlib import Path

import pytest

from lilliput.core.errors import DataError
from lilliput.data.roots import Layout, download_root, not_found, roots, search

LAYOUT = Layout(folders=("Sub/raw", "."), files=(("a.gz", "a"), ("b",)))


def place(folder, *names):
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).touch()
    return folder


def test_roots_are_the_argument_then_the_variable_then_the_cache(empty_home, monkeypatch):
    cache = empty_home / ".cache/lilliput/data"
    assert roots() == (cache,)
    monkeypatch.setenv("LILLIPUT_DATA", "~/mine")
    assert roots("given") == (Path("given"), empty_home / "mine", cache)
    assert download_root() == empty_home / "mine"


def test_an_empty_variable_is_none(empty_home, monkeypatch):
    monkeypatch.setenv("LILLIPUT_DATA", "")
    assert roots() == (empty_home / ".cache/lilliput/data",)


def test_the_first_folder_with_all_files_is_found(tmp_path, empty_home, monkeypatch):
    given, cached = tmp_path / "given", empty_home / ".cache/lilliput/data"
    place(given / "Sub/raw", "a")  # b is missing
    place(cached, "a", "b")
    assert search((LAYOUT,), given) == (LAYOUT, cached)
    place(given, "a.gz", "b")
    assert search((LAYOUT,), given) == (LAYOUT, given)
    place(given / "Sub/raw", "b")
    assert search((LAYOUT,), given) == (LAYOUT, given / "Sub/raw")


def test_folders_of_system_packages_come_last(tmp_path, empty_home):
    system = place(tmp_path / "usr", "a", "b")
    layout = replace(LAYOUT, elsewhere=(system,))
    assert search((layout,)) == (layout, system)
    own = place(tmp_path / "own", "a", "b")
    assert search((layout,), own) == (layout, own)


def test_a_data_root_that_is_not_there_is_refused(tmp_path, empty_home):
    with pytest.raises(DataError, match="no such folder"):
        search((LAYOUT,), tmp_path / "none")


def test_the_error_names_every_place_and_both_ways_out(tmp_path, empty_home, monkeypatch):
    monkeypatch.setenv("LILLIPUT_DATA", str(tmp_path / "variable"))
    text = str(not_found("tiny", (replace(LAYOUT, elsewhere=(Path("/usr/share/tiny"),)),), tmp_path / "given"))
    for part in ("given/Sub/raw", "given,", "variable/Sub/raw", ".cache/lilliput/data", "/usr/share/tiny"):
        assert part in text
    assert "--data-root" in text
    assert "--download" in text
