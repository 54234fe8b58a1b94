"""Circuits on the page: what is noted is what the file holds, what is drawn is what is noted, old folders have none."""

import json
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

import lilliput as ll
from browser import Browser, chromium
from lilliput.core.artifact import Artifact
from lilliput.core.method import Context, apply_checked_
from lilliput.export.circuit_folder import weights_of
from lilliput.ops.netlist import Gate, Netlist
from lilliput.report.circuits import circuits
from lilliput.report.html.page import folder_page, page
from lilliput.report.html.panels import circuits as panel
from lilliput.report.html.source import Source, of_folder
from lilliput.testing import tiny_task
from page_parser import Page

TASK = tiny_task(96)


def shown(source) -> Any:
    return panel.circuits(source)


def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 2), nn.Flatten(), nn.Linear(8, 3)).eval()


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    recipe = [ll.MagnitudePruning(sparsity=0.3), ll.WeightGeneration(values=16, skip=("4",)), ll.Quantization()]
    return ll.apply(model(), TASK, recipe=recipe, folder=tmp_path_factory.mktemp("run") / "run")


def test_what_is_noted_is_what_the_network_holds(run):
    (noted,) = run.details["circuits"]
    encodings = [run.artifact.encoding(name) for name in ("0.weight", "2.weight")]
    bank = encodings[0].bank
    assert noted["layers"] == ["0", "2"]
    gates = tuple(Gate(*numbers) for numbers in noted["gates"])
    net = Netlist(bits=noted["bits"], inputs=len(noted["inputs"]), gates=gates, outputs=tuple(noted["outputs"]))
    assert sorted(set(net.evaluate(noted["inputs"]).tolist())) == bank.values.tolist()
    kept = torch.cat([e.values[e.mask] for e in encodings])
    assert noted["values"] == [[v, int((kept == v).sum())] for v in bank.values.tolist()]
    assert noted["weights"] == len(kept)
    assert sum(count for _, count in noted["functions"]) == sum(noted["depths"]) == noted["made"] == len(gates)
    assert len(noted["depths"]) == noted["depth"]


def test_the_table_of_layers_says_how_many_values_there_are(run):
    values = run.artifact.encoding("0.weight").bank.values
    assert [row["clusters"] for row in run.details["layers"]] == [[len(values)] * 2, [len(values)] * 2, None]
    table = Page(page(run._source()))
    rows = table.rows(table.all("table", "layers")[0])
    assert [row[5] for row in rows[-3:]] == [str(len(values)), str(len(values)), ""]


def test_weights_of_channels_without_bits_do_not_count(run):
    e = run.artifact.encoding("2.weight")
    grid = e.grid
    width = grid.bit_width.clone()
    width[0] = 0
    smaller = e.with_grid(replace(grid, bit_width=width))
    assert weights_of({"2.weight": smaller}).total() == int(e.mask[1:].sum())


def test_the_page_has_picture_and_account(run):
    parts = Page(page(run._source()))
    section = parts.section("circuits")
    (noted,) = run.details["circuits"]
    assert len(parts.all("g", "gate", inside=section)) == noted["made"]
    assert len(parts.all("g", "output", inside=section)) == len(noted["values"])
    rows = parts.rows(parts.all("table", inside=section)[1])
    (account,) = next(s for s in run.statistics.values() if "circuits" in s)["circuits"]
    assert rows[0][2:] == [f"{-(-account[k] // 8):,}" for k in ("stored_bits", "plain_bits", "table_bits")]
    assert [p.text for p in parts.all("p", inside=parts.one("div", "warning", inside=section))] == account["warnings"]
    assert folder_page(run.folder) == page(run._source())


def test_without_its_account_or_of_an_older_run_there_is_a_page_too(run, tmp_path):
    for name in ("run.json", "result.json", "trail.jsonl"):
        if (run.folder / name).is_file():
            (tmp_path / name).write_bytes((run.folder / name).read_bytes())
    details = json.loads((run.folder / "report.json").read_text())
    for change in ({}, {"circuits": None}):
        (tmp_path / "report.json").write_text(json.dumps({**details, **change}))
        section = Page(folder_page(tmp_path)).section("circuits")
        assert (section is None) == bool(change)
    del details["circuits"]
    (tmp_path / "report.json").write_text(json.dumps(details))
    assert Page(folder_page(tmp_path)).section("circuits") is None
    assert shown(of_folder(tmp_path)) is None


def test_an_account_of_a_step_that_was_refused_is_not_shown(run):
    source = run._source()
    trail = [{**entry, "verdict": {"accepted": False, "reason": ""}} for entry in source.trail]
    refused = Source(title="", result={"trail": trail}, details=source.details, statistics=source.statistics)
    assert shown(refused)["cost_rows"] == []
    assert shown(source)["cost_rows"] != []


def test_a_large_circuit_is_counted():
    net = Artifact.of(model(), TASK.spec)
    apply_checked_(ll.WeightGeneration(solver="exact", weight_bits=9), net, Context.of(TASK, net.module))
    details = json.loads(json.dumps({"circuits": circuits(net)}))
    (noted,) = details["circuits"]
    assert noted["gates"] is None
    found = shown(Source(title="", result={}, details=details))["circuits"][0]
    assert found["picture"] is None
    counts = [int(count.replace(",", "")) for _, count in found["functions"]]
    assert counts == sorted(counts, reverse=True)
    assert sum(counts) == noted["made"] > 150
    assert found["depths"].count("<rect") == len([n for n in noted["depths"] if n])


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
        assert browser.run("document.querySelector('#circuits svg').getBoundingClientRect().width") > 300
        assert browser.complaints == []
