"""The score of each sample, kept small: right or wrong as one bit, other numbers as float64."""

import base64
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor


def pack(values: Tensor, *, binary: bool) -> dict[str, Any]:
    """`values` [n]; where `binary`, they are 0 or one other value (100 for a share in percent)."""
    array = values.double().numpy()
    top = float(array.max())
    data = np.packbits(array > 0).tobytes() if binary else zlib.compress(array.astype("<f8").tobytes(), 9)
    return {
        "samples": len(array),
        "form": "bits" if binary else "float64",
        "one": top if top > 0 else 1.0,
        "data": base64.b64encode(data).decode(),
    }


def unpack(packed: Mapping[str, Any]) -> Tensor:
    """float64 [n]; inverts `pack`."""
    data = base64.b64decode(packed["data"])
    if packed["form"] == "bits":
        bits = np.unpackbits(np.frombuffer(data, dtype=np.uint8), count=packed["samples"])
        return torch.from_numpy(bits.astype(np.float64)) * packed["one"]
    return torch.from_numpy(np.frombuffer(zlib.decompress(data), dtype="<f8").astype(np.float64))
