"""How much of each kind of change the score bears: a few scores of whole networks, judged by the guard."""

from collections.abc import Mapping
from dataclasses import dataclass

from lilliput.auto.analysis.levels import CONFIRMED
from lilliput.auto.analysis.measure import Probes
from lilliput.auto.analysis.parts import Proposal
from lilliput.core.artifact import Artifact
from lilliput.core.encoding import Encoding
from lilliput.core.errors import UsageError
from lilliput.core.guard import Guard, MinAgreement
from lilliput.core.streams import size_bits
from lilliput.graph.removal import remove_, why_not
from lilliput.methods.pruning.channel_plan import numbers_of


@dataclass(frozen=True, kw_only=True)
class Confirmed:
    score: float
    drop: float
    accepted: bool
    reason: str


class Confirmation:
    """Judges changes of the whole network that `probes` has measured row by row."""

    def __init__(self, probes: Probes, guard: Guard) -> None:
        self.probes, self.guard = probes, guard
        self.subjects, self.context = probes.subjects, probes.context
        self._sizes: dict[str, int] = {}

    @property
    def score_name(self) -> str:
        return "agreement" if isinstance(self.guard, MinAgreement) else self.context.task.score.name

    def reference(self) -> float:
        """The score of the network as it is: of an agreement 100%."""
        if isinstance(self.guard, MinAgreement):
            return 100.0
        return self.context.task.score.value(self.context.evaluator.reference(self.guard.role).rows)

    def of(self, net: Artifact) -> Confirmed:
        verdict = self.guard.decide(self.context.evaluator, net.module)
        if isinstance(self.guard, MinAgreement):
            score = 100 * float(verdict.evidence["agreement"])
            drop = 100.0 - score
        else:
            score, drop = float(verdict.evidence["score"]), float(verdict.evidence["drop"])
        return Confirmed(score=score, drop=drop, accepted=verdict.accepted, reason=verdict.reason)

    def proposal(self, kind: str) -> Proposal:
        """The largest threshold of a row's divergence that the guard bears, by bisection over those that occur."""
        rows = self.probes.rows[kind]
        occurring = sorted({p.divergence for row in rows.values() for p in row if p.effect})
        low, high, tried = -1, len(occurring), 0
        best = self._proposed(kind, -1.0, 0)
        with self.context.progress.task(f"confirm {kind}", CONFIRMED) as advance:
            while high - low > 1 and tried < CONFIRMED:
                middle = (low + high) // 2
                tried += 1
                found = self._proposed(kind, occurring[middle], tried)
                advance(1)
                if found is None:
                    high = middle
                else:
                    low, best = middle, found
        if best is None:
            raise UsageError(f"analyse {kind}", "the guard refuses the network as it is", "give a larger max_drop")
        return best

    def _proposed(self, kind: str, threshold: float, tried: int) -> Proposal | None:
        levels: dict[str, float | None] = {}
        for name, row in self.probes.rows[kind].items():
            allowed = [p.level for p in row if p.effect and p.divergence <= threshold]
            levels[name] = allowed[-1] if allowed else None
        score, drop = self.reference(), 0.0
        net = self.subjects.net
        if any(level is not None for level in levels.values()):
            changed = self._narrowed(levels) if kind == "channels" else self._encoded(kind, levels)
            found = None if changed is None else self.of(changed)
            if changed is None or found is None or not found.accepted:
                return None
            net, score, drop = changed, found.score, found.drop
        return Proposal(
            kind=kind,
            threshold=threshold,
            levels=levels,
            score=score,
            drop=drop,
            coded_bytes=self.coded_bytes(net),
            macs=self.subjects.macs(self.subjects.channels(levels)) if kind == "channels" else self.probes.macs,
            tried=tried,
        )

    def encoded(self, encodings: Mapping[str, Encoding]) -> Artifact:
        """The network with these weights, by layer."""
        net = self.subjects.net.copy()
        for path, encoding in encodings.items():
            net.encode_(self.subjects.weights[path], encoding)
        return net

    def _encoded(self, kind: str, levels: Mapping[str, float | None]) -> Artifact:
        return self.encoded({p: self.probes.encoding(p, kind, level) for p, level in levels.items() if level})

    def _narrowed(self, levels: Mapping[str, float | None]) -> Artifact | None:
        """The smaller network itself; None where the network's code does not cope with it."""
        subjects = self.subjects
        gone = subjects.channels(levels)
        wanted = {id(channel) for channel in gone}
        chosen = {
            group: [n for n, channel in enumerate(group.channels) if id(channel) in wanted]
            for group in subjects.groups.values()
        }
        if why_not(subjects.net, subjects.graph, subjects.coupling, numbers_of(subjects.coupling, chosen)):
            return None
        net = subjects.net.copy()
        remove_(net, gone)
        return net

    def coded_bytes(self, net: Artifact) -> float:
        """Of all weights that were probed; unchanged ones are coded once."""
        total = 0
        for weight in self.subjects.weights.values():
            if weight in net.encodings or net.parameter(weight).shape != self.subjects.shapes[weight]:
                total += size_bits(net.encoding(weight))
            else:
                if weight not in self._sizes:
                    self._sizes[weight] = size_bits(net.encoding(weight))
                total += self._sizes[weight]
        return total / 8
