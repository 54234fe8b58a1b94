"""What it takes to repeat the run: commands, recipe, seed, data by their fingerprints, versions."""

from collections.abc import Mapping
from typing import Any

from lilliput.core.cost import format_quantity
from lilliput.report.html.source import Source

ORDER = ("train", "validation", "test")


def repeat(source: Source) -> dict[str, Any]:
    recipe = source.result.get("recipe") or source.identity.get("recipe") or {}
    facts = [("seed", recipe.get("seed")), ("threads of torch", recipe.get("threads"))]
    facts += [("target", _target(recipe.get("target"))), ("recipe", recipe.get("name"))]
    facts += [("model (architecture)", source.identity.get("model")), ("weights", source.identity.get("weights"))]
    data = source.details.get("data") or {r: {"fingerprint": f} for r, f in source.identity.get("data", {}).items()}
    return {
        "commands": _commands(source),
        "facts": [(name, str(value)) for name, value in facts if value not in (None, "")],
        "data": [_data(role, data[role]) for role in ORDER if role in data],
        "roles": source.result.get("roles", []),
        "uses": [(role, str(count)) for role, count in source.result.get("uses", {}).items()],
        "environment": list(source.result.get("environment", {}).items()),
        "recipe": source.recipe,
    }


def _data(role: str, row: Mapping[str, Any]) -> tuple[str, str, str]:
    return role, f"{row['samples']:,}" if "samples" in row else "", row.get("fingerprint") or ""


def _target(target: Any) -> str:
    if not isinstance(target, dict):
        return str(target or "")
    budgets = [f"{k} {format_quantity(v, 'B')}" for k, v in target.items() if k in ("flash", "ram") and v is not None]
    return ", ".join([str(target.get("name", "")), *budgets])


def _commands(source: Source) -> list[str]:
    """As they were given on the command line; else what Python and the command line take."""
    if source.command:
        return list(source.command["commands"])
    if not source.finished:
        return [f"lilliput compress MODEL --resume {source.title}"]
    path = f"{source.title}/recipe.yaml" if source.identity else "recipe.yaml"
    return [f'lilliput.apply(model, task, "{path}")  # in Python', f"lilliput apply {path} MODEL"]
