"""The comparison: every quantity for every network, with its origin."""

from typing import Any

from lilliput.report.html.source import Source
from lilliput.report.text import comparison_rows


def comparison(source: Source) -> dict[str, Any] | None:
    columns = source.columns
    if not columns:
        return None
    rows, notes = comparison_rows(columns, source.score)
    return {"header": rows[0], "rows": rows[1:], "notes": notes}
