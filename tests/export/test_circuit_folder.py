"""Circuits as a folder: output i is index i of the file, the C computes it, and what is not so is said."""

import json
import re
import shutil
from collections import Counter
from xml.etree import ElementTree as ET

import pytest
import torch

from lilliput.core.artifact import Artifact
from lilliput.core.bank import Bank
from lilliput.core.encoding import Encoding
from lilliput.core.errors import ArtifactError, ExportError, UsageError, VerificationError
from lilliput.core.grid import Grid
from lilliput.export.circuit_folder import ascending, circuits_of, verify, weights_of, write
from lilliput.export.netlist_svg import MOST_DRAWN
from lilliput.ops.netlist import Gate, Netlist
from lilliput.testing import tiny_model, tiny_task

needs_compiler = pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")
ADD = Bank(netlist=Netlist(bits=8, inputs=2, gates=(Gate(1, 0, 1),), outputs=(0, 1, 2)), inputs=(30, -50))
WIDE = Bank(
    netlist=Netlist(bits=8, inputs=3, gates=(Gate(3, 0, 1), Gate(2, 3, 2)), outputs=(2, 3, 4)), inputs=(7, 9, -2)
)


def network(*banks):
    """The weights of the tiny network of two layers, each of a circuit."""
    net = Artifact.of(tiny_model("linear"), tiny_task().spec)
    for name, bank in zip(("1.weight", "3.weight"), banks, strict=False):
        weight = net.parameter(name)
        scale = float(weight.detach().abs().max()) / 100
        encoding = Encoding.of(weight).with_grid(Grid.per_tensor(scale, 0, 8, signed=True))
        net.encode_(name, encoding.with_bank(bank))
    return net


def test_equal_circuits_are_one(tmp_path):
    again = Bank(netlist=ADD.netlist, inputs=(30, -50))
    found = circuits_of(network(ADD, again))
    assert [list(tensors) for _, tensors in found] == [["1.weight", "3.weight"]]
    assert [list(tensors) for _, tensors in circuits_of(network(ADD, WIDE))] == [["1.weight"], ["3.weight"]]


def test_output_i_is_index_i_of_the_file():
    for bank in (ADD, WIDE):
        net = ascending(bank)
        assert net.evaluate(list(bank.inputs)).tolist() == bank.values.tolist()
    twice = Bank(netlist=Netlist(bits=4, inputs=0, gates=(Gate(22), Gate(22), Gate(23)), outputs=(0, 1, 2)))
    assert ascending(twice).evaluate([]).tolist() == [-1, 1]


def test_files_and_which_tensor_uses_which_outputs(tmp_path):
    net = network(ADD, WIDE)
    paths = write(net, tmp_path)
    kinds = ("h", "c", "dot", "svg")
    names = [f"circuit_{k}.{kind}" for k in range(2) for kind in kinds]
    assert [path.name for path in paths] == [*names, "README.md", "circuits.json"]
    index = json.loads((tmp_path / "circuits.json").read_text())
    for entry, name, bank in zip(index["circuits"], ("1.weight", "3.weight"), (ADD, WIDE), strict=True):
        (tensor,) = entry["tensors"]
        used = Counter(net.encoding(name).integers().reshape(-1).tolist())
        assert entry["values"] == bank.values.tolist()
        assert tensor["weights"] == used.total()
        assert tensor["outputs"] == [i for i, value in enumerate(entry["values"]) if used[value]]
    readme = (tmp_path / "README.md").read_text()
    assert re.search(r"\| `1.weight` \| \d+x\d+ \| \d+ \| 0-2 \|", readme)
    ET.parse(tmp_path / "circuit_0.svg")
    assert (tmp_path / "circuit_1.h").read_text().count("#define CIRCUIT_1_INPUTS { 7, 9, -2 }") == 1
    assert write(net, tmp_path) == paths  # over its own files


@needs_compiler
def test_all_inputs_are_tried_or_it_is_said(tmp_path):
    write(network(ADD, WIDE), tmp_path)
    first, second = verify(tmp_path)
    assert (first.rows, first.all_of_them) == (65536, True)
    assert not second.all_of_them
    assert second.rows > 1000
    assert "a part of all" in second.text()


@needs_compiler
@pytest.mark.parametrize(
    ("old", "new", "fault"),
    [
        ("U(v0) + U(v1)", "U(v0) - U(v1)", "instead of"),
        ("out[0]", "out[1]", "instead of"),
        ("int32_t v2", "nonsense v2", "error:"),
    ],
)
def test_a_function_that_was_changed_is_found(tmp_path, old, new, fault):
    write(network(ADD), tmp_path)
    path = tmp_path / "circuit_0.c"
    text = path.read_text()
    assert text.count(old) == 1
    path.write_text(text.replace(old, new))
    with pytest.raises(VerificationError, match=fault):
        verify(tmp_path)


def test_what_cannot_be_exported_or_verified_says_so(tmp_path):
    with pytest.raises(ExportError, match="no tensor is made by one; apply weight_generation first"):
        write(Artifact.of(tiny_model("linear"), tiny_task().spec), tmp_path)
    (tmp_path / "circuit_0.c").write_text("mine")
    with pytest.raises(UsageError, match="that Lilliput has not made"):
        write(network(ADD), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["circuit_0.c"]
    with pytest.raises(UsageError, match="--to circuit"):
        verify(tmp_path)
    entry = {"name": "../circuit_0", "circuit": ADD.netlist.pack().hex(), "inputs": [30, -50]}
    for text in (
        "{",
        "[]",
        json.dumps({"circuits": [entry]}),
        json.dumps({"circuits": [{**entry, "name": "a", "inputs": [300, 0]}]}),
        json.dumps({"circuits": [{**entry, "name": "a", "circuit": "zz"}]}),
    ):
        (tmp_path / "circuits.json").write_text(text)
        with pytest.raises(ArtifactError, match="export it again"):
            verify(tmp_path)
    (tmp_path / "circuits.json").write_text(json.dumps({"circuits": [{**entry, "name": "gone"}]}))
    with pytest.raises(UsageError, match=r"gone\.c cannot be read"):
        verify(tmp_path)


def test_large_circuits_have_no_picture(tmp_path):
    gates = (Gate(22), *(Gate(13, k) for k in range(MOST_DRAWN)))
    bank = Bank(netlist=Netlist(bits=9, inputs=0, gates=gates, outputs=tuple(range(len(gates)))))
    net = Artifact.of(tiny_model("linear"), tiny_task().spec)
    grid = Grid.per_tensor(0.01, 0, 9, signed=True)
    net.encode_("1.weight", Encoding.of(net.parameter("1.weight")).with_grid(grid).with_bank(bank))
    assert "circuit_0.svg" not in [path.name for path in write(net, tmp_path)]


def test_pruned_weights_and_channels_without_bits_do_not_count():
    weight = torch.tensor([[30.0, -50.0], [30.0, 30.0], [-20.0, -50.0]])
    grid = Grid(
        scale=torch.ones(3), zero_point=torch.zeros(3, dtype=torch.int64), bit_width=torch.tensor([8, 0, 8]), axis=0
    )
    mask = torch.tensor([[True, False], [True, True], [True, True]])
    encoding = Encoding.of(weight).with_mask(mask).with_grid(grid).with_bank(ADD)
    assert weights_of({"w": encoding}) == Counter({30: 1, -20: 1, -50: 1})
