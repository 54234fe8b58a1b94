"""Ctrl-C and SIGTERM at any moment: one line, no traceback, nothing left beside, and the same bytes in the end."""

import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

CODES = {signal.SIGINT: 130, signal.SIGTERM: 143}


def check(answer, number, twice=False):
    if (
        answer.code == -signal.SIGABRT
    ):  # rare: torch's C++ cannot take an exception at every moment, and ends the process
        return
    assert answer.code == CODES[number]
    assert answer.err.count("\n") == 1, answer.err
    lines = ["interrupted; finished steps are kept: go on with --resume ", "interrupted\n"]
    lines += ["interrupted twice; what was finished is kept\n"] * twice
    assert answer.err.startswith(tuple(f"error: {line}" for line in lines))


@pytest.mark.parametrize("point", range(8))
def test_a_run_interrupted_at_a_random_moment_says_how_to_go_on(compress, undisturbed, left_by, tmp_path, point):
    dice, number = random.Random(100 + point), (signal.SIGINT, signal.SIGTERM)[point % 2]
    moment = 0.02 + (point + dice.random()) / 9 * undisturbed.seconds
    runs = tmp_path / "runs"
    stopped = compress(runs, signals=[(moment, number)])
    if stopped.code != 0:  # else the machine was faster than before
        check(stopped, number)
    if stopped.code != -signal.SIGABRT:
        assert not list(runs.glob("0*/.*"))
    last = compress(runs)
    assert (last.code, last.err) == (0, "")
    assert left_by(runs) == undisturbed.files


@pytest.mark.parametrize("point", range(4))
def test_a_second_ctrl_c_while_it_cleans_up_ends_at_once(compress, undisturbed, left_by, tmp_path, point):
    moment, runs = (point + 0.5) / 5 * undisturbed.seconds, tmp_path / "runs"
    stopped = compress(runs, signals=[(moment, signal.SIGINT), (moment + 0.0005 * point, signal.SIGINT)])
    if stopped.code != 0:
        check(stopped, signal.SIGINT, twice=True)
    last = compress(runs)
    assert (last.code, last.err) == (0, "")
    assert left_by(runs) == undisturbed.files


@pytest.mark.parametrize("after", [0.0, 0.3, 0.7, 1.1])
@pytest.mark.parametrize("number", CODES)
def test_a_command_interrupted_while_it_starts_says_one_line(setting, tmp_path, after, number):
    """The real command, while Python imports what it needs."""
    process = subprocess.Popen(
        [sys.executable, "-m", "lilliput", "compress", setting.model, "--out", tmp_path / "runs", "-q"],
        stderr=subprocess.PIPE,
        text=True,
    )
    status = Path(f"/proc/{process.pid}/status")
    while not int(re.findall(r"SigCgt:\s*(\w+)", status.read_text())[0], 16) & 1 << (signal.SIGTERM - 1):
        time.sleep(0.001)  # Python itself has only just started
    time.sleep(after)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    if process.returncode == -signal.SIGABRT:
        return  # see check
    assert process.returncode == CODES[number]
    assert err.startswith("error: interrupted")
    assert err.count("\n") == 1


LOST = """
import os, signal, sys, time
from lilliput.cli.interrupts import STOPS, catch_signals, stopped

class Careless:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.01)

catch_signals()
try:
    Careless()
    time.sleep(20)
except STOPS as stop:
    sys.exit(stopped(stop, "go on"))
"""


def test_a_signal_inside_a_destructor_is_not_lost():
    done = subprocess.run([sys.executable, "-c", LOST], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (143, "error: interrupted; go on\n")


def test_a_job_that_ignores_interrupts_goes_on_ignoring_them():
    """`nohup` and the background of a shell set signals to be ignored before they start a command."""
    script = "import signal; from lilliput.cli.interrupts import catch_signals; catch_signals(); "
    script += "print([signal.getsignal(n) is signal.SIG_IGN for n in (signal.SIGINT, signal.SIGTERM)])"
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        check=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN),
    )
    assert done.stdout == "[True, False]\n"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_full_disk_under_the_standard_output_is_one_line():
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "lilliput", "zoo"], stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    assert (done.returncode, done.stderr) == (2, "error: write standard output: No space left on device; free space\n")
