"""The journal of a search: shared by processes, and gone on with wherever one was killed."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import lilliput
from lilliput.auto.compress import compress
from lilliput.auto.search.budget import Budget, Measured
from lilliput.auto.search.journal import Journal
from lilliput.auto.search.record import Candidate, Record, best
from lilliput.auto.search.templates import TEMPLATES
from lilliput.core.errors import ArtifactError, UsageError
from lilliput.graph import stored
from lilliput.testing import tiny_model
from searched import Lines, three_roles

BUDGET = Budget(limits={"max_bytes": ("bytes", 100.0)}, goal="drop")
EFFORTS = {t.name: "untrained" for t in TEMPLATES}


def record(number, size, drop, **more):
    measured = Measured(bytes=size, flash=0, ram=0, score=100 - drop, drop=drop)
    return Record(number=number, name="rate_distortion", measured=measured, rung=1, **more)


def test_what_is_told_is_what_is_read(tmp_path):
    journal = Journal(tmp_path, BUDGET, 0)
    trial, candidate = journal.ask(TEMPLATES, {}, EFFORTS)
    told = record(0, 90, 0.5, values=candidate.values, recipe={"passes": ["quantization"]})
    journal.tell(trial, told)
    assert Journal(tmp_path, BUDGET, 0).records() == [told]


def test_the_sampler_asks_the_same_after_the_same_history(tmp_path):
    asked = []
    for name in ("a", "b"):
        candidates = []
        for number in range(9):
            journal = Journal(tmp_path / name, BUDGET, 5)  # as if every trial was another process
            trial, candidate = journal.ask(TEMPLATES, {"rate_distortion": 0.3}, EFFORTS)
            journal.tell(trial, record(number, 80 + number, number / 10))
            candidates.append(candidate)
        asked.append(candidates)
    assert asked[0] == asked[1]
    strengths = [c.values["strength"] for c in asked[0] if c.template == "rate_distortion"]
    assert all(0.22 <= s <= 0.38 for s in strengths)


def test_queued_candidates_come_first_and_as_they_are(tmp_path):
    journal = Journal(tmp_path, BUDGET, 0)
    wanted = Candidate(template="quantize", values={"strength": 0.9}, effort="untrained")
    journal.queue(wanted)
    assert journal.waiting()
    assert journal.under_way() == [wanted]
    assert journal.ask(TEMPLATES, {}, EFFORTS)[1] == wanted
    assert not journal.waiting()


def test_a_trial_of_a_process_that_has_ended_is_taken_up_again(tmp_path):
    gone = Journal(tmp_path, BUDGET, 0)
    with gone.working():
        _, candidate = gone.ask(TEMPLATES, {}, EFFORTS)
        other = Journal(tmp_path, BUDGET, 0)
        assert other.retake_() == 0  # it is at it
    assert other.retake_() == 1
    assert other.ask(TEMPLATES, {}, EFFORTS)[1] == candidate
    assert other.retake_() == 0


def test_a_torn_last_line_is_cut_off(tmp_path):
    journal = Journal(tmp_path, BUDGET, 0)
    trial, _ = journal.ask(TEMPLATES, {}, EFFORTS)
    journal.tell(trial, record(0, 90, 0.5))
    with (tmp_path / "journal.log").open("ab") as file:
        file.write(b'{"op_code": 5, "wor')
    again = Journal(tmp_path, BUDGET, 0)
    again.queue(Candidate(template="quantize", values={"strength": 0.9}))
    assert len(Journal(tmp_path, BUDGET, 0).records()) == 1


def test_the_lock_of_a_process_that_was_killed_while_it_wrote_is_taken_in_silence(tmp_path, capfd, monkeypatch):
    monkeypatch.setattr("lilliput.auto.search.journal.ABANDONED_S", 3)
    journal = Journal(tmp_path, BUDGET, 0)
    trial, _ = journal.ask(TEMPLATES, {}, EFFORTS)
    journal.tell(trial, record(0, 90, 0.5))
    (tmp_path / "journal.log.lock").symlink_to(tmp_path / "journal.log")
    assert [r.number for r in Journal(tmp_path, BUDGET, 0).records()] == [0]
    assert not (tmp_path / "journal.log.lock").is_symlink()
    assert capfd.readouterr() == ("", "")


def test_the_best_keeps_the_limits_then_the_score_then_is_small():
    rows = [
        record(0, 90, 2.0),
        record(1, 80, 1.0),
        record(2, 70, 1.0),
        record(3, 120, 0.0),
        record(4, 60, 0.0, refused="x"),
    ]
    assert best(BUDGET, rows) == rows[2]
    assert best(BUDGET, [rows[3], record(5, 150, 0.0)]) == rows[3]
    assert best(BUDGET, [rows[4]]) is None


# --- processes -------------------------------------------------------------------------------------------------------

SCRIPT = """
import sys, torch
sys.path.insert(0, {tests!r})
torch.set_num_threads(1)
from searched import Lines, three_roles
from lilliput.auto.compress import compress
from lilliput.core.progress import Progress
from lilliput.testing import tiny_model

class Out(Progress):
    def say(self, text):
        print(text, flush=True)

found = compress(tiny_model("linear"), three_roles(), max_bytes=260, trials={trials}, folder={folder!r}, join={join},
                 progress=Out())
print("bytes", found.columns[-1].measurements["file"].value, flush=True)
"""


def started(folder, *, trials, join=False):
    tests = str(Path(__file__).parents[1])
    source = str(Path(lilliput.__file__).parents[1])
    code = SCRIPT.format(tests=tests, folder=str(folder), trials=trials, join=join)
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": source}
    return subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )


def wait_for(path):
    end = time.monotonic() + 60
    while not path.exists() and time.monotonic() < end:
        time.sleep(0.02)
    assert path.exists()


def said_trials(text):
    return [int(line.split()[1]) for line in text.splitlines() if line.startswith("trial ")]


def test_two_processes_share_the_trials_of_one_search(tmp_path):
    folder = tmp_path / "runs" / "0001-net"
    folder.mkdir(parents=True)
    first = started(folder, trials=10)
    wait_for(folder / "search" / "search.json")
    second = started(folder, trials=10, join=True)
    texts = [process.communicate(timeout=120) for process in (first, second)]
    assert [p.returncode for p in (first, second)] == [0, 0], texts
    numbers = [said_trials(out) for out, _ in texts]
    assert not set(numbers[0]) & set(numbers[1])
    assert 10 <= len(numbers[0]) + len(numbers[1]) <= 11  # one may be under way when the last one is counted
    trials = [t for t in json.loads((folder / "trials.json").read_text()) if t["trial"] is not None]
    assert len(trials) >= 9
    assert (folder / "net.lil").is_file()


def test_a_killed_search_goes_on_and_ends_in_the_same_bytes(tmp_path):
    undisturbed = compress(tiny_model("linear"), three_roles(), max_bytes=260, trials=6)
    folder = tmp_path / "runs" / "0001-net"
    folder.mkdir(parents=True)
    process = started(folder, trials=6)
    assert process.stdout is not None
    done = 0
    for line in process.stdout:
        done += line.startswith("trial ")
        if done == 2:
            break
    time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert (folder / "net.lil").is_file()
    progress = Lines()
    found = compress(tiny_model("linear"), three_roles(), max_bytes=260, trials=6, folder=folder, progress=progress)
    assert len(said_trials("\n".join(progress.lines))) <= 4  # the others were measured before
    assert stored.dumps(found.artifact) == stored.dumps(undisturbed.artifact)
    measured = [[(t["name"], t["bytes"], t["score"]) for t in r.trials] for r in (found, undisturbed)]
    assert sorted(measured[0], key=str) == sorted(measured[1], key=str)


def test_joining_needs_a_search(tmp_path):
    with pytest.raises(UsageError, match="there is no search in it"):
        compress(tiny_model("linear"), three_roles(), trials=2, folder=tmp_path, join=True)


def test_a_damaged_line_of_the_journal_is_named_and_kept(tmp_path):
    journal = Journal(tmp_path, BUDGET, 0)
    trial, candidate = journal.ask(TEMPLATES, {}, EFFORTS)
    journal.tell(trial, record(0, 90, 0.5, values=candidate.values))
    path = tmp_path / "journal.log"
    lines = path.read_bytes().splitlines(keepends=True)
    damaged = b"".join([lines[0], b"{\x00\n", *lines[2:]])
    path.write_bytes(damaged)
    with pytest.raises(ArtifactError, match=r"journal\.log: line 2 is damaged; remove it and the lines after it"):
        Journal(tmp_path, BUDGET, 0)
    assert path.read_bytes() == damaged
    path.write_bytes(lines[0])  # what the error says to do
    assert Journal(tmp_path, BUDGET, 0).records() == []
