"""What to try next: first spread over the templates and towards the limits, then what the sampler says."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from lilliput.auto.search.record import FULL, LONG, RUNGS, SHORT, UNTRAINED, Candidate, Record, best, order
from lilliput.auto.search.setup import Setup, named
from lilliput.auto.search.strength import STRIDE, Point, next_strength
from lilliput.auto.search.templates import STRENGTH, Template

OPENING = 3
"""Tries of each template on its way to the limits, those of the first template before all others."""
PROMOTED = 3
"""One in so many candidates with short trainings gets full ones; and so many of the best ones at the end."""
UNUSED = 0.05
"""Of a limit: so little left does not ask for another strength."""
SAME = 0.004
"""Strengths that are as good as equal."""


FIRST, NEXT, AGAIN = 1 / 2, 1 / 4, 1 / 8
"""Of the time left, what a candidate with training may take: the first of all, the first of a template, a later one."""


@dataclass(frozen=True, kw_only=True)
class Left:
    """What may still be done: so many `trials` in so many `seconds` (None = any number).

    `ending`: time for some full trainings at most. `polishing`: half of the time is over, longer trainings are due.
    """

    trials: int | None
    seconds: float | None
    predicted: Callable[[Candidate], float]
    ending: bool = False
    polishing: bool = False

    def fits(self, candidate: Candidate, share: float = 1.0) -> bool:
        """`share`: the most of the time left that a candidate with training may take."""
        most = share if candidate.effort != UNTRAINED else 1.0
        return self.seconds is None or self.predicted(candidate) <= most * self.seconds


def effort_of(setup: Setup, template: Template) -> str:
    """Of a first try: short trainings, unless those are as long as full ones."""
    if not template.trains:
        return UNTRAINED
    return SHORT if setup.short_epochs < setup.epochs else FULL


def propose(setup: Setup, records: Sequence[Record], under_way: Sequence[Candidate], left: Left) -> Candidate | None:
    """The next candidate; None where the sampler should choose."""
    return (
        _promotion(setup, records, under_way, left)
        or _polish(setup, records, under_way, left)
        or _opening(setup, records, under_way, left)
        or _refinement(setup, records, under_way, left)
    )


def around(setup: Setup, records: Sequence[Record]) -> dict[str, float]:
    """By template: the strength where its candidates are thought to keep the limits."""
    return {t.name: _strength(setup, t, records) for t in setup.templates}


def _promotion(setup: Setup, records: Sequence[Record], under_way: Sequence[Candidate], left: Left) -> Candidate | None:
    """Full trainings for the best of those with short ones."""
    short = [r for r in records if r.effort == SHORT and not r.refused and _worth(setup, r)]
    done = {r.of for r in records} | {c.of for c in under_way}
    waiting = [r for r in short if r.number not in done]
    if not waiting:
        return None
    promoted = len(short) - len(waiting)
    last = left.ending or (left.trials is not None and left.trials <= PROMOTED)
    if len(short) < PROMOTED * (promoted + 1) and not (last and promoted < PROMOTED):
        return None
    chosen = min(waiting, key=lambda r: order(setup.budget, r))
    candidate = Candidate(template=chosen.name, values=chosen.values, effort=FULL, of=chosen.number)
    return candidate if left.fits(candidate) else None


def _polish(setup: Setup, records: Sequence[Record], under_way: Sequence[Candidate], left: Left) -> Candidate | None:
    """In the second half of the time every other trial trains longer."""
    if not left.polishing or (records and records[-1].effort == LONG):
        return None
    return longer(setup, records, under_way, left)


def longer(setup: Setup, records: Sequence[Record], under_way: Sequence[Candidate], left: Left) -> Candidate | None:
    """The best of what was fully trained, with twice the epochs, or with as many as fit."""
    budget = setup.budget
    leader = best(budget, records)
    done = {r.of for r in records} | {c.of for c in under_way}
    trained = [r for r in records if RUNGS[r.effort] >= RUNGS[FULL] and r.number not in done and not r.refused]
    pool = [r for r in trained if r.same_as is None and _worth(setup, r)]
    if budget.goal != "drop" and leader is not None and leader.measured is not None:  # score alone wins nothing
        most = budget.cost(leader.measured)
        pool = [r for r in pool if r.measured is not None and budget.cost(r.measured) < most]
    for record in sorted(pool, key=lambda r: order(budget, r)):
        before = record.epochs or setup.epochs
        for epochs in sorted({2 * before, round(1.5 * before)} - {before}, reverse=True):
            values = {**record.values, STRENGTH: _kept_strength(setup, record, records)}
            candidate = Candidate(template=record.name, values=values, effort=LONG, of=record.number, epochs=epochs)
            if left.fits(candidate):
                return candidate
    return None


def _kept_strength(setup: Setup, record: Record, records: Sequence[Record]) -> float:
    """That of the record, unless it leaves much of a byte limit unused: then nearer to the limit."""
    budget = setup.budget
    over = [] if record.measured is None else [v for k, v in budget.excess(record.measured).items() if k != "max_drop"]
    if budget.goal != "drop" or -UNUSED <= max(over, default=0.0) <= 0:
        return record.values[STRENGTH]
    return _strength(setup, named(record.name), records, record.values)


def _worth(setup: Setup, record: Record) -> bool:
    """More training gives back score, not bytes."""
    return record.measured is not None and not set(setup.budget.missed(record.measured)) - {"max_drop"}


def _opening(setup: Setup, records: Sequence[Record], under_way: Sequence[Candidate], left: Left) -> Candidate | None:
    busy = [c.template for c in under_way]
    tries = {
        t.name: busy.count(t.name) + sum(r.name == t.name and r.of is None for r in records) for t in setup.templates
    }
    first, trained = setup.templates[:1], {r.name for r in records if r.effort != UNTRAINED and not r.refused}
    for wanted, templates in ((OPENING, first), *((n, setup.templates) for n in range(1, OPENING + 1))):
        for template in templates:
            if tries[template.name] < wanted and template.name not in busy:
                values = {k.name: k.usual for k in template.knobs}
                share = AGAIN if template.name in trained else NEXT if trained else FIRST
                found = _towards_limit(setup, template, records, left, values, share)
                if found is not None:
                    return found
    return None


def _refinement(
    setup: Setup, records: Sequence[Record], under_way: Sequence[Candidate], left: Left
) -> Candidate | None:
    """Every second time: the best candidate, nearer to the limits. Its training, if it comes first, is in the cache."""
    if len(records) % 2 or any(c.effort != UNTRAINED for c in under_way):
        return None
    leader = best(setup.budget, [r for r in records if any(t.name == r.name for t in setup.templates)])
    if leader is None:
        return None
    values = {k: v for k, v in leader.values.items() if k != STRENGTH}
    like = Candidate(
        template=leader.name, values=leader.values, effort=leader.effort, of=leader.of, epochs=leader.epochs
    )
    share = AGAIN if leader.effort == LONG else NEXT
    return _towards_limit(setup, named(leader.name), records, left, values, share, like)


def _towards_limit(
    setup: Setup,
    template: Template,
    records: Sequence[Record],
    left: Left,
    values: Mapping[str, float],
    share: float,
    like: Candidate | None = None,
) -> Candidate | None:
    """`like`: what is trained as long as it was; else as long as a first try."""
    strength = _strength(setup, template, records, values)
    tried = [r.values[STRENGTH] for r in records if r.name == template.name and _same(r.values, values)]
    if any(abs(strength - t) < SAME for t in tried):
        return None
    given = like or Candidate(template=template.name, values=values, effort=effort_of(setup, template))
    candidate = replace(given, values={**values, STRENGTH: strength})
    return candidate if left.fits(candidate, share) else None


def _strength(
    setup: Setup, template: Template, records: Sequence[Record], values: Mapping[str, float] | None = None
) -> float:
    """From the template's candidates with the same other knobs, if there are two; else from all of them.

    Without any: where it has a price, that which the first template takes.
    """
    own = [r for r in records if r.name == template.name and r.measured is not None]
    alike = [r for r in own if values is not None and _same(r.values, values)]
    points: list[Point] = [
        (r.values[STRENGTH], r.measured) for r in (alike if len(alike) > 1 else own) if r.measured is not None
    ]
    first = setup.templates[0]
    if not points and template.priced and template != first and any(r.name == first.name for r in records):
        return _strength(setup, first, records)
    refused = sum(r.name == template.name and r.measured is None and r.rung == 0 for r in records)
    return next_strength(points, setup.budget, template.start + STRIDE * refused, template.slope)


def _same(one: Mapping[str, float], other: Mapping[str, float]) -> bool:
    return all(abs(one[k] - v) < 1e-9 for k, v in other.items() if k != STRENGTH)
