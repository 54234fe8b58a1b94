"""The curves of a network that compressed itself: from the trail to the page."""

import json

import pytest

import lilliput as ll
from lilliput.cli.using import report_statistics
from lilliput.core.errors import UsageError
from lilliput.report.html.page import folder_page
from lilliput.report.html.panels.learning import learning
from lilliput.report.html.source import Source, of_folder
from lilliput.testing import tiny_model, tiny_task
from page_parser import Page


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    method = ll.SelfCompression(steps=24, batch_size=16, rounds=4, safety=12, safety_methods=("margin",))
    recipe = [ll.FoldBatchNorm(), method]
    return ll.compress(tiny_model("residual"), tiny_task(), recipe=recipe, folder=tmp_path_factory.mktemp("run")).folder


def test_every_round_is_a_point_of_every_curve(folder):
    (name,) = (path.name for path in folder.glob("statistics-*"))
    rounds = json.loads((folder / name).read_text())["rounds"]
    (group,) = learning(of_folder(folder)) or []
    assert group["file"] == name
    titles = [chart["title"] for chart in group["charts"]]
    assert titles[:4] == [
        "bytes of the file",
        "score on validation",
        "channels that are alive",
        "price of a bit (gamma)",
    ]
    assert titles[4:] == ["safety set, share that is right", "loss on the safety set", "milliseconds for a step"]
    for chart in group["charts"]:
        lines = 2 if chart["legend"] else 1
        assert chart["svg"].count('r="2.6"') == lines * len(rounds)
    assert f"file: 4: {rounds[0]['bytes']:.4g}, 8: " in group["charts"][0]["svg"]


def test_the_page_has_the_curves(folder):
    page = Page(folder_page(folder))
    assert len([e for e in page.all("svg") if (e["id"] or "").startswith("learning-0-")]) == 7


def test_returned_channels_are_told_and_drawn():
    row = {"bytes": 900, "score": 90.0, "live": 8, "gamma": 0.1, "seconds_per_step": 0.01}
    event = {"steps": 20, "why": "recall 0.1 of class <3>", "returned": {"a": 2, "b": 1}}
    data = {"rounds": [row | {"steps": 10}, row | {"steps": 20, "bytes": 800}], "events": [event]}
    (group,) = learning(Source(title="run", result={}, statistics={"s.json": data})) or []
    assert group["events"] == [(20, "recall 0.1 of class <3>", 3)]
    assert len(group["charts"]) == 5
    assert all("recall 0.1 of class &lt;3&gt;" in chart["svg"] for chart in group["charts"])


def test_a_run_without_rounds_has_no_curves():
    row = {"steps": 1, "bytes": 1, "seconds_per_step": 0.0}
    assert learning(Source(title="run", result={})) is None
    assert learning(Source(title="run", result={}, statistics={"s.json": {"rounds": [row]}})) is None


def test_statistics_by_neuron_are_not_asked_of_it(folder):
    with pytest.raises(UsageError, match="none of its methods keeps any by neuron"):
        report_statistics(folder, None)
