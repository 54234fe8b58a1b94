"""Calls of activation functions in a network's own code, and learned activations in their place.

`F.relu(x)` is no module that could be replaced. So the network's `forward` runs with somebody watching: calls are
counted as they come, and those in `ROUTES` go to modules instead. Learned activations count too, wherever they are:
the number of a call does not depend on what else was replaced, nor on the order of edits.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

FUNCTIONS: dict[Callable[..., Any], str] = {
    **dict.fromkeys((F.relu, F.relu_, torch.relu, torch.relu_, Tensor.relu, Tensor.relu_), "relu"),
    F.gelu: "gelu",
    F.silu: "silu",
    F.hardswish: "hard_swish",
}
"""What is counted, and its word in a graph."""
ROUTES = "_routes"
"""The attribute of a network that says which calls go to which modules: {number: path}."""


class _Watch(TorchFunctionMode):
    def __init__(self, routes: dict[int, Callable[[Tensor], Tensor]]) -> None:
        super().__init__()
        self.routes, self.words = routes, list[str]()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        word = FUNCTIONS.get(func)
        if word is not None:
            found = self.routes.get(len(self.words))
            if found is not None:
                return found(args[0] if args else kwargs["input"])  # which counts itself
            self.words.append(word)
        return func(*args, **(kwargs or {}))


_WATCH: ContextVar[_Watch | None] = ContextVar("_WATCH", default=None)


@contextmanager
def _watched(network: nn.Module) -> Iterator[_Watch]:
    watch = _Watch({number: network.get_submodule(path) for number, path in routes_of(network).items()})
    token = _WATCH.set(watch)
    try:
        with watch:
            yield watch
    finally:
        _WATCH.reset(token)


def count_() -> None:
    """A learned activation runs."""
    watch = _WATCH.get()
    if watch is not None:
        watch.words.append("learned_function")


def calls_of(network: nn.Module, *args: Tensor) -> list[str]:
    """The words of all calls for these inputs, in order, learned activations among them."""
    with _watched(network) as watch:
        type(network).forward(network, *args)
    return watch.words


def routes_of(network: nn.Module) -> dict[int, str]:
    return vars(network).get(ROUTES, {})


def route_(network: nn.Module, number: int, path: str) -> None:
    """From now on, call `number` of the network's forward goes to its module `path`."""
    vars(network)[ROUTES] = {**routes_of(network), number: path}
    vars(network)["forward"] = MethodType(_forward, network)  # a copy of the network gets one of its own


def _forward(network: nn.Module, *args: Any, **keywords: Any) -> Any:
    with _watched(network):
        return type(network).forward(network, *args, **keywords)
