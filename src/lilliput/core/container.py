"""The `.lil` file: magic, version, header, one payload, checksum. `docs/format.md` is its specification.

Nothing measured and nothing of the machine is in it, so equal artifacts give equal bytes. Reading runs no code and
checks every size before it allocates.
"""

import copy
import math
import os
import zlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from lilliput.core.artifact import Artifact, InputSpec
from lilliput.core.coding import Reader, Stream, Writer
from lilliput.core.edits import Edit, Fold, fingerprint
from lilliput.core.encoding import Encoding, Grid
from lilliput.core.errors import ArtifactError, LilliputError, UsageError
from lilliput.core.files import write_atomically
from lilliput.core.header import ActivationEntry, Header, TensorEntry, pack, unpack
from lilliput.core.learned_activation import LearnedActivation, check_owner
from lilliput.core.streams import read_encoding, write_encoding
from lilliput.core.wiring import Wiring

MAGIC = b"LIL"
VERSION = 1
ENTRIES_FLOOR, ENTRIES_PER_BYTE = 1 << 20, 1024
"""A file may announce at most this many entries: a floor, and so many for each byte of payload."""
CIRCUITS_FLOOR, CIRCUITS_PER_BYTE = 1 << 17, 16
"""The same for the bytes of all circuits before coding."""


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
    header: bytes
    wiring: Wiring | None = None

    def replay(self, fresh: nn.Module) -> Artifact:
        """An artifact around a fresh module of the same architecture. `fresh` becomes the network (it is changed).

        Raises `ArtifactError` if the module is of another architecture, `UsageError` if it can take no weights.
        """
        _check_fresh(fresh)
        if not self.origin:
            raise ArtifactError(
                f"load into {type(fresh).__name__}", "the file holds no names", "load it as it is: ll.load(path)"
            )
        found = fingerprint(fresh)
        if found != self.origin:
            raise ArtifactError(
                f"load into {type(fresh).__name__}",
                f"its fingerprint is {found}, the file's is {self.origin}",
                "make the module with the class and arguments that the file was made from",
            )
        reshaped = any(not isinstance(edit, Fold) for edit in self.edits)
        ran = reshaped and _runs(fresh, self.input)
        for edit in self.edits:
            edit.replay_(fresh)
        if ran and not _runs(fresh, self.input):
            raise ArtifactError(
                f"load into {type(fresh).__name__}", "after the file's edits it does not run", "make the file again"
            )
        owners = fresh.state_dict(keep_vars=True)
        self._check(owners)
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
                owners[name].copy_(value)
        for path, layer in fresh.named_modules():
            if isinstance(layer, LearnedActivation) and layer.owner is not None:
                try:
                    check_owner(layer.owner, len(layer.weight))
                except ValueError as error:
                    raise ArtifactError(f"load {path!r}", str(error), "make the file again") from error
        return artifact.to_(artifact.device)

    def _check(self, owners: dict[str, Tensor]) -> None:
        """The file has each tensor of the module once, under its first name, of its shape and kind."""
        do = "give the module that the file was made from"
        first = {id(t): name for name, t in reversed(owners.items())}
        found = {name: (e.shape, "float32") for name, e in self.tensors.items()}
        found |= {name: (tuple(t.shape), _kind(t)) for name, t in self.counters.items()}
        for name in first.values():
            if name not in found:
                raise ArtifactError("load", f"the file has no tensor {name!r}", do)
        for name, (shape, kind) in found.items():
            known = first.get(id(owners[name])) == name if name in owners else False
            wanted = f"{_kind(owners[name])} {tuple(owners[name].shape)}" if known else "nothing"
            if wanted != f"{kind} {shape}":
                raise ArtifactError(f"load tensor {name!r}", f"{kind} {shape} in the file, {wanted} in the module", do)


def dumps(
    artifact: Artifact,
    *,
    trail: list[dict[str, Any]] | None = None,
    strip: bool = False,
    wiring: Wiring | None = None,
    names: bool = True,
) -> bytes:
    """The bytes of the file. `strip` leaves out recipe, labels, trail and graph.

    With the `wiring` of the network (`graph.stored.wiring_of`) the file runs without the code of its model. Without
    `names` the network has those of `nameless.renamed`, and nothing else than its graph and tensors is written.
    """
    asked = "write a .lil file"
    if any(grid.axis is not None for grid in artifact.activations.values()):
        raise UsageError(asked, "an activation grid per channel", "use per-tensor activation grids")
    writer = Writer(chained=not names)
    before: dict[str, Encoding] = {}
    entries: list[TensorEntry] = []
    for name, e in artifact.stored().items():
        if not bool(torch.isfinite(e.values).all()):
            raise UsageError(asked, f"NaN or infinity in {name!r}", "mend the model first")
        first = len(writer.streams)
        source, circuit = _source(name, e, before, artifact.activations), _same_circuit(e, before)
        slots = write_encoding(writer, e, source=source, circuit=circuit)
        entries.append(TensorEntry(name=name, slots=slots, shape=e.shape, codes=writer.codes(first)))
        before[name] = e
    payload = b"".join(_scale_bytes(grid) for grid in artifact.activations.values()) + writer.data
    count = _count(entries)
    if count > _most_entries(payload):
        raise UsageError(asked, f"{count} entries in {len(payload)} bytes", "remove channels of zero bits")
    if _circuit_bytes(writer.streams) > _most_circuit_bytes(payload):
        raise UsageError(asked, "large circuits that are nearly empty", "leave out gates that make the same")
    spec, bare = artifact.input, strip or not names
    header = Header(
        origin=artifact.origin,
        input=replace(spec, labels=()) if bare else spec,
        tensors=entries,
        counters=artifact.counters(),
        activations=[_activation_entry(name, grid) for name, grid in artifact.activations.items()],
        edits=artifact.edits,
        recipe=[] if bare else artifact.recipe,
        trail=[] if bare or trail is None else trail,
        wiring=None if strip else wiring,
        names=names,
    )
    try:
        packed = pack(header)
    except (ValueError, TypeError) as error:
        raise UsageError(asked, str(error), "keep names, recipe and trail short and plain") from error
    body = MAGIC + bytes([VERSION]) + packed + payload
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
    except (ValueError, LilliputError) as error:
        found = error.found if isinstance(error, LilliputError) else str(error)
        raise ArtifactError(asked, f"the contents are not well formed ({found})", "make the file again") from error


def save(
    artifact: Artifact,
    path: str | os.PathLike[str],
    *,
    trail: list[dict[str, Any]] | None = None,
    strip: bool = False,
    wiring: Wiring | None = None,
) -> int:
    """Write the file (whole or not at all); returns its size in bytes."""
    data = dumps(artifact, trail=trail, strip=strip, wiring=wiring)
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


def sizes(contents: Contents) -> dict[str, dict[str, int]]:
    """Bytes of the payload by tensor and slot."""
    table: dict[str, dict[str, int]] = {}
    for name, streams in contents.streams.items():
        row: dict[str, int] = {}
        for stream in streams:
            row[stream.slot] = row.get(stream.slot, 0) + len(stream.data)
        table[name] = row
    return table


def graph_bytes(contents: Contents) -> int:
    """What the file would be shorter without its graph; for one without names, that with the names that follow."""
    header = replace(unpack(contents.header, 0)[0], names=True)
    return len(pack(header)) - len(pack(replace(header, wiring=None)))


def _parse(data: bytes) -> Contents:
    header, at = unpack(data[:-4], 4)
    payload = data[at:-4]
    if _count(header.tensors) > _most_entries(payload):
        raise ValueError(f"{_count(header.tensors)} entries announced in {len(payload)} bytes of payload")
    reader = Reader(payload)
    scales = reader.floats("activations", len(header.activations))
    activations = {a.name: _activation(a, float(s)) for a, s in zip(header.activations, scales, strict=True)}
    tensors: dict[str, Encoding] = {}
    streams: dict[str, list[Stream]] = {}
    before: list[Encoding] = []
    circuits = 0
    for entry in header.tensors:
        reader.begin(entry.codes)
        derive = _derivation(entry.name, tensors, list(activations.values()))
        e = tensors[entry.name] = read_encoding(reader, entry.shape, entry.slots, derive, before)
        before.append(e)
        if not bool(torch.isfinite(e.values).all()):
            raise ValueError(f"NaN or infinity in {entry.name!r}")
        streams[entry.name] = reader.end()
        circuits += _circuit_bytes(streams[entry.name])
        if circuits > _most_circuit_bytes(payload):
            raise ValueError(f"{circuits} bytes of circuits for so small a payload")
    if reader.left:
        raise ValueError(f"{reader.left} bytes of payload left over")
    return Contents(
        origin=header.origin,
        input=header.input,
        tensors=tensors,
        counters=header.counters,
        activations=activations,
        edits=header.edits,
        recipe=header.recipe,
        trail=header.trail,
        size=len(data),
        streams=streams,
        header=data[4:at],
        wiring=header.wiring,
    )


def _count(entries: list[TensorEntry]) -> int:
    return sum(math.prod(e.shape) for e in entries)


def _most_entries(payload: bytes) -> int:
    return ENTRIES_FLOOR + ENTRIES_PER_BYTE * len(payload)


def _circuit_bytes(streams: Iterable[Stream]) -> int:
    return sum(stream.raw_bits // 8 for stream in streams if stream.slot == "circuit")


def _most_circuit_bytes(payload: bytes) -> int:
    return CIRCUITS_FLOOR + CIRCUITS_PER_BYTE * len(payload)


def _scale_bytes(grid: Grid) -> bytes:
    return grid.scale.cpu().numpy().astype("<f4").tobytes()


def _activation_entry(name: str, grid: Grid) -> ActivationEntry:
    return ActivationEntry(
        name=name,
        bit_width=int(grid.bit_width),
        signed=grid.signed,
        narrow=grid.narrow,
        zero_point=int(grid.zero_point),
    )


def _activation(entry: ActivationEntry, scale: float) -> Grid:
    return Grid.per_tensor(scale, entry.zero_point, entry.bit_width, signed=entry.signed, narrow=entry.narrow)


def _check_fresh(module: object) -> None:
    if not isinstance(module, nn.Module):
        found = f"the class {module.__name__}" if isinstance(module, type) else f"a {type(module).__name__}"
        raise UsageError("load a .lil file", found, "give a module: an object of the class that the file was made from")
    asked = f"load into {type(module).__name__}"
    for name, tensor in module.state_dict(keep_vars=True).items():
        if is_lazy(tensor):
            raise UsageError(asked, f"{name!r} has no shape yet", "run the module once on an example")
        if tensor.is_meta:
            raise UsageError(asked, f"{name!r} is on the meta device", "make the module on the CPU")


def _runs(module: nn.Module, spec: InputSpec) -> bool:
    """Whether the layers fit each other, by shapes alone: nothing is computed."""
    try:
        shapes = copy.deepcopy(module).to("meta").eval()
        with torch.no_grad():
            shapes(torch.empty((1, *spec.shape), device="meta"))
    except Exception:  # noqa: BLE001 - a forward may raise anything
        return False
    return True


def _kind(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _weight_of(bias: str) -> str:
    return bias.removesuffix("bias") + "weight"


def _product(source: Grid, weight: Grid) -> Tensor:
    return (source.scale.double() * weight.scale.double()).float()


def _source(name: str, e: Encoding, before: Mapping[str, Encoding], activations: Mapping[str, Grid]) -> int | None:
    """The activation whose scale times the weight's is this bias's scale: then the file need not hold it."""
    weight = before.get(_weight_of(name)) if name.endswith("bias") else None
    if e.grid is None or weight is None or weight.grid is None:
        return None
    for i, grid in enumerate(activations.values()):
        if torch.equal(_product(grid, weight.grid), e.grid.scale):
            return i
    return None


def _same_circuit(e: Encoding, before: Mapping[str, Encoding]) -> int | None:
    """The first tensor of the file that has the circuit of this one."""
    return next((i for i, other in enumerate(before.values()) if e.bank is not None and e.bank.same(other.bank)), None)


def _derivation(name: str, tensors: Mapping[str, Encoding], activations: list[Grid]) -> Callable[[int], Tensor]:
    def derive(source: int) -> Tensor:
        weight = tensors.get(_weight_of(name))
        if weight is None or weight.grid is None or source >= len(activations):
            raise ValueError(f"the scale of {name!r} derives from something that is not there")
        return _product(activations[source], weight.grid)

    return derive
