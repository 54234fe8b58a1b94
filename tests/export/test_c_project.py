"""Writing a folder of C: over an earlier export, and never over somebody else's file."""

import pytest

from lilliput.core.errors import UsageError
from lilliput.export.c import project
from lilliput.graph.lower import lower
from lilliput.methods.quantization.post_training import Quantization
from lowered import quantized_tiny


@pytest.fixture(scope="module")
def program():
    return lower(quantized_tiny("linear", Quantization(signed=True)))


def contents(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_writing_again_gives_the_same_files(program, tmp_path):
    paths = project.write(program, tmp_path)
    first = contents(tmp_path)
    assert {str(p.relative_to(tmp_path)) for p in paths} == set(first)
    project.write(program, tmp_path)
    assert contents(tmp_path) == first


def test_foreign_files_stay(program, tmp_path):
    mine = {"main.c": b"int main;", "bench/board.c": b"", "emulate/notes": b"x", "net_private.h": b"y"}
    for name, data in mine.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(data)
    project.write(program, tmp_path)
    assert {name: contents(tmp_path)[name] for name in mine} == mine


@pytest.mark.parametrize("file", ["Makefile", "README.md", "net.c", "bench/README.md"])
def test_a_file_that_lilliput_has_not_made_is_never_written_over(program, tmp_path, file):
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).write_text("# my own work\n")
    with pytest.raises(UsageError, match=f"{file}: a file of this name is there that Lilliput has not made; move it"):
        project.write(program, tmp_path)
    assert contents(tmp_path) == {file: b"# my own work\n"}  # nothing was changed


@pytest.mark.parametrize("name", ["emulate", "bench"])
def test_a_file_in_the_place_of_a_folder_is_one_clear_line(program, tmp_path, name):
    (tmp_path / name).write_text("")
    with pytest.raises(UsageError) as raised:
        project.write(program, tmp_path)
    do = "move it away, or choose another folder; nothing was changed"
    assert str(raised.value) == f"write {tmp_path / name}: a file has this name; {do}"
    assert contents(tmp_path) == {name: b""}


@pytest.mark.parametrize("kind", ["folder", "dangling link", "link to a folder"])
def test_what_is_no_file_is_refused(program, tmp_path, kind):
    target = tmp_path / "fw"
    target.mkdir()
    if kind == "folder":
        (target / "net.c").mkdir()
    else:
        (target / "net.c").symlink_to("nowhere" if kind == "dangling link" else tmp_path)
    with pytest.raises(UsageError, match=r"net\.c: something that is no file has this name"):
        project.write(program, target)
    assert contents(target) == {}
