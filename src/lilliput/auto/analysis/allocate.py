"""One choice for each layer under a number of coded bytes, with the least sum of divergences; then one score.

Divergences of layers are taken to add up, and so are those of zeros and bits of one layer: to second order they do,
where errors are independent. The score of the whole network says what that was worth.
"""

import math
from itertools import product

from lilliput.auto.analysis.confirm import Confirmation
from lilliput.auto.analysis.levels import OF_WEIGHTS, changed
from lilliput.auto.analysis.measure import Probes
from lilliput.auto.analysis.parts import Allocation, Choice, Probe
from lilliput.core.encoding import Encoding
from lilliput.core.errors import UsageError
from lilliput.core.streams import size_bits
from lilliput.ops.knapsack import choose


def allocate(probes: Probes, confirmation: Confirmation, max_bytes: int) -> Allocation:
    """Raises `UsageError` where even the smallest choices take more."""
    progress = probes.context.progress
    with progress.task("code choices", len(probes.subjects.weights)) as advance:
        table: dict[str, list[Choice]] = {}
        for path in probes.subjects.weights:
            table[path] = options(probes, path)
            advance(1)
    costs = [[math.ceil(c.coded_bytes) for c in row] for row in table.values()]
    least = sum(min(row) for row in costs)
    if not table or least > max_bytes:
        raise UsageError(
            "analyse max_bytes", f"{max_bytes:,}, and the smallest choices take {least:,}", "give more, or more kinds"
        )
    picked = choose(costs, [[c.divergence for c in row] for row in table.values()], max_bytes)
    choices = {path: row[i] for (path, row), i in zip(table.items(), picked, strict=True)}
    net = confirmation.encoded(
        {path: encoding_of(probes, path, c) for path, c in choices.items() if c != table[path][0]}
    )
    found = confirmation.of(net)
    return Allocation(
        max_bytes=max_bytes,
        choices=choices,
        coded_bytes=sum(c.coded_bytes for c in choices.values()),
        divergence=sum(c.divergence for c in choices.values()),
        score=found.score,
        drop=found.drop,
        accepted=found.accepted,
        reason=found.reason,
    )


def options(probes: Probes, path: str) -> list[Choice]:
    """As it is, then what was probed with an effect, then zeros with bits: all that no other beats in both."""
    encoding = probes.subjects.net.encoding(probes.subjects.weights[path])
    found = [Choice(coded_bytes=size_bits(encoding) / 8)]
    rows = {kind: [p for p in probes.rows[kind][path] if p.effect] for kind in probes.kinds if kind in OF_WEIGHTS}
    bits, zeros = rows.get("bits", []), rows.get("sparsity", [])
    found.extend(_single(p) for row in rows.values() for p in row)
    for sparse, grid in product(zeros, bits):
        if _worth(sparse, grid, found):
            choice = Choice(sparsity=sparse.level, bits=int(grid.level))
            size = size_bits(encoding_of(probes, path, choice)) / 8
            found.append(
                Choice(
                    sparsity=sparse.level,
                    bits=int(grid.level),
                    divergence=sparse.divergence + grid.divergence,
                    coded_bytes=size,
                )
            )
    return [found[0], *(c for c in found[1:] if not any(_beats(other, c) for other in found))]


def _single(probe: Probe) -> Choice:
    loss, size = probe.divergence, probe.coded_bytes
    if probe.kind == "sparsity":
        return Choice(sparsity=probe.level, divergence=loss, coded_bytes=size)
    if probe.kind == "bits":
        return Choice(bits=int(probe.level), divergence=loss, coded_bytes=size)
    return Choice(clusters=int(probe.level), divergence=loss, coded_bytes=size)


def _worth(sparse: Probe, grid: Probe, found: list[Choice]) -> bool:
    """Zeros with bits are coded only if no single change of their divergence or less is as small as they can be."""
    loss = sparse.divergence + grid.divergence
    least = (1 - sparse.level) * grid.coded_bytes
    return not any(c.divergence <= loss and c.coded_bytes <= least for c in found)


def _beats(a: Choice, b: Choice) -> bool:
    better = a.divergence < b.divergence or a.coded_bytes < b.coded_bytes
    return better and a.divergence <= b.divergence and a.coded_bytes <= b.coded_bytes


def encoding_of(probes: Probes, path: str, choice: Choice) -> Encoding:
    """As the recipe makes it: zeros first, then shared values or bits."""
    encoding = probes.subjects.net.encoding(probes.subjects.weights[path])
    axis = probes.subjects.axis(path)
    if choice.sparsity is not None:
        encoding = probes.encoding(path, "sparsity", choice.sparsity)
    if choice.clusters is not None:
        encoding = changed(encoding, axis, "clusters", choice.clusters, probes.context)
    if choice.bits is not None:
        encoding = changed(encoding, axis, "bits", choice.bits, probes.context)
    return encoding
