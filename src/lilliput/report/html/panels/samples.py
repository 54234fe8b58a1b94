"""Samples whose answer is another than the original network's."""

from typing import Any

from lilliput.report.html.source import Source

MEANINGS = {
    "classification": "The answer before and after.",
    "regression": "The output before and after.",
    "anomaly": "The reconstruction error before and after.",
    "segmentation": "The share of pixels in which answer and label meet (IoU over all classes), before and after.",
}


def samples(source: Source) -> dict[str, Any] | None:
    data = source.details.get("samples")
    if not data:
        return None
    changed = data["lost"] + data["gained"] + data["both_wrong"]
    return {
        "role": data["role"],
        "meaning": MEANINGS.get(source.details["task"]["kind"], ""),
        "word": "target" if source.details["task"]["kind"] == "regression" else "label",
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
