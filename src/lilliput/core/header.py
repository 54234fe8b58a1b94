"""The header of a `.lil` file: what it says, how it is packed, and the check of every field.

One CBOR array (see `wire`), deflated with a preset dictionary, behind its two lengths:
[origin, input, tensors, counters, activations, edits, recipe, trail], and the graph after it where the file holds one:

- origin is the 8 bytes of `edits.fingerprint`, and input is [shape, layout, mean, std, labels];
- a tensor is [name, slots, shape] or [name, slots, shape, codes]: see `streams` for slots and codes;
- a counter is [name, type (of `COUNTERS`), shape, little-endian bytes];
- an activation is [name, bit width, 1 signed + 2 narrow, zero point]; the scales stand first in the payload;
- an edit is ["fold", layer, norm], ["slice", path, dim, index], ["replace", path, class, settings] or
  ["call", path, class, settings, number];
- recipe and trail are arrays of maps;
- the graph is described in `wiring`.

That of a file without names is shorter: see `nameless`.

What can be left out is: trailing codes of raw streams, and all that follows from something else.
"""

import math
import zlib
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lilliput.core import wire
from lilliput.core.artifact import InputSpec
from lilliput.core.edits import REPLACEMENTS, Edit, Fold, Replace, ReplaceCall, Separate, Slice
from lilliput.core.fields import MAX_DIM, MAX_RANK, floats, items, mapping, number, numbers, shown, text, unique
from lilliput.core.fields import shape as checked_shape
from lilliput.core.nameless import FIELDS, named, unnamed
from lilliput.core.wiring import Wiring, pack_wiring, unpack_wiring

MAX_HEADER = 1 << 24
HEADER_FLOOR, HEADER_PER_BYTE = 1 << 16, 100
"""Unpacked bytes: at most `MAX_HEADER`, and at most a floor and so many for each packed byte."""
MAX_INPUT, MAX_TENSORS = 1 << 25, 1 << 14
COUNTERS = (
    (torch.int64, "<i8"),
    (torch.int32, "<i4"),
    (torch.int16, "<i2"),
    (torch.int8, "|i1"),
    (torch.uint8, "|u1"),
    (torch.bool, "|b1"),
)

_COMMON = (
    b"checkseedguardmax_droprolevalidationincludeskipoverridesreestimate_batchnormfine_tuneepochslearning_rate"
    b"weight_clusteringn_clustersperlayerchannelneuronmagnitude_pruningsparsityscopelampglobalquantizationweight_bits"
    b"activation_bitsactivation_rangeweight_rangemsepercentilemin_maxsymmetricfold_batchnormIdentitydownsample.encoder."
    b"decoder.classifier.features.embeddingconv_transposeavg_poolmax_poolhardswishsigmoidreshapeconcat.linear.norm.head."
    b"out.mulmeannum_batches_tracked\x00\x80\x48running_var\x80\x81running_mean\x80\x81"
    b"layer4.layer3.layer2.layer1.0/relu/add.2.1.conv3.bn3.conv2.bn2.conv1.bn1\x83dfoldeconv1cbn1\x83dfoldeconv2cbn2"
    b"\x83ifc2.weight@\x83gfc2.bias#\x83ifc1.weight@\x83gfc1.bias#\x83lconv2.weight@\x83jconv2.bias#\x83hfc.weight@"
    b"\x83ffc.bias#\x80\x83\x84frelu_2\x08\x00\x00\x84frelu_1\x08\x00\x00\x84drelu\x08\x00\x00\x84einput\x08\x00\x18\x7f"
    b"\x85\x81aC\x80\x80\x80\x84\x85\x83\x03\x18\x20\x18\x20cCHW\x80\x80\x80\x86\x83\x83\x84\x03\x03"
    b"h0.weight@\x82\x84\x83lconv1.weight@\x83jconv1.bias#\x10\x00\x81"
)
DICTIONARY = _COMMON.replace(b"@", b"\x84\x04\x01\x03\x08").replace(b"#", b"\x85\x04\x01\x11")
"""Preset of the deflate coder: what headers are full of, the most common last, so that a tiny network's stays tiny."""


@dataclass(frozen=True, kw_only=True)
class TensorEntry:
    name: str
    slots: list[int]
    shape: tuple[int, ...]
    codes: list[int]


@dataclass(frozen=True, kw_only=True)
class ActivationEntry:
    name: str
    bit_width: int
    signed: bool
    narrow: bool
    zero_point: int


@dataclass(frozen=True, kw_only=True)
class Header:
    origin: str
    input: InputSpec
    tensors: list[TensorEntry]
    counters: dict[str, Tensor]
    activations: list[ActivationEntry]
    edits: list[Edit]
    recipe: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    trail: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    wiring: Wiring | None = None
    names: bool = True
    """Without, all names must follow from the graph, and there is nothing else that `nameless` has no place for."""


def pack(header: Header) -> bytes:
    """Raises ValueError or TypeError for what `unpack` would refuse."""
    data = _data(header)
    if not header.names:
        if header.wiring is None:
            raise ValueError("a file without names and without a graph")
        data = unnamed(data, header.wiring)
    raw = wire.dumps(data)
    packer = zlib.compressobj(9, wbits=-15, zdict=DICTIONARY)
    coded = packer.compress(raw) + packer.flush()
    packed = _varint(len(raw)) + _varint(len(coded)) + coded
    unpack(packed, 0)
    return packed


def unpack(data: bytes, at: int) -> tuple[Header, int]:
    """The header at `at`, and where it ends. Raises ValueError for whatever is not well formed."""
    raw_length, at = _read_varint(data, at)
    coded_length, at = _read_varint(data, at)
    if coded_length > len(data) - at:
        raise ValueError(f"a header of {coded_length} bytes, {len(data) - at} left")
    if raw_length > min(MAX_HEADER, HEADER_FLOOR + HEADER_PER_BYTE * coded_length):
        raise ValueError(f"a header of {raw_length} bytes packed in {coded_length}")
    unpacker = zlib.decompressobj(wbits=-15, zdict=DICTIONARY)
    try:
        raw = unpacker.decompress(data[at : at + coded_length], raw_length + 1)
    except zlib.error as error:
        raise ValueError(f"damaged header: {error}") from error
    if len(raw) != raw_length or not unpacker.eof or unpacker.unused_data:
        raise ValueError("the header does not unpack to its length")
    return _header(wire.loads(raw)), at + coded_length


def _data(header: Header) -> list[Any]:
    spec = header.input
    return [
        bytes.fromhex(header.origin),
        [
            [int(s) for s in spec.shape],
            spec.layout,
            [float(m) for m in spec.mean],
            [float(s) for s in spec.std],
            [str(label) for label in spec.labels],
        ],
        [[t.name, t.slots, list(t.shape), *([t.codes] if t.codes else [])] for t in header.tensors],
        [_counter_data(name, t) for name, t in header.counters.items()],
        [[a.name, a.bit_width, a.signed + 2 * a.narrow, a.zero_point] for a in header.activations],
        [_edit_data(edit) for edit in header.edits],
        header.recipe,
        header.trail,
        *([] if header.wiring is None else [pack_wiring(header.wiring, *_names(header))]),
    ]


def _header(data: Any) -> Header:
    names = type(data) is not list or len(data) not in FIELDS
    data = data if names else named(data)
    *fields, wiring = data if type(data) is list and len(data) == 9 else (*items(data, 8), None)
    origin, spec, tensors, counters, activations, edits, recipe, trail = fields
    most = max(len(items(part)) for part in (tensors, counters, activations, edits))
    if most > MAX_TENSORS:
        raise ValueError(f"{most} tensors, activations or edits")
    if type(origin) is not bytes or len(origin) not in (0, 8):
        raise ValueError("a fingerprint that is not 8 bytes")
    result = Header(
        origin=origin.hex(),
        input=_spec(spec),
        tensors=[_tensor(t) for t in items(tensors)],
        counters=dict(unique(_counter(c) for c in items(counters))),
        activations=[_activation(a) for a in items(activations)],
        edits=[_edit(e) for e in items(edits)],
        recipe=[mapping(step) for step in items(recipe)],
        trail=[mapping(line) for line in items(trail)],
        names=names,
    )
    unique([*((t.name, t) for t in result.tensors), *result.counters.items()])
    unique((a.name, a) for a in result.activations)
    return result if len(data) == 8 else replace(result, wiring=unpack_wiring(wiring, *_names(result)))


def _names(header: Header) -> tuple[list[str], list[str]]:
    return [t.name for t in header.tensors], list(header.counters)


def _tensor(data: Any) -> TensorEntry:
    fields = items(data)
    if not 3 <= len(fields) <= 4:
        raise ValueError(f"a tensor of {len(fields)} fields")
    name, slots, shape, *codes = fields
    lengths = numbers(codes[0]) if codes else []
    if codes and not (lengths and lengths[-1]):
        raise ValueError("codes that end with a raw stream")
    return TensorEntry(name=text(name), slots=numbers(slots), shape=checked_shape(shape), codes=lengths)


def _activation(data: Any) -> ActivationEntry:
    name, bits, kind, zero = items(data, 4)
    kind = number(kind, 3)
    if type(zero) is not int or abs(zero) >= MAX_DIM:
        raise ValueError(f"zero point {shown(zero)}")
    return ActivationEntry(
        name=text(name), bit_width=number(bits), signed=bool(kind & 1), narrow=bool(kind & 2), zero_point=zero
    )


def _spec(data: Any) -> InputSpec:
    shape, layout, mean, std, labels = items(data, 5)
    result = InputSpec(
        shape=checked_shape(shape),
        layout=text(layout),
        mean=floats(mean),
        std=floats(std),
        labels=tuple(text(label) for label in items(labels)),
    )
    if math.prod(result.shape) > MAX_INPUT:
        raise ValueError(f"an input of {math.prod(result.shape)} entries")
    if len(result.mean) != len(result.std) or 0.0 in result.std:
        raise ValueError(f"mean {shown(mean)} with std {shown(std)}")
    return result


def _counter_data(name: str, tensor: Tensor) -> list[Any]:
    kinds = [kind for kind, _ in COUNTERS]
    if tensor.dtype not in kinds:
        raise TypeError(f"{name} of {tensor.dtype} cannot stand in a header")
    kind = kinds.index(tensor.dtype)
    return [name, kind, list(tensor.shape), tensor.cpu().numpy().astype(COUNTERS[kind][1]).tobytes()]


def _counter(data: Any) -> tuple[str, Tensor]:
    name, kind, shape, raw = items(data, 4)
    dtype, code = COUNTERS[number(kind, len(COUNTERS) - 1)]
    shape = checked_shape(shape)
    if type(raw) is not bytes or len(raw) != math.prod(shape) * np.dtype(code).itemsize:
        raise ValueError(f"a counter of shape {shape} in {shown(raw)}")
    if dtype == torch.bool and max(raw) > 1:
        raise ValueError("a boolean that is not 0 or 1")
    return text(name), torch.from_numpy(np.frombuffer(raw, code).copy()).reshape(shape)


def _edit_data(edit: Edit) -> list[Any]:
    if isinstance(edit, Fold):
        return ["fold", edit.layer, edit.norm]
    if isinstance(edit, Separate):
        return ["separate", edit.path]
    if isinstance(edit, Slice):
        return ["slice", edit.path, edit.dim, list(edit.index)]
    if isinstance(edit, ReplaceCall):
        return ["call", edit.path, edit.cls, dict(edit.settings), edit.number]
    return ["replace", edit.path, edit.cls, dict(edit.settings)]


def _edit(data: Any) -> Edit:
    kind, *fields = items(data) or [None]
    if kind == "fold":
        layer, norm = items(fields, 2)
        return Fold(layer=text(layer), norm=text(norm))
    if kind == "separate":
        return Separate(path=text(items(fields, 1)[0]))
    if kind == "slice":
        path, dim, index = items(fields, 3)
        return Slice(path=text(path), dim=number(dim, MAX_RANK), index=tuple(numbers(index)))
    if kind in ("replace", "call"):
        path, cls, settings, *calls = items(fields, 3 + (kind == "call"))
        if type(cls) is not str or cls not in REPLACEMENTS:
            raise ValueError(f"unknown class {shown(cls)}; known are {', '.join(REPLACEMENTS)}")
        if any(type(v) not in (bool, int, float, str) for v in mapping(settings).values()):
            raise ValueError(f"settings {shown(settings)} that are not numbers or words")
        if calls:
            return ReplaceCall(path=text(path), cls=cls, settings=settings, number=number(calls[0]))
        return Replace(path=text(path), cls=cls, settings=settings)
    raise ValueError(f"unknown edit {shown(kind)}")


def _varint(n: int) -> bytes:
    out = bytearray()
    while n > 127:
        out.append(n & 127 | 128)
        n >>= 7
    return bytes([*out, n])


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    n = 0
    for i, byte in enumerate(data[at : at + 5]):
        n |= (byte & 127) << 7 * i
        if byte < 128:
            if byte == 0 and i:
                raise ValueError("a length is not in its shortest form")
            return n, at + i + 1
    raise ValueError("a length of more than 35 bits")
