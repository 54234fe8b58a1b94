"""Changes to the module tree, as data: a fresh module becomes the edited one by replaying them.

`Fold` moves a BatchNorm into the layer before or behind it, `Separate` makes it a layer of its own, `Slice` keeps
some slices of a tensor, `Replace` puts another module in a place, `ReplaceCall` lets a module compute what a call in
the network's own code did. Replaying changes structure only; the tensors come from the file.
"""

import hashlib
import reprlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from lilliput.core.calls import route_, routes_of
from lilliput.core.errors import ArtifactError, LilliputError
from lilliput.core.learned_activation import LearnedActivation

REPLACEMENTS: dict[str, type[nn.Module]] = {
    "Identity": nn.Identity,
    "ReLU": nn.ReLU,
    "ReLU6": nn.ReLU6,
    "Hardswish": nn.Hardswish,
    "Hardsigmoid": nn.Hardsigmoid,
    "Hardtanh": nn.Hardtanh,
    "LearnedActivation": LearnedActivation,
}
"""What `Replace` and `ReplaceCall` can build, by name: a file can name these and nothing else."""


@dataclass(frozen=True, kw_only=True)
class Fold:
    """BatchNorm `norm` becomes part of `layer`, which gets a bias; an Identity stands where the norm was."""

    layer: str
    norm: str

    def replay_(self, module: nn.Module) -> None:
        layer, norm = _get(module, self.layer), _get(module, self.norm)
        outputs = _outputs(layer)
        if not isinstance(norm, (nn.BatchNorm1d, nn.BatchNorm2d)) or outputs is None:
            wrong, found = (self.norm, norm) if outputs is not None else (self.layer, layer)
            raise ArtifactError(
                f"replay of fold into {self.layer!r}",
                f"{wrong!r} is {type(found).__name__}",
                "give the module that the file was made from",
            )
        if dict(layer.named_parameters(recurse=False)).get("bias") is None:
            weight = layer.get_parameter("weight")
            layer.register_parameter(
                "bias", nn.Parameter(torch.zeros(outputs, dtype=weight.dtype, device=weight.device))
            )
        _put(module, self.norm, nn.Identity())


@dataclass(frozen=True, kw_only=True)
class Separate:
    """BatchNorm at `path` becomes a layer of its own: a convolution of one tap for each channel, with bias."""

    path: str

    def replay_(self, module: nn.Module) -> None:
        norm = _get(module, self.path)
        layer = {nn.BatchNorm1d: nn.Conv1d, nn.BatchNorm2d: nn.Conv2d}.get(type(norm))
        if layer is None:
            raise ArtifactError(
                f"replay of separate at {self.path!r}",
                f"it is {type(norm).__name__}",
                "give the module that the file was made from",
            )
        channels = int(norm.num_features)  # pyright: ignore[reportArgumentType]
        _put(module, self.path, layer(channels, channels, 1, groups=channels))


@dataclass(frozen=True, kw_only=True)
class Slice:
    """Keep the slices `index`, each once, of dimension `dim` of parameter or buffer `path` ("conv1.weight")."""

    path: str
    dim: int
    index: tuple[int, ...]

    def replay_(self, module: nn.Module) -> None:
        owner_path, _, name = self.path.rpartition(".")
        owner = _get(module, owner_path)
        tensors = dict(owner.named_parameters(recurse=False)) | dict(owner.named_buffers(recurse=False))
        tensor = tensors.get(name)
        bad = not self.index or len(set(self.index)) != len(self.index)
        if bad or tensor is None or self.dim >= tensor.dim() or max(self.index) >= tensor.shape[self.dim]:
            found = "no such tensor" if tensor is None else f"shape {tuple(tensor.shape)}"
            found = "an index that is empty or has a slice twice" if bad else found
            raise ArtifactError(
                f"replay of slice of {self.path!r}", found, "give the module that the file was made from"
            )
        sliced = tensor.detach().index_select(
            self.dim, torch.tensor(self.index, dtype=torch.int64, device=tensor.device)
        )
        new = nn.Parameter(sliced, requires_grad=tensor.requires_grad) if isinstance(tensor, nn.Parameter) else sliced
        for holder in list(module.modules()):  # a tied tensor has several places, and stays tied
            held = [key for key, t in (*holder._parameters.items(), *holder._buffers.items()) if t is tensor]
            for key in held:
                setattr(holder, key, new)
            if held:
                _resize_(holder)


@dataclass(frozen=True, kw_only=True)
class Replace:
    """Another module at `path`: a name of `REPLACEMENTS` and its settings."""

    path: str
    cls: str
    settings: Mapping[str, Any] = field(default_factory=dict[str, Any])

    def replay_(self, module: nn.Module) -> None:
        new = _built(self.path, self.cls, self.settings)
        _get(module, self.path)
        _put(module, self.path, new)


@dataclass(frozen=True, kw_only=True)
class ReplaceCall:
    """A new module at `path` computes call `number` of the network (`core.calls` says what counts)."""

    number: int
    path: str
    cls: str
    settings: Mapping[str, Any] = field(default_factory=dict[str, Any])

    def replay_(self, module: nn.Module) -> None:
        new = _built(self.path, self.cls, self.settings)
        owner, _, name = self.path.rpartition(".")
        home = _get(module, owner)
        if not name.isidentifier() or name in {*dir(home), *home._modules} or self.number in routes_of(module):
            raise ArtifactError(
                f"replay of a call at {self.path!r}",
                "the place or the call is taken",
                "give the module that the file was made from",
            )
        home.add_module(name, new)
        route_(module, self.number, self.path)


Edit = Fold | Separate | Slice | Replace | ReplaceCall
EDITS: dict[str, type[Edit]] = {
    "fold": Fold,
    "separate": Separate,
    "slice": Slice,
    "replace": Replace,
    "call": ReplaceCall,
}


def fingerprint(module: nn.Module) -> str:
    """16 hex digits that tell one architecture from another: class names, tensors' shapes, the settings of layers.

    Values of weights do not matter. Functional code in `forward` is not seen.
    """
    settings = ("stride", "padding", "dilation", "groups", "kernel_size", "output_padding", "eps", "negative_slope")
    lines = [
        f"{path}:{type(m).__name__}:" + ",".join(f"{s}={getattr(m, s)}" for s in settings if s in vars(m))
        for path, m in module.named_modules()
    ]
    lines += [f"{p}:{m.structure()}" for p, m in module.named_modules() if isinstance(m, LearnedActivation)]
    lines += [f"{name}:{tuple(t.shape)}:{t.dtype}" for name, t in module.state_dict().items()]
    return hashlib.blake2b("\n".join(lines).encode(), digest_size=8).hexdigest()


def _get(module: nn.Module, path: str) -> nn.Module:
    """The module at a path: "" is the network itself."""
    try:
        return module.get_submodule(path)
    except AttributeError:
        raise ArtifactError(
            f"replay of an edit at {path!r}",
            "the module has nothing there",
            "give the module that the file was made from",
        ) from None


def _built(path: str, cls: str, settings: Mapping[str, Any]) -> nn.Module:
    asked, do = f"replay of replace at {path!r}", "make the file again"
    if cls not in REPLACEMENTS:
        raise ArtifactError(asked, f"unknown class {cls!r}", f"known are {', '.join(REPLACEMENTS)}")
    try:
        return REPLACEMENTS[cls](**settings)
    except (TypeError, ValueError, AssertionError, LilliputError) as error:
        raise ArtifactError(asked, f"settings {reprlib.repr(settings)} for {cls} ({error})", do) from error


def _put(module: nn.Module, path: str, new: nn.Module) -> None:
    """At every place where the old module stands: a shared module may have several paths."""
    old = module.get_submodule(path)
    if old is module:
        raise ArtifactError("replay of an edit", "it replaces the whole network", "make the file again")
    for parent in list(module.modules()):
        for name, child in list(parent._modules.items()):  # named_children() leaves out second names
            if child is old:
                setattr(parent, name, new)


def _outputs(layer: nn.Module) -> int | None:
    """How many values a bias of the layer has; None where it takes no BatchNorm."""
    if isinstance(layer, (nn.ConvTranspose1d, nn.ConvTranspose2d)):
        return layer.weight.shape[1] * layer.groups
    return layer.weight.shape[0] if isinstance(layer, (nn.Linear, nn.Conv1d, nn.Conv2d)) else None


def _resize_(layer: nn.Module) -> None:
    """Layers remember their sizes; keep them true to their tensors."""
    weight = dict(layer.named_parameters(recurse=False)).get("weight")
    if weight is None:
        if isinstance(layer, (nn.BatchNorm1d, nn.BatchNorm2d)) and layer.running_mean is not None:
            layer.num_features = layer.running_mean.shape[0]
        return
    if isinstance(layer, nn.Linear):
        layer.out_features, layer.in_features = weight.shape
    elif isinstance(layer, (nn.Conv1d, nn.Conv2d, nn.ConvTranspose1d, nn.ConvTranspose2d)):
        turned = isinstance(layer, (nn.ConvTranspose1d, nn.ConvTranspose2d))
        if layer.groups == layer.in_channels != 1:  # a group for each input channel
            layer.groups = weight.shape[0] // (1 if turned else layer.out_channels // layer.groups)
        many, few = weight.shape[0], weight.shape[1] * layer.groups
        layer.in_channels, layer.out_channels = (many, few) if turned else (few, many)
    elif isinstance(layer, (nn.BatchNorm1d, nn.BatchNorm2d)):
        layer.num_features = weight.shape[0]
    elif isinstance(layer, LearnedActivation):
        layer.channels = weight.shape[0] if layer.owner is None else layer.owner.shape[0]
    elif isinstance(layer, nn.PReLU):
        layer.num_parameters = weight.shape[0]
