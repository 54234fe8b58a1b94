"""Where a run goes: places that cannot be written are one clear line, and no two runs share a folder or a number."""

import errno
import fcntl
import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from lilliput.core.errors import UsageError
from lilliput.core.files import locked, write_atomically
from lilliput.pipeline.folder import RunFolder

HOLD = """
import sys, time
from pathlib import Path
from lilliput.pipeline.folder import RunFolder

with RunFolder(Path(sys.argv[1])).held():
    print("held", flush=True)
    time.sleep(60)
"""


def held_by_another(folder):
    process = subprocess.Popen([sys.executable, "-c", HOLD, folder], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_a_second_run_in_a_folder_is_told_which_process_is_there(compress, undisturbed, left_by, tmp_path):
    """And when that one was killed, the kernel has opened the lock again."""
    runs = tmp_path / "runs"
    compress(runs, signals=[(0.6 * undisturbed.seconds, signal.SIGKILL)])
    folder = runs / "0001-net-make"
    before = {p.name: p.read_bytes() for p in folder.iterdir() if p.name != ".lock"}
    with held_by_another(folder) as process:
        second = compress(runs)
        assert second.code == 2
        who = f"process {process.pid} on {os.uname().nodename} is at it"
        assert second.err == f"error: run folder {folder}: {who}; wait until it has ended, or use another folder\n"
        assert {p.name: p.read_bytes() for p in folder.iterdir() if p.name != ".lock"} == before
        process.kill()
        process.wait()
    assert compress(runs).code == 0
    assert left_by(runs) == undisturbed.files


def test_a_lock_is_held_once_and_leaves_nothing(tmp_path):
    folder, other = RunFolder(tmp_path), RunFolder(tmp_path)
    with folder.held(), folder.held():
        with pytest.raises(UsageError, match=f"process {os.getpid()} on .* is at it"), other.held():
            pass
        assert [p.name for p in tmp_path.iterdir()] == [".lock"]
    with other.held():
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_lock_that_is_removed_while_another_process_waits_for_it_is_not_taken_twice(tmp_path, monkeypatch):
    """Open, then the holder removes the file and goes, then lock: that lock is on a file that nobody else will see."""
    path, real, taken = tmp_path / ".lock", fcntl.flock, []

    def slow(descriptor, how):
        if not taken:
            path.unlink()
        taken.append(descriptor)
        real(descriptor, how)

    monkeypatch.setattr(fcntl, "flock", slow)
    with locked(path, "test"):
        assert len(taken) == 2
        monkeypatch.undo()
        with pytest.raises(UsageError, match="is at it"), locked(path, "test"):
            pass


def test_a_file_system_without_locks_still_works(tmp_path, monkeypatch):
    def none(descriptor, how):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", none)
    with RunFolder(tmp_path).held(), RunFolder(tmp_path).held():
        pass


def test_runs_that_start_together_get_numbers_of_their_own(tmp_path):
    """The same name or not: what is called run 7 is one run."""
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda i: RunFolder.create(tmp_path, f"net-{i % 3}").path.name, range(40)))
    assert sorted(int(name[:4]) for name in made) == list(range(1, 41))
    assert not list(tmp_path.glob(".0*"))


def test_numbers_go_on_above_9999(tmp_path):
    (tmp_path / "9999-net").mkdir()
    assert [RunFolder.create(tmp_path, "net").path.name for _ in "ab"] == ["10000-net", "10001-net"]


def test_a_folder_whose_run_was_stopped_before_it_began_is_gone_on_with(compress, undisturbed, left_by, tmp_path):
    folder = RunFolder.create(tmp_path / "runs", "net-make").path
    for name in (".lock", "recipe.yaml", ".run.json.0123abcd.part"):
        (folder / name).write_text("torn")
    assert compress(tmp_path / "runs").code == 0
    assert left_by(tmp_path / "runs") == undisturbed.files


BAD = {
    "a file": (lambda p: p / "file", "File exists"),
    "below a file": (lambda p: p / "file" / "runs", "Not a directory"),
    "too long a name": (lambda p: p / ("x" * 300), "File name too long; choose a shorter name"),
    "too long a path": (lambda p: p.joinpath(*["x" * 200] * 25), "File name too long; choose a shorter name"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_place_that_cannot_be_is_one_line(nursery, setting, tmp_path, name):
    (tmp_path / "file").write_text("")
    place, text = BAD[name]
    common = ["compress", setting.model, "--recipe", setting.recipe, "--quiet"]
    for option in ("--out", "--resume"):
        answer = nursery([*common, option, place(tmp_path)])
        assert answer.code == 2
        assert answer.err.startswith("error: run folder ")
        assert answer.err.count("\n") == 1
        assert text in answer.err or option == "--resume"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES])
def test_a_parent_that_is_read_only_is_one_line(compress, tmp_path, number):
    """Emulated: for root, permissions are no obstacle."""
    runs = tmp_path / "runs"
    answer = compress(runs, fault={"below": str(tmp_path), "call": 1, "kind": number, "once": False})
    assert answer.code == 2
    assert answer.err == (
        f"error: run folder in {runs}: {os.strerror(number)}; make it writable, or choose another place\n"
    )


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_write_permission_is_one_line(compress, tmp_path):
    tmp_path.chmod(0o500)
    answer = compress(tmp_path / "runs")
    tmp_path.chmod(0o700)
    assert (answer.code, answer.err.count("\n")) == (2, 1)


def test_a_name_of_the_greatest_length_can_be_written(tmp_path):
    """The temporary file beside it has a shorter one."""
    path = tmp_path / ("é" * 127)
    write_atomically(path, b"x")
    assert path.read_bytes() == b"x"


def test_a_running_run_can_be_looked_at(tmp_path):
    """Another process reads the trail while a line is being written: it changes nothing."""
    folder = RunFolder(tmp_path)
    folder.append({"step": 0})
    with (tmp_path / "trail.jsonl").open("a") as file:
        file.write('{"step": 1')
        file.flush()
        assert folder.trail() == [{"step": 0}]
        file.write("}\n")
    assert folder.trail() == [{"step": 0}, {"step": 1}]


def test_a_second_training_of_one_file_is_told_which_process_is_there(nursery, setting, tmp_path):
    arguments = ["train", setting.model, "--epochs", 1, "--out", tmp_path / "new" / "net.lil", "-q"]
    with locked(tmp_path / "new" / ".net.lock", "test"):
        answer = nursery(arguments)
        assert answer.code == 2
        assert answer.err.startswith(f"error: train {tmp_path}/new/net.lil: process {os.getpid()} on ")
        assert answer.err.count("\n") == 1
    assert nursery(arguments).code == 0
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["net.lil"]
