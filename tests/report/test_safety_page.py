"""The page of a safety set shows every sample once, with its own picture and label, and fits every window."""

import base64

import pytest
import torch

from browser import Browser, chromium
from lilliput.data.safety import safety_set
from lilliput.report.changed import thumbnail
from lilliput.report.html.safety import safety_page
from lilliput.report.safety import count_rows, safety_details
from page_parser import Page
from task_kinds import KINDS, LABELS, model_and_task

SIZE = 18


@pytest.fixture(scope="module")
def made():
    """made(kind): the set, the task, the network, and the page."""
    known = {}

    def get(kind):
        if kind not in known:
            model, task = model_and_task(kind)
            chosen = safety_set(task, model, size=SIZE, source="train+validation")
            known[kind] = chosen, task, model, safety_page(safety_details(chosen, task, model, "a <b>name</b>"))
        return known[kind]

    return get


@pytest.mark.parametrize("kind", KINDS)
def test_every_sample_is_shown_once_under_its_method(made, kind):
    chosen, _, _, text = made(kind)
    page = Page(text)
    assert page.one("h1").text == "Safety set of a <b>name</b>"
    assert [e["id"] for e in page.all("section")] == ["chosen", *chosen.counts()]
    for method in chosen.counts():
        names = [e.text for e in page.all("b", inside=page.section(method))]
        wanted = [
            f"{role} {n}" for (role, n), r in zip(chosen.where, chosen.reasons, strict=True) if r.method == method
        ]
        assert sorted(names) == sorted(wanted)


def test_each_sample_has_its_own_picture_label_and_answer(made):
    chosen, task, model, text = made("classification")
    page = Page(text)
    items = {page.one("b", inside=item).text: item for item in page.all("li") if page.all("b", inside=item)}
    assert len(items) == SIZE
    for (role, n), reason in zip(chosen.where, chosen.reasons, strict=True):
        x, y = task.data(role).batch(torch.tensor([n]))
        item = items[f"{role} {n}"]
        assert page.one("img", inside=item)["src"] == f"data:image/png;base64,{thumbnail(x[0], task.spec)}"
        assert f"label {LABELS[int(y)]}" in item.text
        with torch.no_grad():
            answer = int(model(x).argmax(1))
        wrong = ", wrong" if answer != int(y) else ""
        assert f"answer {LABELS[answer]}{wrong}" in item.text
        assert bool(page.all("span", "missed", inside=item)) == bool(wrong)
        assert f"{reason.value:.4g}" in item.text


def test_the_table_counts_what_is_there(made):
    chosen, task, _, text = made("classification")
    page = Page(text)
    rows = page.rows(page.one("table"))
    assert rows == count_rows(chosen, task)[1:]
    assert [row[0] for row in rows] == [*LABELS, "all"]
    for row in (rows[-1], [r[-1] for r in rows]):
        parts = [int(v) for v in row if v.isdigit()]
        assert sum(parts[:-1]) == parts[-1] == SIZE


def test_vectors_are_numbers_or_lines_and_anomalies_have_their_error(made):
    page = Page(made("regression")[3])
    assert page.all("svg") == page.all("img") == []
    chosen, task, _, _ = made("regression")
    role, n = chosen.where[0]
    first = task.data(role).batch(torch.tensor([n]))[0][0]
    assert ", ".join(f"{float(v):.4g}" for v in first) in made("regression")[3]
    page = Page(made("anomaly")[3])
    assert len(page.all("svg", "spark")) == SIZE
    for line in page.all("polyline"):
        points = [tuple(map(float, p.split(","))) for p in line["points"].split()]
        assert len(points) == 16
        assert {min(b for _, b in points), max(b for _, b in points)} == {2.0, 46.0}
    assert "error " in made("anomaly")[3]


def test_the_set_of_other_data_has_no_page(made):
    chosen, task, model, _ = made("classification")
    from lilliput.core.errors import DataError

    _, other = model_and_task("classification")
    assert safety_details(chosen, other, model, "x")["seen"] == chosen.seen
    x, y = task.data("train").batch(torch.arange(60))
    with pytest.raises(DataError, match="other data than train"):
        safety_details(chosen, type(task).classification(train=(x, y), validation=(x, y)), model, "x")


def test_pictures_are_png(made):
    for image in Page(made("segmentation")[3]).all("img")[:2]:
        assert base64.b64decode(image["src"].partition(",")[2]).startswith(b"\x89PNG")


def test_no_complaint_no_request_and_nothing_wider_than_the_window(made, tmp_path):
    program = chromium()
    if program is None:
        pytest.skip("no Chromium on this machine (Debian: apt-get install chromium)")
    with Browser(program, tmp_path / "profile") as browser:
        for kind in KINDS:
            path = tmp_path / f"{kind}.html"
            path.write_text(made(kind)[3])
            for width, dark in ((360, False), (360, True), (1280, False), (1280, True)):
                browser.open(path, width=width, dark=dark)
                assert browser.run("document.documentElement.scrollWidth") <= width
                bright = browser.run("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
                assert bright != dark
        assert browser.complaints == []
        assert {address.partition(":")[0] for address in browser.requests} <= {"file", "data"}
