"""Which changes are probed, from weak to strong, and what each makes of a weight."""

from collections.abc import Iterable

from lilliput.core.encoding import Encoding
from lilliput.core.errors import UsageError
from lilliput.core.method import Context
from lilliput.methods.clustering.weight_clustering import cluster
from lilliput.methods.pruning.magnitude import smallest
from lilliput.methods.quantization.post_training import Quantization

LEVELS: dict[str, tuple[float, ...]] = {
    "bits": (8, 6, 5, 4, 3, 2),
    "sparsity": (0.3, 0.5, 0.7, 0.8, 0.9, 0.95),
    "channels": (0.1, 0.2, 0.3, 0.5, 0.7, 0.9),
    "clusters": (64, 32, 16, 8, 4, 2),
}
"""Of each kind of change the levels; channels are a share of a coupled group's, the others are of one weight."""
OF_WEIGHTS = ("bits", "sparsity", "clusters")
SAMPLES, CONFIRMED = 256, 5


def checked_kinds(kinds: Iterable[str], samples: int) -> tuple[str, ...]:
    """Raises `UsageError` for unknown kinds, for none, and for no samples."""
    names = tuple(dict.fromkeys((kinds,) if isinstance(kinds, str) else kinds))
    unknown = [name for name in names if name not in LEVELS]
    if unknown or not names:
        raise UsageError("analyse", f"kinds {unknown or 'none'}", f"choose of {', '.join(LEVELS)}")
    if samples < 1:
        raise UsageError("analyse", f"{samples} samples", "give at least 1")
    return names


def quantization(**settings: object) -> Quantization:
    """Of weights alone; the recipes of an analysis take the same."""
    return Quantization(weight_range="mse", activation_bits=0, **settings)  # pyright: ignore[reportArgumentType]


def changed(encoding: Encoding, axis: int | None, kind: str, level: float, context: Context) -> Encoding:
    """A weight at a level, as the method of that name makes it; `axis` counts its output channels."""
    if kind == "bits":
        return quantization(weight_bits=int(level)).encoded(encoding, axis, context)
    if kind == "clusters":
        return cluster(encoding, int(level), None)
    magnitudes = encoding.decode().double().abs()
    return encoding.with_mask(~smallest(magnitudes, round(level * magnitudes.numel())))
