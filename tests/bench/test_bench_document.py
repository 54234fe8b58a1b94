"""The tables of the documents are those that the kept results give."""

from pathlib import Path

import pytest

from lilliput.bench.grid import load
from lilliput.bench.store import read_results
from lilliput.bench.summary import summarize
from lilliput.bench.tables import comma_separated, latex, markdown

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results" / "digits-cnn-grid"


@pytest.fixture(scope="module")
def kept():
    if not RESULTS.is_dir():
        pytest.skip("the source archive has no benchmarks")
    return read_results(RESULTS)


def test_the_kept_tables_follow_from_the_kept_records(kept):
    plan, records = kept
    sections = summarize(plan, records)
    assert (RESULTS / "table.md").read_text(encoding="utf-8") == markdown(sections, plan)
    assert (RESULTS / "table.tex").read_text(encoding="utf-8") == latex(sections, plan)
    assert (RESULTS / "table.csv").read_text(encoding="utf-8") == comma_separated(sections)
    assert all("error" not in record for record in records.values())


def test_the_document_shows_the_kept_table(kept):
    text = (ROOT / "docs" / "benchmarking.md").read_text(encoding="utf-8")
    shown = text.partition("table.md -->")[2].partition("<!-- end of table -->")[0]
    assert shown.strip() == (RESULTS / "table.md").read_text(encoding="utf-8").strip()


def test_the_kept_grid_is_that_of_the_results(kept):
    grid, plan = load(ROOT / "benchmarks" / "grids" / "digits-cnn.yaml"), kept[0]
    planned = [(c.model, c.method, c.budget, c.seed) for c in grid.cells()]
    assert planned == [tuple(plan["cells"][n][k] for k in ("model", "method", "budget", "seed")) for n in plan["order"]]
    assert plan["baseline"] == grid.baseline
