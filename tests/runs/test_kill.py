"""kill -9 at any moment: the run that is gone on with ends in the same bytes."""

import random
import signal

import pytest


@pytest.mark.parametrize("point", range(20))
def test_a_run_killed_at_a_random_moment_ends_in_the_same_bytes(compress, undisturbed, left_by, tmp_path, point):
    """Points are spread over the run, one in each twentieth of its duration; every third resume is killed as well."""
    dice = random.Random(point)
    moment = (point + dice.random()) / 20 * undisturbed.seconds
    compress(tmp_path / "runs", signals=[(moment, signal.SIGKILL)])
    if point % 3 == 0:
        compress(tmp_path / "runs", signals=[(dice.random() * undisturbed.seconds, signal.SIGKILL)])
    last = compress(tmp_path / "runs")
    assert (last.code, last.err) == (0, "")
    assert left_by(tmp_path / "runs") == undisturbed.files
