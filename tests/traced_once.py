"""One trace for all networks of one structure, in all tests: `torch.export` takes longer than most of what they do.

The copies of an artifact share what they know of its structure; here networks do that are built anew, too. Whatever
`forward` can read besides weights is in the key: classes, attributes, which tensors are one, the form of the input.
What calls `trace` itself, as tests of tracing do, traces anew.
"""

from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn

from lilliput.graph.trace import Graph, trace

_OF_ALL_MODULES = frozenset(vars(nn.Module()))


class TracedOnce:
    """Stands for `trace` where `graph_of` looks it up."""

    def __init__(self) -> None:
        self.graphs: dict[Any, Graph] = {}

    def __call__(self, model: nn.Module, example: Tensor) -> Graph:
        key = structure(model, example)
        if key not in self.graphs:
            self.graphs[key] = trace(model, example)
        return self.graphs[key]


def structure(model: nn.Module, example: Tensor) -> tuple[Any, ...]:
    """Equal for two networks only if they have the same graph."""
    first: dict[int, int] = {}
    modules = tuple(
        (path, first.setdefault(id(m), len(first)), type(m), *((n, _plain(v)) for n, v in own(m)))
        for path, m in model.named_modules(remove_duplicate=False)
    )
    state = model.state_dict(keep_vars=True)
    tensors = tuple((n, first.setdefault(id(t), len(first)), *_form(t)) for n, t in state.items())
    constants = tuple((n, _plain(b)) for n, b in model.named_buffers(remove_duplicate=False) if n not in state)
    return modules, tensors, constants, _form(example)


def own(module: nn.Module) -> list[tuple[str, Any]]:
    return [(name, value) for name, value in vars(module).items() if name not in _OF_ALL_MODULES]


def _form(t: Tensor) -> tuple[torch.Size, torch.dtype, torch.device]:
    return t.shape, t.dtype, t.device


def _plain(value: Any) -> Any:
    if isinstance(value, Tensor):
        return (*_form(value), str(value.tolist()))
    if isinstance(value, FunctionType):
        cells = tuple(_plain(cell.cell_contents) for cell in value.__closure__ or ())
        return value.__code__, repr(value.__defaults__), cells
    return value if callable(value) else repr(value)
