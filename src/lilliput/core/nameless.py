"""The header of a file without names: what a graph leaves to be said, and the names that follow from it.

Node k, counted from 1, is the leaf module "k". A tensor is called after the first node that uses it: "k.weight",
"k.running_mean", or "k.0" for its operand 0. The header's value is [input, graph, tensors, activations, counters],
without empty arrays at the end:

- nodes have no place; their field of tensors is null for all roles of the operation, n for the first n of them, both
  from the tensor behind the highest that the nodes before have by roles; or it is an array as in `wiring`;
- a tensor is [slots, shape, codes], without what is missing at the end; null is the shape that follows (`_follows`);
- an activation is [how many nodes behind the one before, bit width, flags, zero point], a counter [type, shape, bytes].

`named` makes it the value of an ordinary header, which is then checked as such; `unnamed` is its inverse.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from lilliput.core.fields import items, number, numbers, shown
from lilliput.core.wiring import CODES, MAX_NODES, OPERATIONS, SUFFIXES, Operation, Wire, Wiring, unpack_wiring

T = TypeVar("T")
FIELDS = range(2, 6)
"""So many fields has the header of such a file."""


def renamed(wiring: Wiring) -> tuple[Wiring, dict[str, str], dict[str, str]]:
    """The graph under the names that follow; of the tensors it uses, in their new order, and its nodes: old to new."""
    tensors: dict[str, str] = {}
    nodes = {"input": "input"}
    wires: list[Wire] = []
    for k, wire in enumerate(wiring.nodes, 1):
        operands = [o if isinstance(o, str) else None for o in wire.operands]
        roles = [wire.tensors.get(role) for role in _operation(wire).roles]
        for end, name in _used(_operation(wire), operands, roles):
            tensors.setdefault(name, f"{k}.{end}")
        wires.append(
            replace(
                wire,
                name=str(k),
                module=str(k),
                operands=tuple(tensors[o] if isinstance(o, str) else o for o in wire.operands),
                tensors={role: tensors[name] for role, name in wire.tensors.items()},
            )
        )
        nodes[wire.name] = str(k)
    return replace(wiring, nodes=tuple(wires)), tensors, nodes


def unnamed(data: Sequence[Any], wiring: Wiring) -> list[Any]:
    """The short value for `data`, that of an ordinary header. Raises ValueError for names that do not follow."""
    _, spec, tensors, counters, activations, _, _, _, graph = data
    positions = {entry[0]: i for i, entry in enumerate(tensors)}
    short = [_trimmed([slots, shape, *codes]) for _, slots, shape, *codes in tensors]
    nodes: list[Any] = []
    seen: set[int] = set()
    for entry, wire in zip(graph[0], wiring.nodes, strict=True):
        operation = _operation(wire)
        code, _, operands, *rest = _padded(_listed(entry), 3 + bool(operation.roles))
        if operation.roles:
            own = [positions.get(wire.tensors.get(role, "")) for role in operation.roles]
            rest[0] = _roles(own, max(seen, default=-1) + 1)
            for i, shape in _follows(operation, own, [entry[2] for entry in tensors]):
                if i not in seen and shape == tensors[i][2]:
                    short[i] = _trimmed([tensors[i][1], None, *tensors[i][3:]])
            seen |= {i for i in own if i is not None}
        fields = _trimmed([code, operands, *rest])
        nodes.append(fields[0] if len(fields) == 1 else fields)
    places = {"input": 0, **{wire.name: k for k, wire in enumerate(wiring.nodes, 1)}}
    at = [0, *(places.get(a[0], -1) for a in activations)]
    behind = [[b - a, *fields] for a, b, (_, *fields) in zip(at, at[1:], activations, strict=False)]
    result = [spec, [nodes, *graph[1:]], short, behind, [entry[1:] for entry in counters]]
    while not result[-1]:
        result.pop()
    full = named(result)
    names = [entry[0] for entry in tensors], [entry[0] for entry in counters]
    if full[1:5] != [spec, tensors, counters, activations] or unpack_wiring(full[8], *names) != wiring:
        raise ValueError("names that do not follow from the graph")
    return result


def named(data: Sequence[Any]) -> list[Any]:
    """The value of an ordinary header for a short one. Raises ValueError where that would have no meaning."""
    spec, graph, tensors, activations, counters = [*data, [], [], []][:5]
    packed, *tail = items(graph) or [None]
    if len(items(packed)) > MAX_NODES:
        raise ValueError(f"a graph of {len(packed)} nodes")
    fields = [_padded(items(entry), 2) for entry in items(tensors)]
    names: dict[int, str] = {}
    nodes: list[Any] = []
    free = 0
    for k, entry in enumerate(packed, 1):
        code, *more = _listed(entry) or [None]
        operation = OPERATIONS[number(code, len(OPERATIONS) - 1)]
        if type(entry) is list and (not more or more[-1] is None):
            raise ValueError(f"{shown(entry)} where a node should be")
        operands, *rest = _padded(more, 1 + bool(operation.roles))
        own: list[int | None] = []
        if operation.roles:
            own = _own(rest[0], operation, free, len(fields))
            rest[0] = [0 if i is None else i + 1 for i in own]
            for i, shape in _follows(operation, own, [entry[1] for entry in fields]):
                fields[i][1] = shape if fields[i][1] is None else fields[i][1]
            free = max([free, *(i + 1 for i in own if i is not None)])
        states = [-1 - o if type(o) is int and o < 0 else None for o in _listed(operands)]
        for end, i in _used(operation, states, own):
            names.setdefault(i, f"{k}.{end}")
        nodes.append(_trimmed([code, str(k), operands, *rest]))
    count = len(fields)
    if len(names) != count + len(items(counters)) or max(names, default=-1) >= len(names):
        raise ValueError(f"{len(names)} tensors of a graph, {count + len(counters)} in the file")
    at, grids = 0, list[Any]()
    for back, *rest in map(items, items(activations)):
        at += number(back, len(nodes))
        grids.append([str(at) if at else "input", *rest])
    return [
        b"",
        spec,
        [[names[i], *entry] for i, entry in enumerate(fields)],
        [[names[count + i], *items(entry)] for i, entry in enumerate(counters)],
        grids,
        [],
        [],
        [],
        [nodes, *tail],
    ]


def _operation(wire: Wire) -> Operation:
    return OPERATIONS[CODES[wire.op]]


def _used(operation: Operation, operands: Sequence[T | None], roles: Sequence[T | None]) -> Iterator[tuple[str, T]]:
    """The tensors of a node in the order of a module that would own them, each with its name there."""
    ends = [str(j) for j, _ in enumerate(operands)], [SUFFIXES[role] for role in operation.roles]
    for end, tensor in zip([*ends[0], *ends[1]], [*operands, *roles], strict=False):
        if tensor is not None:
            yield end, tensor


def _follows(
    operation: Operation, own: Sequence[int | None], shapes: Sequence[list[int] | None]
) -> Iterator[tuple[int, Any]]:
    """Positions of a node's tensors behind its first, and the shapes that follow.

    They are that of the first, or of a layer's weight the first size.
    """
    first, *others = [i for i in own if i is not None] or [0]
    for i in others:
        shape = items(shapes[first])
        yield i, shape[:1] if operation.word in ("conv", "linear") else shape


def _roles(own: Sequence[int | None], free: int) -> Any:
    """The shortest that `_own` reads as `own`."""
    count = sum(i is not None for i in own)
    if count and list(own) == [*range(free, free + count), *[None] * (len(own) - count)]:
        return None if count == len(own) else count
    return _trimmed([0 if i is None else i + 1 for i in own], 0)


def _own(value: Any, operation: Operation, free: int, tensors: int) -> list[int | None]:
    most = len(operation.roles)
    if type(value) is list:
        found: list[int | None] = [i - 1 if i else None for i in numbers(value, tensors)]
    else:
        count = most if value is None else number(value, most, 1)
        found = list(range(free, free + count))
        if free + count > tensors:
            raise ValueError(f"{operation.word} with tensor {free + count} of {tensors}")
    if len(found) > most:
        raise ValueError(f"{len(found)} tensors for {operation.word}")
    return found


def _listed(value: Any) -> list[Any]:
    return list(value) if type(value) is list else [value]


def _padded(values: Sequence[Any], count: int) -> list[Any]:
    return [*values, *[None] * (count - len(values))]


def _trimmed(values: list[Any], nothing: Any = None) -> list[Any]:
    while values and values[-1] == nothing:
        values.pop()
    return values
