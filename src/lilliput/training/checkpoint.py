"""Checkpoints of a training: written whole or not at all, read without running code, refused when damaged.

Magic, digest of the rest, then what `torch.save` makes of plain data and tensors, with the identity of the training
(settings, data, network, randomness at the start) inside.
"""

import hashlib
import io
import pickle
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lilliput.core.artifact import Artifact
from lilliput.core.device import moved
from lilliput.core.errors import ArtifactError
from lilliput.core.files import write_atomically

MAGIC = b"LILFIT1\n"
DIGEST = 16


def write_checkpoint(path: Path, identity: str, state: dict[str, Any]) -> None:
    """`state` is made of tensors, numbers, texts, lists, tuples and dicts; it is written as it would be on the CPU."""
    buffer = io.BytesIO()
    torch.save({"identity": identity, "state": moved(state, torch.device("cpu"))}, buffer)
    payload = buffer.getvalue()
    write_atomically(path, MAGIC + _digest([payload]) + payload)


def read_checkpoint(path: Path, identity: str) -> dict[str, Any] | None:
    """None if there is no file. Raises `ArtifactError` for a damaged one, and for one of another training."""
    asked = f"resume from {path}"
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ArtifactError(asked, error.strerror or str(error), "check the path and its permissions") from error
    payload = data[len(MAGIC) + DIGEST :]
    if data[: len(MAGIC)] != MAGIC or data[len(MAGIC) : len(MAGIC) + DIGEST] != _digest([payload]):
        raise ArtifactError(asked, "the checkpoint is damaged, or not one", "delete it to start anew")
    try:
        content = torch.load(io.BytesIO(payload), map_location="cpu", weights_only=True)
        found, state = content["identity"], content["state"]
    except (pickle.UnpicklingError, RuntimeError, ValueError, KeyError, TypeError, EOFError) as error:
        raise ArtifactError(asked, f"it cannot be read ({type(error).__name__})", "delete it to start anew") from error
    if found != identity:
        raise ArtifactError(
            asked,
            "it is of a training with other settings, data, seed or network",
            "train as before, or delete it to start anew",
        )
    return state


def identity_of(net: Artifact, tensors: Iterable[Tensor], texts: Iterable[str]) -> str:
    """32 hex digits of a network with its encodings, of more tensors and of texts."""
    parts: list[bytes] = [text.encode() for text in texts]
    for name, tensor in net.module.state_dict().items():
        parts += [name.encode(), _bytes(tensor)]
    for name, e in sorted(net.encodings.items()):
        slots = [e.values, e.mask, *((e.sharing.indices, e.sharing.sizes) if e.sharing else ())]
        slots += [e.grid.scale, e.grid.zero_point, e.grid.bit_width] if e.grid else []
        parts += [] if e.bank is None else [e.bank.netlist.pack(), repr(e.bank.inputs).encode()]
        parts += [name.encode(), e.describe().encode(), *(_bytes(t) for t in slots if t is not None)]
    parts += [_bytes(t) for t in tensors]
    return _digest(parts).hex()


def _digest(parts: Iterable[bytes]) -> bytes:
    digest = hashlib.blake2b(digest_size=DIGEST)
    for part in parts:
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return digest.digest()


def _bytes(tensor: Tensor) -> bytes:
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
