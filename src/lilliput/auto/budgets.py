"""Which budgets a result keeps."""

import math
from typing import Any, cast

from lilliput.auto.search.budget import Limits
from lilliput.core.guard import MaxDrop
from lilliput.core.score import parse_drop
from lilliput.graph.integer import runnable
from lilliput.pipeline.run import Outcome
from lilliput.report.result import Budget, Result


def judged(result: Result, outcome: Outcome, asked: Limits) -> list[Budget]:
    """Every budget that was given. Looks at validation if a drop of the score is among them."""
    found: list[Budget] = []
    max_drop = asked.max_drop
    ours = result.columns[-1].measurements
    limits: list[tuple[str, float | None, str]] = [
        ("max_bytes", asked.max_bytes, "file"),
        ("max_flash", cast(Any, result.target.flash), "planned flash"),
        ("max_ram", cast(Any, result.target.ram), "planned RAM"),
    ]
    for name, limit, row in limits:
        if limit is not None:
            value = ours[row].value
            text = f"{name}: {value:,.0f} bytes, at most {limit:,.0f} wanted"
            found.append(Budget(budget=name, limit=limit, found=value, unit="B", met=value <= limit, text=text))
    if asked.latency is not None:
        row, unit = ("latency ratio", "x") if asked.latency.quantity == "ratio" else ("latency", "ms")
        value, limit = ours[row].value if row in ours else math.inf, asked.latency.limit
        text = f"max_latency: {value:.3g} {unit}, at most {limit:.3g} wanted"
        text = text if row in ours else "max_latency: not measured"
        found.append(Budget(budget="max_latency", limit=limit, found=value, unit=unit, met=value <= limit, text=text))
    if max_drop is not None:
        context, score = outcome.context, result.score
        reference = context.evaluator.reference("validation")
        candidate = context.evaluator(runnable(outcome.artifact), "validation")
        verdict = MaxDrop(max_drop=max_drop).judge(result.task, candidate, reference)
        found.append(
            Budget(
                budget="max_drop",
                limit=parse_drop(max_drop, score, score.value(reference.rows)),
                found=float(verdict.evidence["drop"]),
                unit="pt" if score.unit == "%" else score.unit,
                met=verdict.accepted,
                text=f"max_drop: {verdict.reason}",
            )
        )
    return found
