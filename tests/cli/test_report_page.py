"""`lilliput report --html`."""

import json
import shlex

from page_parser import Page


def test_the_page_of_a_run_is_written_into_its_folder(call, finished):
    answer = call("report", "--html", finished)
    path = finished / "report.html"
    size = path.stat().st_size
    assert (answer.code, answer.out, answer.err) == (0, f"{path}: {size:,} bytes\n", "")
    assert size < 300_000
    assert Page(path.read_text()).one("h1").text == finished.name


def test_or_wherever_it_is_asked_for_with_the_same_bytes(call, finished, tmp_path):
    first, second = tmp_path / "a.html", tmp_path / "new" / "b.html"
    assert call("report", "--html", finished, "--output", first).code == 0
    assert call("report", finished, "--html", "--output", second).code == 0
    assert first.read_bytes() == second.read_bytes()


def test_the_page_gives_the_commands_that_repeat_the_run(call, finished, tmp_path):
    commands = json.loads((finished / "command.json").read_text())["commands"]
    call("report", "--html", finished, "--output", tmp_path / "a.html")
    assert Page((tmp_path / "a.html").read_text()).all("pre")[0].text.split("\n")[:2] == commands
    first, *words = shlex.split(commands[1])
    assert first == "lilliput"
    again = call(*words, "--out", tmp_path / "runs", "-q")
    assert again.code == 0
    assert (tmp_path / "runs" / "0001-digits-cnn" / "net.lil").read_bytes() == (finished / "net.lil").read_bytes()


def test_wrong_use_is_one_line(call, finished, tmp_path):
    assert call("report", finished, "--output", tmp_path / "a.html").err == (
        "error: report --output: no --html; add --html: it is where the page goes\n"
    )
    answer = call("report", "--html", tmp_path)
    assert (answer.code, answer.err.count("\n")) == (2, 1) or answer.code == 0
    (tmp_path / "file").write_text("")
    answer = call("report", "--html", finished, "--output", tmp_path / "file" / "a.html")
    assert (answer.code, answer.err.count("\n")) == (2, 1)


def test_an_empty_folder_is_no_run_and_stays_empty(call, tmp_path):
    for words in (("report", tmp_path), ("report", "--html", tmp_path)):
        answer = call(*words)
        assert (answer.code, answer.out) == (2, "")
        assert answer.err.startswith(f"error: run folder {tmp_path}: there is no run in it; ")
    assert list(tmp_path.iterdir()) == []
