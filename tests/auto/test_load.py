"""A file loads as the network that was measured, or as one clear error."""

import copy
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from lilliput.auto.load import load, load_artifact
from lilliput.core import container
from lilliput.core.artifact import Artifact
from lilliput.core.errors import ArtifactError, LilliputError
from lilliput.core.method import Context, apply_checked_
from lilliput.graph import stored
from lilliput.graph.integer import runnable
from lilliput.methods.clustering.weight_clustering import WeightClustering
from lilliput.methods.normalization.batchnorm import FoldBatchNorm
from lilliput.methods.pruning.magnitude import MagnitudePruning
from lilliput.methods.quantization.post_training import Quantization
from lilliput.testing import tiny_model, tiny_task

TASK = tiny_task(32)
METHODS = (FoldBatchNorm(), MagnitudePruning(), WeightClustering(n_clusters=8), Quantization())


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A compressed network and its file."""
    model = tiny_model("residual")
    net = Artifact.of(model, TASK.spec)
    for method in METHODS:
        apply_checked_(method, net, Context.of(TASK, model))
    path = tmp_path_factory.mktemp("saved") / "net.lil"
    container.save(net, path)
    return net, path


def test_the_loaded_network_computes_what_was_saved(saved):
    net, path = saved
    x = TASK.data("train").inputs
    with torch.no_grad():
        assert torch.equal(load(path, into=tiny_model("residual", seed=9))(x), runnable(net)(x))
        assert torch.equal(load(str(path), into=tiny_model("residual"))(x[:1]), runnable(net)(x[:1]))


def test_the_module_that_is_given_is_not_changed(saved):
    fresh = tiny_model("residual", seed=9).train()
    before = {n: t.clone() for n, t in fresh.state_dict().items()}
    loaded = load_artifact(saved[1], fresh)
    assert fresh.training
    assert not loaded.module.training
    assert list(fresh.state_dict()) == list(before)
    assert all(torch.equal(t, before[n]) for n, t in fresh.state_dict().items())


def test_everything_that_was_stored_comes_back(saved):
    net, path = saved
    loaded = load_artifact(path, tiny_model("residual"))
    assert all(e.same(loaded.encodings[n]) for n, e in net.encodings.items())
    assert all(g.same(loaded.activations[n]) for n, g in net.activations.items())
    assert (loaded.edits, loaded.input, loaded.origin) == (net.edits, net.input, net.origin)
    assert container.dumps(loaded) == path.read_bytes()


SCRIPT = """
import sys, torch, lilliput as ll
from lilliput.testing import tiny_model, tiny_task
with torch.no_grad():
    y = ll.load(sys.argv[1], into=tiny_model("residual", seed=5))(tiny_task(32).data("train").inputs)
torch.save(y, sys.argv[2])
"""


def test_a_new_process_computes_the_same_bits(saved, tmp_path):
    net, path = saved
    subprocess.run([sys.executable, "-c", SCRIPT, str(path), str(tmp_path / "y.pt")], check=True)
    with torch.no_grad():
        assert torch.equal(torch.load(tmp_path / "y.pt", weights_only=True), runnable(net)(TASK.data("train").inputs))


GRAPH_SCRIPT = """
import sys, torch
sys.modules["lilliput.testing"] = None  # where the class of the model is
import lilliput as ll
net = ll.load(sys.argv[1])
with torch.no_grad():
    torch.save(net(torch.load(sys.argv[2], weights_only=True)), sys.argv[3])
"""


def test_a_file_with_its_graph_runs_without_the_class_of_the_model(saved, tmp_path):
    net, _ = saved
    stored.save(net, tmp_path / "net.lil")
    x = TASK.data("train").inputs
    torch.save(x, tmp_path / "x.pt")
    words = (tmp_path / "net.lil", tmp_path / "x.pt", tmp_path / "y.pt")
    subprocess.run([sys.executable, "-c", GRAPH_SCRIPT, *map(str, words)], check=True)
    with torch.no_grad():
        assert torch.equal(torch.load(tmp_path / "y.pt", weights_only=True), runnable(net)(x))
        assert torch.equal(load(tmp_path / "net.lil", into=tiny_model("residual", seed=9))(x), runnable(net)(x))


def test_a_file_without_graph_needs_a_module(saved):
    text = "no graph in the file; give the module: ll.load(path, into=...) or --into"
    for read in (load, load_artifact):
        with pytest.raises(ArtifactError) as error:
            read(saved[1])
        assert str(error.value) == f"load {saved[1]}: {text}"


@pytest.mark.parametrize("name", ["linear", "batch_norm", "grouped"])
def test_another_architecture_is_refused(saved, name):
    with pytest.raises(
        ArtifactError, match=r"load into \w+: its fingerprint is [0-9a-f]{16}, the file's is [0-9a-f]{16}"
    ):
        load(saved[1], into=tiny_model(name))


def test_the_same_class_with_other_settings_is_refused(saved):
    other = tiny_model("residual")
    other.add_module("second", nn.Conv2d(4, 8, 3, 2, 1, dilation=2, bias=False))
    with pytest.raises(ArtifactError, match="make the module with the class and arguments that the file was made from"):
        load(saved[1], into=other)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_a_truncated_or_changed_file_is_one_clear_error(saved, data):
    whole = saved[1].read_bytes()
    cut = data.draw(st.integers(0, len(whole) - 1))
    with pytest.raises(ArtifactError, match=r"^read net.lil: "):
        container.loads(whole[:cut], source="net.lil")
    flipped = bytearray(whole)
    flipped[data.draw(st.integers(0, len(whole) - 1))] ^= data.draw(st.integers(1, 255))
    with pytest.raises(ArtifactError, match=r"^read net.lil: "):
        container.loads(bytes(flipped), source="net.lil")


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"", "it is empty; give a .lil file"),
        (b"PK\x03\x04" + bytes(50), "it does not start with LIL; give a .lil file"),
        (b"LIL\xff" + bytes(50), "format version 255; this Lilliput reads version 1; update it"),
        (b"LIL\x01", "the checksum does not match: truncated or damaged; copy or make the file again"),
    ],
)
def test_what_is_no_file_of_ours_is_named(tmp_path, content, text):
    path = tmp_path / "net.lil"
    path.write_bytes(content)
    with pytest.raises(ArtifactError) as error:
        load(path, into=tiny_model("linear"))
    assert str(error.value) == f"read {path}: {text}"


def test_a_path_that_is_not_there_or_is_a_folder_is_named(tmp_path):
    with pytest.raises(ArtifactError, match="no such file; check the path"):
        load(tmp_path / "none.lil", into=tiny_model("linear"))
    with pytest.raises(LilliputError, match="Is a directory"):
        load(tmp_path, into=tiny_model("linear"))


def test_tied_weights_are_tied_again(tmp_path):
    model = tiny_model("shared")
    net = Artifact.of(model, TASK.spec)
    apply_checked_(Quantization(weight_bits=4, activation_bits=0), net, Context.of(TASK, model))
    container.save(net, tmp_path / "net.lil")
    loaded = load_artifact(tmp_path / "net.lil", copy.deepcopy(model))
    assert loaded.parameter("tied.weight") is loaded.parameter("middle.weight")
