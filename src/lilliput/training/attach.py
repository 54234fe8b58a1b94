"""Training what is stored: raw float copies behind the encoded parameters of a network.

The module stays a plain module. Its encoded parameters hold `encoding.encode(raw).decode()` at every moment, so what
computes is what a file would hold; the optimizer moves the raw copies. Since parameters keep their identity, tied
parameters and shared modules stay tied, and there is nothing to take off the module at the end.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lilliput.core.artifact import Artifact
from lilliput.core.encoding import Encoding, Grid, cluster_means
from lilliput.core.errors import DataError
from lilliput.training.restore import put_

DIVERGED = "lower the learning rate, set gradient_clip, or look for wrong values in the data; the network is restored"


def straight_through(encoding: Encoding, raw: Tensor, gradient: Tensor) -> Tensor:
    """The gradient for `raw`, given that for `encoding.encode(raw).decode()`.

    Exact for masks (0 where dropped) and for sharing (the mean over the entries of the cluster that are kept and have
    bits). Rounding counts as the identity, except where the grid saturates or has no bits: 0 there (Bengio et al.,
    2013; clipped as in Hubara et al., 2016). A row of a table saturates where the narrowest slice that uses it does.
    """
    grid, sharing, rank, live = encoding.grid, encoding.sharing, len(encoding.shape), encoding._live()
    if sharing is None:
        result = gradient if grid is None else gradient * _within(grid, raw)
    else:
        scale = None if grid is None else grid.spread(grid.scale, rank)
        pooled = cluster_means(gradient if scale is None else gradient * scale, sharing, live)
        if grid is not None and scale is not None:
            real = raw.double() / scale + grid.spread(grid.zero_point, rank)
            low, high = encoding.row_range()
            means = cluster_means(real, sharing, live)
            pooled = pooled * ((low - 0.5 <= means) & (means < high + 0.5) & (low < high))
        result = pooled[sharing.rows()]
        if scale is not None:
            result = result / scale
    if live is not None:
        result = torch.where(live, result, torch.zeros((), dtype=result.dtype, device=result.device))
    return result.to(raw.dtype)


def _within(grid: Grid, raw: Tensor) -> Tensor:
    """bool: where the nearest integer is in the grid's range, and the range is more than one integer."""
    low, high = (grid.spread(bound, raw.dim()) for bound in grid.range())
    real = raw.double() / grid.spread(grid.scale, raw.dim()) + grid.spread(grid.zero_point, raw.dim())
    return (low - 0.5 <= real) & (real < high + 0.5) & (low < high)


CELL = 0.4
"""How far from its integer a raw copy may start, in steps."""


@dataclass(frozen=True, kw_only=True)
class _Stored:
    name: str
    parameter: nn.Parameter
    encoding: Encoding
    raw: Tensor
    unit: Tensor | None
    """What `raw` counts in, where that is not 1."""

    def real(self) -> Tensor:
        return self.raw if self.unit is None else self.raw * self.unit


class Attached:
    """The encoded parameters of an artifact that train, each with its raw copy; made from what they decode to.

    With `dither`, raw copies of integers count in steps of their grids, and start anywhere in their cells: from the
    middle all of them would cross the borders at about the same time, unseen until then.
    """

    def __init__(self, net: Artifact, *, dither: torch.Generator | None = None) -> None:
        self._module = net.module
        self._stored: list[_Stored] = []
        for name, parameter in net.module.named_parameters():
            if name in net.encodings and parameter.requires_grad:
                encoding = net.encodings[name].to(parameter.device)
                grid, raw = encoding.grid, encoding.decode()
                unit = None
                if dither is not None and grid is not None and encoding.sharing is None:
                    unit = grid.spread(grid.scale, raw.dim())
                    moved = CELL * (2 * torch.rand(raw.shape, generator=dither) - 1)
                    raw = raw / unit + moved.to(raw.device)
                raw.requires_grad_()
                self._stored.append(_Stored(name=name, parameter=parameter, encoding=encoding, raw=raw, unit=unit))

    def latents(self) -> list[tuple[str, Tensor, Encoding]]:
        """(name, raw copy, encoding) of what counts in steps of a grid."""
        return [(s.name, s.raw, s.encoding) for s in self._stored if s.unit is not None]

    @property
    def network(self) -> nn.Module:
        """What computes."""
        return self._module

    @property
    def settled(self) -> bool:
        """Has the network the form that it must end with? Only epochs that it has can be the best one."""
        return True

    def describe(self) -> str:
        """What tells this training from others of the same network and settings."""
        return type(self).__name__

    def trainable(self) -> dict[str, Tensor]:
        """What the optimizer moves, by the first name of each parameter, in the module's order."""
        raw = {s.name: s.raw for s in self._stored}
        return {name: raw.get(name, p) for name, p in self._module.named_parameters() if p.requires_grad}

    def aliases(self) -> dict[str, list[str]]:
        """For what trains and is no parameter of the module: the names under which settings find it."""
        return {}

    def advance_(self, step: int, steps: int, optimizer: torch.optim.Optimizer) -> None:
        """Called before each of the `steps` steps of the training, counted from 0."""

    def pull_(self) -> None:
        """Move the gradients from the encoded parameters to their raw copies."""
        for s in self._stored:
            gradient = s.parameter.grad
            with torch.no_grad():
                if gradient is None:
                    s.raw.grad = None
                else:
                    through = straight_through(s.encoding, s.real(), gradient)
                    s.raw.grad = through if s.unit is None else through * s.unit
            s.parameter.grad = None

    def project_(self) -> None:
        """Give the encoded parameters the stored form of their raw copies. Raises `DataError` for NaN."""
        with torch.no_grad():
            for s in self._stored:
                if not bool(torch.isfinite(s.raw).all()):
                    raise DataError(f"training of {s.name!r}", "NaN or infinity in the weights", DIVERGED)
                s.parameter.copy_(s.encoding.encode(s.real()).decode())

    def bake_(self, net: Artifact) -> None:
        """Store the raw copies in the artifact's encodings."""
        for s in self._stored:
            net.encode_(s.name, s.encoding.encode(s.real()).to(net.encodings[s.name].values.device))

    def state(self) -> dict[str, dict[str, Tensor]]:
        """Copies, on the CPU, of all that training changes in the network: raw copies, parameters, buffers."""
        encoded = {s.name for s in self._stored}
        parameters = {n: p for n, p in self._module.named_parameters() if n not in encoded}
        parts = {
            "raw": {s.name: s.raw for s in self._stored},
            "parameters": parameters,
            "buffers": dict(self._module.named_buffers()),
        }
        return {
            part: {n: t.detach().to("cpu", copy=True) for n, t in tensors.items()} for part, tensors in parts.items()
        }

    def load_(self, state: dict[str, dict[str, Tensor]]) -> None:
        """Go back to a state."""
        with torch.no_grad():
            for s in self._stored:
                s.raw.copy_(state["raw"][s.name])
            put_(self._module.get_parameter, state["parameters"])
            put_(self._module.get_buffer, state["buffers"])
        self.project_()
