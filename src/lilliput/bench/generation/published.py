"""The published experiments as problems, for the layers of any network.

They were made for LeNet-5: kernels of 5x5 in two convolutions, and cores of 3x3. What the selection language cannot
say is refused, with the reason.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

from lilliput.core.errors import RecipeError
from lilliput.core.method import nearest

Sides = tuple[list[str], list[str] | str]
"""Expressions of what is given, and of what is wanted."""


@dataclass(frozen=True, kw_only=True)
class Published:
    """`layers` in the order of the network; `core`: along each dimension of a kernel; `filter`, `channel`: of one."""

    experiment: str
    layers: list[str] = field(default_factory=list[str])
    core: int = 3
    filter: int = 0
    channel: int = 0

    def sides(self) -> Sides:
        """Raises `RecipeError` for a name that is not known or cannot be said."""
        asked = f"experiment {self.experiment!r}"
        if self.experiment in REFUSED:
            raise RecipeError(asked, *REFUSED[self.experiment])
        if self.experiment not in FORMS:
            raise RecipeError(asked, "there is no such one", nearest(self.experiment, {*FORMS, *REFUSED}))
        for name in ("core", "filter", "channel"):
            if getattr(self, name) < 0:
                raise RecipeError(f"{asked} {name}", f"{getattr(self, name)}", "give a whole number from 0 up")
        fewest, form = FORMS[self.experiment]
        single = form in (_core_to_outer, _outer_to_core, _channel, _itself)
        if len(self.layers) < fewest or (single and len(self.layers) > 1):
            count = "one" if single else f"{fewest} or more"
            raise RecipeError(f"{asked} layers", ", ".join(self.layers) or "none", f"name {count} of the network")
        return form(self)

    def parts(self, part: str) -> list[str]:
        """The core or the rest of every kernel."""
        return [f"{layer} {part} {self.core}" for layer in self.layers]

    def kernel(self, part: str) -> list[str]:
        return [f"{self.layers[0]}[{self.filter}, {self.channel}] {part} {self.core}"]


def _core_to_outer(p: Published) -> Sides:
    return p.kernel("core"), p.kernel("outer")


def _outer_to_core(p: Published) -> Sides:
    return p.kernel("outer"), p.kernel("core")


def _channel(p: Published) -> Sides:
    layer, before = p.layers[0], [f"{p.layers[0]}[:, :{p.channel}]"] if p.channel else []
    return [f"{layer}[:, {p.channel}]"], [*before, f"{layer}[:, {p.channel + 1}:]"]


def _first_to_others(p: Published) -> Sides:
    return p.layers[:1], p.layers[1:]


def _nothing(p: Published) -> Sides:
    return ["= 0"], p.layers


def _cores_to_outers(p: Published) -> Sides:
    return p.parts("core"), p.parts("outer")


def _itself(p: Published) -> Sides:
    return p.layers, "given"


FORMS: dict[str, tuple[int, Callable[[Published], Sides]]] = {
    "single_filter": (1, _core_to_outer),
    "grid_size": (1, _core_to_outer),
    "reversed_single_filter": (1, _outer_to_core),
    "single_channel": (1, _channel),
    "layer_bypass": (2, _first_to_others),
    "le_selector": (1, _nothing),
    "all_layers": (2, _cores_to_outers),
    "mobilenet": (1, _itself),
}
"""{experiment: (fewest layers, what is given and wanted)}."""
REFUSED = {
    "single_filter_zero_outer": (
        "it wants zeros in place of the weights around the core, and a selection has only values that weights have",
        "set these weights to 0 in the network, then use single_filter",
    ),
    "worst_case": (
        "it wants all 256 values, and a selection has only values that weights have",
        "use Problem.of_values in Python (lilliput.methods.weight_generation.problem)",
    ),
}
"""{experiment: (why it cannot be said, what to do)}."""
