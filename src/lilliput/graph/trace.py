"""One trace of a network: what runs, in which order, on what shapes.

`torch.export` records the operations; this file gives them stable names, the field's words, and the attributes that
measuring, quantizing and exporting need. Everything that reads a network's structure reads this `Graph`.
"""

import io
import logging
import operator
import warnings
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from lilliput.core.artifact import Artifact
from lilliput.core.edits import fingerprint
from lilliput.core.errors import UnsupportedError, UsageError
from lilliput.graph.operators import FIRST, OPERATORS, functional_form, is_view
from lilliput.graph.semantics import RULES


@dataclass(frozen=True)
class Ref:
    """Stands for the value of a node or of a state tensor inside a recorded call."""

    name: str


@dataclass(frozen=True, kw_only=True)
class Node:
    """One operation.

    `name` is the module's path where a leaf module runs one operation ("layer1.0.conv1"; "fc#1" for the second call
    of a shared one), else path/operation ("layer1.0/add", "layer1.0/relu_1"). `shape` is the output's with the batch
    of the example. `op` is a word of `operators.OPERATORS`, or "other" ("several" for several results, "scalar"
    for a number) for what Lilliput only passes on.
    """

    name: str
    op: str
    inputs: tuple[str, ...]
    state: Mapping[str, str] = field(
        default_factory=dict[str, str]
    )  # role -> parameter or buffer: {"weight": "fc.weight"}
    attributes: Mapping[str, Any] = field(default_factory=dict[str, Any])
    shape: tuple[int, ...]
    module: str
    target: str
    source: str
    call: Callable[..., Any] | None = None
    arguments: tuple[Any, ...] = ()
    keywords: Mapping[str, Any] = field(default_factory=dict[str, Any])

    @property
    def layer(self) -> str:
        """What a user calls this place: the module's path, or the node's name for functional code."""
        return self.module or self.name


def _bare(values: tuple[Any, ...]) -> Any:
    return values[0] if len(values) == 1 else values


@dataclass(frozen=True, kw_only=True)
class Graph:
    """`result` puts the values of `outputs` into the form that the model returns: a tensor, a tuple, a dictionary."""

    nodes: tuple[Node, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    result: Callable[[tuple[Any, ...]], Any] = _bare

    def __getitem__(self, name: str) -> Node:
        return self.by_name[name]

    @property
    def by_name(self) -> dict[str, Node]:
        return {node.name: node for node in self.nodes}

    def consumers(self) -> dict[str, list[Node]]:
        """For each value, the nodes that read it, in order; graph outputs are not nodes."""
        readers: dict[str, list[Node]] = {node.name: [] for node in self.nodes}
        for node in self.nodes:
            for name in dict.fromkeys(node.inputs):
                readers[name].append(node)
        return readers

    def users_of(self, parameter: str) -> list[Node]:
        """The nodes that compute with a state tensor."""
        return [node for node in self.nodes if parameter in node.state.values()]


def trace(model: nn.Module, example: Tensor | Sequence[Tensor]) -> Graph:
    """The graph of `model` in evaluation mode on inputs like `example`.

    The batch (dimension 0 of every input) is left free where the model allows it. The model is left as it was.
    """
    place = next((t.device for t in model.state_dict().values()), torch.device("cpu"))
    args = tuple(a.to(place) for a in ((example,) if isinstance(example, Tensor) else example))
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with _quiet():
            program = _export(model, args)
    finally:
        for module, training in modes.items():
            module.training = training
    return _Reader(model, program).graph()


class StoredNetwork(nn.Module):
    """A network that is its graph: plain nested modules hold its tensors, under the names that they have in the file.

    Nothing else is known of the model: its classes, and second names of tied tensors, are in its code alone.
    """

    def __init__(self, graph: Graph) -> None:
        super().__init__()
        self._graph = graph

    @property
    def graph(self) -> Graph:
        return self._graph

    def forward(self, x: Tensor) -> Any:
        return run(self._graph, self.state_dict(keep_vars=True), x)


def graph_of(artifact: Artifact) -> Graph:
    """The graph of the artifact's module as it is now; traced once for each structure and device."""
    module = artifact.module
    if isinstance(module, StoredNetwork):
        return module.graph
    place = next((str(t.device) for t in module.state_dict().values()), "cpu")
    key = ("graph", fingerprint(module), repr(artifact.edits), artifact.input.shape, place)
    if key not in artifact.memo:
        artifact.memo[key] = trace(module, artifact.input.example(2))
    return artifact.memo[key]


def _export(model: nn.Module, args: tuple[Tensor, ...]) -> Any:
    import torch.export as te

    doubled = tuple(torch.cat([a[:1], a[:1]]) for a in args)  # a batch of 1 would be taken for a constant
    shapes = tuple({0: te.Dim("batch")} for _ in args)
    try:
        return te.export(model, doubled, dynamic_shapes=(shapes,) if _takes_varargs(model) else shapes)
    except Exception as dynamic_error:  # noqa: BLE001 - torch.export raises many types; the second try decides
        try:
            return te.export(model, tuple(a[:1] for a in args))
        except Exception as error:  # noqa: BLE001 - see above
            raise UnsupportedError(
                f"trace of {type(model).__name__}",
                f"torch.export stopped with: {_first_line(error)}",
                "check that the model runs on the example input and that forward has no branches that depend on data",
            ) from dynamic_error


@contextmanager
def _quiet() -> Generator[None]:
    """What torch.export prints and logs about a failure stays out: our error says it in one line."""
    logger = logging.getLogger("torch")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _takes_varargs(model: nn.Module) -> bool:
    return bool(model.forward.__code__.co_flags & 0x04)


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


class _Reader:
    """Turns an exported program into a `Graph`."""

    def __init__(self, model: nn.Module, program: Any) -> None:
        self.module = program.module()
        self.form = program.call_spec.out_spec
        self.fx = [n for n in self.module.graph.nodes if not (n.op == "call_module" and n.target == "_guards_fn")]
        self.leaves = {path for path, m in model.named_modules() if not any(m.children())}
        self.names: dict[Any, str] = {}
        first: dict[int, str] = {}
        tensors = model.state_dict(keep_vars=True)
        canonical = {name: first.setdefault(id(t), name) for name, t in tensors.items()}
        fetched = [n for n in self.fx if n.op == "get_attr"]
        self.state: dict[Any, str] = {n: canonical[str(n.target)] for n in fetched if str(n.target) in canonical}
        self.constants = {n: _attribute(self.module, str(n.target)) for n in fetched if n not in self.state}
        self.order = {n: i for i, n in enumerate(self.fx)}
        self.taken: Counter[str] = Counter()
        calls = Counter(self._instance(n) for n in self.fx if n.op == "call_function" and _is_tensor(n))
        self.single = {instance for instance, count in calls.items() if count == 1}

    def _instance(self, n: Any) -> str:
        stack = n.meta.get("nn_module_stack") or {}
        return next(reversed(stack), "")

    def _path(self, n: Any) -> str:
        stack = n.meta.get("nn_module_stack") or {}
        entry = list(stack.values())[-1] if stack else ("", None)
        path = entry[0] if isinstance(entry, tuple) else ""
        return "" if path.startswith("_empty_nn_module_stack") else path

    def _name(self, n: Any, op: str) -> tuple[str, str]:
        path = self._path(n)
        if path in self.leaves and path and self._instance(n) in self.single:
            base, mark = path, "#"
        else:
            base, mark = f"{path}/{op}" if path else op, "_"
        count = self.taken[base]
        self.taken[base] += 1
        return (base if count == 0 else f"{base}{mark}{count}"), path

    def graph(self) -> Graph:
        nodes: list[Node] = []
        inputs: list[str] = []
        leaves: list[Any] = []
        for n in self.fx:
            if n.op == "placeholder":
                name = "input" if not inputs else f"input_{len(inputs)}"
                self.names[n] = name
                inputs.append(name)
                nodes.append(
                    Node(name=name, op="input", inputs=(), shape=_shape(n), module="", target="input", source="")
                )
            elif n.op == "call_function":
                nodes.append(self._node(n))
            elif n.op == "output":
                leaves = list(n.args[0])
            elif n.op != "get_attr":
                raise UnsupportedError("trace", f"a traced step of kind {n.op} ({n.target})", "report this model")
        outputs = tuple(self.names[v] for v in _flat(leaves) if v in self.names)
        graph = Graph(nodes=tuple(nodes), inputs=tuple(inputs), outputs=outputs, result=self._result(leaves))
        return _without_unread(graph)

    def _result(self, leaves: list[Any]) -> Callable[[tuple[Any, ...]], Any]:
        from torch.utils._pytree import tree_unflatten

        read = [isinstance(leaf, torch.fx.Node) and leaf in self.names for leaf in leaves]

        def result(values: tuple[Any, ...]) -> Any:
            left = iter(values)
            return tree_unflatten([next(left) if r else v for v, r in zip(leaves, read, strict=True)], self.form)

        return result if self.form.num_leaves == len(leaves) else _bare

    def _node(self, n: Any) -> Node:
        of = _first_of(n)  # the call: where only the first of several results counts, the one that gives them
        target = "getitem" if of.target is operator.getitem else str(of.target)
        overload = functional_form(of.target)
        word = OPERATORS.get(str(overload)) if of is n else FIRST[target]
        arguments = tuple(self._argument(a) for a in of.args)
        keywords = {k: self._argument(v) for k, v in of.kwargs.items()}
        op, roles, attributes = word(of, arguments, keywords) if word else ("other", {}, {})
        own = {role: a for role, a in roles.items() if a is not None}
        names = set(self.state.values())
        if any(not isinstance(a, Ref) or a.name not in names for a in own.values()) or _has_tensor(
            (arguments, keywords)
        ):
            op, roles, own = "other", {}, {}  # a weight that is computed, or a constant that is no parameter
        if of.target is operator.getitem:
            op = "getitem"
        name, path = self._name(n, op if op != "other" else target.split(".")[1] if "." in target else target)
        inputs = tuple(self.names[v] for v in _flat((of.args, of.kwargs)) if v in self.names)
        self.names[n] = name
        if overload is not of.target:
            self._written(n, name)
        return Node(
            name=name,
            op=_kind(n) if op == "other" else op,
            inputs=inputs,
            state={role: a.name for role, a in own.items()}
            if roles
            else {self.state[v]: self.state[v] for v in _flat((of.args, of.kwargs)) if v in self.state},
            attributes=attributes,
            shape=_shape(n),
            module=path,
            target=target,
            source=_source(of),
            call=overload if of is n else _First(overload),
            arguments=arguments,
            keywords=keywords,
        )

    def _written(self, n: Any, name: str) -> None:
        """`n` writes into its first input: from here on, that value is the new one.

        Refused where another view of the same memory is read later: it would have to change too.
        """
        written = n.args[0]
        root = _root(written)
        for other in self.fx:
            if other is not written and other.op == "call_function" and _root(other) is root:
                later = [r for r in other.users if self.order[r] > self.order[n]]
                if later and other is not n:
                    raise UnsupportedError(
                        f"trace at {self._path(n) or 'forward'}",
                        f"{n.target} writes into memory that {other.name} shares ({_source(n)})",
                        "use the form that does not write in place",
                    )
        if root is not written and root in self.names and any(self.order[r] > self.order[n] for r in root.users):
            raise UnsupportedError(
                f"trace at {self._path(n) or 'forward'}",
                f"{n.target} writes into a view of a tensor that is read later ({_source(n)})",
                "use the form that does not write in place",
            )
        self.names[written] = name

    def _argument(self, a: Any) -> Any:
        if isinstance(a, torch.fx.Node) and a in self.constants:
            return self.constants[a]
        if isinstance(a, torch.fx.Node):
            return Ref(self.state[a] if a in self.state else self.names[a])
        if isinstance(a, (list, tuple)):
            return type(a)(self._argument(v) for v in a)
        return a


def run(
    graph: Graph,
    state: Mapping[str, Tensor],
    *args: Tensor,
    visit: Callable[[Node, Any], Any] | None = None,
    instead: Mapping[str, Callable[[Mapping[str, Any]], Any]] | None = None,
) -> Any:
    """Run the graph in floating point with the given parameters and buffers.

    `visit(node, value)` sees every value and returns the one to go on with. `instead` computes nodes of these names
    from the values so far. Returns what the model returns.
    """
    other = instead or {}
    values: dict[str, Any] = dict(zip(graph.inputs, args, strict=True))
    left = Counter(name for node in graph.nodes for name in node.inputs) + Counter(graph.outputs)
    for node in graph.nodes:
        if node.op == "input":
            value = values[node.name]
        else:
            value = other[node.name](values) if node.name in other else evaluate(node, values, state)
        values[node.name] = visit(node, value) if visit else value
        for name in node.inputs:
            left[name] -= 1
            if not left[name]:
                del values[name]
    return graph.result(tuple(values[name] for name in graph.outputs))


def evaluate(node: Node, values: Mapping[str, Any], state: Mapping[str, Tensor]) -> Any:
    """The float value of one node, given those of its inputs.

    A word means the same everywhere (`graph.semantics`); calls without one, and those on integers, run as recorded.
    """

    def resolve(a: Any) -> Any:
        if isinstance(a, Ref):
            return values[a.name] if a.name in values else state[a.name]
        if isinstance(a, (list, tuple)):
            return type(a)(resolve(v) for v in a)
        return a

    rule = RULES.get(node.op)
    if rule is not None:
        found = [resolve(ref) for ref in operands(node)]
        if node.call is None or all(x.is_floating_point() for x in found):
            return rule(found, {role: state[name] for role, name in node.state.items()}, node.attributes)
    if node.call is None:
        raise UsageError(f"run of node {node.name!r}", "it has no recorded call", "trace the model again")
    return node.call(*(resolve(a) for a in node.arguments), **{k: resolve(v) for k, v in node.keywords.items()})


def operands(node: Node) -> list[Ref]:
    """What a word computes with, in order, without the tensors that have roles."""
    if node.op == "concat":
        return list(node.arguments[0])
    return list(node.arguments[: 2 if node.op in ("add", "sub", "mul") else 1])


def _without_unread(graph: Graph) -> Graph:
    read = set(graph.outputs) | set(graph.inputs)
    kept: list[Node] = []
    for node in reversed(graph.nodes):
        if node.name in read:
            read.update(node.inputs)
            kept.append(node)
    return replace(graph, nodes=tuple(reversed(kept)))


def _flat(value: Any) -> Iterable[Any]:
    if isinstance(value, (list, tuple)):
        for v in value:
            yield from _flat(v)
    elif isinstance(value, dict):
        for v in value.values():
            yield from _flat(v)
    elif isinstance(value, torch.fx.Node):
        yield value


def _is_tensor(n: Any) -> bool:
    return isinstance(n.meta.get("val"), Tensor)


@dataclass(frozen=True)
class _First:
    """The first result of a call."""

    call: Callable[..., Any]

    def __call__(self, *args: Any, **keywords: Any) -> Any:
        return self.call(*args, **keywords)[0]

    def __str__(self) -> str:
        return str(self.call)


def _first_of(n: Any) -> Any:
    """The call whose first result `n` takes, if `FIRST` knows it; else `n`."""
    takes = n.target is operator.getitem and n.args[1] == 0 and isinstance(n.args[0], torch.fx.Node)
    return n.args[0] if takes and str(n.args[0].target) in FIRST else n


def _root(n: Any) -> Any:
    """The node whose memory `n` shares."""
    while isinstance(n, torch.fx.Node) and n.op == "call_function" and n.args and isinstance(n.args[0], torch.fx.Node):
        if not is_view(n.target) and functional_form(n.target) is n.target:
            break
        n = n.args[0]
    return n


def _attribute(module: nn.Module, path: str) -> Any:
    value: Any = module
    for part in path.split("."):
        value = getattr(value, part)
    return value


def _has_tensor(value: Any) -> bool:
    if isinstance(value, dict):
        return any(_has_tensor(v) for v in value.values())
    if isinstance(value, (list, tuple)):
        return any(_has_tensor(v) for v in value)
    return isinstance(value, Tensor)


def _kind(n: Any) -> str:
    """Of what has no word: "other" gives a tensor, "several" several of them, "scalar" a number."""
    value = n.meta.get("val")
    return "other" if isinstance(value, Tensor) else "several" if isinstance(value, (tuple, list)) else "scalar"


def _shape(n: Any) -> tuple[int, ...]:
    """For a batch of one: every free symbol stands for the batch."""
    value = n.meta.get("val")
    if not isinstance(value, Tensor):
        return ()
    sizes: list[int] = []
    for size in value.shape:
        expression = None if isinstance(size, int) else size.node.expr
        sizes.append(size if expression is None else int(expression.subs(dict.fromkeys(expression.free_symbols, 1))))
    return tuple(sizes)


def _source(n: Any) -> str:
    """The user's own line: the last frame outside torch."""
    lines = (n.meta.get("stack_trace") or "").strip().splitlines()
    frames = [line.strip() for line in lines if line.strip().startswith("File ")]
    own = [f for f in frames if "/torch/" not in f and '"torch/' not in f] or frames
    if not own:
        return ""
    parts = own[-1].split('"')
    number = own[-1].split("line ")[1].split(",")[0] if "line " in own[-1] else "?"
    return f"{parts[1].rsplit('/', 1)[-1]}:{number}" if len(parts) > 1 else ""
