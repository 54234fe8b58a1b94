"""Rows of an analysis as text."""

from collections.abc import Mapping, Sequence

from lilliput.auto.analysis.parts import Allocation, Probe

Rows = Mapping[str, Sequence[Probe]]


def table_of(kind: str, proposed: Mapping[str, float | None], rows: Rows, coupled: Rows) -> list[str]:
    """Divergence by row and level, what is proposed, then the layers that channels couple."""
    named = together(coupled)
    heading = "coupled layers together"
    wide = max(len(name) for name in [kind, *rows, *named, *([heading] if named else [])])
    levels = [p.level for p in next(iter(rows.values()))]
    lines = [f"{kind:<{wide}} " + "".join(f"{level:>10g}" for level in levels) + f"{'proposed':>10}"]
    for name, row in rows.items():
        level = proposed[name]
        lines.append(f"{name:<{wide}} {_cells(row)}{'-' if level is None else f'{level:g}':>10}")
    if named:
        lines.append(heading)
        lines.extend(f"{name:<{wide}} {_cells(row)}" for name, row in named.items())
    return lines


def together(coupled: Rows) -> dict[str, Sequence[Probe]]:
    """Rows of coupled layers by a name that says how many they are."""
    return {f"{name} ({len(row[0].layers)} layers)": row for name, row in coupled.items()}


def _cells(row: Sequence[Probe]) -> str:
    return "".join(f"{p.divergence:>10.2g}" if p.effect else f"{'no effect':>10}" for p in row)


def allocated(found: Allocation, score_name: str) -> list[str]:
    wide = max([len("layer"), *(len(name) for name in found.choices)])
    lines = [f"{'layer':<{wide}}  {'choice':<24}{'coded bytes':>12}{'divergence':>12}"]
    lines += [
        f"{name:<{wide}}  {c!s:<24}{c.coded_bytes:>12,.0f}{c.divergence:>12.2g}" for name, c in found.choices.items()
    ]
    size = f"{found.coded_bytes:,.0f} of {found.max_bytes:,} coded bytes of weights"
    score = f"{score_name} {found.score:.2f} (drop {found.drop:.2f})"
    verdict = f"{'accepted' if found.accepted else 'refused'} ({found.reason})"
    return [*lines, f"allocated: {size}, summed divergence {found.divergence:.3g}, {score}: {verdict}"]


def minutes(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 60 else f"{seconds / 60:.1f} min"
