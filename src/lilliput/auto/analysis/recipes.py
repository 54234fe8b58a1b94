"""What an analysis proposes, as a recipe: one step, judged by the guard that has judged the proposal."""

import glob
from collections.abc import Mapping, Sequence
from typing import Any

from lilliput.auto.analysis.levels import quantization
from lilliput.auto.analysis.parts import Allocation, Choice, Proposal
from lilliput.core.errors import UsageError
from lilliput.core.guard import Guard
from lilliput.core.method import Pass
from lilliput.methods.clustering.weight_clustering import WeightClustering
from lilliput.methods.pruning.channel import ChannelPruning
from lilliput.methods.pruning.magnitude import MagnitudePruning
from lilliput.pipeline.recipe import Recipe, Step


def recipe_of(
    proposals: Sequence[Proposal], allocation: Allocation | None, guard: Guard, kind: str | None = None
) -> Recipe:
    """The allocation, or the proposal for one kind (for the only one, without `kind`).

    Raises `UsageError` where there are several to choose from, and where nothing is to be changed.
    """
    by_kind = {p.kind: p for p in proposals}
    chosen = by_kind.get(kind) if kind is not None else proposals[0] if len(proposals) == 1 else None
    if kind is None and allocation is not None:
        passes = _of_choices(allocation.choices)
    elif chosen is not None:
        passes = _of_levels(chosen.kind, {name: x for name, x in chosen.levels.items() if x is not None})
    else:
        asked = "recipe of an analysis" if kind is None else f"recipe of an analysis, kind {kind!r}"
        raise UsageError(asked, f"proposals for {', '.join(by_kind) or 'nothing'}", "name one, or give max_bytes")
    if not passes:
        raise UsageError("recipe of an analysis", "nothing is to be changed", "give a larger max_drop, or fewer bytes")
    return Recipe(steps=(Step(passes=tuple(passes), guard=guard),), name="analyse")


def _of_levels(kind: str, levels: Mapping[str, float]) -> list[Pass]:
    if kind == "channels":
        return [_channels(levels)] if levels else []
    if kind == "sparsity":
        return _of_choices({name: Choice(sparsity=level) for name, level in levels.items()})
    word = "bits" if kind == "bits" else "clusters"
    return _of_choices({name: Choice(**{word: int(level)}) for name, level in levels.items()})


def _of_choices(choices: Mapping[str, Choice]) -> list[Pass]:
    """Zeros, then shared values, then bits; each pass includes the layers that it changes, by name."""
    zeros = {name: c.sparsity for name, c in choices.items() if c.sparsity is not None}
    values = {name: c.clusters for name, c in choices.items() if c.clusters is not None}
    bits = {name: c.bits for name, c in choices.items() if c.bits is not None}
    passes: list[Pass] = []
    if zeros:
        passes.append(MagnitudePruning(scope="layer", **_settings("sparsity", zeros)))
    if values:
        passes.append(WeightClustering(**_settings("n_clusters", values)))
    if bits:
        passes.append(quantization(**_settings("weight_bits", bits)))
    return passes


def _settings(word: str, levels: Mapping[str, Any]) -> dict[str, Any]:
    """The most frequent level for all, the others as overrides."""
    counts = list(levels.values())
    usual = max(dict.fromkeys(counts), key=counts.count)
    others = {glob.escape(name): {word: level} for name, level in levels.items() if level != usual}
    return {word: usual, "include": tuple(glob.escape(name) for name in levels), "overrides": others}


def _channels(levels: Mapping[str, float]) -> ChannelPruning:
    """By the first layer of each group; where several groups begin in one, the least of their shares."""
    shares: dict[str, float] = {}
    for name, level in levels.items():
        first = name.partition(" #")[0]
        shares[first] = min(level, shares.get(first, 1.0))
    return ChannelPruning(amount=0.0, overrides={glob.escape(name): {"amount": s} for name, s in shares.items()})
