"""Who plays which role: parts of a data set that share no sample, or no group."""

from collections.abc import Sequence
from math import isclose

import torch

from lilliput.core.errors import DataError, UsageError
from lilliput.data.dataset import RawData, Split


def by_role(data: RawData) -> dict[str, Split]:
    """`train` (without the validation rows), `validation` and `test`."""
    held = torch.zeros(len(data.train[1]), dtype=torch.bool)
    held[data.validation_rows] = True
    return {"train": take(data.train, ~held), "validation": take(data.train, held), "test": data.test}


def take(split: Split, rows: torch.Tensor) -> Split:
    """The samples at `rows` (indices or a mask)."""
    return split[0][rows], split[1][rows]


def last_rows(n: int, most: int = 5_000) -> torch.Tensor:
    """The last tenth of `n` rows, at most `most`: the validation rule of MNIST, Fashion-MNIST, CIFAR-10 and SVHN."""
    return torch.arange(n - min(most, n // 10), n)


def last_of_each_class(labels: torch.Tensor, n: int) -> torch.Tensor:
    """Rows of the last `n` samples of every class, ascending; a class with no more than `n` gives all it has."""
    return torch.cat([torch.nonzero(labels == label).flatten()[-n:] for label in labels.unique()]).sort().values


def hold_out_last(split: Split, n: int) -> tuple[Split, Split]:
    """The rest, and the last `n` samples in file order; views, not copies."""
    if not 0 < n < len(split[1]):
        asked = f"hold out the last {n} samples"
        raise DataError(asked, f"there are {len(split[1])}", f"hold out 1..{len(split[1]) - 1}")
    inputs, labels = split
    return (inputs[:-n], labels[:-n]), (inputs[-n:], labels[-n:])


def stratified_split(
    labels: torch.Tensor, fractions: Sequence[float], generator: torch.Generator
) -> tuple[torch.Tensor, ...]:
    """Rows of each part, ascending; every class is spread over the parts by `fractions`, to less than one sample.

    Where a class cannot be cut exactly, the parts that are most behind their share get the odd samples, so that the
    parts as a whole keep their share too.
    """
    fractions = _shares(fractions)
    parts: list[list[torch.Tensor]] = [[] for _ in fractions]
    behind = [0.0] * len(fractions)
    for label in labels.unique():
        rows = torch.nonzero(labels.cpu() == label.cpu()).flatten()
        rows = rows[torch.randperm(len(rows), generator=generator, device=generator.device).cpu()]
        exact = [fraction * len(rows) for fraction in fractions]
        counts = _round_counts(exact, len(rows), behind)
        behind = [b + e - c for b, e, c in zip(behind, exact, counts, strict=True)]
        for part, chunk in zip(parts, rows.split(counts), strict=True):
            part.append(chunk)
    return tuple(torch.cat(part).sort().values if part else torch.empty(0, dtype=torch.int64) for part in parts)


def group_split(
    groups: torch.Tensor, fractions: Sequence[float], generator: torch.Generator
) -> tuple[torch.Tensor, ...]:
    """Rows of each part, ascending; no group (speaker, patient, machine) is in two parts.

    Large groups go first, each to the part that misses most, in seeded order among equals. No part stays empty.
    """
    fractions = _shares(fractions)
    names, group_of, sizes = torch.unique(groups.cpu(), return_inverse=True, return_counts=True)
    if len(names) < len(fractions):
        found = f"there are only {len(names)} groups"
        raise DataError(f"split into {len(fractions)} parts by group", found, "ask for fewer parts")
    shuffled = torch.randperm(len(names), generator=generator, device=generator.device).cpu()
    order = shuffled[torch.argsort(sizes[shuffled], descending=True, stable=True)].tolist()
    missing = [fraction * len(groups) for fraction in fractions]
    empty = set(range(len(fractions)))
    part_of = torch.empty(len(names), dtype=torch.int64)
    for n_left, group in zip(range(len(order), 0, -1), order, strict=True):
        part = max(empty if n_left == len(empty) else range(len(missing)), key=lambda i: (missing[i], -i))
        part_of[group] = part
        missing[part] -= float(sizes[group])
        empty.discard(part)
    return tuple(torch.nonzero(part_of[group_of] == part).flatten() for part in range(len(fractions)))


def _round_counts(exact: list[float], total: int, behind: list[float]) -> list[int]:
    counts = [int(share + 1e-6) for share in exact]
    odd = [i for i, share in enumerate(exact) if share - counts[i] > 1e-6]
    odd.sort(key=lambda i: (-(behind[i] + exact[i] - counts[i]), i))
    for i in odd[: total - sum(counts)]:
        counts[i] += 1
    return counts


def _shares(fractions: Sequence[float]) -> list[float]:
    whole = sum(fractions)
    if not all(fraction > 0 for fraction in fractions) or not isclose(whole, 1, abs_tol=1e-6):
        raise UsageError(f"split by fractions {list(fractions)}", "they must be above 0 and add up to 1", "mend them")
    return [fraction / whole for fraction in fractions]
