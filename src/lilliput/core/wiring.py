"""The graph of a network as data: what a `.lil` file may hold so that it runs without the code of its model.

A `Wiring` is plain: operations by word, their operands, tensors and attributes; `graph.stored` gives it meaning, and
computes every shape anew. Packed it is [nodes], [nodes, outputs] or [nodes, outputs, form], as short as it can be:

- a node is the number of its operation (position in `OPERATIONS`), or [number, place, operands, tensors, attributes...]
  without trailing nulls; operations without roles have no field for tensors;
- operands are distances back (the node before: 1), or -1 - i for tensor i; null is the node before;
- tensors are null (those of the layer that owns the next tensor not yet used), the position of a layer's first tensor,
  or a position + 1 for each role, 0 where it has none;
- attributes stand in the order of the table; null is what follows from the shapes;
- a place says the module and, with that, the name: see `_Names`.

Node 0 is the input; it is not written. Outputs are distances back from the end; null is the last node.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lilliput.core.fields import MAX_RANK, items, number, numbers, shown, text

MAX_NODES, MAX_OPERANDS = 1 << 14, 1 << 10
MAX_EXTENT, MAX_INDEX, MAX_COUNT, MAX_NUMBER = 1 << 16, 1 << 31, 1 << 28, 3.4e38
FORMS = ("tensor", "tuple", "list")
"""What the network returns: its only output as it is, or its outputs in a tuple or list."""

Attribute = int | float | str | tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Operation:
    """A word, its least and most operands, roles of tensors, and the kinds of its attributes, in the file's order.

    Kinds: "sizes" and "pads" are a number for all dimensions or numbers (at least 1, at least 0); "count" (at least 1)
    and "index" a number; "dims" and "shape" numbers; "flag"; "number"; "bound" a number, or False for none; else words,
    a bar between them.
    """

    word: str
    operands: tuple[int, int] = (1, 1)
    roles: tuple[str, ...] = ()
    attributes: Mapping[str, str] = field(default_factory=dict[str, str])


LAYER, AFFINE = ("weight", "bias"), ("weight", "bias", "mean", "variance")
SUFFIXES = {"weight": "weight", "bias": "bias", "mean": "running_mean", "variance": "running_var", "limit": "limit"}
"""What a layer calls the tensor of a role."""

OPERATIONS = (
    Operation(
        word="conv",
        roles=LAYER,
        attributes={
            "stride": "sizes",
            "pads": "pads",
            "dilation": "sizes",
            "groups": "count",
            "transposed": "flag",
            "output_padding": "pads",
        },
    ),
    Operation(word="linear", roles=LAYER),
    Operation(word="relu"),
    Operation(word="add", operands=(2, 2)),
    Operation(
        word="max_pool",
        attributes={"kernel": "sizes", "stride": "sizes", "pads": "pads", "dilation": "sizes", "ceil": "flag"},
    ),
    Operation(
        word="avg_pool",
        attributes={
            "kernel": "sizes",
            "adaptive": "flag",
            "stride": "sizes",
            "pads": "pads",
            "ceil": "flag",
            "count_pad": "flag",
        },
    ),
    Operation(word="reshape", attributes={"shape": "shape"}),
    Operation(word="batch_norm", roles=AFFINE, attributes={"eps": "number"}),
    Operation(word="clamp", attributes={"low": "bound", "high": "bound"}),
    Operation(word="concat", operands=(1, MAX_OPERANDS), attributes={"dim": "index"}),
    Operation(word="slice", attributes={"dim": "index", "step": "count", "start": "index", "stop": "index"}),
    Operation(word="pad", attributes={"pads": "pads", "value": "number"}),
    Operation(word="identity", attributes={"contiguous": "flag"}),
    Operation(word="mean", attributes={"dims": "dims", "keepdim": "flag"}),
    Operation(word="mul", operands=(2, 2)),
    Operation(word="sub", operands=(2, 2)),
    Operation(word="hard_swish"),
    Operation(word="sigmoid"),
    Operation(word="tanh"),
    Operation(word="softmax", attributes={"dim": "index"}),
    Operation(word="upsample_nearest", attributes={"factors": "sizes"}),
    Operation(word="permute", attributes={"order": "dims"}),
    Operation(word="select", attributes={"dim": "index", "index": "index"}),
    Operation(word="gelu", attributes={"approximate": "none|tanh"}),
    Operation(word="elu", attributes={"alpha": "number"}),
    Operation(word="silu"),
    Operation(word="hard_sigmoid"),
    Operation(word="leaky_relu", attributes={"slope": "number"}),
    Operation(word="log_softmax", attributes={"dim": "index"}),
    Operation(word="layer_norm", roles=LAYER, attributes={"dims": "index", "eps": "number"}),
    Operation(word="prelu", roles=("weight",)),
    *(
        Operation(word=f"{word}_scalar", attributes={"value": "number"})
        for word in ("add", "sub", "mul", "div", "rsub", "pow")
    ),
    Operation(word="amax", attributes={"dims": "dims", "keepdim": "flag"}),
    Operation(word="argmax", attributes={"dim": "index", "keepdim": "flag"}),
    Operation(word="selu"),
    Operation(word="celu", attributes={"alpha": "number"}),
    Operation(word="softplus", attributes={"beta": "number", "threshold": "number"}),
    Operation(word="mish"),
    Operation(word="log_sigmoid"),
    Operation(word="hard_shrink", attributes={"lambd": "number"}),
    Operation(word="soft_shrink", attributes={"lambd": "number"}),
    Operation(word="threshold", attributes={"threshold": "number", "value": "number"}),
    *(
        Operation(word=word)
        for word in (
            *("abs", "neg", "square", "sqrt", "rsqrt", "reciprocal", "exp", "expm1", "log", "log1p"),
            *("sin", "cos", "erf"),
        )
    ),
    Operation(
        word="learned_function",
        operands=(1, 2),
        roles=("weight", "limit"),
        attributes={"kind": "table|lerp_psa|psa|cubic", "dim": "index", "points": "count"},
    ),
)
"""An operation's number in files is its position: append only. A word's function is in `graph.semantics`."""

CODES = {operation.word: code for code, operation in enumerate(OPERATIONS)}


@dataclass(frozen=True, kw_only=True)
class Wire:
    """A node: `operands` are earlier nodes by position or tensors by name; `attributes` only what does not follow."""

    name: str
    module: str
    op: str
    operands: tuple[int | str, ...]
    tensors: Mapping[str, str] = field(default_factory=dict[str, str])  # role -> name
    attributes: Mapping[str, Attribute] = field(default_factory=dict[str, Attribute])


@dataclass(frozen=True, kw_only=True)
class Wiring:
    """`nodes` in the order in which they run; position 0 is the input, and the first node has position 1."""

    nodes: tuple[Wire, ...]
    outputs: tuple[int, ...]
    form: str = "tensor"


def pack_wiring(wiring: Wiring, tensors: Sequence[str], counters: Iterable[str]) -> list[Any]:
    """`tensors` and `counters` are the names in the file, in order."""
    names = _Names()
    layers = _Layers(tensors)
    states = {name: -1 - i for i, name in enumerate((*tensors, *counters))}
    nodes: list[Any] = []
    for at, wire in enumerate(wiring.nodes, 1):
        operation = OPERATIONS[CODES[wire.op]]
        operands = [states[o] if isinstance(o, str) else at - o for o in wire.operands]
        fields: list[Any] = [CODES[wire.op], None, None if operands == [1] else _one(operands)]
        if operation.roles:
            fields.append(layers.pack(operation, wire.tensors))
        fields[1] = names.pack(wire, layers.owner)
        for name, kind in operation.attributes.items():
            fields.append(_packed(kind, wire.attributes[name]) if name in wire.attributes else None)
        while fields[-1] is None:
            fields.pop()
        nodes.append(fields[0] if len(fields) == 1 else fields)
        layers.owner = None
    end = len(wiring.nodes)
    outputs = [end - o for o in wiring.outputs]
    tail: list[Any] = [None if outputs == [0] else outputs, FORMS.index(wiring.form) or None]
    while tail and tail[-1] is None:
        tail.pop()
    return [nodes, *tail]


def unpack_wiring(data: Any, tensors: Sequence[str], counters: Iterable[str]) -> Wiring:
    """The graph, as far as it can be checked without shapes. Raises ValueError for what is not well formed."""
    fields = items(data)
    if not 1 <= len(fields) <= 3 or (len(fields) > 1 and fields[-1] is None):
        raise ValueError(f"a graph of {shown(fields[1:])} behind its nodes")
    packed, outputs, form = [*fields, None, None][:3]
    if len(items(packed)) > MAX_NODES:
        raise ValueError(f"a graph of {len(packed)} nodes")
    names = _Names()
    layers = _Layers(tensors)
    states = [*tensors, *counters]
    nodes: list[Wire] = []
    for at, entry in enumerate(packed, 1):
        code, *more = [entry] if type(entry) is int else items(entry) or [None]
        if type(entry) is list and (not more or more[-1] is None):
            raise ValueError(f"{shown(entry)} where a node should be")
        operation = OPERATIONS[number(code, len(OPERATIONS) - 1)]
        layered = bool(operation.roles)
        if len(more) > 2 + layered + len(operation.attributes):
            raise ValueError(f"{len(more)} fields of a node of {operation.word}")
        place, operands, *rest = [*more, *[None] * (3 - len(more))]
        roles = layers.unpack(operation, rest.pop(0)) if layered else {}
        name, module = names.unpack(place, operation.word, layers.owner)
        kinds = zip(operation.attributes.items(), rest, strict=False)
        nodes.append(
            Wire(
                name=name,
                module=module,
                op=operation.word,
                operands=tuple(_operands(operation, operands, at, states)),
                tensors=roles,
                attributes={key: _unpacked(key, kind, v) for (key, kind), v in kinds if v is not None},
            )
        )
        layers.owner = None
    clash = {wire.name for wire in nodes} & set(states)
    if clash:
        raise ValueError(f"{shown(min(clash))} is a node and a tensor")
    ends = [0] if outputs is None else numbers(outputs, len(nodes))
    if not 1 <= len(ends) <= MAX_OPERANDS:
        raise ValueError(f"a graph of {len(ends)} outputs")
    return Wiring(
        nodes=tuple(nodes),
        outputs=tuple(len(nodes) - o for o in ends),
        form=FORMS[0 if form is None else number(form, len(FORMS) - 1, 1)],
    )


def _one(values: list[int]) -> Any:
    """A number for one operand, a list for several."""
    return values[0] if len(values) == 1 else values


def _operands(operation: Operation, value: Any, at: int, states: list[str]) -> Iterator[int | str]:
    found = [1] if value is None else value if type(value) is list else [value]
    least, most = operation.operands
    if not least <= len(found) <= most:
        raise ValueError(f"{len(found)} operands for {operation.word}")
    for back in found:
        if number(back, at, -len(states)) == 0:
            raise ValueError("an operand that is the node itself")
        yield at - back if back > 0 else states[-1 - back]


def _packed(kind: str, value: Any) -> Any:
    if "|" in kind:
        return kind.split("|").index(value)
    return list(value) if isinstance(value, tuple) else value


def _unpacked(key: str, kind: str, value: Any) -> Attribute:
    if kind in ("sizes", "pads"):
        least = 1 if kind == "sizes" else 0
        if type(value) is not list:
            return number(value, MAX_EXTENT, least)
        found = numbers(value, MAX_EXTENT, least)
    elif kind in ("dims", "shape"):
        found = numbers(value, MAX_RANK if kind == "dims" else MAX_COUNT, 1)
    elif kind in ("count", "index"):
        return number(value, MAX_INDEX, int(kind == "count"))
    elif kind == "flag" or (kind == "bound" and value is False):
        if type(value) is not bool:
            raise ValueError(f"{shown(value)} where {key} is yes or no")
        return value
    elif kind in ("number", "bound"):
        if type(value) not in (int, float) or not abs(value) <= MAX_NUMBER:  # so is NaN
            raise ValueError(f"{shown(value)} where {key} is a number")
        return value
    else:
        words = kind.split("|")
        return words[number(value, len(words) - 1)]
    if len(found) > 2 * MAX_RANK:
        raise ValueError(f"{shown(value)} as {key}")
    return tuple(found)


class _Layers:
    """Which tensors a layer has: those that share the path of its first one, which is the next that is not used yet.

    `owner` is the path of the last layer that was read or written.
    """

    def __init__(self, tensors: Sequence[str]) -> None:
        self.tensors, self.positions = tensors, {name: i for i, name in enumerate(tensors)}
        self.next = 0
        self.owner: str | None = None

    def unpack(self, operation: Operation, value: Any) -> dict[str, str]:
        if type(value) is list:
            if len(value) > len(operation.roles):
                raise ValueError(f"{len(value)} tensors for {operation.word}")
            chosen = [number(i, len(self.tensors)) for i in value]
            found = {role: self.tensors[i - 1] for role, i in zip(operation.roles, chosen, strict=False) if i}
        else:
            first = self.next if value is None else number(value)
            if first >= len(self.tensors):
                raise ValueError(f"{operation.word} with tensor {first} of {len(self.tensors)}")
            found = self._of(operation, first)
            if not found:
                raise ValueError(f"{shown(self.tensors[first])} as a tensor of {operation.word}")
        if found:
            self.next = max(self.positions[name] for name in found.values()) + 1
            last = found.get("bias") or next(iter(found.values()))  # a tied weight has another layer's name
            self.owner = last.rpartition(".")[0]
        return found

    def pack(self, operation: Operation, wanted: Mapping[str, str]) -> Any:
        """The shortest that `unpack` reads as `wanted`."""
        first = min((self.positions[name] for name in wanted.values()), default=0)
        full = [self.positions[wanted[role]] + 1 if role in wanted else 0 for role in operation.roles]
        while full and not full[-1]:
            full.pop()
        default = self.next < len(self.tensors) and self._of(operation, self.next) == wanted
        same = bool(wanted) and self._of(operation, first) == wanted
        value = None if default and wanted else first if same else full
        self.unpack(operation, value)
        return value

    def _of(self, operation: Operation, first: int) -> dict[str, str]:
        path, dot, suffix = self.tensors[first].rpartition(".")
        names = {role: f"{path}{dot}{SUFFIXES[role]}" for role in operation.roles}
        if suffix not in {SUFFIXES[role] for role in operation.roles}:
            return {}
        return {role: name for role, name in names.items() if name in self.positions}


class _Names:
    """Names follow from places: a module's path where a leaf module runs one operation, else path/word.

    A second "fc" is "fc#1", a second "block/add" is "block/add_1". The place of a node is told from the one before it,
    whose *scope* is the path above a leaf module, and the path itself for other code:

    - null: the path of the layer's tensors; without tensors, after a leaf module with a number the next number; else
      code in the scope;
    - a number k: 0 is code in the scope, k > 0 the leaf module k numbers further;
    - -u: code u levels above the scope; a text: the leaf module of this name in the scope;
    - [u, text], [u, text, code], [u, text, code, name]: u levels above the scope and down the path `text`; a leaf
      module, or with `code` true other code; with a name that does not follow.
    """

    def __init__(self) -> None:
        self.path, self.leaf = "", False
        self.taken: Counter[str] = Counter()
        self.used: set[str] = {"input"}

    @property
    def scope(self) -> str:
        return self.path.rpartition(".")[0] if self.leaf else self.path

    def pack(self, wire: Wire, owner: str | None) -> Any:
        leaf = bool(wire.module) and (wire.name == wire.module or wire.name.startswith(f"{wire.module}#"))
        for place in self._candidates(wire, leaf=leaf):
            try:
                follows = self._place(place, wire.op, owner)
            except ValueError:
                continue
            if follows[:2] == (wire.module, leaf) and follows[2] == wire.name:
                self.unpack(place, wire.op, owner)
                return place
        raise ValueError(f"the name {shown(wire.name)} of a node")

    def _candidates(self, wire: Wire, *, leaf: bool) -> Iterator[Any]:
        """The last one always fits."""
        yield None
        up, left = 0, self.scope
        while left and not f"{wire.module}.".startswith(f"{left}."):
            up, left = up + 1, left.rpartition(".")[0]
        down = wire.module.removeprefix(left).removeprefix(".")
        last, before = wire.module.rpartition(".")[2], self.path.rpartition(".")[2]
        if leaf and _is_number(last) and _is_number(before) and int(last) > int(before):
            yield int(last) - int(before)
        if not leaf and not down:
            yield -up
        if leaf and not up:
            yield down
        yield [up, down]
        yield [up, down, True]
        yield [up, down, not leaf, wire.name]

    def unpack(self, place: Any, word: str, owner: str | None) -> tuple[str, str]:
        """(name, module) of the next node."""
        path, leaf, name = self._place(place, word, owner)
        if text(name) in self.used:
            raise ValueError(f"the name {shown(name)} appears twice")
        self.used.add(name)
        self.taken[self._base(path, word, leaf=leaf)] += 1
        self.path, self.leaf = text(path), leaf
        return name, path

    def _base(self, path: str, word: str, *, leaf: bool) -> str:
        return path if leaf else f"{path}/{word}" if path else word

    def _place(self, place: Any, word: str, owner: str | None) -> tuple[str, bool, str]:
        """(path, is it a leaf module, name)."""
        name: Any = None
        up, down, leaf = 0, "", False
        before = self.path.rpartition(".")[2]
        if place is None and owner is not None:
            return self._named(owner, word, leaf=bool(owner))
        if place is None and self.leaf and _is_number(before):
            place = 1
        if type(place) is int and place > 0:
            if not _is_number(before):
                raise ValueError(f"a node {place} numbers after {shown(self.path)}")
            above = self.path.removesuffix(before)
            return self._named(f"{above}{int(before) + number(place, MAX_EXTENT)}", word, leaf=True)
        if type(place) is int:
            up = -number(place, 0, -MAX_EXTENT)
        elif type(place) is str:
            down, leaf = place, True
        elif place is not None:
            fields = items(place)
            if not 2 <= len(fields) <= 4 or (len(fields) > 2 and type(fields[2]) is not bool):
                raise ValueError(f"{shown(place)} where a place should be")
            up, down, leaf = number(fields[0], MAX_EXTENT), text(fields[1]), not (len(fields) > 2 and fields[2])
            name = text(fields[3]) if len(fields) > 3 else None
        scope = self.scope
        for _ in range(up):
            if not scope:
                raise ValueError("a node above the network")
            scope = scope.rpartition(".")[0]
        path = f"{scope}.{down}" if scope and down else scope or down
        if leaf and not path:
            raise ValueError("a leaf module without a path")
        return (path, leaf, name) if name is not None else self._named(path, word, leaf=leaf)

    def _named(self, path: str, word: str, *, leaf: bool) -> tuple[str, bool, str]:
        base = self._base(path, word, leaf=leaf)
        count = self.taken[base]
        return path, leaf, base if count == 0 else f"{base}{'#' if leaf else '_'}{count}"


def _is_number(part: str) -> bool:
    return part.isascii() and part.isdigit() and len(part) < 10 and str(int(part)) == part
