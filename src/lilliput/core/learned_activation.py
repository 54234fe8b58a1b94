"""The module of functions that learn: `ops.learned_function` with weights, in a place where an activation was.

It is in `core` because edits build it, from plain settings, when a file is loaded.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from lilliput.core.calls import count_
from lilliput.core.errors import UsageError
from lilliput.core.fields import MAX_RANK
from lilliput.ops.function_fitting import TERMS, fitted
from lilliput.ops.learned_function import (
    MOST_POINTS,
    POINTS,
    bends,
    learned_function,
    of_channels,
    piecewise_linear,
    points_of,
    recorded,
    second_variation,
    table_of,
    weight_size,
    without_small_bends,
)

KINDS = {"table": "table", "bspline": "table", "cubic": "cubic", "lerp_psa": "lerp_psa", "psa": "psa"}
"""What users call them, and what `ops.learned_function` calls them: a spline of degree 1 is a table."""
SHARES = ("layer", "group", "channel", "indexed")
INITS = ("keep", "paper", "zeros")
MOST_TERMS, MOST_CHANNELS = 1 << 6, 1 << 16


class LearnedActivation(nn.Module):
    """A learned function of one value for each channel, for each of `groups` equal groups of them, or for the layer.

    With `share` "indexed" there are `groups` functions, and channel c has number `owner[c]`: a buffer to be set.

    Main arguments: `channels`; `kind`: "table", "bspline" (a table that is told from others by its paper's init),
    "cubic", "lerp_psa" or "psa"; `points` of the grid over [-limit, limit]: an odd number has one at 0; `share`.
    `limit`: beyond it the functions go on straight; take about four deviations of the inputs. `dim`: where the channels
    are: 1 for images, -1 for tokens.

    `init`: "keep" computes what `like` does (a function or module of one value, exact at the points; ReLU without it),
    "paper" what is published for training from scratch, "zeros" f = 0, to load weights into. `generator` draws the
    paper's random numbers for PSA, torch's own where it is None. `terms` are the lines that PSA mixes.
    """

    def __init__(
        self,
        channels: int,
        *,
        kind: str = "lerp_psa",
        points: int = POINTS,
        limit: float = 4.0,
        share: str = "channel",
        groups: int = 1,
        dim: int = 1,
        init: str = "keep",
        like: Callable[[Tensor], Tensor] | None = None,
        terms: int = TERMS,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        for name, value, allowed in (("kind", kind, tuple(KINDS)), ("share", share, SHARES), ("init", init, INITS)):
            if value not in allowed:
                raise UsageError(f"LearnedActivation {name}", f"{value!r}", f"use one of {', '.join(allowed)}")
        _check("channels", channels, 1, MOST_CHANNELS)
        _check("points", points, 2, MOST_POINTS)
        _check("terms", terms, 1, MOST_TERMS)
        _check("dim", dim, -MAX_RANK, MAX_RANK)
        _check("groups", groups, 1, MOST_CHANNELS)
        if not 0 < limit < math.inf:
            raise UsageError("LearnedActivation limit", f"{limit!r}", "use a positive number")
        if share == "group" and channels % groups:
            raise UsageError("LearnedActivation groups", f"{groups!r} of {channels} channels", "use a divisor of them")
        self.channels, self.kind, self.points, self.share = channels, kind, points, share
        self.groups, self.dim, self.terms = groups, dim, terms
        rows = {"layer": 1, "channel": channels}.get(share, groups)
        size = weight_size(self.form, points, terms)
        try:
            points_of(self.form, max(rows, channels) if share == "indexed" else rows, size, points)
        except ValueError as error:
            raise UsageError("LearnedActivation", str(error), "use fewer points, or share functions") from error
        self.weight = nn.Parameter(torch.zeros(rows, size))
        self.register_buffer("limit", torch.tensor([float(limit)]))
        kind_of_index = torch.uint8 if groups <= 1 << 8 else torch.int32
        first = (torch.arange(channels) * groups // channels).to(kind_of_index)
        self.register_buffer("owner", first if share == "indexed" else None)
        self._kept: tuple[Tensor, Tensor, Tensor] | None = None
        if init == "keep":
            self.keep_(torch.relu if like is None else like)
        elif init == "paper":
            self._paper_(generator)

    limit: Tensor
    owner: Tensor | None

    @property
    def form(self) -> str:
        """The kind as `ops.learned_function` knows it."""
        return KINDS[self.kind]

    def forward(self, x: Tensor) -> Tensor:
        count_()
        several = len(self.weight) > 1 or self.owner is not None
        if not -x.dim() <= self.dim < x.dim() or (several and x.shape[self.dim] != self.channels):
            found = f"a value of shape {tuple(x.shape)}"
            raise UsageError(
                f"LearnedActivation of {self.channels} channels", found, f"give them in dimension {self.dim}"
            )
        dim = self.dim % x.dim()
        if torch.compiler.is_exporting():
            return recorded(x, self.weight, self.limit, self.form, self.points, dim, self.owner)
        if self.form == "psa":
            return learned_function(x, self.weight, self.limit, self.form, self.points, dim, self.owner)
        return piecewise_linear(x, of_channels(self.table(), self.owner), self.limit, dim)

    def table(self) -> Tensor:
        """[functions, points]: the values on the grid. Without gradients they are kept until a weight has changed."""
        if self.form == "table" or (torch.is_grad_enabled() and self.weight.requires_grad):
            return table_of(self.weight, self.limit, "lerp_psa" if self.form == "psa" else self.form, self.points)
        if self._kept is None or not all(map(_same, self._kept[:2], (self.weight, self.limit))):
            with torch.inference_mode(False), torch.no_grad():  # a tensor of inference mode could not be used elsewhere
                weight, limit = self.weight.detach().clone(), self.limit.clone()
                table = table_of(weight, limit, "lerp_psa" if self.form == "psa" else self.form, self.points)
            self._kept = (weight, limit, table)
        return self._kept[2]

    def keep_(self, function: Callable[[Tensor], Tensor]) -> None:
        """Compute this function from now on, as well as the kind can."""
        with torch.no_grad():
            self.weight.copy_(fitted(_alone(function), self.form, float(self.limit), self.points, self.terms))

    def second_variation(self) -> Tensor:
        """The sum of all changes of slope: what training adds, times a small number, for functions of few lines."""
        return second_variation(self.table(), self.limit)

    def straighten_(self, threshold: float) -> None:
        """Take out changes of slope of at most `threshold`; of tables alone."""
        if self.form != "table":
            raise UsageError(f"straighten functions of kind {self.kind!r}", "their points follow", "use kind='table'")
        with torch.no_grad():
            self.weight.copy_(without_small_bends(self.weight, self.limit, threshold))

    def bends(self) -> Tensor:
        """[functions, points - 2]: how much the slope changes at each inner point."""
        return bends(self.table(), self.limit)

    def structure(self) -> dict[str, Any]:
        """The arguments that make a module of this structure, as plain data."""
        own = {name: getattr(self, name) for name in ("channels", "kind", "points", "share", "dim", "groups", "terms")}
        return {**own, "init": "zeros"}

    def extra_repr(self) -> str:
        return f"{self.channels}, kind={self.kind!r}, points={self.points}, share={self.share!r}, dim={self.dim}"

    def _paper_(self, generator: torch.Generator | None) -> None:
        if self.form in ("table", "cubic"):
            self.keep_(lambda x: nn.functional.leaky_relu(x, 0.01))
            return
        rows, terms = len(self.weight), self.terms
        spread = math.sqrt(6 / (1 + terms))
        v, b = (torch.empty(rows, terms).uniform_(-s, s, generator=generator) for s in (spread, 3.0))
        one, none = torch.ones(rows, 1), torch.zeros(rows, 1)
        with torch.no_grad():
            self.weight.copy_(torch.cat([v, torch.ones(rows, terms), b, one, none], 1))


def second_variation_of(network: nn.Module) -> Tensor | float:
    """Of all learned activations in it, together."""
    return sum(m.second_variation() for m in network.modules() if isinstance(m, LearnedActivation))


def check_owner(owner: Tensor, functions: int) -> None:
    """Raises ValueError for an index of functions that are not there."""
    if owner.numel() and not 0 <= int(owner.min()) <= int(owner.max()) < functions:
        raise ValueError(f"channels with functions {int(owner.min())} to {int(owner.max())} of {functions}")


def _alone(function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """The same without gradients; a module may know float32 alone, and wants a batch."""

    def call(x: Tensor) -> Tensor:
        with torch.no_grad():
            if not isinstance(function, nn.Module):
                return function(x).double()
            return function(x[:, None].float())[:, 0].double()

    return call


def _same(a: Tensor, b: Tensor) -> bool:
    return a.device == b.device and a.dtype == b.dtype and torch.equal(a, b)


def _check(name: str, value: int, low: int, high: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:  # pyright: ignore[reportUnnecessaryIsInstance]
        raise UsageError(f"LearnedActivation {name}", f"{value!r}", f"use a whole number from {low} to {high}")
