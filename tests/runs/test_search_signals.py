"""A search under signals: one line that says where the best network is, and the same bytes in the end."""

import re
import signal

import pytest

TRIALS = ["--max-bytes", "290B", "--trials", "7", "--quiet"]


@pytest.fixture(scope="module")
def search(nursery, setting):
    def call(runs, **job):
        begun = sorted(p for p in runs.glob("0*") if p.is_dir())
        more = ["--resume", begun[-1]] if begun else ["--out", runs]
        return nursery(["compress", setting.model, *TRIALS, *more], **job)

    return call


@pytest.fixture(scope="module")
def whole(search, tmp_path_factory):
    """A search that nothing disturbed: its bytes, and how long it took when everything was loaded."""
    runs = [tmp_path_factory.mktemp("whole") / name for name in ("a", "b")]
    ends = [search(place) for place in runs]
    assert [(end.code, end.err) for end in ends] == [(0, "")] * 2
    nets = [(place / "latest" / "net.lil").read_bytes() for place in runs]
    assert nets[0] == nets[1]
    return nets[0], ends[1].seconds


@pytest.mark.parametrize("point", range(3))
def test_a_search_killed_at_any_moment_ends_in_the_same_bytes(search, whole, tmp_path, point):
    net, seconds = whole
    search(tmp_path / "runs", signals=[((point + 0.6) / 4 * seconds, signal.SIGKILL)])
    last = search(tmp_path / "runs")
    assert (last.code, last.err) == (0, "")
    assert (tmp_path / "runs" / "latest" / "net.lil").read_bytes() == net


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_search_says_where_the_best_is_and_goes_on(search, whole, tmp_path, number):
    net, seconds = whole
    stopped = search(tmp_path / "runs", signals=[(0.6 * seconds, number)])
    if stopped.code == -signal.SIGABRT:
        return  # rare: torch's C++ cannot take an exception at every moment, and ends the process
    if stopped.code != 0:  # else the machine was faster than before
        assert stopped.code == 128 + number
        best = r"error: interrupted; the best so far is .*net\.lil \([0-9,]+ bytes\): go on with --resume .*\n"
        assert re.fullmatch(best, stopped.err), stopped.err
        assert (tmp_path / "runs" / "latest" / "net.lil").is_file()
    last = search(tmp_path / "runs")
    assert (last.code, last.err) == (0, "")
    assert (tmp_path / "runs" / "latest" / "net.lil").read_bytes() == net
