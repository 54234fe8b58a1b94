"""The `.lil` file: magic, version, compressed header, one payload, checksum. `docs/format.md` is its specification.

Nothing measured and nothing of the machine is in it, so equal artifacts give equal bytes. Reading runs no code and
checks every size before it allocates.
"""

import os
import tempfile
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lilliput.core import wire
from lilliput.core.artifact import Artifact, InputSpec
from lilliput.core.edits import EDITS, Edit, Fold, Replace, Slice, fingerprint
from lilliput.core.encoding import Encoding, Grid
from lilliput.core.errors import ArtifactError, LilliputError, UsageError
from lilliput.core.streams import Reader, Stream, Writer, read_encoding, write_encoding

MAGIC = b"LIL"
VERSION = 1
MAX_HEADER = 1 << 24
MOST_STREAMS = 8
ENTRIES_FLOOR, ENTRIES_PER_BYTE = 1 << 20, 4096
"""A file may announce at most this many entries: a floor, and so many for each byte of payload."""

DICTIONARY = (
    b"running_mean\x6crunning_var.num_batches_tracked.downsample.features.classifier.encoder.decoder.layer4.layer3."
    b"layer2.layer1.0.conv2.1.conv1.2.conv3.bn1.bn2.bn3.norm.fc1.fc2.fc3.linear.head.act.relu.add_scalar.mul.avg_pool"
    b"mean.reshape/add/relucheckseedguardmax_droprolevalidationincludeskipoverridesfold_batchnormreestimate_batchnorm"
    b"fine_tuneepochslearning_rateweight_clusteringn_clustersperlayerchannelneuronmagnitude_pruningsparsityscopelampglobal"
    b"quantizationweight_bitsactivation_bitsweightsactivationsrangemsepercentilemin_maxsymmetricCHWinputconv.bias.weight"
)
"""Preset of the deflate coder for headers: common words, so that a header of a tiny network stays tiny."""

_COUNTERS = {
    "torch.int64": (torch.int64, "<i8"),
    "torch.int32": (torch.int32, "<i4"),
    "torch.bool": (torch.bool, "|b1"),
    "torch.uint8": (torch.uint8, "|u1"),
    "torch.int16": (torch.int16, "<i2"),
    "torch.int8": (torch.int8, "|i1"),
}


@dataclass(frozen=True, kw_only=True)
class Contents:
    """A file that has been read and checked, without a module."""

    origin: str
    input: InputSpec
    tensors: dict[str, Encoding]
    counters: dict[str, Tensor]
    activations: dict[str, Grid]
    edits: list[Edit]
    recipe: list[dict[str, Any]]
    trail: list[dict[str, Any]]
    size: int
    streams: dict[str, list[Stream]]

    def replay(self, fresh: nn.Module) -> Artifact:
        """An artifact around a fresh module of the same architecture. `fresh` becomes the network (it is changed).

        Raises `ArtifactError` if the module is of another architecture.
        """
        found = fingerprint(fresh)
        if found != self.origin:
            raise ArtifactError(
                f"load into {type(fresh).__name__}",
                f"its fingerprint is {found}, the file's is {self.origin}",
                "make the module with the class and arguments that the file was made from",
            )
        for edit in self.edits:
            edit.replay_(fresh)
        owners = fresh.state_dict(keep_vars=True)
        names = {id(t): n for n, t in reversed(owners.items())}
        for name, encoding in self.tensors.items():
            if name not in owners or tuple(owners[name].shape) != encoding.shape:
                shape = tuple(owners[name].shape) if name in owners else "nothing"
                raise ArtifactError(
                    f"load tensor {name!r}",
                    f"shape {encoding.shape} in the file, {shape} in the module",
                    "give the module that the file was made from",
                )
        missing = sorted({names[id(t)] for t in owners.values()} - set(self.tensors) - set(self.counters))
        if missing:
            raise ArtifactError(
                "load", f"the file has no tensor {missing[0]!r}", "give the module that the file was made from"
            )
        artifact = Artifact(
            module=fresh.eval(),
            input=self.input,
            activations=dict(self.activations),
            edits=list(self.edits),
            recipe=list(self.recipe),
            origin=self.origin,
        )
        with torch.no_grad():
            for name, encoding in self.tensors.items():
                owners[name].copy_(encoding.decode())
                if not encoding.is_plain:
                    artifact.encodings[name] = encoding
            for name, value in self.counters.items():
                if name in owners:
                    owners[name].copy_(value)
        return artifact


def dumps(artifact: Artifact, *, trail: list[dict[str, Any]] | None = None, strip: bool = False) -> bytes:
    """The bytes of the file. `strip` leaves out recipe, labels and trail."""
    writer = Writer()
    grids = list(artifact.activations.items())
    described: list[list[Any]] = []
    tensors = artifact.stored()
    entries = sum(int(np.prod(e.shape, dtype=np.int64)) for e in tensors.values())
    for _, grid in grids:
        if grid.axis is not None:
            raise UsageError("write a .lil file", "an activation grid per channel", "use per-tensor activation grids")
        writer.floats("activations", grid.scale.cpu().numpy())
    for name, e in tensors.items():
        source = _derivation(name, e, tensors, artifact.activations)
        first = len(writer.streams)
        slots = write_encoding(writer, e, derived_scale=source is not None)
        codes = writer.codes[first:]
        described.append(
            [name, list(e.shape), slots, [] if not any(codes) else codes, *([] if source is None else [source])]
        )
    spec = artifact.input
    header = [
        bytes.fromhex(artifact.origin),
        [list(spec.shape), spec.layout, list(spec.mean), list(spec.std), [] if strip else list(spec.labels)],
        described,
        [[n, str(t.dtype), list(t.shape), t.cpu().numpy().tobytes()] for n, t in artifact.counters().items()],
        [[n, int(g.zero_point), int(g.bit_width), g.signed + 2 * g.narrow] for n, g in grids],
        [_edit_data(e) for e in artifact.edits],
        [] if strip else artifact.recipe,
        [] if strip or trail is None else trail,
    ]
    payload = writer.data
    if entries > ENTRIES_FLOOR + ENTRIES_PER_BYTE * len(payload):
        raise UsageError(
            "write a .lil file", f"{entries} entries in {len(payload)} bytes", "remove channels of zero bits"
        )
    raw = wire.dumps(header)
    packer = zlib.compressobj(9, wbits=-15, zdict=DICTIONARY)
    coded = packer.compress(raw) + packer.flush()
    body = MAGIC + bytes([VERSION]) + _varint(len(raw)) + _varint(len(coded)) + coded + payload
    return body + zlib.crc32(body).to_bytes(4, "little")


def loads(data: bytes, *, source: str = "the file") -> Contents:
    """Read and check. Raises `ArtifactError`, whatever the bytes are."""
    asked = f"read {source}"
    if data[:3] != MAGIC:
        raise ArtifactError(asked, "it does not start with LIL" if data else "it is empty", "give a .lil file")
    if len(data) > 3 and data[3] != VERSION:
        raise ArtifactError(asked, f"format version {data[3]}", f"this Lilliput reads version {VERSION}; update it")
    if len(data) < 10 or zlib.crc32(data[:-4]) != int.from_bytes(data[-4:], "little"):
        raise ArtifactError(asked, "the checksum does not match: truncated or damaged", "copy or make the file again")
    try:
        return _parse(data)
    except LilliputError as error:
        raise ArtifactError(asked, str(error.found), error.do) from error
    except (
        ValueError,
        TypeError,
        IndexError,
        KeyError,
        OverflowError,
        zlib.error,
        UnicodeDecodeError,
        RuntimeError,
    ) as error:
        raise ArtifactError(asked, f"the contents are not well formed ({error})", "make the file again") from error


def save(
    artifact: Artifact, path: str | os.PathLike[str], *, trail: list[dict[str, Any]] | None = None, strip: bool = False
) -> int:
    """Write the file (whole or not at all); returns its size in bytes."""
    data = dumps(artifact, trail=trail, strip=strip)
    write_atomically(path, data)
    return len(data)


def read(path: str | os.PathLike[str]) -> Contents:
    path = Path(path)
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise ArtifactError(f"read {path}", "no such file", "check the path") from None
    except OSError as error:
        raise ArtifactError(
            f"read {path}", error.strerror or str(error), "check the path and its permissions"
        ) from None
    return loads(data, source=str(path))


def write_atomically(path: str | os.PathLike[str], data: bytes) -> None:
    """Temporary file beside the target, fsync, rename: a reader sees the old file or the new one."""
    path = Path(path)
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        Path(temporary).chmod(0o666 & ~umask)
        Path(temporary).replace(path)
    except OSError as error:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)
        raise UsageError(
            f"write {path}", error.strerror or str(error), "choose another place; nothing was changed"
        ) from error


def sizes(contents: Contents) -> dict[str, dict[str, int]]:
    """Bytes of the payload by tensor and slot."""
    table: dict[str, dict[str, int]] = {}
    for name, streams in contents.streams.items():
        row: dict[str, int] = {}
        for stream in streams:
            row[stream.slot] = row.get(stream.slot, 0) + len(stream.data)
        table[name] = row
    return table


def _parse(data: bytes) -> Contents:
    at = 4
    raw_length, at = _read_varint(data, at)
    coded_length, at = _read_varint(data, at)
    if raw_length > MAX_HEADER or coded_length > len(data) - 4 - at:
        raise ValueError(f"a header of {raw_length} bytes, coded {coded_length}")
    unpacker = zlib.decompressobj(wbits=-15, zdict=DICTIONARY)
    raw = unpacker.decompress(data[at : at + coded_length], raw_length + 1)
    if len(raw) != raw_length or not unpacker.eof or unpacker.unused_data:
        raise ValueError("the header does not unpack to its length")
    payload = data[at + coded_length : -4]
    origin, spec, described, counters, grids, edits, recipe, trail = wire.loads(raw)
    total = sum(_count(shape) for _, shape, *_ in described) + sum(_count(shape) for _, _, shape, _ in counters)
    if total > ENTRIES_FLOOR + ENTRIES_PER_BYTE * len(payload):
        raise ValueError(f"{total} entries announced in {len(payload)} bytes of payload")
    reader = Reader(payload, [0] * len(grids))
    activations = {str(name): _activation(reader, zero, bits, flags) for name, zero, bits, flags in grids}
    if len(activations) != len(grids) or len({t[0] for t in described}) != len(described):
        raise ValueError("a name appears twice")
    tensors: dict[str, Encoding] = {}
    streams: dict[str, list[Stream]] = {}
    scales = [g.scale for g in activations.values()]
    start = reader.at
    for name, shape, slots, codes, *source in described:
        part = Reader(payload[start:], codes or [0] * MOST_STREAMS)
        tensors[str(name)] = _tensor(part, tuple(shape), slots, codes, source, scales, tensors, str(name))
        streams[str(name)] = part.taken
        start += part.at
    if start != len(payload):
        raise ValueError(f"{len(payload) - start} bytes of payload left over")
    if not isinstance(recipe, list) or not isinstance(trail, list):
        raise ValueError("recipe or trail is not a list")  # noqa: TRY004 - one kind of error for a malformed file
    return Contents(
        origin=bytes(origin).hex(),
        input=_spec(spec),
        tensors=tensors,
        counters=dict(_counter(*c) for c in counters),
        activations=activations,
        edits=[_edit(e) for e in edits],
        recipe=recipe,
        trail=trail,
        size=len(data),
        streams=streams,
    )


def _tensor(
    reader: Reader,
    shape: tuple[int, ...],
    slots: list[int],
    codes: list[int],
    source: list[int],
    scales: list[Tensor],
    tensors: Mapping[str, Encoding],
    name: str,
) -> Encoding:
    _count(shape)
    derived = None
    if source:
        weight = tensors.get(_weight_of(name))
        if weight is None or weight.grid is None or not 0 <= source[0] < len(scales):
            raise ValueError(f"the scale of {name} derives from something that is not there")
        derived = _product(scales[source[0]], weight.grid.scale)
    encoding = read_encoding(reader, shape, slots, derived)
    if codes and reader.stream != len(codes):
        raise ValueError(f"{name} has streams left over")
    return encoding


def _count(shape: Any) -> int:
    if (
        not isinstance(shape, (list, tuple))
        or len(shape) > 8
        or not all(isinstance(s, int) and 0 < s < 1 << 40 for s in shape)
    ):
        raise ValueError(f"shape {shape!r}")
    n = 1
    for s in shape:
        n *= s
    return n


def _activation(reader: Reader, zero: int, bits: int, flags: int) -> Grid:
    scale = float(reader.floats("activations", 1)[0])
    return Grid.per_tensor(scale, zero, bits, signed=bool(flags & 1), narrow=bool(flags & 2))


def _counter(name: str, dtype: str, shape: list[int], raw: bytes) -> tuple[str, Tensor]:
    if dtype not in _COUNTERS:
        raise ValueError(f"counter of type {dtype!r}")
    kind, code = _COUNTERS[dtype]
    if _count(shape) * np.dtype(code).itemsize != len(raw):
        raise ValueError(f"counter {name} of shape {shape} in {len(raw)} bytes")
    return str(name), torch.from_numpy(np.frombuffer(raw, code).copy()).reshape(shape).to(kind)


def _spec(spec: Any) -> InputSpec:
    shape, layout, mean, std, labels = spec
    _count(shape)
    return InputSpec(
        shape=tuple(shape),
        layout=str(layout),
        mean=tuple(float(m) for m in mean),
        std=tuple(float(s) for s in std),
        labels=tuple(str(v) for v in labels),
    )


def _edit_data(edit: Edit) -> list[Any]:
    kind = next(k for k, cls in EDITS.items() if isinstance(edit, cls))
    return [kind, *(list(v) if isinstance(v, tuple) else v for v in asdict(edit).values())]


def _edit(data: list[Any]) -> Edit:
    kind, *fields = data
    if kind == "fold":
        layer, norm = fields
        return Fold(layer=str(layer), norm=str(norm))
    if kind == "slice":
        path, dim, index = fields
        if not isinstance(dim, int) or dim < 0 or not all(isinstance(i, int) and i >= 0 for i in index):
            raise ValueError("a slice edit with a wrong index")
        return Slice(path=str(path), dim=dim, index=tuple(index))
    if kind == "replace":
        path, cls, settings = fields
        return Replace(path=str(path), cls=str(cls), settings=dict(settings))
    raise ValueError(f"unknown edit {kind!r}")


def _weight_of(bias: str) -> str:
    return bias.removesuffix("bias") + "weight"


def _product(source: Tensor, weight: Tensor) -> Tensor:
    return (source.double() * weight.double()).float()


def _derivation(name: str, e: Encoding, tensors: Mapping[str, Encoding], activations: Mapping[str, Grid]) -> int | None:
    """The activation whose scale times the weight's is this bias's scale: then the file need not hold it."""
    weight = tensors.get(_weight_of(name)) if name.endswith("bias") else None
    if (
        e.grid is None
        or weight is None
        or weight.grid is None
        or list(tensors).index(_weight_of(name)) > list(tensors).index(name)
    ):
        return None
    for i, grid in enumerate(activations.values()):
        product = _product(grid.scale, weight.grid.scale)
        if product.shape == e.grid.scale.shape and torch.equal(product, e.grid.scale):
            return i
    return None


def _varint(n: int) -> bytes:
    out = bytearray()
    while n > 127:
        out.append(n & 127 | 128)
        n >>= 7
    return bytes([*out, n])


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    n = 0
    for i in range(5):
        byte = data[at + i]
        n |= (byte & 127) << 7 * i
        if byte < 128:
            return n, at + i + 1
    raise ValueError("a number of more than 35 bits")
