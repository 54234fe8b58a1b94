"""The contract of methods, for those of Lilliput and those of others: `check_method(MyPass())`.

Each law raises `ContractError` with what was broken. Tiny networks cover what methods must cope with.
"""

import copy
import dataclasses
import re
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lilliput.core import container
from lilliput.core.artifact import Artifact
from lilliput.core.errors import ExportError, LilliputError, MissingExtraError, RecipeError
from lilliput.core.guard import Evaluation, MaxDrop, Verdict
from lilliput.core.method import Context, Pass, PassResult, apply_checked_
from lilliput.core.streams import size_bits
from lilliput.core.task import Task
from lilliput.graph.integer import runnable
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

    Raises `ContractError`. A network on which the method's requirements are not met must be refused with a RecipeError.
    """
    _citations(method)
    _round_trip(method)
    results: dict[str, PassResult] = {}
    for name in models:
        model, task = tiny_model(name), tiny_task()
        before = {n: t.clone() for n, t in model.state_dict().items()}
        first = _applied(method, model, task)
        if first is None:
            continue
        net, results[name] = first
        where = f"{method.name} on {name}"
        _require(
            all(torch.equal(t, before[n]) for n, t in model.state_dict().items()),
            where,
            "the caller's model was changed",
        )
        second = _applied(method, model, task)
        _require(
            second is not None and container.dumps(second[0]) == container.dumps(net),
            where,
            "the same seed gave other bytes",
        )
        check_artifact(net, model, where)
        _refused_leaves_no_trace(method, model, task, where)
    return results


def check_artifact(net: Artifact, model: nn.Module, where: str = "artifact") -> None:
    """Laws of artifacts: weight == decode, encode inverts decode, size == bytes, file == network, exports agree."""
    net.check()
    for name, e in net.encodings.items():
        _require(e.encode(e.decode()).same(e), f"{where}: {name}", "encode(decode(z)) is not z")
    data = container.dumps(net)
    contents = container.loads(data)
    fresh = contents.replay(copy.deepcopy(model))
    for name, e in net.stored().items():
        _require(e.same(contents.tensors[name]), f"{where}: {name}", "the file holds another encoding")
        counted = 8 * sum(len(s.data) for s in contents.streams[name])
        derived = counted < size_bits(e)  # a bias whose scale follows from others takes less in the file
        _require(
            counted == size_bits(e) or (derived and name.endswith("bias")),
            f"{where}: {name}",
            "the reported size is not that of the bytes",
        )
    x = net.input.example(5)
    with torch.no_grad():
        _require(torch.equal(runnable(net)(x), runnable(fresh)(x)), where, "the file computes something else")
    _require(container.dumps(fresh) == data, where, "writing the file again gives other bytes")
    _exports(net, x, where)


def _applied(method: Pass, model: nn.Module, task: Task) -> tuple[Artifact, PassResult] | None:
    net = Artifact.of(model, task.spec)
    try:
        result = apply_checked_(method, net, Context.of(task, copy.deepcopy(model)))
    except RecipeError:
        return None
    return net, result


def _refused_leaves_no_trace(method: Pass, model: nn.Module, task: Task, where: str) -> None:
    impossible = _Never(max_drop=0.0)
    recipe = Recipe(steps=(Step(passes=(method,), guard=impossible),))
    refused = run(model, task, recipe).artifact
    untouched = run(model, task, Recipe()).artifact
    refused.recipe = untouched.recipe = []
    _require(container.dumps(refused) == container.dumps(untouched), where, "a refused pass left a trace")


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Never(MaxDrop):
    """Refuses whatever has an effect."""

    def judge(self, task: Task, candidate: Evaluation, original: Evaluation) -> Verdict:
        return Verdict(accepted=False, reason="never")


def _exports(net: Artifact, x: Tensor, where: str) -> None:
    from lilliput.export import onnx, onnx_check

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "net.onnx"
        try:
            onnx.export(net, path, target="onnx-x86")
            onnx_check.check_with_runtime(path, net, x)
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
