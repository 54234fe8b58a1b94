"""`.lil` files: what was written comes back, and nothing else does."""

import copy
import os
import re
import tracemalloc
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from lil_files import (
    MAKE,
    SPEC,
    artifact,
    by_channel,
    deflated,
    file_of,
    forged,
    fresh,
    of,
    opened,
    put_bias_,
    sealed,
    sequential,
    varint,
)
from lilliput.core import container, wire
from lilliput.core.artifact import Artifact, InputSpec
from lilliput.core.edits import Fold
from lilliput.core.encoding import Encoding, Grid
from lilliput.core.errors import ArtifactError, UsageError
from lilliput.core.header import HEADER_FLOOR, HEADER_PER_BYTE, MAX_HEADER
from lilliput.core.streams import size_bits, streams_of
from lilliput.graph.integer import runnable
from lilliput.measure.size import overhead
from lilliput.testing import tiny_model
from strategies import encodings, law

FILES = {name: container.dumps(artifact(name)) for name in MAKE}


def refused(data):
    with pytest.raises(ArtifactError) as error:
        container.loads(data, source="net.lil")
    text = str(error.value)
    assert "\n" not in text
    assert len(text) < 400
    return text


def outcome(data, name):
    """ "refused", or a checked artifact; any other exception fails the test."""
    try:
        contents = container.loads(data, source="net.lil")
        net = contents.replay(fresh(name))
    except ArtifactError as error:
        return str(error)
    net.check()
    return net


def inner(text):
    return f"read net.lil: the contents are not well formed ({text}); make the file again"


# What was written comes back


@pytest.mark.parametrize("name", MAKE)
def test_fresh_module_becomes_the_network_of_the_file(name):
    net = artifact(name)
    data = container.dumps(net, trail=[{"step": 1, "why": None}])
    contents = container.loads(data)
    other = fresh(name)
    again = contents.replay(other)
    assert again.module is other
    assert not again.module.training
    again.check()
    x = torch.randn((9, *SPEC.shape), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(net.module(x), again.module(x))
    for n, t in net.module.state_dict().items():
        assert torch.equal(again.module.state_dict()[n], t)
        assert again.module.state_dict()[n].dtype == t.dtype
    assert set(again.encodings) == set(net.encodings)
    assert all(again.encodings[n].same(e) for n, e in net.encodings.items())
    assert list(again.activations) == list(net.activations)
    assert all(again.activations[n].same(g) for n, g in net.activations.items())
    assert (again.edits, again.recipe, again.origin, again.input) == (net.edits, net.recipe, net.origin, SPEC)
    assert contents.trail == [{"step": 1, "why": None}]
    assert contents.size == len(data)
    assert container.dumps(again, trail=contents.trail) == data


def test_integer_network_of_the_file_computes_the_same_integers():
    net = artifact("integer")
    again = container.loads(FILES["integer"]).replay(fresh("integer"))
    for one in (net, again):
        del one.activations["signed"]  # in the file for its form: no value of this network
    x = torch.randn((9, *SPEC.shape), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(runnable(net)(x), runnable(again)(x))


@given(st.data())
@law(120)
def test_any_encodings_and_activations_come_back(data):
    net = Artifact.of(sequential(4, 3, 2), InputSpec(shape=(4,)))
    for name, shape in (("0.weight", (3, 4)), ("0.bias", (3,)), ("1.weight", (2, 3)), ("1.bias", (2,))):
        net.encode_(name, data.draw(encodings(shape=shape)))
    if data.draw(st.booleans()):
        net.activations["input"] = Grid.per_tensor(data.draw(st.floats(1e-6, 1e6)), 3, 4, signed=True)
    written = container.dumps(net)
    contents = container.loads(written)
    again = contents.replay(sequential(4, 3, 2))
    assert all(again.stored()[n].same(e) for n, e in net.stored().items())
    assert container.dumps(again) == written
    for name, e in net.stored().items():
        assert 8 * sum(len(s.data) for s in contents.streams[name]) == size_bits(e)
        assert container.sizes(contents)[name] == {s.slot: len(s.data) for s in streams_of(e)}


def test_equal_artifacts_give_equal_bytes():
    for name in MAKE:
        assert container.dumps(artifact(name)) == FILES[name]
        assert container.dumps(artifact(name).copy()) == FILES[name]


def test_network_in_training_mode_on_other_strides_gives_the_same_bytes():
    net = artifact("float")
    net.module.train()
    weight = net.module[0].weight
    weight.data = weight.data.contiguous(memory_format=torch.channels_last)
    assert container.dumps(net) == FILES["float"]


def test_order_of_overrides_in_the_recipe_comes_back():
    net = artifact("integer")
    net.recipe = [{"quantization": {"overrides": {"layer1.*": {"weight_bits": 4}, "*": {"weight_bits": 8}}}}]
    overrides = container.loads(container.dumps(net)).recipe[0]["quantization"]["overrides"]
    assert list(overrides) == ["layer1.*", "*"]


def test_stripped_file_has_neither_recipe_nor_labels_nor_trail():
    net = artifact("integer")
    whole, bare = container.dumps(net, trail=[{"a": 1}]), container.dumps(net, trail=[{"a": 1}], strip=True)
    contents = container.loads(bare)
    assert (contents.recipe, contents.trail, contents.input) == ([], [], replace(SPEC, labels=()))
    assert len(bare) < len(whole)
    assert all(contents.tensors[n].same(e) for n, e in net.stored().items())


def test_tied_parameters_stand_once_and_are_tied_again():
    contents = container.loads(FILES["tied"])
    assert "tied.weight" not in contents.tensors
    module: Any = contents.replay(fresh("tied")).module
    assert module.tied.weight is module.middle.weight


def test_counters_of_every_type_come_back():
    class Counting(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(2, 2)
            kinds = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool)
            for i, kind in enumerate(kinds):
                self.register_buffer(f"count{i}", torch.tensor([[0, 1, 100]]).to(kind))
            self.again = nn.BatchNorm1d(2)
            self.twice = self.again

    net: Any = Artifact.of(Counting(), InputSpec(shape=(2,)))
    net.module.again.num_batches_tracked.fill_(-5)
    contents = container.loads(container.dumps(net))
    assert "twice.num_batches_tracked" not in contents.counters
    module = contents.replay(Counting()).module
    for name, value in net.module.state_dict().items():
        assert torch.equal(module.state_dict()[name], value)
        assert module.state_dict()[name].dtype == value.dtype


# Derived scales and overhead


def test_scale_of_a_bias_that_follows_from_others_is_not_in_the_file():
    net, contents = artifact("integer"), container.loads(FILES["integer"])
    for bias in ("1.bias", "3.bias"):
        assert {s.slot for s in contents.streams[bias]} == {"values"}
        assert contents.tensors[bias].same(net.encodings[bias])
    header = wire.loads(opened(FILES["integer"])[0])
    assert [t[1] for t in header[2] if t[0].endswith("bias")] == [[4, 1, 17, 20, 0], [4, 1, 17, 20, 1]]


@pytest.mark.parametrize("why", ["another scale", "no activation", "weight behind the bias", "weight without a grid"])
def test_scale_of_a_bias_that_follows_from_nothing_is_in_the_file(why):
    net = artifact("integer")
    if why == "another scale":
        grid = net.encodings["1.bias"].grid
        net.encode_("1.bias", net.encodings["1.bias"].with_grid(replace(grid, scale=grid.scale * 1.0001)))
    elif why == "no activation":
        net.activations = {}
    elif why == "weight without a grid":
        net.encode_("1.weight", Encoding.of(net.parameter("1.weight")))
    else:
        layer = net.module[1]
        weight, bias = layer._parameters.pop("weight"), layer._parameters.pop("bias")
        layer._parameters.update(bias=bias, weight=weight)
    contents = container.loads(container.dumps(net))
    assert {s.slot for s in contents.streams["1.bias"]} == {"scale", "values"}
    assert contents.tensors["1.bias"].same(net.encodings["1.bias"])


class Named(nn.Module):
    def __init__(self, norms):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(1, 8, 3, bias=not norms), nn.BatchNorm2d(8) if norms else nn.Identity()
        self.conv2, self.bn2 = nn.Conv2d(8, 8, 3, bias=not norms), nn.BatchNorm2d(8) if norms else nn.Identity()
        self.fc = nn.Linear(32, 10)


class OtherNames(nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone = nn.ModuleDict({"stage1": nn.Conv2d(1, 8, 3), "stage2": nn.Conv2d(8, 8, 3)})
        self.readout = nn.Linear(32, 10)


def quantized(model, layers, edits=()):
    """Fully quantized: every weight by channel, biases with derived scales, an activation before every layer."""
    net = Artifact.of(model, InputSpec(shape=(1, 8, 8), layout="CHW"))
    for edit in edits:
        edit.replay_(net.module)
        net.edits.append(edit)
    for i, layer in enumerate(layers):
        source = ("input", "relu", "relu_1")[i]
        net.activations[source] = Grid.per_tensor(0.0123 * (i + 1), 117 if i == 0 else 0, 8, signed=False)
        weight = net.parameter(f"{layer}.weight")
        net.encode_(f"{layer}.weight", Encoding.of(weight).with_grid(by_channel(weight)))
        put_bias_(net, layer, source)
    return net


@pytest.mark.parametrize(
    "net",
    [
        quantized(Named(norms=False), ("conv1", "conv2", "fc")),
        quantized(
            Named(norms=True),
            ("conv1", "conv2", "fc"),
            [Fold(layer="conv1", norm="bn1"), Fold(layer="conv2", norm="bn2")],
        ),
        quantized(sequential(24, 20, 16, 10), ("0", "1", "2")),
        quantized(OtherNames(), ("backbone.stage1", "backbone.stage2", "readout")),
    ],
    ids=["named", "folded", "numbered", "other names"],
)
def test_overhead_of_a_network_of_a_thousand_parameters_is_below_150_bytes(net):
    assert 990 <= sum(p.numel() for p in net.module.parameters()) <= 1030
    data = container.dumps(net, strip=True)
    contents = container.loads(data)
    assert len(data) == overhead(contents) + sum(
        size for row in container.sizes(contents).values() for size in row.values()
    )
    assert overhead(contents) < 150


# What is damaged


@pytest.mark.parametrize("name", ["integer", "slots"])
def test_file_cut_at_any_length_is_refused(name):
    data = FILES[name]
    texts = {refused(data[:n]) for n in range(len(data))}
    assert texts == {
        "read net.lil: it is empty; give a .lil file",
        "read net.lil: it does not start with LIL; give a .lil file",
        "read net.lil: the checksum does not match: truncated or damaged; copy or make the file again",
    }
    assert "checksum" in refused(data + b"\x00")


@pytest.mark.parametrize("name", MAKE)
def test_any_changed_byte_is_noticed(name):
    data = FILES[name]
    for at in range(0, len(data), 1 + len(data) // 400):
        for flip in (1, 0x80, 0xFF):
            text = refused(data[:at] + bytes([data[at] ^ flip]) + data[at + 1 :])
            assert re.search("checksum|does not start with LIL|format version", text)


@pytest.mark.parametrize("version", [0, 2, 255])
def test_another_version_is_named(version):
    data = sealed(FILES["float"][:3] + bytes([version]) + FILES["float"][4:-4])
    assert refused(data) == f"read net.lil: format version {version}; this Lilliput reads version 1; update it"


@pytest.mark.parametrize("data", [b"PK\x03\x04", b"\x93NUMPY", b"lil\x01", b"LI", b"\x00" * 50])
def test_another_kind_of_file_is_named(data):
    assert refused(data) == "read net.lil: it does not start with LIL; give a .lil file"


@pytest.mark.parametrize("name", MAKE)
def test_any_changed_byte_under_a_right_checksum_is_refused_or_a_network(name):
    data, rng = FILES[name], np.random.default_rng(0)
    header_end = len(data) - 4 - len(opened(data)[1])
    places = [*range(4, header_end), *rng.integers(header_end, len(data) - 4, 150).tolist()]
    networks = 0
    for at in places:
        flip = int(rng.integers(1, 256))
        result = outcome(sealed(data[:at] + bytes([data[at] ^ flip]) + data[at + 1 : -4]), name)
        networks += not isinstance(result, str)
    assert networks > 0


@pytest.mark.parametrize("name", MAKE)
def test_any_changed_byte_of_the_header_is_refused_or_a_network(name):
    raw, payload = opened(FILES[name])
    rng = np.random.default_rng(1)
    for at in range(len(raw)):
        broken = bytearray(raw)
        broken[at] ^= int(rng.integers(1, 256))
        outcome(file_of(bytes(broken), payload), name)


def places(value, path=()):
    yield path
    if isinstance(value, (list, dict)):
        for key, item in enumerate(value) if isinstance(value, list) else value.items():
            yield from places(item, (*path, key))


anything = st.one_of(
    st.integers(-3, 70),
    st.sampled_from([None, True, 1.5, float("nan"), float("inf"), "", "bias", b"", b"\x00", [], {}, [[]], {"a": []}]),
    st.sampled_from([1 << 20, 1 << 31, 1 << 40, (1 << 63) - 1, -(1 << 62), "x" * 2000, [1 << 39] * 8, [[1]] * 9]),
)


@pytest.mark.parametrize("name", MAKE)
def test_any_changed_field_is_refused_or_a_network(name):
    raw, payload = opened(FILES[name])
    paths = [p for p in places(wire.loads(raw)) if p]

    @given(st.sampled_from(paths), anything, st.sampled_from(["set", "drop", "twice"]))
    @law(150)
    def check(path, value, how):
        header = wire.loads(raw)
        parent = header
        for key in path[:-1]:
            parent = parent[key]
        if how == "set" or not isinstance(parent, list):
            parent[path[-1]] = value
        elif how == "drop":
            del parent[path[-1]]
        else:
            parent.insert(path[-1], parent[path[-1]])
        outcome(file_of(wire.dumps(header), payload), name)

    check()


@given(st.binary(max_size=60))
@law(200)
def test_any_bytes_behind_a_right_magic_and_checksum_are_refused(data):
    refused(sealed(b"LIL\x01" + data))


# What is said about it


def set_(*path, to):
    def change(header):
        parent = header
        for key in path[:-1]:
            parent = parent[key]
        parent[path[-1]] = to

    return change


ORIGIN, INPUT, TENSORS, COUNTERS, ACTIVATIONS, EDITS, RECIPE, TRAIL = range(8)
WRONG = {
    "eight fields": ("float", lambda h: h.clear(), "where 8 fields should be"),
    "graph": ("float", lambda h: h.append(1), "1 where a list should be"),
    "ten fields": ("float", lambda h: h.extend([[[]], 1]), "where 8 fields should be"),
    "fingerprint": ("float", set_(ORIGIN, to=b"1234567"), "a fingerprint that is not 8 bytes"),
    "fingerprint as a number": ("float", set_(ORIGIN, to=1 << 40), "a fingerprint that is not 8 bytes"),
    "input of no entries": ("float", set_(INPUT, 0, to=[1, 0]), "shape [1, 0]"),
    "huge input": ("float", set_(INPUT, 0, to=[1 << 15, 1 << 14]), "an input of 536870912 entries"),
    "mean": ("float", set_(INPUT, 2, to=[float("nan")]), "[nan] where finite numbers should be"),
    "mean as text": ("float", set_(INPUT, 2, to=["nan"]), "['nan'] where finite numbers should be"),
    "layout": ("float", set_(INPUT, 1, to=b"CHW"), "b'CHW' where a name should be"),
    "long label": ("float", set_(INPUT, 4, to=["x" * 1001]), "where a name should be"),
    "tensors": ("float", set_(TENSORS, to={}), "{} where a list should be"),
    "tensor of two fields": ("float", set_(TENSORS, 0, to=["0.weight", []]), "a tensor of 2 fields"),
    "tensor of five fields": ("float", lambda h: h[2][0].extend([[1], 2]), "a tensor of 5 fields"),
    "tensor without a name": ("float", set_(TENSORS, 0, 0, to=5), "5 where a name should be"),
    "two names": ("float", lambda h: h[2].append(h[2][0]), "the name '0.weight' appears twice"),
    "counter with a tensor's name": ("float", set_(COUNTERS, 0, 0, to="0.weight"), "the name '0.weight' appears twice"),
    "two counters": ("float", lambda h: h[3].append(h[3][0]), "the name '1.num_batches_tracked' appears twice"),
    "two activations": ("integer", set_(ACTIVATIONS, 1, 0, to="input"), "the name 'input' appears twice"),
    "rank": ("float", set_(TENSORS, 0, 2, to=[1] * 9), "shape [1, 1, 1, 1, 1, 1, ...]"),
    "no entries": ("float", set_(TENSORS, 0, 2, to=[4, 0]), "shape [4, 0]"),
    "boolean size": (
        "float",
        set_(TENSORS, 0, 2, to=[True]),
        "True where a whole number up to 1099511627776 should be",
    ),
    "negative size": ("float", set_(TENSORS, 0, 2, to=[-4]), "-4 where a whole number up to 1099511627776 should be"),
    "fractional slot": ("slots", set_(TENSORS, 0, 1, 0, to=4.0), "4.0 where a whole number"),
    "negative code": ("slots", set_(TENSORS, 0, to=["0.weight", [], [4], [-7]]), "-7 where a whole number"),
    "useless codes": ("slots", lambda h: h[2][0].append([8, 0]), "codes that end with a raw stream"),
    "no codes": ("float", lambda h: h[2][0].append([]), "codes that end with a raw stream"),
    "many codes": ("integer", lambda h: h[2][1].append([0] * 9 + [1]), "10 codes for 1 streams"),
    "payload too long": ("float", lambda h: opened(FILES["float"])[1] + b"0", "1 bytes of payload left over"),
    "payload too short": ("float", lambda h: opened(FILES["float"])[1][:-1], "a stream of 12 bytes, 11 left"),
    "counter type": ("float", set_(COUNTERS, 0, 1, to=6), "6 where a whole number up to 5 should be"),
    "counter shape": ("float", set_(COUNTERS, 0, 2, to=[2]), "a counter of shape (2,) in b'"),
    "counter text": ("float", set_(COUNTERS, 0, 3, to="12345678"), "a counter of shape () in '12345678'"),
    "boolean of 2": ("float", set_(COUNTERS, 0, to=["n", 5, [], b"\x02"]), "a boolean that is not 0 or 1"),
    "bits of an activation": ("integer", set_(ACTIVATIONS, 0, 1, to=24), "bit widths from 24 to 24"),
    "kind of an activation": ("integer", set_(ACTIVATIONS, 0, 2, to=4), "4 where a whole number up to 3 should be"),
    "zero point of an activation": ("integer", set_(ACTIVATIONS, 0, 3, to=256), "zero point 256 outside of its range"),
    "huge zero point": ("integer", set_(ACTIVATIONS, 0, 3, to=-(1 << 62)), "zero point -4611686018427387904"),
    "fractional zero point": ("integer", set_(ACTIVATIONS, 0, 3, to=1.5), "zero point 1.5"),
    "source of a weight": (
        "integer",
        set_(TENSORS, 0, 1, to=[4, 1, 17, 8, 0]),
        "the scale of '1.weight' derives from something that is not there",
    ),
    "source beyond": (
        "integer",
        set_(TENSORS, 1, 1, 4, to=3),
        "the scale of '1.bias' derives from something that is not there",
    ),
    "derived scales of another number": ("integer", set_(TENSORS, 1, 1, 1, to=0), "12 derived scales for 1"),
    "unknown edit": ("edited", set_(EDITS, 0, 0, to="exec"), "unknown edit 'exec'"),
    "short edit": ("edited", set_(EDITS, 0, to=["fold", "0"]), "['0'] where 2 fields should be"),
    "edit without a kind": ("edited", set_(EDITS, 0, to=[]), "unknown edit None"),
    "negative index": ("edited", set_(EDITS, 1, 3, to=[-1]), "-1 where a whole number"),
    "dim": ("edited", set_(EDITS, 1, 2, to=-1), "-1 where a whole number up to 8 should be"),
    "settings": ("edited", set_(EDITS, 4, 3, to=[1]), "[1] where a map should be"),
    "recipe": ("integer", set_(RECIPE, to=["fold"]), "'fold' where a map should be"),
    "trail": ("integer", set_(TRAIL, to={}), "{} where a list should be"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_contents_are_named(case):
    name, change, text = WRONG[case]
    found = refused(forged(FILES[name], change))
    assert found.startswith("read net.lil: the contents are not well formed (")
    assert found.endswith("); make the file again")
    assert text in found


def test_header_must_unpack_to_its_length():
    raw, payload = opened(FILES["float"])
    for length in (0, len(raw) - 1, len(raw) + 1):
        assert refused(file_of(raw, payload, length)) == inner("the header does not unpack to its length")
    coded = deflated(raw) + b"\x00"
    body = b"LIL\x01" + varint(len(raw)) + varint(len(coded)) + coded + payload
    assert refused(sealed(body)) == inner("the header does not unpack to its length")
    data = FILES["float"]
    assert refused(sealed(data[:4] + b"\x80" * 5 + data[9:-4])) == inner("a length of more than 35 bits")
    assert refused(sealed(data[:4] + b"\x81\x00" + data[5:-4])) == inner("a length is not in its shortest form")
    assert refused(sealed(b"LIL\x01\x05\x06\x00\x00")) == inner("a header of 6 bytes, 2 left")
    assert refused(sealed(b"LIL\x01\x05\x02\xff\xff")).startswith(
        "read net.lil: the contents are not well formed (damaged header: "
    )


# What fits another network only

REPLAYS = {
    "shape": (
        "float",
        set_(TENSORS, 0, 2, to=[36]),
        "load tensor '0.weight': float32 (36,) in the file, float32 (4, 1, 3, 3) in the module",
    ),
    "name": ("float", set_(TENSORS, 0, 0, to="0.weights"), "load: the file has no tensor '0.weight'"),
    "counter": (
        "float",
        set_(COUNTERS, 0, to=["1.num_batches_tracked", 1, [], bytes(4)]),
        "load tensor '1.num_batches_tracked': int32 () in the file, int64 () in the module",
    ),
    "missing counter": ("float", set_(COUNTERS, to=[]), "load: the file has no tensor '1.num_batches_tracked'"),
    "unknown counter": (
        "float",
        lambda h: h[3].append(["n", 5, [1], b"\x01"]),
        "load tensor 'n': bool (1,) in the file, nothing in the module",
    ),
    "second name": ("tied", set_(TENSORS, 2, 0, to="tied.weight"), "load: the file has no tensor 'middle.weight'"),
    "fold of nothing": ("edited", set_(EDITS, 0, 1, to="7"), "replay of an edit at '7': the module has nothing there"),
    "fold of another layer": ("edited", set_(EDITS, 0, 2, to="2"), "replay of fold into '0': '2' is ReLU"),
    "fold into another layer": ("edited", set_(EDITS, 0, 1, to="2"), "replay of fold into '2': '2' is ReLU"),
    "fold of the network": ("edited", set_(EDITS, 0, 2, to=""), "replay of fold into '0': '' is Sequential"),
    "slice of nothing": ("edited", set_(EDITS, 1, 1, to="0.bla"), "replay of slice of '0.bla': no such tensor"),
    "slice beyond": ("edited", set_(EDITS, 1, 3, to=[4]), "replay of slice of '0.weight': shape (4, 1, 3, 3)"),
    "slice of dimension 4": ("edited", set_(EDITS, 1, 2, to=4), "replay of slice of '0.weight': shape (4, 1, 3, 3)"),
    "slice twice": (
        "edited",
        set_(EDITS, 1, 3, to=[1, 1]),
        "replay of slice of '0.weight': an index that is empty or has a slice twice",
    ),
    "slice of nothing left": (
        "edited",
        set_(EDITS, 1, 3, to=[]),
        "replay of slice of '0.weight': an index that is empty or has a slice twice",
    ),
    "other slices": (
        "edited",
        set_(EDITS, 1, 3, to=[0]),
        "load into Sequential: after the file's edits it does not run; make the file again",
    ),
    "unknown setting": (
        "edited",
        set_(EDITS, 4, 3, to={"bla": 1}),
        "replay of replace at '2': settings {'bla': 1} for Hardtanh (",
    ),
    "impossible setting": (
        "edited",
        set_(EDITS, 4, 3, to={"min_val": 3.0, "max_val": 2.0}),
        "replay of replace at '2': settings {'max_val': 2.0, 'min_val': 3.0} for Hardtanh (",
    ),
    "replace nothing": (
        "edited",
        set_(EDITS, 4, 1, to="bla"),
        "replay of an edit at 'bla': the module has nothing there",
    ),
    "replace all": (
        "edited",
        set_(EDITS, 4, 1, to=""),
        "replay of an edit: it replaces the whole network; make the file again",
    ),
}


@pytest.mark.parametrize("case", REPLAYS)
def test_contents_that_fit_another_network_are_named(case):
    name, change, text = REPLAYS[case]
    contents = container.loads(forged(FILES[name], change))
    with pytest.raises(ArtifactError, match="^" + re.escape(text)):
        contents.replay(fresh(name))


def test_tied_parameter_under_both_names_is_refused():
    def add(header):
        header[TENSORS].append(["tied.weight", [], [8, 8]])
        return opened(FILES["tied"])[1] + bytes(256)

    text = "load tensor 'tied.weight': float32 (8, 8) in the file, nothing in the module"
    with pytest.raises(ArtifactError, match="^" + re.escape(text)):
        container.loads(forged(FILES["tied"], add)).replay(fresh("tied"))


def test_another_architecture_is_refused_and_stays_as_it_was():
    other = tiny_model("linear")
    before = copy.deepcopy(other.state_dict())
    with pytest.raises(ArtifactError) as error:
        container.loads(FILES["float"]).replay(other)
    ours, theirs = artifact("float").origin, of(other).origin
    assert str(error.value) == (
        f"load into Sequential: its fingerprint is {theirs}, the file's is {ours}; "
        "make the module with the class and arguments that the file was made from"
    )
    assert all(torch.equal(t, before[n]) for n, t in other.state_dict().items())


# Bombs


def bomb(entries, payload=b"", **other):
    """A file that announces tensors [name, slots, shape, ...] of its own."""
    header = wire.loads(opened(FILES["float"])[0])
    header[TENSORS], header[COUNTERS] = entries, []
    for at, value in other.values():
        header[at] = value
    return file_of(wire.dumps(header), payload)


def peak_of(data):
    tracemalloc.start()
    try:
        text = refused(data)
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    return text, peak


HUGE = 1 << 39
BOMBS = {
    "length of the header": lambda: sealed(b"LIL\x01" + b"\xff" * 4 + b"\x7f" + b"\x05" + b"\x00" * 9),
    "header of zeros": lambda: file_of(bytes(MAX_HEADER)),
    "header of empty lists": lambda: file_of(b"\x9a\x00\xff\xff\xff" + b"\x80" * ((1 << 24) - 1)),
    "fingerprint": lambda: forged(FILES["float"], set_(ORIGIN, to=HUGE)),
    "floats": lambda: bomb([["w", [], [HUGE]]]),
    "rank 8": lambda: bomb([["w", [], [HUGE] * 8]]),
    "integers of no bits": lambda: bomb([["w", [4, 0, 9, 0], [HUGE]]], b"\x80"),
    "many integers of no bits": lambda: bomb([[f"w{i}", [4, 0, 9, 0], [1 << 19]] for i in range(3)], b"\x80" * 3),
    "table of one row": lambda: bomb([["w", [2, 0], [HUGE]]], b"\x01\x00" + bytes(4)),
    "grids of every slice": lambda: bomb([["w", [4, 1, 9, 0], [HUGE, 1]]], b"\x80"),
    "counter": lambda: forged(FILES["float"], set_(COUNTERS, 0, 2, to=[HUGE])),
    "input": lambda: forged(FILES["float"], set_(INPUT, 0, to=[HUGE])),
    "coded mask": lambda: bomb([["w", [1], [1 << 33], [1 + 8 * 5]]], bytes(5)),
}


@pytest.mark.parametrize("name", BOMBS)
def test_bombs_are_refused_before_they_unfold(name):
    data = BOMBS[name]()
    assert len(data) < 20_000
    text, peak = peak_of(data)
    assert "not well formed" in text
    assert peak < 5e6


def test_entries_without_bytes_are_limited():
    most = container.ENTRIES_FLOOR + container.ENTRIES_PER_BYTE
    tracemalloc.start()
    contents = container.loads(bomb([["w", [4, 0, 9, 0], [most]]], b"\x80"))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert contents.tensors["w"].shape == (most,)
    assert peak < 100e6
    assert refused(bomb([["w", [4, 0, 9, 0], [most + 1]]], b"\x80")) == inner(
        f"{most + 1} entries announced in 1 bytes of payload"
    )


def test_header_that_unpacks_to_more_than_its_share_is_refused():
    noise = np.random.default_rng(0).bytes(MAX_HEADER // HEADER_PER_BYTE)
    for raw in (bytes(2 * HEADER_FLOOR), noise + bytes(MAX_HEADER)):
        text, peak = peak_of(file_of(raw))
        assert re.search(r"a header of \d+ bytes packed in \d+\)", text)
        assert peak < 1e6
    _, peak = peak_of(file_of(b"\x99\xff\xff" + b"\x80" * 65535))  # as many lists as a small header may hold
    assert peak < 10e6


def test_more_tensors_than_any_network_has_are_refused():
    data = bomb([[f"{i:x}", [4, 0, 9, 0], []] for i in range((1 << 14) + 1)])
    assert refused(data) == inner("16385 tensors, activations or edits")


def test_slice_cannot_make_a_tensor_larger():
    index = [i % 4 for i in range(1000)]
    with pytest.raises(ArtifactError, match="has a slice twice"):
        container.loads(forged(FILES["edited"], set_(EDITS, 1, 3, to=index))).replay(fresh("edited"))


# What cannot be written


class Empty(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(2, 0))


def with_(net, **changes):
    for name, value in changes.items():
        setattr(net, name, value)
    return net


UNWRITABLE = {
    "activation by channel": (
        lambda: with_(of(tiny_model("linear")), activations={"x": by_channel(torch.ones(2, 2))}),
        "an activation grid per channel; use per-tensor activation grids",
    ),
    "no entries": (lambda: of(Empty()), "shape [2, 0]; keep names, recipe and trail short and plain"),
    "short fingerprint": (
        lambda: Artifact(module=nn.Linear(1, 1), input=SPEC, origin="ab"),
        "a fingerprint that is not 8 bytes; keep names, recipe and trail short and plain",
    ),
    "object in the recipe": (
        lambda: with_(of(tiny_model("linear")), recipe=[{"path": Path("x")}]),
        "PosixPath cannot stand in a header; keep names, recipe and trail short and plain",
    ),
    "huge integer": (
        lambda: with_(of(tiny_model("linear")), recipe=[{"seed": 1 << 64}]),
        "integer 18446744073709551616 does not fit 64 bits; keep names, recipe and trail short and plain",
    ),
    "long header": (
        lambda: with_(of(tiny_model("linear")), recipe=[{"a": bytes(MAX_HEADER)}]),
        re.compile(r"a header of \d+ bytes packed in \d+; keep names, recipe and trail short and plain"),
    ),
}


@pytest.mark.parametrize("case", UNWRITABLE)
def test_what_could_not_be_read_is_not_written(case):
    make, text = UNWRITABLE[case]
    with pytest.raises(UsageError) as error:
        container.dumps(make())
    pattern = text.pattern if isinstance(text, re.Pattern) else re.escape(text)
    assert re.fullmatch("write a .lil file: " + pattern, str(error.value))


def test_entries_that_take_no_bytes_are_not_written():
    n = 1100
    net = Artifact.of(nn.Linear(n, n, bias=False), InputSpec(shape=(n,)))
    net.encode_("weight", Encoding.of(net.parameter("weight")).with_grid(Grid.per_tensor(1.0, 0, 0, signed=True)))
    with pytest.raises(
        UsageError, match=re.escape("write a .lil file: 1210000 entries in 1 bytes; remove channels of zero bits")
    ):
        container.dumps(net)


def test_labels_and_statistics_of_any_number_type_are_written_as_plain_ones():
    net = of(tiny_model("linear"))
    numbers: dict[str, Any] = {
        "shape": (np.int64(1), 4, 4),
        "mean": (np.float32(0.5), 1),
        "std": (1, 2),
        "labels": (0, 1),
    }
    net.input = InputSpec(**numbers)
    contents = container.loads(container.dumps(net))
    assert contents.input == InputSpec(shape=(1, 4, 4), mean=(0.5, 1.0), std=(1.0, 2.0), labels=("0", "1"))
    assert container.dumps(contents.replay(tiny_model("linear"))) == container.dumps(net)


# On disk


def leftovers(folder):
    return sorted(p.name for p in folder.iterdir())


def test_saved_file_is_read_and_has_the_size_that_was_said(tmp_path):
    path = tmp_path / "new" / "folders" / "net.lil"
    assert container.save(artifact("slots"), path) == path.stat().st_size == len(FILES["slots"])
    assert path.read_bytes() == FILES["slots"]
    assert container.read(str(path)).tensors["0.weight"].same(artifact("slots").encodings["0.weight"])
    assert leftovers(path.parent) == ["net.lil"]


def test_saved_file_may_be_read_by_whom_the_umask_lets(tmp_path):
    before = os.umask(0o027)
    try:
        container.save(artifact("slots"), tmp_path / "net.lil")
    finally:
        os.umask(before)
    assert (tmp_path / "net.lil").stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize("where", ["write", "sync", "rename"])
@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_failed_save_loses_nothing_and_leaves_nothing(tmp_path, monkeypatch, where, error):
    path = tmp_path / "net.lil"
    path.write_bytes(b"old")

    def fail(*arguments):
        raise error

    def broken_open(self, mode):
        file = open(self, mode)  # noqa: PTH123, SIM115 - the method itself is replaced
        monkeypatch.setattr("os.fsync", fail)
        return file

    if where == "write":
        monkeypatch.setattr(Path, "open", broken_open)
    elif where == "sync":
        monkeypatch.setattr("os.fsync", fail)
    else:
        monkeypatch.setattr(Path, "replace", fail)
    if isinstance(error, OSError):
        with pytest.raises(UsageError) as raised:
            container.save(artifact("slots"), path)
        text = f"write {path}: No space left on device; free space"
        assert str(raised.value) == text
    else:
        with pytest.raises(KeyboardInterrupt):
            container.save(artifact("slots"), path)
    assert path.read_bytes() == b"old"
    assert leftovers(tmp_path) == ["net.lil"]


def test_folder_is_no_place_for_a_file(tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    with pytest.raises(UsageError, match=f"^write {re.escape(str(folder))}: Is a directory; choose another place"):
        container.save(artifact("slots"), folder)
    with pytest.raises(ArtifactError, match="Is a directory; check the path and its permissions"):
        container.read(folder)
    assert leftovers(tmp_path) == ["folder"]


def test_path_through_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_bytes(b"x")
    with pytest.raises(UsageError, match="choose another place; nothing was changed"):
        container.save(artifact("slots"), tmp_path / "file" / "net.lil")
    with pytest.raises(ArtifactError, match="Not a directory; check the path and its permissions"):
        container.read(tmp_path / "file" / "net.lil")


def test_missing_and_unreadable_files_are_named(tmp_path, monkeypatch):
    path = tmp_path / "net.lil"
    with pytest.raises(ArtifactError) as error:
        container.read(path)
    assert str(error.value) == f"read {path}: no such file; check the path"

    def deny(self):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_bytes", deny)
    with pytest.raises(ArtifactError) as error:
        container.read(path)
    assert str(error.value) == f"read {path}: Permission denied; check the path and its permissions"


def test_refused_file_is_named_by_its_path(tmp_path):
    path = tmp_path / "net.lil"
    path.write_bytes(FILES["slots"][:-1])
    with pytest.raises(ArtifactError, match=re.escape(f"read {path}: the checksum does not match")):
        container.read(path)


def test_checksum_is_the_common_crc_32():
    data = FILES["slots"]
    assert data[:4] == b"LIL\x01"
    assert int.from_bytes(data[-4:], "little") == zlib.crc32(data[:-4])
