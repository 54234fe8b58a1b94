"""`lilliput analyse` says what it will do, draws, and writes JSON."""

import json

import pytest


def test_the_command_draws_and_writes_json(call, tmp_path):
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    dry = call("analyse", "digits-cnn", "--dry-run")
    assert "predicted" in dry.out
    answer = call(
        "analyse", "digits-cnn", "--kinds", "bits", "--samples", "32", "--picture", tmp_path / "c.png", "--json", "-q"
    )
    data = json.loads(answer.out)
    assert {p["kind"] for p in data["probes"]} == {"bits"}
    assert (tmp_path / "c.png").read_bytes().startswith(b"\x89PNG")
    assert call("analyse", "digits-cnn", "--picture", tmp_path / "c.jpg").code == 2
    assert call("analyse", "digits-cnn", "--picture", tmp_path / "no" / "c.png").code == 2
