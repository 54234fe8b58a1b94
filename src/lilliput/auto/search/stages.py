"""One candidate through the rungs: nothing computed, without training, with short trainings, with full ones."""

import time
from dataclasses import replace

from lilliput.auto.search.budget import Measured
from lilliput.auto.search.measure import Judge
from lilliput.auto.search.record import RUNGS, UNTRAINED, Candidate, Record
from lilliput.auto.search.setup import Setup, named
from lilliput.core.errors import LilliputError
from lilliput.core.files import is_disk_trouble
from lilliput.methods.quantization.mixed_precision import MixedPrecision
from lilliput.pipeline.recipe import Recipe

SLACK = 1.25
"""Trainings change what a file takes when coded: until then a limit may be missed by a quarter."""
ABOVE_BEST = 1.15


def weighed(setup: Setup, judge: Judge, candidate: Candidate, number: int, leader: Record | None) -> Record:
    """What became of the candidate. `leader`: the best so far, if it keeps the limits."""
    started = time.perf_counter()
    measured, rung, refused = None, 0, ""
    recipe = None
    try:
        recipe = setup.recipe(candidate)
        refused = too_large(setup, recipe) or too_much_memory(setup, candidate)
        if not refused:
            rung, measured, refused = _climb(setup, judge, candidate, recipe, leader)
    except LilliputError as error:
        if is_disk_trouble(error):  # not the candidate's fault, and the next one would fare no better
            raise
        measured, refused = None, str(error)
    return Record(
        number=number,
        name=candidate.template,
        values=dict(candidate.values),
        effort=candidate.effort,
        of=candidate.of,
        epochs=candidate.epochs,
        recipe={} if recipe is None else recipe.to_data(),
        measured=measured,
        rung=rung,
        refused=refused,
        seconds=round(time.perf_counter() - started, 3),
    )


def _climb(
    setup: Setup, judge: Judge, candidate: Candidate, recipe: Recipe, leader: Record | None
) -> tuple[int, Measured, str]:
    name = candidate.template
    if candidate.effort != UNTRAINED:
        if looked_at_first(candidate):
            first = setup.run(setup.recipe(replace(candidate, effort=UNTRAINED)), name).artifact
            measured = judge.measure(first, subset=True, timed=False)
            refused = hopeless(setup, measured, leader)
            if refused:
                return 1, measured, refused
        trained = setup.run(recipe, name).artifact
        return RUNGS[candidate.effort], judge.measure(trained), ""
    first = setup.run(recipe, name).artifact
    if judge.has_subset and "max_drop" in setup.budget.limits:
        least, limit = judge.least_drop(first), setup.budget.limits["max_drop"][1]
        if least > limit:
            measured = judge.measure(first, subset=True, timed=False)
            return 1, measured, f"on a part of validation it loses {least:.3g} at least, {limit:.3g} allowed"
    return 1, judge.measure(first), ""


def looked_at_first(candidate: Candidate) -> bool:
    """Whether it is first weighed untrained: not after shorter trainings, nor where rounding follows the training.

    That is soon done again, at another price.
    """
    return candidate.effort != UNTRAINED and candidate.of is None and not named(candidate.template).priced


def too_large(setup: Setup, recipe: Recipe) -> str:
    """Why it need not be run: bits by the number of weights; "" if that tells nothing."""
    limit = setup.budget.limits.get("max_bytes")
    for step in recipe.steps:
        for method in step.passes:
            if limit is not None and isinstance(method, MixedPrecision) and method.average_bits:
                weights = sum(p.numel() for p in setup.original.module.parameters() if p.dim() > 1)
                needed = method.average_bits * weights / 8
                if needed > SLACK * limit[1]:
                    return f"its weights alone take {needed:,.0f} bytes"
    return ""


def too_much_memory(setup: Setup, candidate: Candidate) -> str:
    """RAM is that of plain int8 where no channels go."""
    limit = setup.budget.limits.get("max_ram")
    if limit is None or setup.ram <= limit[1] or named(candidate.template).removes_channels:
        return ""
    return f"its activations take {setup.ram:,.0f} bytes of RAM, whatever is done to weights"


def hopeless(setup: Setup, measured: Measured, leader: Record | None) -> str:
    """Why trainings are not worth their time; "" if they may be."""
    budget = setup.budget
    for name, over in budget.excess(measured).items():
        if name != "max_drop" and over > SLACK - 1:
            value, limit = measured.of(budget.limits[name][0]), budget.limits[name][1]
            return f"without training {name} is missed by far: {value:,.6g}, {limit:,.6g} allowed"
    if leader is not None and leader.measured is not None and budget.goal != "drop":
        ours, theirs = budget.cost(measured), budget.cost(leader.measured)
        if theirs * ABOVE_BEST < ours < float("inf"):
            return f"without training it has {ours:,.6g} ({budget.goal}), the best so far {theirs:,.6g}"
    return ""
