"""A file without names runs like the one with names: the same bits, integers and exports, in fewer bytes."""

import random

import pytest
import torch
from torch import nn

from lil_files import file_of, opened
from lilliput.core import container, wire
from lilliput.core.artifact import Artifact, InputSpec
from lilliput.core.encoding import Grid
from lilliput.core.errors import ArtifactError, UnsupportedError, UsageError
from lilliput.core.nameless import named
from lilliput.core.wiring import OPERATIONS, SUFFIXES
from lilliput.export import onnx
from lilliput.graph.integer import IntegerNet, runnable
from lilliput.graph.lower import lower
from lilliput.graph.stored import dumps, save, stored_artifact
from lilliput.graph.trace import graph_of
from lilliput.methods.clustering.weight_clustering import WeightClustering
from lilliput.methods.pruning.magnitude import MagnitudePruning
from lilliput.methods.quantization.post_training import Quantization
from lilliput.testing import tiny_task
from lowered import quantized, task_of
from stored_cases import CASES, example


def artifact_of(name):
    model, shape = example(name)
    return Artifact.of(model, InputSpec(shape=shape, labels=("a", "b")))


def equal(a, b):
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    return type(a) is type(b) and all(equal(x, y) for x, y in zip(a, b, strict=True))


def without_names(net):
    return stored_artifact(container.loads(dumps(net, names=False)))


@pytest.mark.parametrize("name", CASES)
def test_network_without_names_computes_the_same_bits_from_fewer_bytes(name):
    net = artifact_of(name)
    again = without_names(net)
    x = net.input.example(3)
    with torch.no_grad():
        assert equal(net.module(x), again.module(x))
        assert equal(runnable(net)(x), runnable(again)(x))
    assert dumps(again) == dumps(again, names=False) == dumps(net, names=False)
    assert len(dumps(net, names=False)) < len(dumps(net))
    assert again.input == InputSpec(shape=net.input.shape)
    assert container.graph_bytes(container.loads(dumps(again))) > 0
    assert [node.name for node in graph_of(again).nodes[1:]] == [
        str(k + 1) for k in range(len(graph_of(again).nodes) - 1)
    ]


@pytest.mark.parametrize("name", ["tiny residual", "program called twice", "operations"])
def test_integers_program_and_onnx_are_the_same(name):
    model, shape = example(name)
    task = tiny_task() if name.startswith("tiny") else task_of(shape)
    net = quantized(model, task, MagnitudePruning(sparsity=0.3), WeightClustering(n_clusters=9), Quantization())
    again = without_names(net)
    x = net.input.example(16)
    with torch.no_grad():
        assert equal(IntegerNet(net)(x), IntegerNet(again)(x))
    assert len(again.activations) == len(net.activations)
    assert len(lower(again).operations) == len(lower(net).operations)
    assert len(onnx.build(again, target="onnx-x86").graph.node) == len(onnx.build(net, target="onnx-x86").graph.node)
    assert len(dumps(net, names=False)) < len(dumps(net))
    again.check()


def test_tensors_are_called_after_the_first_node_that_uses_them():
    ends = {end for role in OPERATIONS[7].roles for end in (SUFFIXES[role],)}
    names = without_names(artifact_of("tiny batch_norm")).stored()
    assert "1.weight" in names
    assert {f"2.{end}" for end in ends} <= set(names)


def test_file_without_names_goes_into_no_module(tmp_path):
    net = artifact_of("tiny conv")
    assert save(net, tmp_path / "net.lil", names=False) == len(dumps(net, names=False))
    with pytest.raises(ArtifactError, match=r"load into \w+: the file holds no names; load it as it is: ll.load"):
        container.read(tmp_path / "net.lil").replay(example("tiny conv")[0])


def test_network_that_has_no_graph_keeps_its_names():
    class Sorts(nn.Module):
        def forward(self, x):
            return torch.sort(x)[0]

    net = Artifact.of(Sorts(), InputSpec(shape=(4,)))
    with pytest.raises(UnsupportedError, match="store the graph"):
        dumps(net, names=False)
    with pytest.raises(UsageError, match="strip and no names"):
        dumps(net, names=False, strip=True)


def test_a_network_from_such_a_file_can_be_measured_and_changed():
    net = without_names(artifact_of("tiny conv"))
    assert container.loads(container.dumps(net, strip=True)).origin == ""
    net.encode_("1.weight", net.encoding("1.weight").with_mask(torch.ones(net.encoding("1.weight").shape).bool()))
    again = without_names(net)
    assert torch.equal(again.encoding("1.weight").decode(), net.encoding("1.weight").decode())


def broken(value, generator):
    """One value inside replaced by another."""
    others = [None, -1, 0, 1, 2, 9, 1 << 40, [], [None], [0], [1, 2, 3, 4, 5], "x", True, 0.5, b"x", {}]
    if not isinstance(value, list) or not value or generator.random() < 0.15:
        return generator.choice(others)
    at = generator.randrange(len(value))
    if generator.random() < 0.1:
        return value[:at] + value[at + 1 :]
    return [broken(v, generator) if i == at else v for i, v in enumerate(value)]


@pytest.mark.parametrize("name", ["tiny batch_norm", "tiny residual", "several outputs"])
def test_broken_headers_end_in_one_error_or_in_a_network(name):
    generator = random.Random(name)
    header, payload = opened(dumps(artifact_of(name), names=False))
    whole, refused = wire.loads(header), 0
    assert 2 <= len(whole) <= 5
    for _ in range(300):
        value = broken(whole, generator)
        try:
            if isinstance(value, list) and 2 <= len(value) <= 5:
                named(value)
        except ValueError:
            pass
        try:
            stored_artifact(container.loads(file_of(wire.dumps(value), payload)))
        except ArtifactError:
            refused += 1
    assert refused > 200


def test_changed_payloads_end_in_one_error_or_in_a_network():
    generator = random.Random(5)
    net = artifact_of("tiny conv")
    for name in ("0.weight", "4.weight"):
        e = net.encoding(name)
        net.encode_(name, e.with_grid(Grid.per_tensor(0.25, 0, 4, signed=True)))
    data = dumps(net, names=False)
    assert {s.coding for streams in container.loads(data).streams.values() for s in streams} >= {6}
    header, payload = opened(data)
    refused = 0
    for _ in range(300):
        at = generator.randrange(len(payload))
        changed = payload[:at] + bytes([generator.randrange(256)]) * generator.randrange(3) + payload[at + 1 :]
        try:
            stored_artifact(container.loads(file_of(header, changed)))
        except ArtifactError:
            refused += 1
    assert refused > 100
