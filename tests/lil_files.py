"""Small artifacts of every kind, and `.lil` files taken apart, changed and sealed again."""

import copy
import zlib
from itertools import pairwise
from typing import Any

import torch
from torch import nn

from lilliput.core import wire
from lilliput.core.artifact import Artifact, InputSpec
from lilliput.core.edits import Fold, Replace, Slice
from lilliput.core.encoding import Encoding, Grid, Sharing
from lilliput.core.header import DICTIONARY
from lilliput.testing import tiny_model

SPEC = InputSpec(shape=(1, 4, 4), layout="CHW", mean=(0.5,), std=(0.25,), labels=("a", "b", "c"))


def of(model) -> Any:
    return Artifact.of(model, SPEC)


def by_channel(weight, bits=8):
    rows = weight.detach().reshape(len(weight), -1)
    scale = (rows.abs().amax(1) / (2 ** (bits - 1) - 1)).clamp(min=1e-6)
    zero = torch.zeros(len(weight), dtype=torch.int64)
    return Grid(scale=scale, zero_point=zero, bit_width=zero + bits, narrow=True, axis=0)


def put_bias_(net, layer, source):
    """The bias on scale(input) x scale(weight), which a file does not hold."""
    grid = net.encodings[f"{layer}.weight"].grid
    scale = (net.activations[source].scale.double() * grid.scale.double()).float()
    zero = torch.zeros(len(scale), dtype=torch.int64)
    bias = Grid(scale=scale, zero_point=zero, bit_width=zero + 20, axis=0)
    net.encode_(f"{layer}.bias", net.encoding(f"{layer}.bias").with_grid(bias))


def integer():
    """8-bit weights and activations, biases with derived scales."""
    net = of(tiny_model("linear"))
    net.activations = {
        "input": Grid.per_tensor(0.03, 128, 8, signed=False),
        "2": Grid.per_tensor(0.011, 0, 8, signed=False),
        "signed": Grid.per_tensor(0.25, -3, 6, signed=True, narrow=True),
    }
    for layer, source in (("1", "input"), ("3", "2")):
        weight = net.parameter(f"{layer}.weight")
        net.encode_(f"{layer}.weight", Encoding.of(weight).with_grid(by_channel(weight)))
        put_bias_(net, layer, source)
    net.recipe = [{"quantization": {"weight_bits": 8}}, {"guard": {"max_drop": "0.5pt"}}]
    return net


def slots():
    """A mask, tables for each channel and a grid in one layer; a mask in the other; different bit widths."""
    net = of(tiny_model("conv"))
    generator = torch.Generator().manual_seed(0)
    weight = net.parameter("0.weight")
    indices = torch.randint(3, weight.shape, generator=generator)
    sharing = Sharing(indices=indices, sizes=torch.full((4,), 3), axis=0)
    e = Encoding.of(weight).with_mask(torch.rand(weight.shape, generator=generator) < 0.7)
    e = e.with_sharing(sharing, torch.randn(12, generator=generator))
    grid = Grid(
        scale=torch.tensor([0.25, 0.5, 0.125, 1.0]),
        zero_point=torch.tensor([0, 1, -2, 0]),
        bit_width=torch.tensor([4, 3, 8, 0]),
        axis=0,
    )
    net.encode_("0.weight", e.with_grid(grid))
    weight = net.parameter("4.weight")
    net.encode_("4.weight", Encoding.of(weight).with_mask(torch.rand(weight.shape, generator=generator) < 0.3))
    return net


def tied():
    net = of(tiny_model("shared"))
    weight = net.parameter("tied.weight")
    net.encode_("tied.weight", Encoding.of(weight).with_grid(by_channel(weight, 5)))
    return net


def edited():
    """BatchNorm folded, channels sliced away, the activation replaced."""
    net = of(tiny_model("batch_norm"))
    keep = (0, 2, 3)
    inputs = tuple(4 * c + i for c in keep for i in range(4))
    edits = [
        Fold(layer="0", norm="1"),
        Slice(path="0.weight", dim=0, index=keep),
        Slice(path="0.bias", dim=0, index=keep),
        Slice(path="4.weight", dim=1, index=inputs),
        Replace(path="2", cls="Hardtanh", settings={"min_val": -0.5, "max_val": 2.0}),
    ]
    for edit in edits:
        edit.replay_(net.module)
    net.edits = edits
    with torch.no_grad():
        net.parameter("0.bias").copy_(torch.tensor([0.5, -0.25, 1.0]))
    return net


MAKE = {
    "float": (lambda: of(tiny_model("batch_norm")), "batch_norm"),
    "integer": (integer, "linear"),
    "slots": (slots, "conv"),
    "tied": (tied, "shared"),
    "edited": (edited, "batch_norm"),
    "residual": (lambda: of(tiny_model("residual")), "residual"),
}


def artifact(name) -> Any:
    return MAKE[name][0]()


def fresh(name) -> Any:
    """A module of the same architecture with other weights."""
    return copy.deepcopy(tiny_model(MAKE[name][1], seed=1))


def varint(n):
    out = b""
    while n > 127:
        out, n = out + bytes([n & 127 | 128]), n >> 7
    return out + bytes([n])


def read_varint(data, at):
    n = shift = 0
    while True:
        n, more, at, shift = n | (data[at] & 127) << shift, data[at] > 127, at + 1, shift + 7
        if not more:
            return n, at


def sealed(body):
    """With the checksum that belongs to it."""
    return body + zlib.crc32(body).to_bytes(4, "little")


def deflated(raw):
    packer = zlib.compressobj(9, wbits=-15, zdict=DICTIONARY)
    return packer.compress(raw) + packer.flush()


def file_of(raw, payload=b"", raw_length=None):
    """A file with these bytes as header and payload."""
    coded = deflated(raw)
    return sealed(
        b"LIL\x01" + varint(len(raw) if raw_length is None else raw_length) + varint(len(coded)) + coded + payload
    )


def opened(data):
    """(bytes of the header, payload)."""
    _, at = read_varint(data, 4)
    length, at = read_varint(data, at)
    raw = zlib.decompressobj(wbits=-15, zdict=DICTIONARY).decompress(data[at : at + length])
    return raw, data[at + length : -4]


def forged(data, change):
    """The file after `change(header)`, which may also return another payload."""
    raw, payload = opened(data)
    header = wire.loads(raw)
    other = change(header)
    return file_of(wire.dumps(header), payload if other is None else other)


def sequential(*widths):
    return nn.Sequential(*(nn.Linear(a, b) for a, b in pairwise(widths)))
