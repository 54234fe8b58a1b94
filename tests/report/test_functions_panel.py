"""Learned functions on the page: what is noted is what the networks compute, and what is drawn is what is noted."""

import pytest
import torch
from torch import nn

import lilliput as ll
from browser import Browser, chromium
from lilliput.core.artifact import Artifact
from lilliput.core.learned_activation import LearnedActivation
from lilliput.core.method import Context, apply_checked_
from lilliput.graph.trace import graph_of
from lilliput.methods.quantization.post_training import Quantization
from lilliput.report.functions import BINS, SHOWN, learned_functions
from lilliput.report.html.page import page
from lilliput.report.html.panels.functions import functions
from lilliput.report.html.source import Source
from lilliput.testing import tiny_task
from page_parser import Page

TASK = tiny_task(96)
CHANNELS = 7


def network(act):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, CHANNELS, 3), act, nn.Flatten(), nn.Linear(CHANNELS * 4, 3))
    return Artifact.of(model.eval(), TASK.spec)


def noted(first, last, count=64):
    return learned_functions(first, last, graph_of(last), TASK.data("train").batch(torch.arange(count))[0])


def inputs_of(net, count=64):
    """[channels, values] of what the activation reads."""
    x = TASK.data("train").batch(torch.arange(count))[0]
    with torch.no_grad():
        return net.module.get_submodule("0")(x).movedim(1, 0).reshape(CHANNELS, -1)


@pytest.fixture(scope="module")
def changed():
    """A table for each channel in place of GELU; of three channels it is another function."""
    first = network(nn.GELU())
    reach = float(inputs_of(first).abs().quantile(0.995))  # points take no more than 1% beyond
    last = network(LearnedActivation(CHANNELS, kind="table", points=17, limit=reach, like=nn.GELU()))
    act = last.module.get_submodule("1")
    assert isinstance(act, LearnedActivation)
    with torch.no_grad():
        for row, factor in ((5, 3.0), (2, 2.0), (4, 1.5)):
            act.weight[row] *= factor
    return first, last


def test_what_is_noted_is_what_the_networks_compute(changed):
    first, last = changed
    (place,) = noted(first, last)
    limit, read = float(last.module[1].limit), inputs_of(last)
    assert (place["name"], place["kind"], place["points"], place["functions"]) == ("1", "table", 17, CHANNELS)
    assert place["was"] == "gelu"
    assert place["limit"] == pytest.approx(limit, rel=1e-4)
    assert place["beyond"] == pytest.approx(float((read.abs() > limit).float().mean()))
    assert place["beyond"] > 0
    for shown in place["shown"]:
        grid = torch.linspace(-limit, limit, len(shown["after"]))
        batch = grid.reshape(-1, 1, 1, 1).expand(-1, CHANNELS, 1, 1)
        with torch.no_grad():
            now = last.module[1](batch)[:, shown["function"], 0, 0]
            was = first.module[1](grid)
        torch.testing.assert_close(torch.tensor(shown["after"]), now, rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(torch.tensor(shown["before"]), was, rtol=1e-3, atol=1e-4)
        inside = (read[shown["function"]].abs() <= limit).sum()
        assert len(shown["inputs"]) == BINS
        assert sum(shown["inputs"]) == int(inside)
        assert shown["table"] is None


def test_shared_functions_are_noted_for_each_channel_that_has_them(changed):
    first, last = changed
    last = last.copy()
    apply_checked_(ll.ShareFunctions(tables=2), last, Context.of(TASK, last.module))
    apply_checked_(Quantization(), last, Context.of(TASK, last.module))
    (place,) = noted(first, last)
    owner = last.module[1].owner.tolist()
    assert place["functions"] == len(place["changed"]) == CHANNELS
    assert len(set(owner)) == 2
    drawn = {shown["function"]: shown for shown in place["shown"]}
    for one in drawn:
        for other in drawn:
            same = drawn[one]["table"]["outputs"] == drawn[other]["table"]["outputs"]
            assert same == (owner[one] == owner[other])


def test_the_functions_that_changed_most_come_first_and_by_how_much(changed):
    (place,) = noted(*changed)
    assert [shown["function"] for shown in place["shown"]][:3] == [5, 2, 4]
    assert len(place["shown"]) == SHOWN
    for row, share in ((5, 2.0), (2, 1.0), (4, 0.5)):  # f becomes factor x f
        assert place["changed"][row] == pytest.approx(share, rel=0.02)
    assert max(place["changed"][row] for row in (0, 1, 3, 6)) < 0.02


@pytest.mark.parametrize("tables", ["full", "points"])
@pytest.mark.parametrize("bits", [3, 8, 12])
def test_the_table_that_is_drawn_is_the_one_that_runs(changed, bits, tables):
    first, last = changed
    last = last.copy()
    apply_checked_(Quantization(signed=True, activation_bits=bits, tables=tables), last, Context.of(TASK, last.module))
    (place,) = noted(first, last)
    graph = graph_of(last)
    (node,) = (n for n in graph.nodes if n.op == "learned_function")
    grid = last.activations[node.name]
    step = float(grid.scale)
    for shown in place["shown"]:
        inputs, outputs = shown["table"]["inputs"], shown["table"]["outputs"]
        assert len(inputs) == len(outputs) <= 65
        assert shown["table"]["lines"] == (bits == 12 or (tables == "points" and bits > 4))
        assert max(map(abs, inputs)) <= place["limit"] * 1.001
        batch = torch.tensor(inputs).reshape(-1, 1, 1, 1).expand(-1, CHANNELS, 1, 1)
        with torch.no_grad():
            exact = last.module[1](batch)[:, shown["function"], 0, 0]
        low, high = (float(grid.dequantize(end.reshape(1))) for end in grid.range())
        lost = (torch.tensor(outputs) - exact.clamp(low, high)).abs().max()
        assert lost <= step * (0.51 if bits <= 8 else 2)
        codes = torch.tensor(outputs) / step
        assert (codes - codes.round()).abs().max() < 0.05


def test_a_learned_function_of_the_original_is_the_one_before(changed):
    _, last = changed
    (place,) = noted(last, last)
    assert place["was"] == "learned_function"
    assert place["changed"] == [0.0] * CHANNELS
    assert place["shown"][0]["before"] == place["shown"][0]["after"]


def test_where_functions_went_nothing_is_compared(changed):
    _, last = changed
    torch.manual_seed(0)
    narrow = nn.Sequential(nn.Conv2d(1, 3, 3), LearnedActivation(3), nn.Flatten(), nn.Linear(12, 3))
    (place,) = noted(last, Artifact.of(narrow.eval(), TASK.spec))
    assert place["changed"] is None
    assert place["shown"][0]["before"] is None
    panel = functions(Source(title="run", result={}, details={"functions": [place]})) or {}
    assert "not comparable" in panel["rows"][0]
    assert [text for _, text in panel["legend"]] == ["after it", "how often inputs lie there"]


def test_a_network_without_learned_functions_has_no_panel():
    plain = network(nn.ReLU())
    assert noted(plain, plain) == []
    assert functions(Source(title="run", result={}, details={"functions": []})) is None
    assert functions(Source(title="run", result={})) is None


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    model = nn.Sequential(nn.Conv2d(1, CHANNELS, 3), nn.ReLU(), nn.Flatten(), nn.Linear(CHANNELS * 4, 3)).eval()
    recipe = [ll.ReplaceActivations(kind="lerp_psa", points=33), ll.Quantization()]
    return ll.apply(model, TASK, recipe=recipe, folder=tmp_path_factory.mktemp("run") / "run")


def test_the_page_draws_each_of_them_with_both_axes(run):
    parts = Page(page(run._source()))
    section = parts.section("functions")
    charts = parts.all("svg", "chart", inside=section)
    assert len(charts) == SHOWN + 1  # and how much each changed
    for chart in charts:
        assert len([t for t in parts.all("text", "label", inside=chart) if t.text]) == 2
    assert [len(parts.all("polyline", inside=chart)) for chart in charts] == [3] * SHOWN + [0]
    assert len(parts.all("rect", "ours", inside=charts[-1])) == CHANNELS
    (row,) = parts.rows(parts.one("table", inside=section))
    place = run.details["functions"][0]
    assert row[:4] == ["1", str(CHANNELS), "table", "33"]  # its points, as quantization has stored them
    assert row[-1] == f"{100 * max(place['changed']):.3g}%"


@pytest.mark.parametrize("width", [360, 1280])
def test_the_panel_fits_into_the_window(run, width, tmp_path):
    program = chromium()
    if program is None:
        pytest.skip("no Chromium on this machine (Debian: apt-get install chromium)")
    path = tmp_path / "page.html"
    run.html(path)
    with Browser(program, tmp_path / "profile") as browser:
        browser.open(path, width=width)
        assert browser.run("document.documentElement.scrollWidth") <= width
        sizes = browser.run(
            "Array.from(document.querySelectorAll('#functions svg')).map(e => e.getBoundingClientRect().width)"
        )
        assert len(sizes) == SHOWN + 1
        assert min(sizes) > 120
        assert browser.complaints == []
