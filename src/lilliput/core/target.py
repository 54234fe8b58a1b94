"""Where the network must run, and the budgets there."""

import difflib
import math
import re
from dataclasses import dataclass

from lilliput.core.errors import UsageError

_UNITS = {"B": 1, "kB": 1000, "KiB": 1024, "MB": 10**6, "MiB": 2**20, "GB": 10**9, "GiB": 2**30}
_SECONDS = {"s": 1.0, "min": 60.0, "h": 3600.0, "ms": 1e-3, "us": 1e-6}


def parse_bytes(text: str | int) -> int:
    """Bytes of "60kB" = 60,000, "60KiB" = 61,440; a bare number of bytes only as an int. "60k" is refused."""
    if isinstance(text, int) and not isinstance(text, bool):
        if text < 0:
            raise UsageError(f"size {text}", "a negative number", "give bytes from 0 up")
        return text
    match = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]*)\s*", text) if isinstance(text, str) else None
    if not match or match[2] not in _UNITS:
        raise UsageError(
            f"size {text!r}", "not a number with a known unit", f"write one of {', '.join(_UNITS)}, such as 60kB"
        )
    return round(float(match[1]) * _UNITS[match[2]])


def parse_seconds(text: str | float) -> float:
    """Seconds of "20min" = 1200, "2ms" = 0.002; a bare number only as a number of seconds."""
    if isinstance(text, (int, float)) and not isinstance(text, bool):
        if not 0 <= text < math.inf:
            raise UsageError(f"time {text}", "not a number from 0 up", "give seconds, or a text such as 20min")
        return float(text)
    match = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]+)\s*", text) if isinstance(text, str) else None
    if not match or match[2] not in _SECONDS:
        raise UsageError(
            f"time {text!r}", "not a number with a known unit", f"write one of {', '.join(_SECONDS)}, such as 20min"
        )
    return float(match[1]) * _SECONDS[match[2]]


@dataclass(frozen=True)
class _Preset:
    description: str
    activations_signed: bool
    file: str  # what is deployed: an ONNX file, or constants in flash


PRESETS: dict[str, _Preset] = {
    "onnx-x86": _Preset(
        "ONNX Runtime on x86: unsigned activations (signed ones are slower than float there)", False, "onnx"
    ),
    "onnx-arm": _Preset("ONNX Runtime on Arm: signed activations", True, "onnx"),
    "c-host": _Preset("constants and plan of generated C on a host", True, "flash"),
    "cortex-m4": _Preset("constants and plan of generated C on a Cortex-M4", True, "flash"),
}


@dataclass(frozen=True)
class Target:
    """A name of `PRESETS` and budgets: flash and RAM for microcontrollers ("256KiB").

    `reduce_range` leaves one bit of the weights unused, for x86 CPUs without VNNI, whose int8 products can saturate.
    """

    name: str = "onnx-x86"
    flash: int | str | None = None
    ram: int | str | None = None
    reduce_range: bool = False

    def __post_init__(self) -> None:
        if self.name not in PRESETS:
            near = difflib.get_close_matches(self.name, PRESETS, 1)
            hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(PRESETS)}"
            raise UsageError(f"target {self.name!r}", "not a known target", hint)
        for name in ("flash", "ram"):
            value = getattr(self, name)
            if value is not None:
                object.__setattr__(self, name, parse_bytes(value))

    @property
    def preset(self) -> _Preset:
        return PRESETS[self.name]
