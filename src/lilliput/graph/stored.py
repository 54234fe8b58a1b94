"""A network that runs without the code of its model: from a graph to the `Wiring` of a file, and back.

Shapes and all that follows from them (the kernel of a convolution, the length of a flattened image) are not stored:
`graph.attributes` finds them again, for a writer as for a reader. Every shape is computed on torch's meta device, which
has no memory: a file cannot ask for any before its graph is known to fit together.
"""

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lilliput.core import container
from lilliput.core.artifact import Artifact, InputSpec
from lilliput.core.container import Contents
from lilliput.core.encoding import Encoding
from lilliput.core.errors import ArtifactError, LilliputError, UnsupportedError, UsageError
from lilliput.core.fields import shown
from lilliput.core.files import write_atomically
from lilliput.core.learned_activation import check_owner
from lilliput.core.nameless import renamed
from lilliput.core.wiring import CODES, MAX_COUNT, OPERATIONS, Wire, Wiring, pack_wiring, unpack_wiring
from lilliput.graph.attributes import Shape, completed, given
from lilliput.graph.integer import fusions
from lilliput.graph.semantics import RULES
from lilliput.graph.trace import Graph, Node, Ref, StoredNetwork, graph_of, operands
from lilliput.ops.learned_function import points_of

Tensors = Mapping[str, Tensor]

RESULTS: dict[str, Callable[[tuple[Any, ...]], Any]] = {"tuple": tuple, "list": list}
MAX_DEPTH, MAX_MODULES = 64, 1 << 15
"""Of the modules that hold the tensors."""


# --- from a wiring to a graph ----------------------------------------------------------------------------------------


def graph_from(wiring: Wiring, tensors: Mapping[str, Tensor], shape: Shape) -> Graph:
    """The graph that a file holds, for inputs of this shape (without the batch); `tensors` on the meta device.

    Raises ValueError for a graph that does not fit together.
    """
    names = ["input", *(wire.name for wire in wiring.nodes)]
    values = [torch.empty((1, *shape), device="meta")]
    nodes = [Node(name="input", op="input", inputs=(), shape=(1, *shape), module="", target="input", source="")]
    for wire in wiring.nodes:
        try:
            node, value = _node(wire, names, values, tensors)
        except Exception as error:
            raise ValueError(f"node {shown(wire.name)}: {' '.join(str(error).split())[:200]}") from error
        nodes.append(node)
        values.append(value)
    outputs = tuple(names[o] for o in wiring.outputs)
    if wiring.form == "tensor":
        if len(outputs) != 1:
            raise ValueError(f"a tensor of {len(outputs)} outputs")
        return Graph(nodes=tuple(nodes), inputs=("input",), outputs=outputs)
    return Graph(nodes=tuple(nodes), inputs=("input",), outputs=outputs, result=RESULTS[wiring.form])


def _node(
    wire: Wire, names: Sequence[str], values: Sequence[Tensor], tensors: Mapping[str, Tensor]
) -> tuple[Node, Tensor]:
    found = [tensors[o] if isinstance(o, str) else values[o] for o in wire.operands]
    state = {role: tensors[name] for role, name in wire.tensors.items()}
    if wire.op == "learned_function" and len(found) > 1:
        state["owner"] = _owner(wire, found[1])
    joins = OPERATIONS[CODES[wire.op]].operands[1] > 1
    if any(
        not t.is_floating_point() and not (joins and isinstance(o, str))
        for o, t in zip(wire.operands, found, strict=True)
    ):
        raise ValueError(f"{wire.op} of integers")
    first = tuple(found[0].shape)
    attributes = completed(wire.op, wire.attributes, first, tuple(state["weight"].shape) if "weight" in state else ())
    _check_tensors(wire.op, first, attributes, {role: tuple(t.shape) for role, t in state.items()})
    with torch.no_grad():
        value = RULES[wire.op](found, state, attributes)
    if value.numel() > MAX_COUNT or value.numel() == 0:
        raise ValueError(f"a value of shape {tuple(value.shape)}")
    if value.dtype != (torch.int64 if wire.op == "argmax" else torch.float32):
        raise ValueError(f"a value of {value.dtype}")
    refs = [Ref(o if isinstance(o, str) else names[o]) for o in wire.operands]
    own = {o: o for o in wire.operands if isinstance(o, str)}
    node = Node(
        name=wire.name,
        op=wire.op,
        inputs=tuple(names[o] for o in wire.operands if isinstance(o, int)),
        state=_named_state(wire) if OPERATIONS[CODES[wire.op]].roles else own,
        attributes=attributes,
        shape=tuple(value.shape),
        module=wire.module,
        target=wire.op,
        source="",
        arguments=(refs,) if wire.op == "concat" else tuple(refs),
    )
    return node, value


def _owner(wire: Wire, tensor: Tensor) -> Tensor:
    if not isinstance(wire.operands[1], str) or tensor.is_floating_point() or tensor.dtype == torch.bool:
        raise ValueError("functions of channels by something else than a counter")
    return tensor


def _named_state(wire: Wire) -> dict[str, str]:
    """The names of a node's tensors by role: which function each channel has is an operand in files."""
    if wire.op == "learned_function" and len(wire.operands) > 1:
        return {**wire.tensors, "owner": str(wire.operands[1])}
    return dict(wire.tensors)


NEEDED = {
    **dict.fromkeys(("conv", "linear", "prelu"), ("weight",)),
    "batch_norm": ("mean", "variance"),
    "learned_function": ("weight", "limit"),
}
"""Roles that a word cannot do without."""


def _check_tensors(word: str, x: Shape, a: Mapping[str, Any], state: Mapping[str, Shape]) -> None:
    """Torch does not check all of them on the meta device."""
    if any(role not in state for role in NEEDED.get(word, ())):
        raise ValueError(f"{word} without {' and '.join(NEEDED[word])}")
    wanted: dict[str, Shape] = {}
    if word == "conv":
        w, groups = state["weight"], a["groups"]
        outputs = w[1] * groups if a["transposed"] else w[0]
        wanted = {"bias": (outputs,)}
        inputs = w[0] if a["transposed"] else w[1] * groups
        if inputs != x[1] or (w[0] % groups):
            raise ValueError(f"a weight of shape {w} in {groups} groups on a value of shape {x}")
    elif word == "linear":
        w = state["weight"]
        if len(w) != 2 or w[1] != x[-1] or len(x) < 2:
            raise ValueError(f"a weight of shape {w} on a value of shape {x}")
        wanted = {"bias": (w[0],)}
    elif word == "batch_norm":
        wanted = dict.fromkeys(state, (x[1],))
    elif word == "layer_norm":
        wanted = dict.fromkeys(state, x[-a["dims"] :])
    elif word == "learned_function":
        wanted = _check_functions(x, a, state)
    elif word == "prelu" and state["weight"] not in ((1,), x[1:2]):
        raise ValueError(f"a weight of shape {state['weight']} on a value of shape {x}")
    for role, shape in wanted.items():
        if role in state and state[role] != shape:
            raise ValueError(f"a {role} of shape {state[role]} on a value of shape {x}")


def _check_functions(x: Shape, a: Mapping[str, Any], state: Mapping[str, Shape]) -> dict[str, Shape]:
    """The shapes that tensors of learned functions must have."""
    w, channels = state["weight"], x[a["dim"]]
    if "owner" not in state and channels % w[0]:
        raise ValueError(f"functions of shape {w} on a value of shape {x}")
    if "owner" in state:  # each channel gets its points while it runs
        points_of(a["kind"], channels, w[1], a["points"])
    return {"owner": (channels,)} | ({} if state["limit"] == (1,) else {"limit": w[:1]})


# --- from a graph to a wiring ----------------------------------------------------------------------------------------


def wiring_of(artifact: Artifact, graph: Graph | None = None) -> Wiring:
    """The graph of the artifact as a file holds it. Raises `UnsupportedError` where it cannot, with the reason.

    What is given back has been made into a graph again, and is the same.
    """
    try:
        return _wiring(artifact, graph_of(artifact) if graph is None else graph)
    except (ValueError, LilliputError) as error:
        found = error.found if isinstance(error, LilliputError) else str(error)
        raise UnsupportedError("store the graph", found, "load the file with the model's code") from error


def _wiring(artifact: Artifact, graph: Graph) -> Wiring:
    if len(graph.inputs) != 1:
        raise ValueError(f"the network has {len(graph.inputs)} inputs")
    state = artifact.module.state_dict(keep_vars=True)
    tensors = {name: torch.empty_like(state[name], device="meta") for name in artifact.stored()}
    counters = {name: torch.empty_like(t, device="meta") for name, t in artifact.counters().items()}
    meta, names = {**tensors, **counters}, (list(tensors), list(counters))
    kept = _read(graph)
    places = {name: at for at, name in enumerate([graph.inputs[0], *(node.name for node in kept)])}
    wires: list[Wire] = []
    for node in kept:
        if node.op not in CODES:
            raise ValueError(f"{node.name!r} is {node.target}, which has no word in the format")
        roles = dict(node.state) if OPERATIONS[CODES[node.op]].roles else {}
        owner = roles.pop("owner", None)  # a counter: in files it is an operand
        refs = operands(node) if owner is None else [*operands(node), Ref(owner)]
        first = refs[0].name
        x = graph[first].shape if first in places else tuple(meta[first].shape)
        w = tuple(meta[roles["weight"]].shape) if "weight" in roles else ()
        wires.append(
            Wire(
                name=node.name,
                module=node.module,
                op=node.op,
                operands=tuple(places.get(ref.name, ref.name) for ref in refs),
                tensors=roles,
                attributes=given(node.op, node.attributes, x, w),
            )
        )
    wiring = Wiring(nodes=tuple(wires), outputs=tuple(places[name] for name in graph.outputs), form=_form(graph))
    if unpack_wiring(pack_wiring(wiring, *names), *names) != wiring:
        raise ValueError("it does not come back as it was")
    again = network_from(wiring, tensors, counters, artifact.input.shape, artifact.encodings).graph
    same = fusions(again) == fusions(graph)
    for node in kept if same else ():
        other = again[node.name]
        if (node.shape, dict(node.attributes), dict(node.state)) != (other.shape, other.attributes, other.state):
            raise ValueError(f"{node.name!r} does not come back as it was")
    if not same:
        raise ValueError("a layer and its relu do not come back as they were")
    return wiring


def _read(graph: Graph) -> list[Node]:
    """The nodes that the outputs need, without the input: sizes that a reshape knows are left out."""
    needed, kept = set(graph.outputs), list[Node]()
    for node in reversed(graph.nodes):
        if node.name in needed and node.op != "input":
            kept.append(node)
            needed |= {ref.name for ref in operands(node)} if node.op in RULES else set(node.inputs)
    return kept[::-1]


def _form(graph: Graph) -> str:
    marks = tuple(object() for _ in graph.outputs)
    result = graph.result(marks)
    if len(marks) == 1 and result is marks[0]:
        return "tensor"
    for form, make in RESULTS.items():
        if type(result) is make and tuple(result) == marks:
            return form
    raise ValueError(f"the network returns a {type(result).__name__} of several things")


# --- networks --------------------------------------------------------------------------------------------------------


def stored_artifact(contents: Contents, source: str = "the file") -> Artifact:
    """The network of a file from its own graph. Raises `ArtifactError` where it has none, or one that does not fit."""
    asked = f"load {source}"
    if contents.wiring is None:
        raise ArtifactError(asked, "no graph in the file", "give the module: ll.load(path, into=...) or --into")
    try:
        artifact = _assembled(contents.wiring, contents.tensors, contents.counters, contents.input)
    except ValueError as error:
        raise ArtifactError(asked, f"the contents are not well formed ({error})", "make the file again") from error
    artifact.activations = dict(contents.activations)
    artifact.edits, artifact.recipe = list(contents.edits), list(contents.recipe)
    artifact.origin = contents.origin
    return artifact


def _assembled(wiring: Wiring, stored: Mapping[str, Encoding], counters: Tensors, spec: InputSpec) -> Artifact:
    """The network with these tensors. Raises ValueError where they do not fit together."""
    tensors = {name: torch.empty(e.shape, device="meta") for name, e in stored.items()}
    states = {name: torch.empty_like(t, device="meta") for name, t in counters.items()}
    encodings = {name: e for name, e in stored.items() if not e.is_plain}
    network = network_from(wiring, tensors, states, spec.shape, encodings)
    for name, e in stored.items():
        put_(network, name, e.decode().clone())
    for name, value in counters.items():
        put_(network, name, value.clone())
    for node in network.graph.nodes:
        if node.op == "learned_function" and "owner" in node.state:
            check_owner(counters[node.state["owner"]], stored[node.state["weight"]].shape[0])
    return Artifact(module=network.eval(), input=spec, encodings=encodings)


def network_from(
    wiring: Wiring, tensors: Tensors, counters: Tensors, shape: Shape, encoded: Iterable[str] = ()
) -> StoredNetwork:
    """The network with these tensors, on the meta device; statistics and counters become buffers, the rest parameters.

    Raises ValueError where graph, names and shapes do not fit together, or where one of `encoded` is a buffer.
    """
    _check_names([*tensors, *counters])
    network = StoredNetwork(graph_from(wiring, {**tensors, **counters}, shape))
    measured = ("mean", "variance", "limit")
    statistics = {name for wire in wiring.nodes for role, name in wire.tensors.items() if role in measured}
    for name, tensor in (*tensors.items(), *counters.items()):
        learned = name in tensors and name not in statistics
        put_(network, name, nn.Parameter(tensor) if learned else tensor)
    found = list(network.state_dict())
    if [n for n in found if n in tensors] != list(tensors) or [n for n in found if n in counters] != list(counters):
        raise ValueError("tensors that do not stand in the order of a module tree")
    if odd := statistics.intersection(encoded):
        raise ValueError(f"{shown(min(odd))} is no parameter, and not plain")
    return network


def put_(network: nn.Module, name: str, tensor: Tensor) -> None:
    """Under this name, in plain modules of which as many are made as it takes. A parameter stays one."""
    *path, last = name.split(".")
    owner = network
    for part in path:
        if part not in owner._modules:
            owner.add_module(part, nn.Module())
        owner = owner.get_submodule(part)
    if isinstance(tensor, nn.Parameter) or last in owner._parameters:
        owner.register_parameter(last, nn.Parameter(tensor.detach()))
    else:
        owner.register_buffer(last, tensor)


def _check_names(names: Iterable[str]) -> None:
    """Can these be the names of tensors in modules?"""
    reserved = {*dir(nn.Module()), "graph", "_graph", ""}
    root: dict[str, Any] = {}
    modules = 0
    for name in names:
        parts = name.split(".")
        if len(parts) > MAX_DEPTH or not reserved.isdisjoint(parts):
            raise ValueError(f"{shown(name)} as the name of a tensor")
        here = root
        for part in parts[:-1]:
            modules += part not in here
            here = here.setdefault(part, {})
            if not isinstance(here, dict) or modules > MAX_MODULES:
                raise ValueError(f"{shown(name)} as the name of a tensor")
        if here.setdefault(parts[-1], name) is not name:
            raise ValueError(f"{shown(name)} as the name of a tensor and of a module")


# --- files -----------------------------------------------------------------------------------------------------------


def dumps(artifact: Artifact, *, strip: bool = False, names: bool = True) -> bytes:
    """The bytes of a file that holds the graph, where it can; `strip` leaves out graph, recipe and labels.

    Without `names` the file holds graph and tensors alone, and is the smallest: it runs everywhere, and cannot be put
    into a module. Raises `UnsupportedError` where the graph cannot be stored. What was loaded from such a file becomes
    one again.
    """
    if strip and not names:
        raise UsageError("write a .lil file", "strip and no names", "give one: without names the graph has to be there")
    if not names or (not artifact.origin and not strip):
        bare, wiring = _nameless(artifact)
        return container.dumps(bare, wiring=wiring, names=False)
    return container.dumps(artifact, strip=strip, wiring=None if strip else _graph_or_reason(artifact)[0])


def save(artifact: Artifact, path: str | os.PathLike[str], *, strip: bool = False, names: bool = True) -> int:
    """Write such a file (whole or not at all); returns its size in bytes."""
    data = dumps(artifact, strip=strip, names=names)
    write_atomically(path, data)
    return len(data)


def why_no_graph(artifact: Artifact) -> str:
    """Why a file of this network cannot hold its graph; "" where it can."""
    return _graph_or_reason(artifact)[1]


def _graph_or_reason(artifact: Artifact) -> tuple[Wiring | None, str]:
    try:
        return wiring_of(artifact), ""
    except UnsupportedError as error:
        return None, error.found


def _nameless(artifact: Artifact) -> tuple[Artifact, Wiring]:
    """The network as it comes back from a file without names, and its graph."""
    wiring, tensors, nodes = renamed(wiring_of(artifact))
    stored, counters = artifact.stored(), artifact.counters()
    grids = {nodes[name]: grid for name, grid in artifact.activations.items() if name in nodes}
    network = _assembled(
        wiring,
        {new: stored[name] for name, new in tensors.items() if name in stored},
        {new: counters[name] for name, new in tensors.items() if name in counters},
        artifact.input,
    )
    network.activations = {name: grids[name] for name in nodes.values() if name in grids}
    return network, wiring
