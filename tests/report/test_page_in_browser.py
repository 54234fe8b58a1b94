"""The page as a browser shows it: no complaint, sorting, switch, narrow windows, print."""

import json

import pytest

import lilliput as ll
from browser import Browser, chromium
from lilliput.report.html.page import folder_page

PHONE, DESK = 360, 1280
ROUNDS = 50
LONG = ".".join(["a_very_long_name_of_a_module_without_an_end"] * 5)


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    program = chromium()
    if program is None:
        pytest.skip("no Chromium on this machine (Debian: apt-get install chromium)")
    with Browser(program, tmp_path_factory.mktemp("profile")) as found:
        yield found


@pytest.fixture
def file(result, tmp_path):
    path = tmp_path / "page.html"
    result.html(path)
    return path


def column(browser, index):
    return browser.run(
        f"Array.from(document.querySelectorAll('table.layers tbody tr')).map(r => r.cells[{index}].textContent.trim())"
    )


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [PHONE, 768, DESK])
def test_no_complaint_no_request_and_nothing_wider_than_the_window(browser, file, width, dark):
    browser.complaints.clear()
    browser.requests.clear()
    browser.open(file, width=width, dark=dark)
    assert browser.run("document.documentElement.scrollWidth") <= width
    assert browser.run("document.querySelectorAll('h2').length") > 5
    assert browser.complaints == []
    assert {address.partition(":")[0] for address in browser.requests} <= {"file", "data"}


def test_long_names_do_not_widen_the_page(browser, results, tmp_path):
    result = results("classification")
    path = tmp_path / "page.html"
    details = json.loads((result.folder / "report.json").read_text())
    for row in details["layers"]:
        row["layer"] = LONG + row["layer"]
    details["samples"]["shown"][0]["label"] = "x" * 300
    from lilliput.report.html.page import page
    from lilliput.report.html.source import of_data

    path.write_text(page(of_data(result.to_data(), details, recipe="#" + "y" * 400, folder=None)))
    browser.open(path, width=PHONE)
    assert browser.run("document.documentElement.scrollWidth") <= PHONE


def test_a_key_sorts_by_a_column_and_once_more_backwards(browser, file):
    browser.open(file)
    numbers = [float(v) for v in browser.run(
        "Array.from(document.querySelectorAll('table.layers tbody tr')).map(r => r.cells[7].dataset.value)"
    )]  # fmt: skip
    names = dict(zip(numbers, column(browser, 0), strict=True))
    browser.run("document.querySelectorAll('table.layers thead button')[7].focus()")
    for key, down in (("Enter", False), (" ", True)):
        browser.press(key)
        assert column(browser, 0) == [names[n] for n in sorted(numbers, reverse=down)]
        head = "document.querySelectorAll('table.layers thead th')"
        state = browser.run(f"Array.from({head}).map(h => h.getAttribute('aria-sort')).filter(s => s)")
        assert state == ["descending" if down else "ascending"]


def test_rows_without_a_number_come_last(browser, results, tmp_path):
    result = results("classification")
    details = json.loads((result.folder / "report.json").read_text())
    for i, row in enumerate(details["layers"]):
        row["sqnr"] = [None, 30.0, 5.0][i]
        row["exact"] = False
    (tmp_path / "run").mkdir()
    for name in ("run.json", "result.json"):
        (tmp_path / "run" / name).write_bytes((result.folder / name).read_bytes())
    (tmp_path / "run" / "report.json").write_text(json.dumps(details))
    path = tmp_path / "page.html"
    path.write_text(folder_page(tmp_path / "run"))
    browser.open(path)
    for wanted in (["5.0", "30.0", ""], ["30.0", "5.0", ""]):
        browser.run("document.querySelectorAll('table.layers thead button')[9].click()")
        assert column(browser, 9) == wanted


def forget(browser, path, dark):
    """Open a page that remembers nothing. Chromium stores late, and loses some of it if a page opens at once."""
    for _ in range(ROUNDS):
        browser.open(path, dark=dark)
        if not browser.run("localStorage.length"):
            return
        browser.run("localStorage.clear()")
    raise AssertionError("the browser does not forget")


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_the_switch_changes_the_colours_and_is_remembered(browser, results, tmp_path, dark):
    path = tmp_path / "page.html"
    results("classification").html(path)
    forget(browser, path, dark)
    colour = "getComputedStyle(document.body).backgroundColor"
    assert browser.run("document.getElementById('theme').textContent") == ("Light" if dark else "Dark")
    for _ in range(ROUNDS):
        before = browser.run(colour)
        browser.run("document.getElementById('theme').focus()")
        browser.press("Enter")
        after = browser.run(colour)
        assert after != before
        browser.open(path, dark=dark)
        if browser.run(colour) == after:
            break
    else:
        raise AssertionError("no new page shows the colours that were chosen")
    forget(browser, path, dark)


def brightness(text):
    parts = [float(v) for v in text[text.index("(") + 1 : -1].split(",")[:3]]
    linear = [v / 12.92 if v <= 0.03928 else ((v + 0.055) / 1.055) ** 2.4 for v in (p / 255 for p in parts)]
    return sum(w * v for w, v in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_text_has_the_contrast_that_wcag_asks_for(browser, file, dark):
    browser.open(file, dark=dark)
    found = browser.run(
        """Array.from(document.querySelectorAll('p, td, th, li, dt, dd, h1, h2, h3, a, summary, svg text')).map(e => {
            const style = getComputedStyle(e);
            return e instanceof SVGElement ? style.fill : style.color;
        }).filter((c, i, all) => all.indexOf(c) === i)"""
    )
    back = brightness(browser.run("getComputedStyle(document.body).backgroundColor"))
    for colour in found:
        ends = sorted((brightness(colour), back))
        assert (ends[1] + 0.05) / (ends[0] + 0.05) >= 4.5, colour


def test_paper_is_light_and_shows_what_is_folded(browser, results, tmp_path):
    path = tmp_path / "page.html"
    results("classification").html(path)
    browser.open(path, dark=True)
    browser.ask("Emulation.setEmulatedMedia", media="print")
    assert browser.run("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert browser.run("getComputedStyle(document.getElementById('theme')).display") == "none"
    browser.run("window.dispatchEvent(new Event('beforeprint'))")
    assert browser.run("document.querySelectorAll('details:not([open])').length") == 0
    browser.run("window.dispatchEvent(new Event('afterprint'))")
    assert browser.run("document.querySelectorAll('details[open]').length") == 0
    browser.ask("Emulation.setEmulatedMedia", media="")


def test_a_curve_and_a_front_are_shown(browser, results, tmp_path):
    from task_kinds import model_and_task

    model, task = model_and_task("classification")
    result = results("classification")
    analysis = ll.analyse(model, task, kinds=["bits"], samples=16).to_data()
    points = [{"name": f"c{i}", "bytes": 500 + 50 * i, "score": 80.0 + i, "feasible": i > 2} for i in range(6)]
    from lilliput.report.html.page import page
    from lilliput.report.html.source import Source

    source = Source(
        title="x",
        result=result.to_data(),
        details={**result.details, "budgets": [], "points": points},
        analysis=analysis,
    )
    path = tmp_path / "page.html"
    path.write_text(page(source))
    browser.complaints.clear()
    browser.open(path, width=PHONE)
    rows = {(probe["layer"], probe["coupled"]) for probe in analysis["probes"]}
    assert browser.run("document.querySelectorAll('#sensitivity polyline').length") == len(rows)
    assert browser.run("document.querySelectorAll('#front circle').length") >= len(points)
    assert browser.run("document.documentElement.scrollWidth") <= PHONE
    assert browser.complaints == []
