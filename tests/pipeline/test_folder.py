"""Run folders: numbered, whole or not at all, and readable by any JSON reader."""

import json
import math
import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lilliput.core.errors import ArtifactError, UsageError
from lilliput.pipeline.folder import RunFolder, json_text

plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


def refuse(name):
    raise ValueError(f"{name} is not JSON")


@settings(deadline=None)
@given(plain)
def test_json_reads_back_what_was_written(data):
    assert json.loads(json_text(data)) == data


@settings(deadline=None)
@given(st.floats(), st.booleans())
def test_json_has_no_numbers_that_json_does_not_know(number, deep):
    text = json_text({"a": [(number,)]} if deep else number)
    read = json.loads(text, parse_constant=refuse)
    assert read == ({"a": [[number]]} if deep else number) if math.isfinite(number) else "null" in text


def test_folders_are_numbered_and_the_newest_is_latest(tmp_path):
    root = tmp_path / "a" / "runs"
    names = ["net", "net", "own file.py:make/../x", "..."]
    made = [RunFolder.create(root, name).path.name for name in names]
    assert made == ["0001-net", "0002-net", "0003-own-file.py-make-..-x", "0004-run"]
    assert (root / "latest").resolve().name == made[-1]
    assert sorted(p.name for p in root.iterdir()) == [*made, "latest"]


def test_a_number_that_another_run_takes_is_left_to_it(tmp_path, monkeypatch):
    RunFolder.create(tmp_path, "net")
    (tmp_path / "0002-net").mkdir()
    real = os.listdir
    monkeypatch.setattr(os, "listdir", lambda path: [n for n in real(path) if n != "0002-net"])
    assert RunFolder.create(tmp_path, "net").path.name == "0003-net"


def test_a_place_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "runs").write_text("")
    with pytest.raises(UsageError, match=r"run folder in .*runs: File exists; choose another place with --out"):
        RunFolder.create(tmp_path / "runs", "net")


def test_a_folder_without_a_run_is_not_opened(tmp_path):
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(UsageError, match="there is no run in it; give a folder that an earlier run has made"):
        RunFolder.open(tmp_path)
    with pytest.raises(UsageError, match="there is no run in it; give a folder that an earlier run has made"):
        RunFolder.open(tmp_path / "gone")
    (tmp_path / "run.json").write_text("{}")
    assert RunFolder.open(tmp_path).path == tmp_path


def test_a_run_that_was_stopped_before_its_link_is_linked_when_it_goes_on(tmp_path):
    made = RunFolder.create(tmp_path, "net").path
    (tmp_path / "latest").unlink()
    RunFolder.at(made)
    assert (tmp_path / "latest").resolve() == made.resolve()
    other = RunFolder.create(tmp_path, "net").path
    RunFolder.at(made)
    assert (tmp_path / "latest").resolve() == other.resolve()  # a link that is there stays


def test_what_is_written_is_whole_and_leaves_nothing_beside_it(tmp_path):
    folder = RunFolder(tmp_path)
    folder.write("a.txt", "old")
    folder.write("a.txt", b"new")
    folder.write_json("b.json", {"x": math.inf, "y": (1, 2)})
    assert (tmp_path / "a.txt").read_text() == "new"
    assert folder.read_json("b.json") == {"x": None, "y": [1, 2]}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.txt", "b.json"]


@pytest.mark.parametrize("content", [None, b"{", b"\xff"])
def test_json_that_is_missing_or_damaged_is_an_error(tmp_path, content):
    if content is not None:
        (tmp_path / "run.json").write_bytes(content)
    with pytest.raises(ArtifactError, match=r"read .*run.json: it is missing or damaged; start a new run"):
        RunFolder(tmp_path).read_json("run.json")


@settings(deadline=None)
@given(st.lists(st.dictionaries(st.text(), plain, max_size=3), min_size=1, max_size=4), st.data())
def test_a_trail_torn_anywhere_keeps_the_lines_before_and_grows_on(tmp_path_factory, entries, data):
    folder = RunFolder(tmp_path_factory.mktemp("trail"))
    for entry in entries:
        folder.append(entry)
    path = folder.path / "trail.jsonl"
    whole = path.read_bytes()
    cut = data.draw(st.integers(0, len(whole)))
    path.write_bytes(whole[:cut])
    kept = whole[:cut].count(b"\n")
    assert folder.trail() == entries[:kept]
    assert path.read_bytes() == whole[:cut]  # reading changes nothing: another process may be writing
    folder.cut_trail(kept)
    folder.append({"new": 1})
    assert folder.trail() == [*entries[:kept], {"new": 1}]


def test_nothing_after_a_damaged_line_is_believed(tmp_path):
    folder = RunFolder(tmp_path)
    assert folder.trail() == []
    (tmp_path / "trail.jsonl").write_bytes(b'{"step": 0}\n[1]\n{"step": 2}\n')
    assert folder.trail() == [{"step": 0}]
    folder.cut_trail(1)
    assert (tmp_path / "trail.jsonl").read_bytes() == b'{"step": 0}\n'


def test_a_trail_that_cannot_be_written_says_how_to_go_on(tmp_path):
    with pytest.raises(UsageError, match="No such file or directory; see that the folder is there"):
        RunFolder(tmp_path / "gone").append({})


def test_a_path_is_an_old_run_or_a_new_one_and_never_a_folder_of_other_things(tmp_path):
    made = RunFolder.at(tmp_path / "runs" / "net").path
    assert made == tmp_path / "runs" / "0001-net"
    assert RunFolder.at(made).path == made
    (made / "run.json").write_text("{}")
    assert RunFolder.at(str(made)).path == made
    with pytest.raises(UsageError, match="there is no run in it; give a folder that an earlier run has made"):
        RunFolder.at(tmp_path / "runs")
