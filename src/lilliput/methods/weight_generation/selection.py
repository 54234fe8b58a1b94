"""Which weights of a network: a small language for recipes.

    conv1                   all weights of a layer; `conv*` of several, `*` of all
    conv2[0]                one filter; conv2[:, 3] one input channel; conv2[0, :, 1:4, 1:4] any slices
    conv2 core 3            the middle 3x3 of each kernel; conv2[0] core 3 of one filter
    conv2 outer 3           the rest of each kernel
    = -128, 0, 127          these integers themselves

Layers are modules whose weights methods compress (convolutions, linear layers), by path; slices are Python's.
"""

import fnmatch
import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lilliput.core.artifact import Artifact
from lilliput.core.errors import RecipeError
from lilliput.core.method import WEIGHTED, layers, nearest

FORM = re.compile(r"(?P<layer>[^\s\[\]=]+)\s*(?:\[(?P<slices>[^\[\]]*)\])?\s*(?:(?P<part>core|outer)\s+(?P<size>\d+))?")
SLICE = re.compile(r"\s*(-?\d+)?\s*(?:(:)\s*(-?\d+)?\s*(?::\s*(-?[1-9]\d*)?)?)?\s*")


@dataclass(frozen=True, kw_only=True, eq=False)
class Place:
    """Weights of one layer: int64 positions in the flat parameter `name`, ascending."""

    name: str
    positions: Tensor


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """Weights, and integers that belong to none."""

    places: tuple[Place, ...] = ()
    constants: tuple[int, ...] = ()


def choose(net: Artifact, selection: str | Sequence[str]) -> Chosen:
    """What the expressions name, each weight once; nothing for an empty list. Raises `RecipeError`."""
    expressions = [selection] if isinstance(selection, str) else list(selection)
    masks: dict[str, Tensor] = {}
    constants: list[int] = []
    for text in expressions:
        if text.strip().startswith("="):
            constants += _integers(text)
            continue
        for name, mask in _masks(net, text).items():
            masks[name] = masks[name] | mask if name in masks else mask
    order = [net.canonical(name) for name, _ in net.module.named_parameters()]
    places = [
        Place(name=name, positions=torch.nonzero(masks[name].reshape(-1)).reshape(-1))
        for name in dict.fromkeys(order)
        if name in masks
    ]
    return Chosen(places=tuple(places), constants=tuple(dict.fromkeys(constants)))


def of_layer(text: str, path: str) -> str | None:
    """The expression for this layer alone; None if it chooses nothing of it.

    >>> of_layer("conv* core 3", "conv2")
    'conv2 core 3'
    """
    match = FORM.fullmatch(text.strip())
    if match is None or not fnmatch.fnmatchcase(path, match["layer"]):
        return None
    return path + text.strip()[match.end("layer") :]


def _integers(text: str) -> list[int]:
    try:
        return [int(part) for part in text.strip()[1:].split(",")]
    except ValueError:
        raise RecipeError(f"weights {text!r}", "not a list of integers", "write '= -128, 0, 127'") from None


def _masks(net: Artifact, text: str) -> dict[str, Tensor]:
    """{parameter: bool, of its shape}."""
    match = FORM.fullmatch(text.strip())
    if match is None:
        raise RecipeError(f"weights {text!r}", "not a selection", "write 'conv2', 'conv2[0, :]' or 'conv2 core 3'")
    known = {path: module for path, module in layers(net).items() if isinstance(module, WEIGHTED)}
    paths = [path for path in known if fnmatch.fnmatchcase(path, match["layer"])]
    if not paths:
        found = f"no layer {match['layer']!r} with weights"
        raise RecipeError(f"weights {text!r}", found, nearest(match["layer"], set(known)))
    masks: dict[str, Tensor] = {}
    for path in paths:
        name = net.canonical(f"{path}.weight" if path else "weight")
        parameter = net.parameter(name)
        mask = torch.zeros(parameter.shape, dtype=torch.bool)
        mask[_slices(match["slices"], tuple(parameter.shape), text)] = True
        if match["part"]:
            middle = _middle(tuple(parameter.shape), int(match["size"]), text)
            mask &= middle if match["part"] == "core" else ~middle
        if not bool(mask.any()):
            raise RecipeError(f"weights {text!r}", f"none of {name}", "choose at least one")
        masks[name] = mask
    return masks


def _slices(text: str | None, shape: tuple[int, ...], where: str) -> tuple[slice, ...]:
    if text is None:
        return ()
    parts = text.split(",")
    if len(parts) > len(shape):
        raise RecipeError(f"weights {where!r}", f"{len(parts)} slices of {len(shape)} dimensions", f"shape is {shape}")
    found: list[slice] = []
    for part, size in zip(parts, shape, strict=False):
        match = SLICE.fullmatch(part)
        if match is None or not part.strip():
            raise RecipeError(f"weights {where!r}", f"the slice {part.strip()!r}", "write 3, :, 1:4 or 0:8:2")
        first, colon, end, step = match.groups()
        if colon is None:
            index = int(first)
            if not -size <= index < size:
                raise RecipeError(f"weights {where!r}", f"index {index} of {size}", f"use 0 to {size - 1}")
            index %= size
            found.append(slice(index, index + 1))
            continue
        numbers = [None if n is None else int(n) for n in (first, end, step)]
        if numbers[2] is not None and numbers[2] < 0:
            raise RecipeError(f"weights {where!r}", f"step {numbers[2]}", "use a step above 0")
        found.append(slice(*numbers))
    return tuple(found)


def _middle(shape: tuple[int, ...], size: int, where: str) -> Tensor:
    """bool of this shape: the middle of the kernel, `size` along each of its dimensions."""
    kernel = shape[2:]
    if not kernel or size < 1 or any(size > k or (k - size) % 2 for k in kernel):
        found = f"no middle {size} of a kernel of shape {kernel}"
        raise RecipeError(f"weights {where!r}", found, "use a size as odd or even as the kernel's, and not above it")
    mask = torch.zeros(shape, dtype=torch.bool)
    mask[(slice(None), slice(None), *(slice((k - size) // 2, (k + size) // 2) for k in kernel))] = True
    return mask
