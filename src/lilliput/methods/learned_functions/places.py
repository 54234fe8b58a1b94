"""Where activations are in a network's module tree and code, and the edits that put learned functions there."""

import copy
from collections import Counter
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from lilliput.core.artifact import Artifact
from lilliput.core.calls import FUNCTIONS, calls_of
from lilliput.core.edits import Replace, ReplaceCall
from lilliput.core.errors import RecipeError
from lilliput.core.learned_activation import LearnedActivation
from lilliput.graph.trace import Graph, graph_of

MODULES = (nn.ReLU, nn.GELU, nn.SiLU, nn.Hardswish)
WORDS = tuple(dict.fromkeys(FUNCTIONS.values()))
CHILD = "learned"


def replaced(
    net: Artifact, graph: Graph, structures: Mapping[str, Mapping[str, Any]]
) -> tuple[Artifact, dict[str, LearnedActivation]]:
    """A copy of the artifact in which learned functions of these structures compute these nodes, and the modules.

    A module that is called once is replaced; a call in code, or one of several of a module, goes to a new module.
    Raises `RecipeError` where the network's code cannot be followed.
    """
    candidate = net.copy()
    module = candidate.module
    counted = [node for node in graph.nodes if node.op in (*WORDS, "learned_function")]
    in_code = False
    example = net.input.example(2).to(net.device)
    with torch.no_grad():
        words = calls_of(module, example)
    if words != [node.op for node in counted]:
        raise _unclear("its code calls activations that its graph does not have")
    calls = Counter(id(module.get_submodule(node.module)) for node in counted if node.module)
    modules: dict[str, LearnedActivation] = {}
    for number, node in enumerate(counted):
        if node.name not in structures:
            continue
        owner = module.get_submodule(node.module)
        alone = isinstance(owner, MODULES) and calls[id(owner)] == 1
        path = node.module if alone else _free(module, node.module)
        settings = structures[node.name]
        edit = (
            Replace(path=path, cls="LearnedActivation", settings=settings)
            if alone
            else ReplaceCall(number=number, path=path, cls="LearnedActivation", settings=settings)
        )
        in_code = in_code or not alone
        edit.replay_(module)
        candidate.edits.append(edit)
        new = module.get_submodule(path)
        if isinstance(new, LearnedActivation):
            modules[node.name] = new.to(net.device)
    if in_code:
        _check_training(module, words, example)
    _check_graph(graph, graph_of(candidate), set(structures))
    return candidate, modules


def _free(module: nn.Module, path: str) -> str:
    """A path for a new module inside `path`."""
    owner = module.get_submodule(path)
    taken = {*dir(owner), *owner._modules}
    name, count = CHILD, 0
    while name in taken:
        count += 1
        name = f"{CHILD}_{count}"
    return f"{path}.{name}" if path else name


def _check_training(module: nn.Module, words: list[str], example: torch.Tensor) -> None:
    """Calls are known by their number: in training they must be the same ones."""
    trained = copy.deepcopy(module).train()
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        try:
            found = calls_of(trained, example)
        except Exception as error:
            raise _unclear(f"in training mode it stops ({' '.join(str(error).split())[:120]})") from error
    if len(found) != len(words):
        raise _unclear("it calls other activations in training than in evaluation")


def _check_graph(before: Graph, after: Graph, chosen: set[str]) -> None:
    """The same operations on the same values, but for the chosen ones."""
    names = {old.name: new.name for old, new in zip(before.nodes, after.nodes, strict=False)}
    same = len(before.nodes) == len(after.nodes)
    for old, new in zip(before.nodes, after.nodes, strict=False):
        same = same and new.op == ("learned_function" if old.name in chosen else old.op)
        same = same and new.inputs == tuple(names[name] for name in old.inputs)
    if not same:
        raise _unclear("an activation that works in place is read under its old name")


def _unclear(found: str) -> RecipeError:
    return RecipeError("replace_activations", found, "use modules such as nn.ReLU, or skip the activation")
