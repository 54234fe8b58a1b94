"""The tables: means and differences against numpy, published figures apart, formats that their readers take."""

import csv
import io
import json
import re
import shutil
import subprocess

import numpy as np
import pytest

from lilliput.bench.samples import unpack
from lilliput.bench.store import read_results
from lilliput.bench.summary import summarize
from lilliput.bench.tables import cells, comma_separated, latex, markdown, notes, terminal, write_all
from lilliput.cli.main import run


@pytest.fixture
def sections(finished):
    return summarize(finished.plan, finished.records)


@pytest.fixture
def rows(sections):
    return {(row.method, row.budget): row for row in sections[0].rows}


def test_rows_are_in_the_order_of_the_grid_with_published_methods_last(sections):
    assert [(row.method, row.budget) for row in sections[0].rows] == [
        ("float", ""),
        ("cluster", "large"),
        ("cluster", "small"),
        ("prune", "large"),
        ("prune", "small"),
        ("plain", ""),
        ("broken", ""),
        ("theirs", ""),
    ]


def test_values_are_means_and_deviations_over_seeds(finished, rows):
    for key, row in rows.items():
        for name in ("score", "bytes", "raw_bytes", "steps"):
            given = [
                r[name] for (method, budget, _), r in finished.cell.items() if (method, budget) == key and name in r
            ]
            if given:
                mean, deviation = row.values[name]
                assert mean == pytest.approx(np.mean(given))
                assert deviation == (pytest.approx(np.std(given, ddof=1)) if len(given) > 1 else None)
                assert row.seeds == len(given)


def test_scores_are_the_mean_of_the_kept_samples(finished):
    for record in finished.records.values():
        if "score" in record:
            assert float(unpack(record["rows"]).mean()) == pytest.approx(record["score"])
            assert record["rows"]["samples"] == 48


def test_differences_are_to_the_baseline_at_the_same_budget(finished, rows):
    for budget in ("large", "small"):
        row, base = rows["prune", budget], rows["cluster", budget]
        assert row.difference == pytest.approx(row.values["score"][0] - base.values["score"][0])
        assert row.interval[0] < row.difference < row.interval[1]
        assert base.difference is None
    assert rows["plain", ""].difference is None  # the baseline has no cell without budget
    floats = summarize({**finished.plan, "baseline": "float"}, finished.records)[0].rows
    compared = {(row.method, row.budget): row.difference for row in floats if row.values}
    assert compared.pop(("float", "")) is None
    assert None not in compared.values()


def test_failed_methods_are_rows_with_their_errors(sections, finished, rows):
    assert rows["broken", ""].errors == ["ZeroDivisionError: by design"]
    assert rows["broken", ""].seeds == 0
    assert "broken failed: ZeroDivisionError: by design" in notes(sections[0], finished.plan)


def test_published_figures_enter_no_measured_number(finished, sections):
    without = summarize({**finished.plan, "published": []}, finished.records)[0]
    header, *body = cells(sections[0], "cluster")
    plain_header, *plain = cells(without, "cluster")
    first = header.index("published %")
    assert header[:first] == plain_header
    assert [row[:first] for row in body[: len(plain)]] == plain
    assert [row[first:] for row in body if row[:2] == ["prune", "small"]] == [["61.50", "321", "A & B (2020), table 1"]]
    assert body[-1] == ["theirs", "-", "0", *["-"] * 7, "70.25", "-", "C_D | 2021"]
    assert without.volumes == sections[0].volumes
    assert without.reference == sections[0].reference


def test_the_hypervolume_and_the_front_are_in_the_direction_of_the_score(finished):
    """The same records as an error of which less is better, 100 - score: the same front, the same volumes."""
    more = summarize(finished.plan, finished.records)[0]
    records = finished.copy()
    for record in records.values():
        if "score" in record:
            record["score"] = 100 - record["score"]
            record["scored"]["higher_is_better"] = False
    less = summarize(finished.plan, records)[0]
    assert [row.on_front for row in less.rows] == [row.on_front for row in more.rows]
    assert less.reference is not None
    assert more.reference is not None
    assert less.reference == pytest.approx((more.reference[0], 100 - more.reference[1]))
    for method, (mean, deviation) in more.volumes.items():
        assert less.volumes[method] == (
            pytest.approx(mean),
            deviation if deviation is None else pytest.approx(deviation),
        )
    assert any(row.on_front for row in more.rows)
    assert more.volumes["prune"][0] > 0


def test_a_given_reference_is_used_and_stated(finished):
    plan = {**finished.plan, "reference": {"bytes": 2000.0, "score": 10.0}}
    section = summarize(plan, finished.records)[0]
    assert section.reference == (2000.0, 10.0)
    assert any("from 2,000 bytes and 10.00 %" in note for note in notes(section, plan))


def test_scores_without_samples_are_compared_over_seeds(finished):
    records = finished.copy()
    for record in records.values():
        record["rows"] = None
    row = next(r for r in summarize(finished.plan, records)[0].rows if (r.method, r.budget) == ("prune", "small"))
    changes = [
        finished.cell["prune", "small", s]["score"] - finished.cell["cluster", "small", s]["score"] for s in (0, 1)
    ]
    half = 12.7062 * np.std(changes, ddof=1) / np.sqrt(2)
    assert row.interval == pytest.approx((np.mean(changes) - half, np.mean(changes) + half), abs=1e-3)


def test_unfinished_cells_are_counted(finished):
    some = dict(list(finished.records.items())[:4])
    section = summarize(finished.plan, some)[0]
    assert section.pending == 9
    assert "9 cells are not done yet" in notes(section, finished.plan)
    assert terminal([section], finished.plan)


def test_the_csv_has_every_number_unrounded(sections, rows):
    read = list(csv.DictReader(io.StringIO(comma_separated(sections))))
    assert len(read) == len(sections[0].rows)
    for line in read:
        row = rows[line["method"], line["budget"]]
        if row.values:
            assert float(line["score_mean"]) == row.values["score"][0]
            assert float(line["bytes_mean"]) == row.values["bytes"][0]
            assert float(line["cpu_seconds"]) == row.cpu
    assert [line["published_bytes"] for line in read if line["published_score"]] == ["321", ""]


def test_markdown_rows_have_as_many_cells_as_the_header(sections, finished):
    lines = [line for line in markdown(sections, finished.plan).splitlines() if line.startswith("|")]
    assert len(lines) == 2 + len(sections[0].rows)
    assert {len(re.split(r"(?<!\\)\|", line)) for line in lines} == {13 + 2}


def test_latex_compiles(sections, finished, tmp_path):
    if shutil.which("pdflatex") is None:
        pytest.skip("pdflatex is not installed")
    document = "\\documentclass{article}\\begin{document}\n" + latex(sections, finished.plan) + "\\end{document}\n"
    (tmp_path / "table.tex").write_text(document, encoding="utf-8")
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "table.tex"]
    made = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert made.returncode == 0, made.stdout[-1000:]


def test_latex_escapes_what_it_would_obey(sections, finished):
    text = latex(sections, finished.plan)
    table = "\n".join(line for line in text.splitlines() if not line.startswith("%"))
    assert r"A \& B (2020)" in table
    assert r"C\_D \textbar{} 2021" in table
    assert re.search(r"\d\.\d\d $\pm$ \d".replace("$", r"\$").replace(r"\pm", r"\\pm"), table)
    assert not re.search(r"(?<!\\)[%#_]", table)
    assert re.search(r"& \$-\$\d", table), "a minus sign is not a hyphen"
    assert not re.search(r"(?<!\S)\[?-[\d.]", table)
    body = [line for line in table.splitlines() if line.endswith(r"\\")]
    assert {len(re.split(r"(?<!\\)&", line)) for line in body} == {13}


def test_the_results_alone_give_the_same_tables(finished, tmp_path):
    shown = write_all(finished.folder, finished.plan, finished.records)
    (tmp_path / "results.json").write_bytes((finished.folder / "results.json").read_bytes())
    plan, records = read_results(tmp_path)
    assert write_all(tmp_path, plan, records) == shown
    for name in ("table.md", "table.tex", "table.csv", "results.json"):
        assert (tmp_path / name).read_bytes() == (finished.folder / name).read_bytes()


def test_the_command_reports_a_folder(finished, capsys):
    assert run(["bench", "report", str(finished.folder)]) == 0
    assert "minus cluster [95%]" in capsys.readouterr().out
    assert run(["bench", "report", str(finished.folder), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["model"] == "tiny"


def test_the_command_runs_a_grid_that_is_done_without_running(finished, place, capsys):
    assert run(["bench", str(place / "grid.yaml"), "--out", str(finished.folder), "--jobs", "2"]) == 0
    captured = capsys.readouterr()
    assert "13 of 13 cells are done already" in captured.err
    assert "hypervolume" in captured.out
    assert run(["bench", str(place / "none.yaml")]) == 2
    assert "it cannot be read" in capsys.readouterr().err
    assert run(["bench", "report", str(place)]) == 2
    assert "there is no benchmark in it" in capsys.readouterr().err
