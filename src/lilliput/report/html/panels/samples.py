"""Samples whose answer is another than the original network's."""

from typing import Any

from lilliput.report.html.source import Source


def samples(source: Source) -> dict[str, Any] | None:
    data = source.details.get("samples")
    if not data:
        return None
    changed = data["lost"] + data["gained"] + data["both_wrong"]
    return {
        "role": data["role"],
        "counts": [
            (data["lost"], "lost: acceptable before, not any more"),
            (data["gained"], "gained: not acceptable before, now it is"),
            (data["both_wrong"], "wrong before and now, with another answer"),
        ],
        "changed": changed,
        "all": data["samples"],
        "shown": data["shown"],
        "more": changed - len(data["shown"]),
    }
