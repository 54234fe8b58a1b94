"""Masks that grow while a network trains.

What is dropped loses its value and what the optimizer remembers of it; all other weights, moments and momentums stay.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lilliput.core.artifact import Artifact
from lilliput.core.encoding import Encoding
from lilliput.core.errors import RecipeError
from lilliput.core.method import check_range
from lilliput.training.attach import Attached

Choose = Callable[[Mapping[str, Tensor], float], Mapping[str, Tensor]]
"""From |w| of each tensor (float64; -1 where dropped already) and how far the way is gone (0..1), what is kept."""


@dataclass(frozen=True, kw_only=True)
class Ramp:
    """When masks grow: every `every` steps from the share `start` of all steps on, until the share `end`."""

    start: float
    end: float
    every: int

    def check(self, asked: str) -> None:
        check_range(f"{asked} start", self.start, 0.0, 1.0, below=True)
        check_range(f"{asked} end", self.end, 0.0, 1.0)
        check_range(f"{asked} every", self.every, 1, 1_000_000)
        if self.end < self.start:
            raise RecipeError(f"{asked} end", f"{self.end} before start {self.start}", "let it end after its start")

    def progress(self, step: int, steps: int) -> float | None:
        """1 - (1 - t)^3 at the part t of the way (Zhu and Gupta, 2017, equation 1); None where nothing is due.

        The last time is the first step from `end` on, or the last of all.
        """
        first, last = int(self.start * steps), min(int(self.end * steps), steps - 1)
        if step >= last:
            return 1.0 if step == last else None
        if step < first or (step - first) % self.every:
            return None
        return 1.0 - (1.0 - (step - first) / (last - first)) ** 3


class GrowingMasks(Attached):
    """`Attached`, with masks on `names` that grow as `choose` says. They never shrink."""

    def __init__(
        self,
        net: Artifact,
        *,
        names: Sequence[str],
        ramp: Ramp,
        choose: Choose,
        text: str,
        dither: torch.Generator | None = None,
    ) -> None:
        for name in names:
            encoding = net.encoding(name)
            if encoding.mask is None:
                full = torch.ones(encoding.shape, dtype=torch.bool, device=encoding.values.device)
                net.encode_(name, replace(encoding, mask=full))
        super().__init__(net, dither=dither)
        self._names, self._ramp, self._choose, self._text = set(names), ramp, choose, text
        self._first = {s.name: s.encoding for s in self._stored}
        self._settled = False

    @property
    def settled(self) -> bool:
        return self._settled

    def describe(self) -> str:
        return f"{super().describe()} {self._ramp} {self._text} {sorted(self._names)}"

    def advance_(self, step: int, steps: int, optimizer: torch.optim.Optimizer) -> None:
        progress = self._ramp.progress(step, steps)
        if progress is None:
            return
        raw = {s.name: s.raw for s in self._stored if s.name in self._names}
        with torch.no_grad():
            magnitudes = {
                s.name: torch.where(_mask(s.encoding), s.real().double().abs(), -1.0)
                for s in self._stored
                if s.name in raw
            }
            masks = self._choose(magnitudes, progress)
            self._grow_(masks)
            for name, mask in masks.items():
                forget_(optimizer, raw[name], ~mask)
        self._settled = progress == 1.0
        self.project_()

    def _grow_(self, masks: Mapping[str, Tensor]) -> None:
        for i, s in enumerate(self._stored):
            if s.name in masks:
                mask = _mask(s.encoding) & masks[s.name]
                s.raw[~mask] = 0.0
                self._stored[i] = replace(s, encoding=masked(self._first[s.name], mask))

    def bake_(self, net: Artifact) -> None:
        for s in self._stored:
            stored = s.encoding.encode(s.real())
            if s.name in self._names:
                full = bool(_mask(stored).all())
                stored = replace(stored, mask=None) if full else stored.with_mask(_mask(stored))
            net.encode_(s.name, stored.to(net.encodings[s.name].values.device))

    def state(self) -> dict[str, dict[str, Tensor]]:
        masks = {s.name: _mask(s.encoding).to("cpu", copy=True) for s in self._stored if s.name in self._names}
        return {**super().state(), "masks": masks, "ramp": {"settled": torch.tensor(self._settled)}}

    def load_(self, state: dict[str, dict[str, Tensor]]) -> None:
        for i, s in enumerate(self._stored):
            if s.name in state["masks"]:
                mask = state["masks"][s.name].to(s.raw.device)
                self._stored[i] = replace(s, encoding=masked(self._first[s.name], mask))
        self._settled = bool(state["ramp"]["settled"])
        super().load_(state)


def masked(encoding: Encoding, mask: Tensor) -> Encoding:
    """With this mask; rows of a shared table stay where they are, also those that nothing uses."""
    if encoding.sharing is None:
        return replace(encoding, mask=mask, values=torch.where(mask, encoding.values, 0))
    indices = torch.where(mask, encoding.sharing.indices, 0)
    return replace(encoding, mask=mask, sharing=replace(encoding.sharing, indices=indices))


def forget_(optimizer: torch.optim.Optimizer, parameter: Tensor, gone: Tensor) -> None:
    """What the optimizer remembers of these entries becomes 0."""
    for value in optimizer.state.get(parameter, {}).values():
        if isinstance(value, Tensor) and value.shape == parameter.shape:
            value[gone] = 0


def _mask(encoding: Encoding) -> Tensor:
    if encoding.mask is None:
        return torch.ones(encoding.shape, dtype=torch.bool, device=encoding.values.device)
    return encoding.mask
