"""What an analysis found, with the text, the picture and the recipes that are made of it."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from lilliput.auto.analysis.parts import Allocation, Probe, Proposal
from lilliput.auto.analysis.recipes import recipe_of
from lilliput.auto.analysis.text import allocated, minutes, table_of, together
from lilliput.core.guard import Guard
from lilliput.pipeline.recipe import Recipe
from lilliput.report.curves import draw_curves


@dataclass(frozen=True, kw_only=True)
class Analysis:
    """`probes` of every row, kind and level; `proposals` for each kind; `left` names what was not probed, and why."""

    probes: tuple[Probe, ...]
    proposals: tuple[Proposal, ...]
    allocation: Allocation | None = None
    left: Mapping[str, str] = field(default_factory=dict[str, str])
    samples: int
    measure: str
    score_name: str
    reference: float
    macs: int
    coded_bytes: float
    guard: Guard
    predicted_seconds: float
    seconds: float

    def of(self, kind: str) -> dict[str, list[Probe]]:
        """The probes of each layer, for channels of each group, from weak to strong."""
        return self._rows(kind, coupled=False)

    def coupled(self, kind: str) -> dict[str, list[Probe]]:
        """The same for bits, zeros or shared values of all layers of a coupled group together; of one layer: none."""
        return self._rows(kind, coupled=True)

    def _rows(self, kind: str, *, coupled: bool) -> dict[str, list[Probe]]:
        found: dict[str, list[Probe]] = {}
        for probe in self.probes:
            if probe.kind == kind and probe.coupled == coupled:
                found.setdefault(probe.layer, []).append(probe)
        return found

    def recipe(self, kind: str | None = None) -> Recipe:
        """What was proposed, ready to run: the allocation, or the proposal for one kind."""
        return recipe_of(self.proposals, self.allocation, self.guard, kind)

    def to_data(self) -> dict[str, Any]:
        return asdict(self)

    def draw(self, path: str | Path) -> None:
        """The curves as .png, .svg or .pdf: the most sensitive rows by name, the proposed threshold as a line.

        Layers that channels couple are dashed.
        """
        coupled = {p.kind: together(self.coupled(p.kind)) for p in self.proposals}
        curves = {
            p.kind: {
                name: [(x.level, x.divergence) for x in row]
                for name, row in {**self.of(p.kind), **coupled[p.kind]}.items()
            }
            for p in self.proposals
        }
        thresholds = {p.kind: p.threshold for p in self.proposals}
        dashed = {name for rows in coupled.values() for name in rows}
        draw_curves(curves, Path(path), measure=self.measure, thresholds=thresholds, dashed=dashed)

    def __str__(self) -> str:
        lines = [f"{self.measure} of the outputs, {self.samples} samples, one row changed at a time", ""]
        for proposal in self.proposals:
            lines += table_of(proposal.kind, proposal.levels, self.of(proposal.kind), self.coupled(proposal.kind))
            score = f"{self.score_name} {proposal.score:.2f} (drop {proposal.drop:.2f})"
            size = f"{proposal.coded_bytes:,.0f} of {self.coded_bytes:,.0f} coded bytes of weights"
            macs = f"{proposal.macs:,} of {self.macs:,} MACs"
            lines += [f"proposed together: {score}, {size}, {macs}, {proposal.tried} scores", ""]
        if self.allocation is not None:
            lines += [*allocated(self.allocation, self.score_name), ""]
        lines += [f"not probed: {name}: {reason}" for name, reason in self.left.items()]
        lines.append(f"{minutes(self.seconds)}, predicted {minutes(self.predicted_seconds)}")
        return "\n".join(lines)
