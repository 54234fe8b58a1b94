"""What a page is made of, as plain data: from a run folder (without model or data), or from a result in memory."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lilliput.core.cost import Measurement
from lilliput.core.errors import ArtifactError, UsageError
from lilliput.pipeline.folder import RunFolder, json_text
from lilliput.report.text import ROWS

NOTED = ("self_compression", "weight_generation")
"""Methods whose statistics are shown: rounds of training, circuits."""


@dataclass(frozen=True, kw_only=True)
class Shown:
    """One network of the comparison, without the network."""

    name: str
    measurements: Mapping[str, Measurement]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Source:
    """`result` is what `result.json` holds, `details` what `report.json` holds, if the run has written it."""

    title: str
    result: Mapping[str, Any]
    details: Mapping[str, Any] = field(default_factory=dict[str, Any])
    identity: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """`run.json`: what the run was about."""
    analysis: Mapping[str, Any] = field(default_factory=dict[str, Any])
    statistics: Mapping[str, Mapping[str, Any]] = field(default_factory=dict[str, Mapping[str, Any]])
    """Of the methods of `NOTED`: {file: what it holds}."""
    recipe: str = ""
    command: Mapping[str, Any] = field(default_factory=dict[str, Any])
    finished: bool = True

    @property
    def columns(self) -> list[Shown]:
        return [_column(c) for c in self.result.get("columns", [])]

    @property
    def trail(self) -> list[dict[str, Any]]:
        return self.result.get("trail", [])

    @property
    def score(self) -> str:
        """The name of the score: noted, or else the first quantity that is none of the others."""
        named = self.details.get("task", {}).get("score")
        known = [name for column in self.columns for name in column.measurements if name not in ROWS]
        return named or (known[0] if known else "score")


def of_folder(folder: Path) -> Source:
    """Raises `UsageError` where there is no run, `ArtifactError` where its files are damaged."""
    run = RunFolder.begun(folder)
    result = _read(folder / "result.json")
    recipe = folder / "recipe.yaml"
    return Source(
        title=folder.resolve().name,
        result=result or {"trail": run.trail()},
        details=_read(folder / "report.json"),
        identity=_read(folder / "run.json"),
        analysis=_read(folder / "analysis.json"),
        statistics=_statistics(run.trail(), folder),
        recipe=recipe.read_text(encoding="utf-8") if recipe.is_file() else "",
        command=_read(folder / "command.json"),
        finished=bool(result),
    )


def of_data(
    data: Mapping[str, Any],
    details: Mapping[str, Any],
    *,
    recipe: str,
    folder: Path | None,
    statistics: Mapping[str, Mapping[str, Any]] | None = None,
) -> Source:
    """Of a result in memory; what only its run folder knows is read there."""
    parts = (data, details, statistics or {})
    data, details, noted = (json.loads(json_text(part)) for part in parts)  # as a folder would give them
    beside = {name: {} if folder is None else _read(folder / f"{name}.json") for name in ("run", "analysis", "command")}
    return Source(
        title="Result" if folder is None else folder.resolve().name,
        result=data,
        details=details,
        identity=beside["run"],
        analysis=beside["analysis"],
        statistics=noted if folder is None else _statistics(data.get("trail", []), folder),
        recipe=recipe,
        command=beside["command"],
    )


def _statistics(trail: Sequence[Mapping[str, Any]], folder: Path) -> dict[str, Mapping[str, Any]]:
    passes = [part for entry in trail for part in entry.get("passes", [])]
    names = [part["statistics"] for part in passes if part.get("name") in NOTED and "statistics" in part]
    return {name: _read(folder / name) for name in names}


def _read(path: Path) -> dict[str, Any]:
    """Of a JSON file that may be missing."""
    if not path.is_file():
        return {}
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"read {path}", error.strerror or str(error), "check its permissions") from error
    except ValueError as error:
        raise ArtifactError(f"read {path}", "it is not JSON", "write it again, or remove it") from error
    if not isinstance(data, dict):
        raise ArtifactError(f"read {path}", "it holds no object", "write it again, or remove it")
    return data


def _column(data: Mapping[str, Any]) -> Shown:
    found = {
        m["name"]: Measurement(
            m["name"],
            m["value"],
            m["unit"],
            m["origin"],
            spread=None if not m.get("spread") or None in m["spread"] else (m["spread"][0], m["spread"][1]),
            note=m.get("note", ""),
        )
        for m in data["measurements"]
        if m["value"] is not None
    }
    return Shown(name=data["name"], measurements=found, notes=tuple(data.get("notes", ())))
