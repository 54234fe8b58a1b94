"""A network on its way to a file: a plain module, how its tensors are stored, and what was done to it."""

import copy
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from lilliput.core.edits import Edit, Slice, fingerprint
from lilliput.core.encoding import Encoding, Grid
from lilliput.core.errors import MethodError, UsageError

REMOVALS = {
    "torch.nn.utils.weight_norm": "bake it with torch.nn.utils.remove_weight_norm(module)",
    "torch.nn.utils.spectral_norm": "bake it with torch.nn.utils.remove_spectral_norm(module)",
    "torch.nn.utils.prune": "bake it with torch.nn.utils.prune.remove(module, name): the zeros stay",
    "torch.nn.modules.lazy": "run the model once on an example",
}
"""What to do about hooks that torch itself registers, by the module that they come from."""


@dataclass(frozen=True, kw_only=True)
class InputSpec:
    """What the network expects: one sample's shape, what its axes are, and how raw values become inputs.

    An input is (raw - mean) / std by channel, with raw in the unit that the data has (0..1 for images).
    """

    shape: tuple[int, ...]
    layout: str = ""  # "CHW", "CL", "C"
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    labels: tuple[str, ...] = ()

    def example(self, batch: int = 1) -> Tensor:
        """Ordinary-looking numbers of the right shape, always the same."""
        generator = torch.Generator().manual_seed(0)
        return torch.randn((batch, *self.shape), generator=generator)


@dataclass(kw_only=True, eq=False)
class Artifact:
    """`module` plus `{parameter: Encoding}`, `{node: Grid}` for activations, replayable edits and the recipe.

    Every parameter with an encoding holds exactly `encoding.decode()`: `check()` says so after every pass. Tied
    parameters have one encoding, under their first name. Passes change artifacts in place; `copy()` first.
    """

    module: nn.Module
    input: InputSpec
    encodings: dict[str, Encoding] = field(default_factory=dict[str, Encoding])
    activations: dict[str, Grid] = field(default_factory=dict[str, Grid])
    edits: list[Edit] = field(default_factory=list[Edit])
    recipe: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    origin: str = ""  # fingerprint of the module before any edit
    memo: dict[tuple[Any, ...], Any] = field(default_factory=dict[tuple[Any, ...], Any], repr=False)
    """What readers of the structure keep, under all that it depends on; copies share it."""

    @staticmethod
    def of(model: nn.Module, spec: InputSpec) -> "Artifact":
        """An artifact of a copy of `model`; the model itself is never touched.

        Raises `UsageError` for what a file could not hold: hooks, parametrizations, broken weights, other precisions.
        """
        parametrized = [path for path, m in model.named_modules() if "parametrizations" in dict(m.named_children())]
        if parametrized:
            raise UsageError(
                f"compress {type(model).__name__}",
                f"{parametrized[0]!r} is parametrized",
                "bake it first with torch.nn.utils.parametrize.remove_parametrizations",
            )
        for path, hook in _hooks(model):
            raise UsageError(
                f"compress {type(model).__name__}",
                f"{path or 'the model'!r} has the forward hook {_word(hook)}, which no file can hold",
                _removal(hook),
            )
        try:
            module = copy.deepcopy(model).eval()
        except (RuntimeError, TypeError, ValueError, AttributeError, copy.Error) as error:
            raise UsageError(
                f"compress {type(model).__name__}",
                f"copy.deepcopy cannot copy it ({' '.join(str(error).split())[:120]})",
                "give a module that copies: without locks, open files, or tensors computed from other tensors",
            ) from error
        for name, tensor in module.state_dict().items():
            if tensor.is_floating_point() and tensor.dtype != torch.float32:
                raise UsageError(
                    f"compress {type(model).__name__}", f"{name} is of {tensor.dtype}", "convert it with model.float()"
                )
            if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
                raise UsageError(
                    f"compress {type(model).__name__}", f"{name} holds NaN or infinity", "mend the model first"
                )
        return Artifact(module=module, input=spec, origin=fingerprint(module))

    def copy(self) -> "Artifact":
        """Independent: nothing done to one is seen in the other. Encodings are immutable and shared."""
        return Artifact(
            module=copy.deepcopy(self.module),
            input=self.input,
            encodings=dict(self.encodings),
            activations=dict(self.activations),
            edits=list(self.edits),
            recipe=copy.deepcopy(self.recipe),
            origin=self.origin,
            memo=self.memo,
        )

    @property
    def device(self) -> torch.device:
        """Where everything of it is."""
        return next((t.device for t in self.module.state_dict().values()), torch.device("cpu"))

    def to_(self, device: str | torch.device) -> "Artifact":
        """Move module, encodings and grids: they must be on one device to compute together."""
        place = torch.device(device)
        self.module.to(place)
        self.encodings = {name: e.to(place) for name, e in self.encodings.items()}
        self.activations = {name: grid.to(place) for name, grid in self.activations.items()}
        return self

    def restore_(self, snapshot: "Artifact") -> None:
        """Become `snapshot` again, as it was when it was copied."""
        fresh = snapshot.copy()
        self.module, self.encodings, self.activations = fresh.module, fresh.encodings, fresh.activations
        self.edits, self.recipe = fresh.edits, fresh.recipe

    def parameter(self, name: str) -> Tensor:
        try:
            return self.module.get_parameter(name)
        except AttributeError:
            raise UsageError(
                f"parameter {name!r}",
                "the network has none of this name",
                f"use one of {', '.join(list(dict(self.module.named_parameters()))[:8])}, ...",
            ) from None

    def canonical(self, name: str) -> str:
        """The first name of a tied parameter; a name that is no parameter's (a buffer) stays."""
        wanted = dict(self.module.named_parameters(remove_duplicate=False)).get(name)
        return next((other for other, p in self.module.named_parameters() if p is wanted), name)

    def encoding(self, name: str) -> Encoding:
        """The parameter's encoding; plain float32 if no pass has touched it."""
        name = self.canonical(name)
        return self.encodings.get(name) or Encoding.of(self.parameter(name))

    def encode_(self, name: str, encoding: Encoding) -> None:
        """Store the parameter in this encoding, and give it the decoded values."""
        name = self.canonical(name)
        parameter = self.parameter(name)
        if tuple(parameter.shape) != encoding.shape:
            raise MethodError(
                f"encode {name!r}",
                f"an encoding of shape {encoding.shape} for {tuple(parameter.shape)}",
                "edit the module and the encoding together",
            )
        with torch.no_grad():
            parameter.copy_(encoding.decode())
        if encoding.is_plain:
            self.encodings.pop(name, None)
        else:
            self.encodings[name] = encoding

    def write_(self, name: str, values: Tensor) -> None:
        """New float values for a parameter that has no encoding."""
        if self.canonical(name) in self.encodings:
            raise MethodError(f"write {name!r}", "it is stored in an encoding", "change the encoding instead")
        with torch.no_grad():
            self.parameter(name).copy_(values)

    def slice_(self, edit: Slice) -> None:
        """Keep only these slices of a parameter or buffer, in the module and in its encoding; the edit is recorded."""
        name = self.canonical(edit.path)
        edit.replay_(self.module)
        if name in self.encodings:
            index = torch.tensor(edit.index, dtype=torch.int64, device=self.device)
            self.encodings[name] = self.encodings[name].select(edit.dim, index)
        self.edits.append(edit)

    def check(self) -> None:
        """Raises `MethodError` unless every parameter holds exactly what its encoding decodes to."""
        names = dict(self.module.named_parameters())
        for name, encoding in self.encodings.items():
            if name not in names:
                raise MethodError(
                    f"check of {name!r}", "an encoding without a parameter", "drop it where the layer goes"
                )
            if not torch.equal(names[name].detach(), encoding.decode()):
                raise MethodError(
                    f"check of {name!r}",
                    "the weight is not what its encoding decodes to",
                    "write weights through Artifact.encode_",
                )
        for path, _ in _hooks(self.module):
            raise MethodError(f"check of {path or 'the model'!r}", "a forward hook was left", "remove hooks after use")

    def stored(self) -> dict[str, Encoding]:
        """Every floating-point tensor of the file, once: parameters and buffers by their first names, in order."""
        seen: set[int] = set()
        result: dict[str, Encoding] = {}
        for name, tensor in self.module.state_dict(keep_vars=True).items():
            if tensor.is_floating_point() and id(tensor) not in seen:
                seen.add(id(tensor))
                result[name] = self.encodings.get(name) or Encoding.of(tensor)
        return result

    def counters(self) -> dict[str, Tensor]:
        """State tensors that are not floating point (BatchNorm's batch counts), by their first names."""
        seen: set[int] = set()
        result: dict[str, Tensor] = {}
        for name, tensor in self.module.state_dict(keep_vars=True).items():
            if not tensor.is_floating_point() and id(tensor) not in seen:
                seen.add(id(tensor))
                result[name] = tensor
        return result


def weights_of(module: nn.Module, types: Iterable[type[nn.Module]]) -> Mapping[str, nn.Module]:
    """Paths of the layers of these types that have a weight, in the model's order, shared modules once."""
    wanted = tuple(types)
    return {path: m for path, m in module.named_modules() if isinstance(m, wanted)}


def _hooks(module: nn.Module) -> Iterator[tuple[str, Any]]:
    for path, m in module.named_modules():
        for hook in (*m._forward_pre_hooks.values(), *m._forward_hooks.values()):
            yield path, hook


def _word(hook: Any) -> str:
    return getattr(hook, "__qualname__", type(hook).__qualname__)


def _removal(hook: Any) -> str:
    home = getattr(hook, "__module__", None) or type(hook).__module__
    return REMOVALS.get(home, "remove it first: handle.remove(), with the handle that registering it gave")
