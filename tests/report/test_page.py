"""The page: whole, alone, escaped, and with the numbers of the run."""

import base64
import hashlib
import json
import re
import shutil

import pytest

from lilliput.core import container
from lilliput.core.errors import ArtifactError, UsageError
from lilliput.report.html.page import folder_page
from lilliput.report.html.source import Source, of_folder
from lilliput.report.text import comparison_rows
from page_parser import Page
from task_kinds import LABELS

PAYLOAD = "<script>alert(1)</script>\"'&<b>"
FIXED = {"kind", "origin", "unit", "budget", "picture", "state", "fingerprint", "op"}
"""What a run itself chooses the words of."""


@pytest.fixture
def folder(result):
    return result.folder


@pytest.fixture
def page(folder):
    return Page(folder_page(folder))


@pytest.fixture
def copied(results, tmp_path):
    """A run folder that a test may spoil."""
    folder = results("classification").folder
    return shutil.copytree(folder, tmp_path / folder.name)


def changed_json(path, change):
    data = json.loads(path.read_text())
    path.write_text(json.dumps(change(data)))


def test_a_page_asks_for_nothing_from_elsewhere(page, folder):
    for element in page.elements:
        for name in ("src", "href", "action", "data", "poster", "srcset"):
            address = element[name]
            assert address is None or address.startswith(("data:", "#")), (element.tag, address)
        assert not re.search(r"url\(|@import|expression", element["style"] or "")
    for style in page.all("style"):
        assert not re.search(r"url\(|@import|https?:", style.text)
    assert not re.search(r"https?://", folder_page(folder))


def test_only_the_script_of_the_page_may_run(page):
    policy = next(e["content"] for e in page.all("meta") if e["http-equiv"] == "Content-Security-Policy")
    (script,) = page.all("script")
    digest = base64.b64encode(hashlib.sha256(script.text.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in policy
    assert "default-src 'none'" in policy
    assert not [e.tag for e in page.elements for name in e.attributes if name.startswith("on")]


def test_ids_are_unique_and_what_refers_to_one_finds_it(page):
    ids = [e["id"] for e in page.elements if e["id"] is not None]
    assert len(ids) == len(set(ids))
    for element in page.elements:
        target = element["href"]
        if target and target.startswith("#"):
            assert target[1:] in ids
        for name in (element["aria-labelledby"] or "").split():
            assert name in ids


def test_everything_has_a_heading_or_a_label(page):
    sections = page.all("section")
    assert len(page.all("h1")) == 1
    for section in sections:
        assert [e["id"] for e in page.all("h2", inside=section)] == [section["aria-labelledby"]]
    for head in page.all("th"):
        assert head["scope"] in ("col", "row")
    for image in page.all("img"):
        assert image["alt"]
    for chart in page.all("svg"):
        assert chart["aria-hidden"] == "true" or chart["role"] == "img"
    for region in (e for e in page.elements if "wide" in e.classes):
        assert region["role"] == "region"
        assert region["aria-label"]
        assert region["tabindex"] == "0"


def test_every_chart_names_both_axes(page):
    charts = page.all("svg", "chart")
    assert charts
    for chart in charts:
        assert len([t for t in page.all("text", "label", inside=chart) if t.text]) == 2, chart["id"]


def test_the_comparison_is_the_table_of_the_run(page, result):
    rows, notes = comparison_rows(result.columns, result.score.name)
    section = page.section("comparison")
    table = page.one("table", "comparison", inside=section)
    assert page.rows(table) == rows[1:]
    assert [e.text for e in page.all("li", inside=section)] == notes


def test_each_budget_has_a_tick(page, result):
    rows = page.rows(page.one("table", "budgets"))
    assert [row[0] for row in rows] == ["\u2713 met" if b.met else "\u2717 missed" for b in result.budgets]
    assert len(rows) == 3
    assert {b.budget for b in result.budgets if not b.met} == {v.budget for v in result.violations}
    assert all(b.budget in row[1] for b, row in zip(result.budgets, rows, strict=True))


def test_each_step_has_a_row_and_a_refused_one_its_reason(page, result):
    rows = page.rows(page.one("table", "steps"))
    assert [row[0] for row in rows] == [f"{e['step']}. {e['name']}" for e in result.trail]
    refused = [(row, e) for row, e in zip(rows, result.trail, strict=True) if not e["verdict"]["accepted"]]
    assert len(refused) == 1
    row, entry = refused[0]
    assert row[1] == "refused"
    assert row[4] == entry["verdict"]["reason"]
    before, after = row[2].split("\N{RIGHTWARDS ARROW}")
    assert before.strip() == after.strip()


def test_the_layers_are_those_of_the_file(page, result):
    table = page.one("table", "layers")
    rows = page.rows(table)
    contents = container.read(result.folder / "net.lil")
    sizes = container.sizes(contents)
    layers = {name.rpartition(".")[0] for name in contents.tensors}
    assert {row[0] for row in rows} == layers
    found = result.details["layers"]
    assert sum(row["bytes"] for row in found) == sum(sum(slots.values()) for slots in sizes.values())
    assert sum(row["macs"] for row in found) == result.columns[-1].measurements["MACs"].value
    for row in found:
        weight = contents.tensors[f"{row['layer']}.weight"]
        assert row["sparsity"] == pytest.approx(float((weight.decode() == 0).double().mean()))
        assert row["bits"] == [4, 4]
        assert row["shape"] == list(weight.shape)
    cells = [c for c in page.all("td", "number", inside=table) if c["data-value"] is not None]
    assert len(cells) == 7 * len(rows)


def test_memory_has_a_bar_for_each_operation_and_meets_the_plan(page, result):
    chart = page.one("svg", "chart", inside=page.section("memory"))
    steps = result.details["memory"]["steps"]
    assert len(page.all("rect", "bar", inside=chart)) == len(steps)
    assert max(s["bytes"] for s in steps) <= result.columns[-1].measurements["planned RAM"].value


def test_the_run_can_be_repeated_from_the_page(page, result, task):
    section = page.section("repeat")
    assert "recipe.yaml" in page.all("pre", inside=section)[0].text
    rows = page.rows(page.one("table", "data", inside=section))
    assert rows == [[r, str(len(task.data(r))), task.data(r).fingerprint()] for r in ("train", "validation", "test")]
    facts = dict(page.rows(page.one("table", "environment", inside=section)))
    assert facts["seed"] == "3"
    assert facts["torch"] == result.to_data()["environment"]["torch"]


def test_the_page_of_a_result_is_that_of_its_folder(result, tmp_path):
    path = tmp_path / "page.html"
    assert result.html(path) == path.stat().st_size < 300_000
    assert path.read_text() == folder_page(result.folder)


def test_whatever_the_user_names_is_escaped(copied):
    def spoiled(data, key=""):
        if isinstance(data, dict):
            return {k: spoiled(v, k) for k, v in data.items()}
        if isinstance(data, list):
            return [spoiled(v, key) for v in data]
        return data + PAYLOAD if isinstance(data, str) and key not in FIXED else data

    plain = Page(folder_page(copied))
    for name in ("result.json", "report.json", "run.json"):
        changed_json(copied / name, spoiled)
    folder = copied.rename(copied.with_name(f"0001-{PAYLOAD.replace('/', '')}"))
    (folder / "recipe.yaml").write_text(PAYLOAD)
    text = folder_page(folder)
    page = Page(text)
    assert len(page.all("script")) == len(page.all("style")) == 1
    assert not page.all("b", inside=page.section("layers"))
    assert text.count("<script>") == 1
    allowed = {e.tag for e in plain.elements}
    assert {e.tag for e in page.elements} <= allowed
    assert PAYLOAD in page.section("layers").text
    assert PAYLOAD in page.section("samples").text
    assert PAYLOAD in page.section("repeat").text


def test_labels_of_classes_are_text(results):
    page = Page(folder_page(results("classification").folder))
    assert LABELS[0] in page.section("answers").text
    assert LABELS[1] in page.section("answers").text


def test_a_run_of_before_has_the_panels_it_can_fill(copied):
    for name in ("report.json", "table.csv"):
        (copied / name).unlink()
    page = Page(folder_page(copied))
    assert [e["id"] for e in page.all("section")] == ["verdict", "comparison", "passes", "repeat"]
    assert "max_drop" in page.section("verdict").text or "No budget is missed" in page.section("verdict").text


def test_an_unfinished_run_shows_its_steps(copied):
    for name in ("report.json", "result.json", "table.csv", "table.txt"):
        (copied / name).unlink()
    page = Page(folder_page(copied))
    assert page.one("h2", "headline").text == "The run is not finished"
    assert len(page.rows(page.one("table", "steps"))) == 4
    assert page.section("comparison") is None
    assert "--resume" in page.section("repeat").text


@pytest.mark.parametrize("name", ["result.json", "report.json", "analysis.json", "command.json"])
@pytest.mark.parametrize("content", ["{", "[]"])
def test_a_damaged_file_is_named(copied, name, content):
    (copied / name).write_text(content)
    with pytest.raises(ArtifactError, match=re.escape(name)):
        folder_page(copied)


def test_data_of_another_form_are_one_line(copied):
    changed_json(copied / "report.json", lambda data: {**data, "layers": [{"kind": "Linear"}]})
    with pytest.raises(ArtifactError, match="layers: not as a run writes it"):
        folder_page(copied)


def test_without_a_run_there_is_no_page(tmp_path):
    (tmp_path / "note.txt").write_text("no run")
    with pytest.raises(UsageError, match="there is no run in it"):
        of_folder(tmp_path)


def test_no_budget_is_said_so(results, copied):
    changed_json(copied / "report.json", lambda data: {**data, "budgets": []})
    changed_json(copied / "result.json", lambda data: {**data, "violations": [], "feasible": True})
    page = Page(folder_page(copied))
    assert page.one("h2", "headline").text == "No budget was given"
    assert not page.all("table", "budgets")


def test_a_mismatch_and_doubts_are_on_top(results, copied):
    def change(data):
        data["columns"][-1]["mismatch"] = "outputs differ"
        return {**data, "doubts": ["validation looks familiar"]}

    changed_json(copied / "result.json", change)
    text = Page(folder_page(copied)).section("verdict").text
    assert "ours: outputs differ" in text
    assert "validation looks familiar" in text


def test_an_empty_source_is_a_page():
    from lilliput.report.html.page import page

    assert [e["id"] for e in Page(page(Source(title="x", result={}))).all("section")] == ["verdict", "repeat"]


def test_a_notebook_gets_verdict_and_table(result):
    fragment = Page(result._repr_html_())
    rows, _ = comparison_rows(result.columns, result.score.name)
    assert fragment.rows(fragment.one("table")) == rows[1:]
    assert not {e.tag for e in fragment.elements} & {"script", "style", "html", "body", "link"}
    assert sum(e.text.startswith("\u2713") for e in fragment.all("li")) == sum(b.met for b in result.budgets)
