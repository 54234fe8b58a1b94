"""No tool runs past its deadline, floods memory, waits for input, or leaves a process behind."""

import os
import shutil
import time
from pathlib import Path

import pytest

from lilliput.core.errors import UsageError
from lilliput.export.c import tools
from lilliput.export.c.tools import call, found

SHELL = shutil.which("sh")
pytestmark = pytest.mark.skipif(SHELL is None, reason="sh is not installed")


def shell(text, folder, deadline=20.0):
    return call([SHELL or "sh", "-c", text], folder, deadline=deadline)


def alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def test_what_a_tool_says_and_how_it_ends(tmp_path):
    ended = shell("echo one; echo two >&2; pwd; exit 3", tmp_path)
    assert (ended.code, ended.text) == (3, f"one\ntwo\n{tmp_path}\n")
    assert ended.first_lines == f"one | two | {tmp_path}"
    assert shell("exit 4", tmp_path).first_lines == "exit code 4"
    assert shell("kill -9 $$", tmp_path).code == -9


def test_it_gets_no_input(tmp_path):
    assert shell("cat; echo done", tmp_path).text == "done\n"


@pytest.mark.parametrize("command", ["sleep 100", "sleep 100 & sleep 100", "exec >&- 2>&-; sleep 100"])
def test_the_deadline_ends_it_and_what_it_has_started(tmp_path, command):
    started = time.monotonic()
    ended = shell(f"echo $$; {command}", tmp_path, deadline=0.5)
    assert (ended.code, ended.reason) == (None, "not done after 0.5 s")
    assert time.monotonic() - started < 20
    assert not alive(int(ended.text.split()[0]))


def test_processes_of_its_group_do_not_outlive_it(tmp_path):
    ended = shell("sleep 100 >/dev/null 2>&1 & echo $!", tmp_path)
    assert ended.code == 0
    time.sleep(0.1)
    assert not alive(int(ended.text))


def test_a_flood_is_cut(tmp_path, monkeypatch):
    monkeypatch.setattr(tools, "MOST_OUTPUT", 100_000)
    ended = shell("while :; do echo flood; done", tmp_path)
    assert (ended.code, ended.reason) == (None, "more than 100,000 bytes of output")
    assert len(ended.text) < 200_000


def test_long_and_strange_text_is_short_and_ascii(tmp_path):
    ended = shell("head -c 5000 /dev/zero | tr '\\0' x; printf '\\n\\377\\n'", tmp_path)
    assert ended.first_lines == "x" * 200 + " | \ufffd"


def test_a_tool_that_cannot_run_is_one_clear_line(tmp_path):
    (tmp_path / "cc").write_text("not a program")
    (tmp_path / "cc").chmod(0o644)
    with pytest.raises(UsageError, match="run cc: Permission denied"):
        call([tmp_path / "cc"], tmp_path, deadline=5)


def test_the_first_tool_that_is_installed(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert found("a", "b") is None
    for name in ("b", "c"):
        (tmp_path / name).write_text("")
        (tmp_path / name).chmod(0o755)
    assert found("a", "b", "c") == str(tmp_path / "b")
