"""`lilliput safety-set`."""

import json

import pytest
import torch

from lilliput.data.safety import SafetySet, safety_set
from lilliput.zoo.registry import open_model
from page_parser import Page


def test_the_command_gives_what_python_gives_and_writes_it(call, tmp_path):
    answer = call(
        "safety-set", "digits-cnn", "--size", "40", "--source", "validation", "--methods", "margin, loss", "--seed",
        "3", "--out", tmp_path / "set.json", "--html", tmp_path / "page.html", "-q",
    )  # fmt: skip
    assert (answer.code, answer.err) == (0, "")
    model, task = open_model("digits-cnn")
    wanted = safety_set(task, model, size=40, source="validation", methods=["margin", "loss"], seed=3)
    assert SafetySet.from_data(json.loads((tmp_path / "set.json").read_text())) == wanted
    page = Page((tmp_path / "page.html").read_text())
    assert page.one("h1").text == "Safety set of digits-cnn"
    assert len(page.all("img")) == 40
    lines = answer.out.splitlines()
    assert lines[0] == "40 of 360 samples of validation"
    assert lines[1].split() == ["class", "margin", "loss", "all"]
    assert lines[-3].split() == ["all", "20", "20", "40"]
    assert lines[-1] == f"written: {tmp_path / 'page.html'}"


def test_a_compressed_network_has_one_too(call, finished):
    answer = call("safety-set", finished / "net.lil", "--into", "digits-cnn", "--size", "30", "--json", "-q")
    assert answer.code == 0
    found = SafetySet.from_data(json.loads(answer.out))
    assert {name: sum(own.values()) for name, own in found.counts().items()} == dict.fromkeys(
        ("grad_cam", "margin", "diversity"), 10
    )
    assert len(found.data(open_model("digits-cnn")[1]).batch(torch.arange(30))[0]) == 30


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("--source", "test"), "samples of 'test'; use train, validation"),
        (("--methods", "margins"), "the method 'margins'; use grad_cam, margin"),
        (("--methods", ","), "name at least one, each once"),
        (("--size", "0"), "--size"),
        (("--seed", "-1"), "--seed"),
        (("--seed", str(2**32)), "the seed 4294967296"),
        (("--html", "no/page.html"), "there is no folder no; make it first"),
        (("--out", "no/set.json"), "there is no folder no; make it first"),
    ],
)
def test_wrong_use_is_one_line(call, arguments, text):
    answer = call("safety-set", "digits-cnn", *arguments, "-q")
    assert (answer.code, answer.out, answer.err.count("\n")) == (2, "", 1)
    assert text in answer.err


def test_a_model_that_is_none_is_named(call, tmp_path):
    for model in ("digit-cnn", "none.py:make"):
        answer = call("safety-set", model, "-q")
        assert (answer.code, answer.err.count("\n")) == (2, 1)
    path = tmp_path / "net.lil"
    assert call("safety-set", path, "-q").err.startswith(f"error: safety-set {path}: no data; name them")
