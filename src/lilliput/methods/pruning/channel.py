"""Channel pruning: whole channels are taken out, so the network gets smaller and faster in every runtime."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

from lilliput.core.artifact import Artifact
from lilliput.core.errors import RecipeError
from lilliput.core.method import Context, Pass, PassResult, check_choice, check_range, layers
from lilliput.graph.coupling import Coupling, Group, channel_groups, shapes_of
from lilliput.graph.removal import owners_of, probe, remove_, why_not
from lilliput.graph.trace import Graph, StoredNetwork, graph_of
from lilliput.measure.macs import count_macs
from lilliput.methods.pruning.channel_compensation import compensate_
from lilliput.methods.pruning.channel_plan import Costs, for_amount, for_macs, numbers_of
from lilliput.methods.pruning.channel_scores import BY_SAMPLES, CRITERIA, Steps, Subject, costs
from lilliput.training.moments import FEWEST


@dataclass(frozen=True, kw_only=True)
class ChannelPruning(Pass):
    """Remove the channels that cost least, together with all slices that go with them (`docs/channels.md`).

    How much: `macs` (share of the MACs that is left) or `max_macs` (a number) over all groups by cost for each MAC; or
    else `amount`, the share of channels that each group loses. `most` bounds that share. Groups that lose channels keep
    a `multiple` or less. With `lanes` the MACs are those of a runtime that computes so many channels at once (16 with
    AVX-512, 8 with AVX2): channels go where that leaves fewer vectors, until the share is reached in both counts. A
    group goes by the settings of its first layer, and is touched only if all of its layers are selected. `compensate`
    fits the weights that are left to the outputs that each layer had, on the calibration role; without it,
    `reestimate_batchnorm` should follow.
    """

    name: ClassVar[str] = "channel_pruning"
    summary: ClassVar[str] = "remove whole channels with all that depends on them: fewer MACs in every runtime"
    citations: ClassVar[tuple[str, ...]] = (
        "https://arxiv.org/abs/1608.08710",
        "https://arxiv.org/abs/1611.06440",
        "https://arxiv.org/abs/1707.06168",
    )

    criterion: str = "taylor"
    amount: float = 0.25
    macs: float | None = None
    max_macs: int | None = None
    most: float = 0.9
    multiple: int = 1
    lanes: int = 1
    compensate: bool = True

    def __post_init__(self) -> None:
        check_choice("channel_pruning criterion", self.criterion, CRITERIA)
        check_range("channel_pruning amount", self.amount, 0.0, 1.0, below=True)
        check_range("channel_pruning most", self.most, 0.0, 1.0)
        check_range("channel_pruning multiple", self.multiple, 1, 1024)
        check_range("channel_pruning lanes", self.lanes, 1, 64)
        if self.macs is not None:
            check_range("channel_pruning macs", self.macs, 0.0, 1.0)
        if self.max_macs is not None:
            check_range("channel_pruning max_macs", self.max_macs, 1, 10**15)
        if self.macs is not None and self.max_macs is not None:
            raise RecipeError("channel_pruning", "macs and max_macs", "give one of them")
        if self.lanes > 1 and self.macs is None and self.max_macs is None:
            raise RecipeError("channel_pruning lanes", "neither macs nor max_macs", "give one of them, or multiple")
        super().__post_init__()
        for settings in self.overrides.values():
            if set(settings) - {"amount"} or self.macs is not None or self.max_macs is not None:
                raise RecipeError(
                    "channel_pruning overrides",
                    "groups are compared with each other" if "amount" in settings else "only amount can differ",
                    "override amount, without macs and max_macs",
                )

    def requires(self, net: Artifact) -> list[str]:
        if isinstance(net.module, StoredNetwork):
            return ["the network was loaded without its code; load the file into the model's class"]
        return []

    def apply_(self, net: Artifact, context: Context) -> PassResult:
        graph = graph_of(net)
        shapes = shapes_of(net.module.state_dict())
        coupling = channel_groups(graph, shapes)
        reasons = self._reasons(net, graph, coupling)
        groups = [group for group, reason in reasons.items() if not reason]
        chosen: dict[Group, list[int]] = {}
        if groups:
            self._check_samples(context)
            subject = Subject(net=net, graph=graph, coupling=coupling, context=context)
            steps = costs(subject, groups, self.criterion, compensate=self.compensate)
            reasons |= {g: f"criterion {self.criterion} has nothing to judge it by" for g in groups if not steps[g]}
            chosen = {g: found for g, found in self._choose(graph, shapes, steps).items() if found}
            reasons |= {
                g: "none of its channels is among those that cost least" for g in groups if steps[g] and g not in chosen
            }
        if not chosen:
            return PassResult(skipped=self._skipped(net, reasons, set()))
        self._check(net, graph, coupling, numbers_of(coupling, chosen))
        return self._remove_(net, context, chosen, reasons)

    def _check_samples(self, context: Context) -> None:
        seen = len(context.task.data("calibration"))
        if seen < FEWEST and (self.compensate or self.criterion in BY_SAMPLES):
            raise RecipeError(self.name, f"{seen} samples to judge channels by", f"give at least {FEWEST}")

    def _reasons(self, net: Artifact, graph: Graph, coupling: Coupling) -> dict[Group, str]:
        """Why a group must stay as it is; "" where channels may go."""
        found: dict[Group, str] = {}
        known = layers(net)
        for group in coupling.groups:
            owners = owners_of(net.module, group.tensors)
            out = sorted(path for path in owners if path in known and not self.selects(path))
            if not group.made:
                found[group] = group.fixed or "no layer makes its channels"
            elif out:
                found[group] = f"its channels go together with {out[0]!r}, which include and skip leave out"
            else:
                found[group] = probe(net, graph, coupling, group)
        return found

    def _choose(
        self, graph: Graph, shapes: dict[str, tuple[int, ...]], steps: dict[Group, Steps]
    ) -> dict[Group, list[int]]:
        steps = {group: found for group, found in steps.items() if found}
        if self.macs is None and self.max_macs is None:
            amounts = {group: min(self.most, self.for_layer(group.name).amount) for group in steps}
            return for_amount(steps, shapes, amounts, multiple=self.multiple)
        account = Costs(graph, shapes, lanes=self.lanes)
        before, counted = account.plain(), account.macs()
        target = int(self.macs * before) if self.macs is not None else int(self.max_macs or 0)
        chosen = for_macs(account, steps, shapes, target, most=self.most, multiple=self.multiple)
        if account.plain() > target or account.macs() * before > target * counted:
            vectors = "" if self.lanes == 1 else f" ({account.macs():,} of {counted:,} with {self.lanes} lanes)"
            raise RecipeError(
                self.name,
                f"{target:,} of {before:,} MACs asked for, and {account.plain():,} left when all that may go has gone"
                + vectors,
                "ask for more MACs, raise most, or let it have more layers",
            )
        return chosen

    def _check(self, net: Artifact, graph: Graph, coupling: Coupling, numbers: list[int]) -> None:
        reason = why_not(net, graph, coupling, numbers)
        if reason:
            raise RecipeError(self.name, reason, "leave out the layers whose sizes the model's code knows, with skip")

    def _remove_(
        self, net: Artifact, context: Context, chosen: dict[Group, list[int]], reasons: dict[Group, str]
    ) -> PassResult:
        before = count_macs(graph_of(net), net)
        old = net.copy().module if self.compensate else net.module
        owners = {group: owners_of(net.module, group.tensors) for group in chosen}
        edits = remove_(net, [group.channels[n] for group, found in chosen.items() for n in found])
        known = layers(net)
        changed: dict[str, str] = {}
        for path in known:
            parts = [
                f"{len(found)} of {len(group.channels)} channels of {group.name}"
                for group, found in chosen.items()
                if path in owners[group]
            ]
            if parts:
                changed[path] = "without " + ", ".join(parts)
        if self.compensate:
            for path, done in compensate_(net, old, edits, context, self.selects).items():
                changed[path] = f"{changed[path]}; {done}" if path in changed else done
        after = count_macs(graph_of(net), net)
        notes = tuple(
            f"{word}: {before.total(column).value:,.0f} -> {after.total(column).value:,.0f}"
            for word, column in (("MACs", "macs"), ("parameters", "parameters"))
        )
        skipped = self._skipped(net, reasons, set(changed))
        statistics = {"channels": {g.name: [len(found), len(g.channels)] for g, found in chosen.items()}}
        return PassResult(changed=changed, skipped=skipped, notes=notes, statistics=statistics)

    def _skipped(self, net: Artifact, reasons: dict[Group, str], changed: Iterable[str]) -> dict[str, str]:
        """A layer is skipped for the reason of the channels that it makes, or else of those that it reads."""
        done = set(changed)
        found: dict[str, str] = {}
        for group, reason in sorted(reasons.items(), key=lambda item: not item[0].made):
            for path in owners_of(net.module, group.tensors):
                if reason and path not in done:
                    found.setdefault(path, reason)
        skipped: dict[str, str] = {}
        for path in layers(net):
            if path not in done:
                left = "not selected by include and skip"
                skipped[path] = found.get(path, "it has no channels that can go") if self.selects(path) else left
        return skipped
