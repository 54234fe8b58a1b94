"""The contract of methods, for those of Lilliput and those of others: `check_method(MyPass())`.

Each law raises `ContractError` with what was broken. Tiny networks cover what methods must cope with.
"""

import copy
import dataclasses
import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lilliput.core import container
from lilliput.core.artifact import Artifact
from lilliput.core.encoding import Encoding
from lilliput.core.errors import (
    ExportError,
    LilliputError,
    MethodError,
    MissingExtraError,
    RecipeError,
    UnsupportedError,
)
from lilliput.core.guard import Evaluation, MaxDrop, Verdict
from lilliput.core.method import Context, Pass, PassResult, apply_checked_, layers
from lilliput.core.streams import size_bits
from lilliput.core.task import Task
from lilliput.graph import stored
from lilliput.graph.integer import runnable
from lilliput.graph.trace import Graph, graph_of
from lilliput.methods.clustering.weight_clustering import WeightClustering
from lilliput.methods.pruning.magnitude import MagnitudePruning
from lilliput.methods.quantization.post_training import Quantization
from lilliput.pipeline.recipe import Recipe, Step, from_data
from lilliput.pipeline.run import run


class ContractError(AssertionError):
    """A method broke a law."""


class Residual(nn.Module):
    """Functional relu, an addition, and a shortcut of slice and pad, as option-A ResNets have."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm1 = nn.Conv2d(1, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
        self.second, self.norm2 = nn.Conv2d(4, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm1(self.first(x)))
        short = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 2, 2))
        x = F.relu(self.norm2(self.second(x)) + short)
        return self.head(x.mean((2, 3)))


class Shared(nn.Module):
    """One module called twice, and a second layer tied to its weight."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.middle, self.tied, self.head = (
            nn.Linear(16, 8),
            nn.Linear(8, 8),
            nn.Linear(8, 8),
            nn.Linear(8, 3),
        )
        self.tied.weight = self.middle.weight

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.enter(x.flatten(1)))
        x = F.relu(self.middle(F.relu(self.middle(x))))
        return self.head(F.relu(self.tied(x)))


class Grouped(nn.Module):
    """Grouped, depthwise, dilated and pointwise convolutions, pooling, hard-swish and a concatenation."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 4, 3, padding=1)
        self.depthwise = nn.Conv2d(4, 4, 3, padding=2, dilation=2, groups=4)
        self.grouped = nn.Conv2d(4, 6, 1, groups=2)
        self.act, self.pool, self.head = nn.Hardswish(), nn.MaxPool2d(2), nn.Linear(20, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.first(x))
        x = torch.cat([x, self.act(self.grouped(F.relu(self.depthwise(x))))], 1)
        return self.head(F.adaptive_avg_pool2d(self.pool(x), (1, 2)).flatten(1))


TINY: dict[str, Callable[[], nn.Module]] = {
    "linear": lambda: nn.Sequential(nn.Flatten(), nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 3)),
    "no_bias": lambda: nn.Sequential(
        nn.Flatten(), nn.Linear(16, 12, bias=False), nn.ReLU(), nn.Linear(12, 3, bias=False)
    ),
    "conv": lambda: nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(16, 3)
    ),
    "batch_norm": lambda: nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3)
    ),
    "conv1d": lambda: nn.Sequential(
        nn.Flatten(2), nn.Conv1d(1, 4, 5, stride=2), nn.BatchNorm1d(4), nn.Tanh(), nn.Flatten(), nn.Linear(24, 3)
    ),
    "residual": Residual,
    "shared": Shared,
    "grouped": Grouped,
}
"""Networks for inputs of shape (1, 4, 4) and three outputs."""
CLOSER = ("batch_norm", "shared", "grouped")
"""Those on which a method is also tried in orders, with selections and with overrides."""
PARTNERS: tuple[Pass, ...] = (
    MagnitudePruning(sparsity=0.4, scope="layer"),
    WeightClustering(n_clusters=4),
    Quantization(),
)
"""Each fills a slot; a method runs before and after each of them."""


def tiny_model(name: str, seed: int = 0) -> nn.Module:
    """A tiny network with weights and BatchNorm statistics that follow from the seed alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = TINY[name]()
        for module in model.modules():
            if (
                isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d))
                and module.running_mean is not None
                and module.running_var is not None
            ):
                module.running_mean.normal_(0, 0.3)
                module.running_var.uniform_(0.5, 1.5)
    return model.eval()


def tiny_task(samples: int = 64, seed: int = 0) -> Task:
    """Three classes of noisy 4x4 patterns."""
    generator = torch.Generator().manual_seed(seed)
    patterns = torch.randn((3, 1, 4, 4), generator=generator)
    y = torch.arange(samples) % 3
    x = patterns[y] + 0.5 * torch.randn((samples, 1, 4, 4), generator=generator)
    return Task.classification(train=(x, y), validation=(x.flip(0), y.flip(0)))


def check_method(method: Pass, models: tuple[str, ...] = tuple(TINY)) -> dict[str, PassResult]:
    """Hold a method to the contract on every tiny network; returns what it did on each.

    Raises `ContractError`. A method that cannot do something refuses with a `RecipeError` or an `UnsupportedError`
    whose first part has the method's name. Order, selection and overrides are tried on the networks of `CLOSER`.
    """
    _citations(method)
    _round_trip(method)
    _unknown_setting(method)
    closer = [name for name in models if name in CLOSER] or list(models[:1])
    results: dict[str, PassResult] = {}
    with torch.random.fork_rng(devices=[]):
        for name in models:
            case = _Case.of(name)
            first = _alone(method, case)
            if first is not None:
                results[name] = first[1]
                if name in closer:
                    _selection(method, case, first[1])
                    _overrides(method, case, *first, nudged=name == closer[0])
            if name in closer:
                _orders(method, case)
    return results


def check_artifact(net: Artifact, model: nn.Module, where: str = "artifact", *, retrace: bool = True) -> None:
    """Laws of artifacts: weight == decode, encode inverts decode, size == bytes, file == network, exports agree.

    Without `retrace` the network that was read back runs on the graph of the one that was written: tracing is slow.
    """
    net.check()
    for name, e in net.encodings.items():
        _require(e.encode(e.decode()).same(e), f"{where}: {name}", "encode(decode(z)) is not z")
    data = container.dumps(net)
    contents = container.loads(data)
    fresh = contents.replay(copy.deepcopy(model))
    for name, e in net.stored().items():
        _require(e.same(contents.tensors[name]), f"{where}: {name}", "the file holds another encoding")
        counted = 8 * sum(len(s.data) for s in contents.streams[name])
        less = counted < size_bits(e)  # a bias whose scale follows from others, a circuit that another tensor has
        _require(
            counted == size_bits(e) or (less and (name.endswith("bias") or e.bank is not None)),
            f"{where}: {name}",
            "the reported size is not that of the bytes",
        )
    if not retrace:
        fresh.memo = net.memo
    traced = graph_of(net)
    x = net.input.example(5)
    with torch.no_grad():
        for ours, read in ((net.module, fresh.module), (runnable(net, traced), runnable(fresh))):
            _require(torch.equal(ours(x), read(x)), where, "the file computes something else")
    _require(container.dumps(fresh) == data, where, "writing the file again gives other bytes")
    with_graph = stored.dumps(net)
    if with_graph != data:  # it has no graph where it has an operation without a word
        alone = stored.stored_artifact(container.loads(with_graph))
        with torch.no_grad():
            same = torch.equal(runnable(alone)(x), runnable(net, traced)(x))
        _require(same, where, "the file computes something else without the model's code")
        _require(
            stored.dumps(alone) == with_graph, where, "writing the file without the model's code gives other bytes"
        )
    _exports(net, traced, x, where)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Case:
    """A tiny network on which laws are checked; what is made from it shares its traces."""

    name: str
    model: nn.Module
    task: Task
    original: Artifact

    @staticmethod
    def of(name: str) -> "_Case":
        model, task = tiny_model(name), tiny_task()
        return _Case(name=name, model=model, task=task, original=Artifact.of(model, task.spec))

    def fresh(self) -> Artifact:
        return self.original.copy()

    def apply_(self, method: Pass, net: Artifact, where: str) -> PassResult | None:
        """None if the method refuses, in a way that helps."""
        before = torch.get_rng_state()
        try:
            result = apply_checked_(method, net, Context.of(self.task, copy.deepcopy(self.model)))
        except (RecipeError, UnsupportedError) as error:
            named = method.name in error.asked and error.do
            _require(
                named, where, f"it refuses without its name or a remedy ({error}); raise RecipeError(name, found, do)"
            )
            return None
        except MissingExtraError:
            raise
        except MethodError as error:
            raise ContractError(f"{where}: {error}") from error
        except Exception as error:  # whatever a method of others raises
            raise ContractError(
                f"{where}: {method.name} stopped with {type(error).__name__} ({error}); "
                "make it work, or refuse with a RecipeError that says what to do"
            ) from error
        unmoved = torch.equal(before, torch.get_rng_state())
        _require(unmoved, where, "it drew from torch's global generator; draw from context.generator")
        return result

    def applied(self, method: Pass, where: str) -> tuple[Artifact, PassResult] | None:
        net = self.fresh()
        result = self.apply_(method, net, where)
        return None if result is None else (net, result)


def _alone(method: Pass, case: _Case) -> tuple[Artifact, PassResult] | None:
    """The laws of one method on one network."""
    where = f"{method.name} on {case.name}"
    before = {n: t.clone() for n, t in case.model.state_dict().items()}
    torch.manual_seed(1)
    first = case.applied(method, where)
    if first is None:
        return None
    unchanged = all(torch.equal(t, before[n]) for n, t in case.model.state_dict().items())
    _require(unchanged, where, "the caller's model was changed")
    _lawful(first[0], case, where)
    torch.manual_seed(2)
    second = case.applied(method, where)
    same = second is not None and container.dumps(second[0]) == container.dumps(first[0])
    _require(same, where, "the same seed gave other bytes; draw from context.generator only")
    _refused_leaves_no_trace(method, case, where)
    return first


def _orders(method: Pass, case: _Case) -> None:
    """Before and after each of `PARTNERS` the method works, or one of the two refuses with a remedy."""
    for partner in PARTNERS:
        for one, two in ((partner, method), (method, partner)):
            where = f"{one.name} then {two.name} on {case.name}"
            net = case.fresh()
            if case.apply_(one, net, where) is None:
                continue
            before = container.dumps(net)
            if case.apply_(two, net, where) is not None:
                _lawful(net, case, where, before=before, retrace=False)


def _selection(method: Pass, case: _Case, result: PassResult) -> None:
    """Parameters of what `skip` names, and of what `include` does not, stay bit for bit; the layer is skipped.

    Statistics of a BatchNorm are no parameters: they may follow its inputs.
    """
    paths = list(layers(case.fresh()))
    changed = [path for path in paths if path in result.changed]
    if not changed:
        return
    others = [path for path in paths if path != changed[-1]]
    for word, path, left in (("skip", changed[0], [changed[0]]), ("include", changed[-1], others)):
        where = f"{method.name} with {word}=({path!r},) on {case.name}"
        chosen = _with(method, where, **{word: (path,) if word == "include" else (*method.skip, path)})
        found = None if chosen is None else case.applied(chosen, where)
        if found is None:
            continue
        net, selected = found
        before = case.fresh()
        used = {name for other in paths if other not in left for name in _parameters(before, other)}
        for layer in left:
            _require(
                layer in selected.skipped, where, f"{layer!r} is not reported as skipped; use self.pick or self.selects"
            )
            after = _parameters(net, layer)
            for name, e in _parameters(before, layer).items():
                same = name in used or (name in after and e.same(after[name]))
                _require(same, where, f"{name!r} was changed; use self.pick or self.selects")


def _parameters(net: Artifact, layer: str) -> dict[str, Encoding]:
    """How a layer's own parameters are stored, a tied weight under its first name; none where the layer is gone."""
    own = net.module.get_submodule(layer).named_parameters(recurse=False)
    names = [net.canonical(f"{layer}.{name}" if layer else name) for name, _ in own]
    return {name: net.encoding(name) for name in names}


def _weights(net: Artifact, layer: str) -> dict[str, Encoding]:
    return {name: e for name, e in _parameters(net, layer).items() if len(e.shape) > 1}


def _unknown_setting(method: Pass) -> None:
    name = "no_such_setting"
    found = _overridden(method, "*", {name: 1}, f"{method.name} with an override of {name}")
    _require(found is None, method.name, "an override of an unknown setting is accepted; call super().__post_init__()")


def _overrides(method: Pass, case: _Case, net: Artifact, result: PassResult, *, nudged: bool) -> None:
    """An override is refused, or it counts: the method's own values change no byte, other values do what they do."""
    changed = [path for path in layers(case.fresh()) if path in result.changed]
    if not changed:
        return
    layer = changed[0]
    own: dict[str, object] = {}
    for field in dataclasses.fields(method):
        if field.name in {f.name for f in dataclasses.fields(Pass)}:
            continue
        value = getattr(method, field.name)
        where = f"{method.name} with {field.name}={value!r} for {layer!r} on {case.name}"
        if _overridden(method, layer, {field.name: value}, where) is not None:
            own[field.name] = value
    if not own:
        return
    where = f"{method.name} with its own settings for {layer!r} on {case.name}"
    same = _overridden(method, layer, own, where)
    found = None if same is None else case.applied(same, where)
    equal = found is None or container.dumps(found[0]) == container.dumps(net)
    _require(equal, where, "an override that changes nothing gave other bytes; use self.for_layer(path)")
    nowhere = _overridden(method, "no.such.layer", own, where)
    refused = nowhere is None or case.applied(nowhere, where) is None
    _require(refused, where, "an override for a layer that does not exist is accepted; raise a RecipeError")
    for name, value in own.items() if nudged else ():
        _counts(method, case, net, layer, name, value)


def _counts(method: Pass, case: _Case, net: Artifact, layer: str, name: str, value: object) -> None:
    """If another value for all layers changes what this layer stores, so does an override for this layer."""
    for other in _near(value):
        where = f"{method.name} with {name}={other!r} for {layer!r} on {case.name}"
        both = _with(method, where, **{name: other}), _overridden(method, layer, {name: other}, where)
        wide, narrow = (None if one is None else case.applied(one, where) for one in both)
        if wide is None or narrow is None:
            continue
        before = _weights(net, layer)  # a bias on a grid follows from the layers before it too
        moved, obeyed = (_differ(before, _weights(found[0], layer)) for found in (wide, narrow))
        _require(obeyed or not moved, where, "the override is accepted but ignored; use self.for_layer(path)")
        return


def _near(value: object) -> list[object]:
    """Other values of the same type, in the hope that one is allowed."""
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, int):
        return [value + 1, value - 1]
    return [value / 2, value * 0.9, value * 1.1] if isinstance(value, float) else []


def _differ(a: dict[str, Encoding], b: dict[str, Encoding]) -> bool:
    return a.keys() != b.keys() or any(not a[name].same(b[name]) for name in a)


def _overridden(method: Pass, pattern: str, settings: dict[str, object], where: str) -> Pass | None:
    """The method with an override more, or None if it refuses."""
    return _with(method, where, overrides={**method.overrides, pattern: settings})


def _with(method: Pass, where: str, **settings: Any) -> Pass | None:
    try:
        return dataclasses.replace(method, **settings)
    except RecipeError as error:
        _require(error.do, where, f"a setting is refused without a remedy ({error})")
        return None
    except Exception as error:
        raise ContractError(
            f"{where}: building the method stopped with {type(error).__name__} ({error}); "
            "refuse the setting with a RecipeError"
        ) from error


def _lawful(net: Artifact, case: _Case, where: str, *, before: bytes = b"", retrace: bool = True) -> None:
    """`check_artifact`, unless the artifact is as it was `before`."""
    try:
        if container.dumps(net) != before:
            check_artifact(net, case.model, where, retrace=retrace)
    except ContractError:
        raise
    except LilliputError as error:
        raise ContractError(f"{where}: {error}") from error
    except Exception as error:
        raise ContractError(f"{where}: what it made stops with {type(error).__name__} ({error})") from error


def _refused_leaves_no_trace(method: Pass, case: _Case, where: str) -> None:
    impossible = _Never(max_drop=0.0)
    recipe = Recipe(steps=(Step(passes=(method,), guard=impossible),))
    refused = run(case.model, case.task, recipe, like=case.original).artifact
    untouched = run(case.model, case.task, Recipe(), like=case.original).artifact
    refused.recipe = untouched.recipe = []
    _require(container.dumps(refused) == container.dumps(untouched), where, "a refused pass left a trace")


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Never(MaxDrop):
    """Refuses whatever has an effect."""

    def judge(self, task: Task, candidate: Evaluation, original: Evaluation) -> Verdict:
        return Verdict(accepted=False, reason="never")


def _exports(net: Artifact, graph: Graph, x: Tensor, where: str) -> None:
    from lilliput.export import onnx, onnx_check

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "net.onnx"
        try:
            onnx.export(net, path, target="onnx-x86", graph=graph)
            onnx_check.check_with_runtime(path, net, x, graph=graph)
        except ExportError as error:
            _require(bool(error.asked and error.found and error.do), where, "an export error without a reason")
        except MissingExtraError:
            return
        except LilliputError as error:
            raise ContractError(f"{where}: the exported file computes something else ({error})") from error


def _round_trip(method: Pass) -> None:
    recipe = Recipe(steps=(Step(passes=(method,)),))
    again = from_data(recipe.to_data())
    _require(again == recipe, method.name, f"the recipe {recipe.to_data()} reads back as another one")


def _citations(method: Pass) -> None:
    for citation in method.citations:
        _require(
            bool(re.fullmatch(r"https://(arxiv\.org/abs/\d{4}\.\d{4,5}|doi\.org/10\.\S+|\S+\.\S+/\S*)", citation)),
            method.name,
            f"citation {citation!r} is not a link to a paper",
        )


def _require(truth: object, where: str, broken: str) -> None:
    if not truth:
        raise ContractError(f"{where}: {broken}")
