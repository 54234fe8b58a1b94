"""What a search will do, in lines."""

from lilliput.auto.analysis.text import minutes
from lilliput.auto.search.clock import predicted, reserve, usual
from lilliput.auto.search.engine import Search
from lilliput.auto.search.proposals import OPENING, effort_of
from lilliput.auto.search.record import FULL


def plan_text(search: Search) -> str:
    """Goal, templates that are tried with predicted times, those that are not with reasons, and how long it takes."""
    setup = search.setup
    lines = [f"search for {setup.budget.words()}"]
    one: dict[str, float] = {}
    for template in setup.templates:
        effort = effort_of(setup, template)
        one[template.name] = seconds = predicted(setup, usual(template.name, effort))
        text = f"  {template.name}: about {minutes(seconds)} a trial"
        if template.trains:
            full = predicted(setup, usual(template.name, FULL))
            text += f", {minutes(full)} with full training ({setup.epochs} epochs)"
        if search.clock.seconds is not None and seconds > search.clock.seconds:
            text += "; too long for the time given"
        lines.append(text)
    lines += [f"  not {name}: {reason}" for name, reason in setup.dropped.items()]
    lines += [f"  {what}: {reason}" for what, reason in setup.floats.items()]
    if not setup.integer_activations:
        lines.append(f"  activations stay in float: {search.base[0].refused}")
    if search.clock.seconds is not None:
        ends = f"then {minutes(reserve(setup, search.clock.seconds))} to compare"
        lines.append(
            f"stages: look, untrained, short and full trainings, until {minutes(search.clock.seconds)} are over, {ends}"
        )
    else:
        count = search.trials or OPENING
        mean = sum(one.values()) / max(len(one), 1)
        lines.append(
            f"stages: look, untrained, short and full trainings; {count} trials, about {minutes(count * mean)}"
        )
    return "\n".join(lines)
