"""A network from the graph in its file is the network: the same bits, integers, programs and bytes."""

import copy
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lilliput.core import container
from lilliput.core.artifact import Artifact, InputSpec
from lilliput.core.errors import ArtifactError, LilliputError, UnsupportedError
from lilliput.core.method import Context, apply_checked_
from lilliput.core.wiring import pack_wiring, unpack_wiring
from lilliput.export import onnx
from lilliput.export.c import project
from lilliput.graph.integer import IntegerNet, runnable
from lilliput.graph.lower import lower
from lilliput.graph.stored import dumps, save, stored_artifact, why_no_graph, wiring_of
from lilliput.graph.trace import StoredNetwork, graph_of
from lilliput.measure.macs import count_macs
from lilliput.measure.memory import plan_memory
from lilliput.methods.clustering.weight_clustering import WeightClustering
from lilliput.methods.normalization.batchnorm import FoldBatchNorm
from lilliput.methods.pruning.magnitude import MagnitudePruning
from lilliput.methods.quantization.post_training import Quantization
from lilliput.testing import tiny_task
from lilliput.zoo.registry import ZOO, open_model
from lowered import quantized, task_of
from stored_cases import CASES, example

SMALL = 30_000


def artifact_of(name):
    model, shape = example(name)
    return Artifact.of(model, InputSpec(shape=shape))


def loaded(net):
    """From the bytes of its file, without its module."""
    assert why_no_graph(net) == ""
    return stored_artifact(container.loads(dumps(net)))


def equal(a, b):
    if isinstance(a, Tensor):
        return torch.equal(a, b)
    return type(a) is type(b) and all(equal(x, y) for x, y in zip(a, b, strict=True))


def rebuilt(net):
    """The same without packing the weights, which takes long for large ones."""
    names = list(net.stored()), list(net.counters())
    contents = container.loads(dumps(artifact_of("tiny linear")))
    return stored_artifact(
        replace(
            contents,
            origin=net.origin,
            input=net.input,
            tensors=net.stored(),
            counters=net.counters(),
            wiring=unpack_wiring(pack_wiring(wiring_of(net), *names), *names),
        )
    )


def check(net, again, samples=3, *, packed=True):
    """The same network: outputs, names, shapes, state, bytes."""
    x = net.input.example(samples)
    with torch.no_grad():
        assert equal(net.module(x), again.module(x))
        assert equal(runnable(net)(x), runnable(again)(x))
    traced, stored = graph_of(net), graph_of(again)
    kept = [n for n in traced.nodes if n.op not in ("size", "scalar")]
    assert [(n.name, n.op, n.layer, n.shape, dict(n.attributes), dict(n.state)) for n in kept] == [
        (n.name, n.op, n.layer, n.shape, dict(n.attributes), dict(n.state)) for n in stored.nodes
    ]
    assert traced.outputs == stored.outputs
    assert all(type(n.attributes[key]) is type(v) for n in stored.nodes for key, v in traced[n.name].attributes.items())
    assert wiring_of(again) == wiring_of(net)
    if packed:
        assert dumps(again) == dumps(net)
        assert container.dumps(again) == container.dumps(net)
        assert dumps(again, strip=True) == container.dumps(net, strip=True)


@pytest.mark.parametrize("name", CASES)
def test_stored_network_computes_the_same_bits(name):
    net = artifact_of(name)
    check(net, loaded(net))


@pytest.mark.parametrize("name", ZOO)
def test_networks_of_the_zoo_are_stored(name):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = Artifact.of(ZOO[name].model(), InputSpec(shape=ZOO[name].shape))
    small = sum(p.numel() for p in net.module.parameters()) < SMALL
    check(net, loaded(net) if small else rebuilt(net), samples=2, packed=small)


def generated(net, folder):
    """Every file of the C export, without lines that name sources; or the refusal of it, or of the program."""
    folder.mkdir()
    try:
        program = lower(net)
        paths = project.write(program, folder)
    except LilliputError as error:
        return error.found.partition(" (")[0], error.do
    return {path.name: path.read_bytes() for path in paths}


@pytest.mark.parametrize("name", [n for n in CASES if n.startswith(("tiny", "program"))] + ["operations"])
def test_quantized_network_gives_the_same_integers_program_and_code(name, tmp_path):
    model, shape = example(name)
    task = tiny_task() if name.startswith("tiny") else task_of(shape)
    passes = MagnitudePruning(sparsity=0.3), WeightClustering(n_clusters=9), Quantization()
    net = quantized(model, task, *passes)
    again = loaded(net)
    check(net, again, samples=16)
    assert IntegerNet(again).floats == IntegerNet(net).floats
    assert generated(again, tmp_path / "again") == generated(net, tmp_path / "net")


@pytest.fixture(scope="module")
def digits():
    model, task = open_model("digits-cnn")
    net = Artifact.of(model, task.spec)
    for method in (FoldBatchNorm(), Quantization()):
        apply_checked_(method, net, Context.of(task, model))
    return net, model


def test_digits_network_quantized(digits):
    net, _ = digits
    again = loaded(net)
    check(net, again, samples=64)
    assert again.origin == net.origin
    assert (again.edits, again.recipe, again.input) == (net.edits, net.recipe, net.input)
    assert set(again.activations) <= set(graph_of(again).by_name)
    assert onnx.build(again, target="onnx-x86") == onnx.build(net, target="onnx-x86")
    assert plan_memory(graph_of(again), again) == plan_memory(graph_of(net), net)
    assert count_macs(graph_of(again), again) == count_macs(graph_of(net), net)


def test_graph_takes_few_bytes(digits):
    assert len(dumps(digits[0])) - len(container.dumps(digits[0])) < 50
    net = Artifact.of(ZOO["resnet20"].model(), InputSpec(shape=(3, 32, 32)))
    assert len(dumps(net)) - len(container.dumps(net)) < 130


def test_file_of_the_stored_network_goes_into_the_module_too(digits, tmp_path):
    net, model = digits
    assert save(loaded(net), tmp_path / "net.lil") == len(dumps(net))
    back = container.read(tmp_path / "net.lil").replay(copy.deepcopy(model))
    assert type(back.module) is type(model)
    assert dumps(back) == dumps(net)


def test_stored_network_has_the_tensors_under_their_names(digits):
    net, _ = digits
    again = loaded(net)
    assert isinstance(again.module, StoredNetwork)
    assert list(again.module.state_dict()) == list(net.module.state_dict())
    assert [n for n, _ in again.module.named_parameters()] == [n for n, _ in net.module.named_parameters()]
    assert all(p.requires_grad for p in again.module.parameters())
    assert not again.module.training
    again.check()
    batch_norm = artifact_of("tiny batch_norm")
    buffers = [n for n, _ in loaded(batch_norm).module.named_buffers()]
    assert buffers == ["1.running_mean", "1.running_var", "1.num_batches_tracked"]


def test_stored_network_is_independent_of_what_it_was_read_from(digits):
    contents = container.loads(dumps(artifact_of("tiny conv")))
    first, second = stored_artifact(contents), stored_artifact(contents)
    with torch.no_grad():
        for p in first.module.parameters():
            p.zero_()
    assert all(bool(p.abs().sum() > 0) for p in second.module.parameters())
    copied = second.copy()
    with torch.no_grad():
        copied.parameter("0.weight").zero_()
    assert bool(second.parameter("0.weight").abs().sum() > 0)


def test_stored_network_learns():
    net = loaded(artifact_of("tiny residual"))
    x = net.input.example(4)
    net.module(x).square().mean().backward()
    assert all(p.grad is not None for p in net.module.parameters())


def test_methods_that_need_the_classes_of_layers_skip_them():
    task = tiny_task()
    net = loaded(artifact_of("tiny batch_norm"))
    net.input = task.spec
    before = container.dumps(net)
    for method in (FoldBatchNorm(), MagnitudePruning(), WeightClustering(n_clusters=4)):
        result = apply_checked_(method, net, Context.of(task, net.module))
        assert not result.changed
    assert container.dumps(net) == before


class Several(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        a, b = x.chunk(2, 1)
        return a + b


class Dictionary(nn.Module):
    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"y": x + 1}


class Hidden(nn.Module):
    """A number that is in no file."""

    def __init__(self) -> None:
        super().__init__()
        self.shift: Tensor
        self.register_buffer("shift", torch.ones(4), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.shift


class Computed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.randn(3, 4))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.w * 2)


class Named(nn.Module):
    """A tensor with the name of a node."""

    def __init__(self) -> None:
        super().__init__()
        self.relu = nn.Parameter(torch.randn(4))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x) * self.relu


class Odd(nn.Module):
    """Its parts stand in another order than they were made in."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(4, 4)
        self.b = nn.Linear(4, 4)

    def state_dict(self, *args, **keywords):
        found = super().state_dict(*args, **keywords)
        return {name: found[name] for name in ("a.weight", "b.weight", "a.bias", "b.bias")}

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x))


class Untraceable(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * 2 if bool(x.sum() > 0) else x


REASONS = {
    "several": (Several, "'chunk' is aten.chunk.default, which has no word in the format"),
    "dictionary": (Dictionary, "the network returns a dict of several things"),
    "hidden": (Hidden, "'add' is aten.add.Tensor, which has no word in the format"),
    "computed": (Computed, "'linear' is aten.linear.default, which has no word in the format"),
    "named": (Named, "'relu' is a node and a tensor"),
    "odd": (Odd, "tensors that do not stand in the order of a module tree"),
    "untraceable": (Untraceable, "torch.export stopped with: Could not guard on data-dependent expression"),
}


@pytest.mark.parametrize("case", REASONS)
def test_what_cannot_be_stored_says_why_and_is_saved_without_graph(case):
    make, reason = REASONS[case]
    net = Artifact.of(make(), InputSpec(shape=(4,)))
    with pytest.raises(UnsupportedError, match=r"^store the graph: .*; load the file with the model's code$"):
        wiring_of(net)
    assert why_no_graph(net).startswith(reason)
    data = dumps(net)
    assert data == container.dumps(net)
    with pytest.raises(ArtifactError) as error:
        stored_artifact(container.loads(data), "net.lil")
    assert str(error.value) == "load net.lil: no graph in the file; give the module: ll.load(path, into=...) or --into"


def test_the_graph_in_a_file_does_not_bind_a_module(digits):
    net, model = digits
    data = dumps(net)
    assert container.dumps(container.loads(data).replay(copy.deepcopy(model))) == container.dumps(net)


def test_stored_network_moves_to_a_device_as_a_module_does(digits):
    again = loaded(digits[0])
    moved = runnable(again).to("cpu")
    x = again.input.example(2)
    assert torch.equal(moved(x), runnable(digits[0])(x))
