"""The folder of a benchmark: claims that never collide, and what killed owners leave."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from lilliput.bench.store import STALE_SECONDS, Store, read_results
from lilliput.core.errors import ArtifactError, UsageError


@pytest.fixture
def store(tmp_path):
    made = Store(tmp_path / "bench")
    made.begin({"cells": {}, "order": []})
    return made


def test_of_many_that_want_a_cell_one_gets_it(store):
    names = [f"cell-{i}" for i in range(40)]

    def grab(_):
        mine = Store(store.path)
        return [name for name in names if mine.claim(name)]

    with ThreadPoolExecutor(8) as pool:
        got = [name for mine in pool.map(grab, range(8)) for name in mine]
    assert sorted(got) == sorted(names)


def test_a_finished_cell_is_nobodys(store):
    store.write("a", {"score": 1.0})
    assert not store.claim("a")
    assert store.records(["a", "b"]) == {"a": {"score": 1.0}}
    store.drop("a")
    assert store.claim("a")


def test_a_released_cell_can_be_claimed_again(store):
    assert store.claim("a")
    assert not Store(store.path).claim("a")
    store.release("a")
    assert Store(store.path).claim("a")


def test_a_claim_of_a_process_that_has_ended_is_taken_over(store):
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    other = Store(store.path)
    other.owner = f"{store.owner.split()[0]} {ended.pid}"
    assert other.claim("a")
    assert store.claim("a")


def test_a_claim_that_a_killed_owner_left_on_a_finished_cell_goes(store):
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    other = Store(store.path)
    other.owner = f"{store.owner.split()[0]} {ended.pid}"
    assert other.claim("a")
    assert store.claim("b")
    for name in ("a", "b"):
        other.write(name, {"score": 1.0})
    Store(store.path).begin({"cells": {}, "order": []})
    assert [path.name for path in (store.path / "claims").iterdir()] == ["b"]  # its owner lives


def test_a_claim_of_another_machine_is_taken_over_only_when_it_shows_no_life(store):
    other = Store(store.path)
    other.owner = "elsewhere 1"
    assert other.claim("a")
    path = store.path / "claims" / "a"
    os.utime(path, (path.stat().st_mtime - STALE_SECONDS + 60,) * 2)
    assert not store.claim("a")
    os.utime(path, (path.stat().st_mtime - 120,) * 2)
    other.renew("a")
    assert not store.claim("a")
    os.utime(path, (path.stat().st_mtime - STALE_SECONDS - 60,) * 2)
    assert store.claim("a")


def test_of_many_that_take_over_a_cell_one_gets_it(store):
    names = [f"cell-{i}" for i in range(40)]
    gone = Store(store.path)
    gone.owner = "elsewhere 1"
    for name in names:
        assert gone.claim(name)
        path = store.path / "claims" / name
        os.utime(path, (path.stat().st_mtime - STALE_SECONDS - 60,) * 2)
    with ThreadPoolExecutor(2) as pool:
        got = list(pool.map(lambda _: [name for name in names if Store(store.path).claim(name)], range(2)))
    assert sorted(got[0] + got[1]) == sorted(names)


def test_what_is_no_benchmark_is_said(tmp_path, store):
    with pytest.raises(UsageError, match="there is no benchmark in it"):
        read_results(tmp_path)
    (store.path / "plan.json").write_text("[")
    with pytest.raises(ArtifactError, match=r"plan\.json is missing or damaged"):
        read_results(store.path)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"score"'])
def test_what_is_damaged_is_one_error_that_names_the_file(store, text):
    store.write("a", {"score": 1.0})
    (store.path / "cells" / "a.json").write_text(text)
    with pytest.raises(ArtifactError, match=r"cell .*a\.json is .*damaged; remove it, then run the grid again"):
        store.records(["a"])
    (store.path / "plan.json").write_text(text)
    with pytest.raises(ArtifactError, match=r"plan\.json is .*damaged; remove it, then run the grid again"):
        read_results(store.path)
    (store.path / "plan.json").unlink()
    (store.path / "results.json").write_text(text)
    with pytest.raises(ArtifactError, match=r"results\.json is .*damaged; remove it, then run the grid again"):
        read_results(store.path)
