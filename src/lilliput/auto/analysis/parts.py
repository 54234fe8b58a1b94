"""The parts of an analysis: plain numbers."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Probe:
    """One row at one level: `layers` were changed together, everything else was as it is.

    A row is a layer, or for channels a coupled group by the name of its first layer. `coupled`: all layers that make
    the channels of a group, at the same bits, zeros or shared values. `divergence` of the outputs; `coded_bytes` of the
    weights that changed; `macs` of the network; `effect`: did anything change?
    """

    layer: str
    layers: tuple[str, ...]
    kind: str
    level: float
    divergence: float
    coded_bytes: float
    macs: int
    effect: bool
    coupled: bool = False


@dataclass(frozen=True, kw_only=True)
class Proposal:
    """For one kind of change each row's level (None: as it is), and what the whole network then scores."""

    kind: str
    threshold: float
    levels: Mapping[str, float | None]
    score: float
    drop: float
    coded_bytes: float
    macs: int
    tried: int


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What one layer takes; all None: as it is."""

    bits: int | None = None
    sparsity: float | None = None
    clusters: int | None = None
    divergence: float = 0.0
    coded_bytes: float = 0.0

    def __str__(self) -> str:
        words = [
            "" if self.sparsity is None else f"{100 * self.sparsity:g}% zeros",
            "" if self.bits is None else f"{self.bits} bits",
            "" if self.clusters is None else f"{self.clusters} values",
        ]
        return ", ".join(word for word in words if word) or "as it is"


@dataclass(frozen=True, kw_only=True)
class Allocation:
    """One choice for each layer, the least sum of divergences in `max_bytes`; then one score by the guard."""

    max_bytes: int
    choices: Mapping[str, Choice]
    coded_bytes: float
    divergence: float
    score: float
    drop: float
    accepted: bool
    reason: str
