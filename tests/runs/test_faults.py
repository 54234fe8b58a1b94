"""Every single file operation of a run may be its last: by a kill, a full disk, a folder that became read-only."""

import errno
import hashlib
import json

import pytest

CALLS = 60  # at least as many as there are: see the first test


@pytest.fixture(scope="module")
def short(nursery):
    return lambda folder, **job: nursery([], short=str(folder), **job)


@pytest.fixture(scope="module")
def wanted(short, tmp_path_factory):
    """The bytes of a run that nothing disturbed, and its file operations in order."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    folder.mkdir()
    log = folder.with_suffix(".log")
    assert short(folder, fault={"below": str(folder), "call": None, "kind": 0, "log": str(log)}).code == 0
    return files_in(folder), log.read_text().splitlines()


def files_in(folder):
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir()) if p.name != "trail.jsonl"} | {
        "steps": [(e["step"], e["snapshot"], e["uses"]) for e in trail_of(folder)]
    }


def trail_of(folder):
    return [json.loads(line) for line in (folder / "trail.jsonl").read_text().splitlines()]


def finished(folder):
    """The steps that are safe; each must have its whole snapshot."""
    path = folder / "trail.jsonl"
    lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    entries = [json.loads(line) for line in lines if line.endswith(b"\n")]
    for entry in entries:
        data = (folder / f"step-{entry['step']:02d}.lil").read_bytes()
        assert hashlib.blake2b(data, digest_size=16).hexdigest() == entry["snapshot"]
    return len(entries)


def test_there_is_no_operation_that_the_tests_leave_out(wanted):
    operations = wanted[1]
    assert {line.split()[0] for line in operations} == {"open", "write", "fsync", "replace", "unlink"}
    assert 40 < len(operations) <= CALLS


@pytest.mark.parametrize("call", range(1, CALLS + 1))
def test_a_run_killed_before_any_file_operation_ends_in_the_same_bytes(short, wanted, tmp_path, call):
    files, operations = wanted
    if call > len(operations):
        return
    folder = tmp_path / "run"
    folder.mkdir()
    assert short(folder, fault={"below": str(folder), "call": call, "kind": "exit"}).code == -9
    before = finished(folder)
    again = short(folder)
    assert (again.code, again.err) == (0, "")
    assert files_in(folder) == files
    assert before <= finished(folder) == 2


CASES = [(n, errno.ENOSPC) for n in range(1, CALLS + 1, 3)] + [(n, errno.EROFS) for n in range(2, CALLS + 1, 5)]


@pytest.mark.parametrize(("call", "number"), CASES)
def test_a_disk_that_refuses_any_file_operation_costs_one_line_and_no_step(short, wanted, tmp_path, call, number):
    """A full disk stays full (but lets one delete); a read-only one refuses everything."""
    files, operations = wanted
    if call > len(operations):
        return
    folder = tmp_path / "run"
    folder.mkdir()
    stopped = short(folder, fault={"below": str(folder), "call": call, "kind": number, "once": False})
    left = operations[call - 1 :]
    harmless = all(line.split()[0] == "unlink" or line == f"fsync {folder.name}" for line in left)
    if not harmless:
        word = {
            errno.ENOSPC: "No space left on device; free space",
            errno.EROFS: "Read-only file system; make it writable, or choose",
        }
        assert stopped.code == 2
        assert stopped.err.count("\n") == 1
        assert stopped.err.startswith("error: ")
        assert word[number] in stopped.err
    before = finished(folder)
    again = short(folder)
    assert (again.code, again.err) == (0, "")
    assert files_in(folder) == files
    assert before <= finished(folder) == 2


def test_a_limit_on_the_size_of_files_is_one_line_and_resume_ends_in_the_same_bytes(
    compress, undisturbed, left_by, tmp_path
):
    """A real one, by the kernel: half a checkpoint is written when it strikes."""
    runs = tmp_path / "runs"
    stopped = compress(runs, limit=4096)
    assert stopped.code == 2
    assert stopped.err.startswith(
        f"error: write {runs}/0001-net-make/step-01-1.checkpoint: File too large; raise the limit"
    )
    assert stopped.err.endswith(f"then go on with --resume {runs}/0001-net-make\n")
    assert stopped.err.count("\n") == 1
    folder = runs / "0001-net-make"
    assert sorted(p.name for p in folder.iterdir()) == ["recipe.yaml", "run.json", "step-00.lil", "trail.jsonl"]
    assert compress(runs).code == 0
    assert left_by(runs) == undisturbed.files


FILES = ("recipe.yaml", "step-01-1.checkpoint", "step-03.lil", "net.lil", "float.onnx", "ours.onnx", "result.json")


@pytest.mark.parametrize("name", [*FILES, "report.json", "table.csv", "table.txt"])
def test_a_disk_that_fills_up_anywhere_in_a_compression_is_one_line(compress, undisturbed, left_by, tmp_path, name):
    """Also while ONNX files and results are written: half of the file is there when the disk is full."""
    runs, folder = tmp_path / "runs", tmp_path / "runs" / "0001-net-make"
    stopped = compress(runs, fault={"below": f"{folder}/.{name}", "call": 2, "kind": errno.ENOSPC, "once": False})
    remedy = f"No space left on device; free space, then go on with --resume {folder}"
    assert (stopped.code, stopped.err) == (2, f"error: write {folder}/{name}: {remedy}\n")
    assert compress(runs).code == 0
    assert left_by(runs) == undisturbed.files
