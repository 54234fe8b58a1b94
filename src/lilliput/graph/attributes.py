"""Attributes of operations: which of them follow from shapes, and the few that a file has to hold.

`completed` finds all attributes of a word, as `graph.operators` reads them, from those in a file; `given` is its
inverse.
"""

import math
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

from lilliput.core.wiring import CODES, OPERATIONS, Attribute
from lilliput.ops.learned_function import POINTS, points_of

Shape = tuple[int, ...]
Given = Mapping[str, Any]
Complete = Callable[[Given, Shape, Shape], dict[str, Any]]


def _each(value: Any, spatial: int) -> tuple[int, ...]:
    found = value if isinstance(value, tuple) else (value,) * spatial
    if len(found) != spatial:
        raise ValueError(f"{found} for {spatial} dimensions")
    return found


def _pads(value: Any, spatial: int) -> tuple[tuple[int, int], ...]:
    flat = value if isinstance(value, tuple) else (value,) * 2 * spatial
    if len(flat) != 2 * spatial:
        raise ValueError(f"pads {flat} for {spatial} dimensions")
    return tuple(zip(flat[::2], flat[1::2], strict=True))


def _spatial(x: Shape) -> Shape:
    if not 3 <= len(x) <= 4:
        raise ValueError(f"a value of shape {x} where an image or a series should be")
    return x[2:]


def _conv(g: Given, x: Shape, w: Shape) -> dict[str, Any]:
    kernel, n = w[2:], len(_spatial(x))
    if len(kernel) != n:
        raise ValueError(f"a weight of shape {w} on a value of shape {x}")
    transposed = g.get("transposed", False)
    dilation = _each(g.get("dilation", 1), n)
    halves = tuple(d * (k - 1) // 2 for d, k in zip(dilation, kernel, strict=True))
    same = tuple(p for half in halves for p in (half, half))
    found: dict[str, Any] = {
        "stride": _each(g.get("stride", 1), n),
        "dilation": dilation,
        "pads": _pads(g.get("pads", 0 if transposed else same), n),
        "kernel": kernel,
        "groups": g.get("groups", 1 if transposed else max(1, x[1] // w[1])),
        "transposed": transposed,
    }
    if transposed and any(a != b for a, b in found["pads"]):
        raise ValueError("a transposed convolution with uneven pads")
    if not transposed and "output_padding" in g:
        raise ValueError("an output padding of a convolution that is not transposed")
    if not transposed:
        return found
    more = _each(g.get("output_padding", 0), n)
    if any(m >= max(s, d) for m, s, d in zip(more, found["stride"], dilation, strict=True)):
        raise ValueError(f"output padding {more} with stride {found['stride']}")
    return found | {"output_padding": more}


def _max_pool(g: Given, x: Shape, _w: Shape) -> dict[str, Any]:
    n = len(_spatial(x))
    kernel = _each(g.get("kernel", 2), n)
    return {
        "kernel": kernel,
        "stride": _each(g.get("stride", kernel), n),
        "pads": _even(_pads(g.get("pads", 0), n)),
        "dilation": _each(g.get("dilation", 1), n),
        "ceil": g.get("ceil", False),
    }


def _avg_pool(g: Given, x: Shape, _w: Shape) -> dict[str, Any]:
    size = _spatial(x)
    kernel = _each(g.get("kernel", size), len(size))
    found: dict[str, Any] = {
        "kernel": kernel,
        "stride": _each(g.get("stride", kernel), len(size)),
        "pads": _even(_pads(g.get("pads", 0), len(size))),
        "ceil": g.get("ceil", False),
        "count_pad": g.get("count_pad", True),
    }
    adaptive = g.get("adaptive", kernel == size)
    if adaptive and (
        any(s % k for s, k in zip(size, kernel, strict=True))
        or found["stride"] != kernel
        or any(map(any, found["pads"]))
        or found["ceil"]
    ):
        raise ValueError(f"an adaptive pool of {kernel} on {size}")
    return found | ({"adaptive": True} if adaptive else {})


def _even(pads: tuple[tuple[int, int], ...]) -> tuple[tuple[int, int], ...]:
    if any(a != b for a, b in pads):
        raise ValueError("a pool with uneven pads")
    return pads


def _dim(value: int, x: Shape) -> int:
    """A dimension that is not the batch."""
    if not 1 <= value < len(x):
        raise ValueError(f"dimension {value} of a value of shape {x}")
    return value


def _dims(g: Given, x: Shape, _w: Shape) -> dict[str, Any]:
    dims = g.get("dims", tuple(range(2, len(x))))
    if not dims or list(dims) != sorted({_dim(d, x) for d in dims}):
        raise ValueError(f"dimensions {dims} of a value of shape {x}")
    return {"dims": dims, "keepdim": g.get("keepdim", False)}


def _slice(g: Given, x: Shape, _w: Shape) -> dict[str, Any]:
    dim = _dim(g.get("dim", 1), x)
    start, stop = g.get("start", 0), g.get("stop", x[dim])
    if not start < stop <= x[dim]:
        raise ValueError(f"a slice from {start} to {stop} of {x[dim]}")
    return {"dim": dim, "start": start, "stop": stop, "step": g.get("step", 1)}


def _select(g: Given, x: Shape, _w: Shape) -> dict[str, Any]:
    dim, index = _dim(g.get("dim", 1), x), g.get("index", 0)
    if index >= x[dim]:
        raise ValueError(f"index {index} of {x[dim]}")
    return {"dim": dim, "index": index}


def _pad(g: Given, x: Shape, _w: Shape) -> dict[str, Any]:
    """In the file: both ends of each dimension after the batch, without trailing zeros."""
    flat = g.get("pads", 0)
    flat = flat if isinstance(flat, tuple) else (flat,) * 2 * (len(x) - 1)
    flat += (0,) * (2 * (len(x) - 1) - len(flat))
    return {"pads": ((0, 0), *_pads(flat, len(x) - 1)), "value": float(g.get("value", 0.0))}


def _reshape(g: Given, x: Shape, _w: Shape) -> dict[str, Any]:
    size = math.prod(x[1:])
    shape = g.get("shape", (size,))
    if math.prod(shape) != size or not x:
        raise ValueError(f"shape {shape} of a value of shape {x}")
    return {"shape": shape}


def _permute(g: Given, x: Shape, _w: Shape) -> dict[str, Any]:
    """In the file without the batch; by default the channels go last."""
    order = g.get("order", (*range(2, len(x)), 1))
    if sorted(order) != list(range(1, len(x))):
        raise ValueError(f"the order {order} of a value of shape {x}")
    return {"order": (0, *order)}


def _last(g: Given, x: Shape, _w: Shape) -> dict[str, Any]:
    return {"dim": _dim(g.get("dim", len(x) - 1), x)}


def _argmax(g: Given, x: Shape, _w: Shape) -> dict[str, Any]:
    return {"dim": _dim(g.get("dim", 1), x), "keepdim": g.get("keepdim", False)}


def _upsample(g: Given, x: Shape, _w: Shape) -> dict[str, Any]:
    return {"factors": _each(g.get("factors", 2), len(_spatial(x)))}


def _layer_norm(g: Given, x: Shape, _w: Shape) -> dict[str, Any]:
    dims = g.get("dims", 1)
    if not 1 <= dims < len(x):
        raise ValueError(f"{dims} dimensions of a value of shape {x}")
    return {"dims": dims, "eps": float(g.get("eps", 1e-5))}


def _learned_function(g: Given, x: Shape, w: Shape) -> dict[str, Any]:
    kind, dim = g.get("kind", "table"), _dim(g.get("dim", 1), x)
    if len(w) != 2 or not w[0]:
        raise ValueError(f"functions of shape {w} on a value of shape {x}")
    points = points_of(kind, *w, g.get("points", POINTS))
    if g.get("points", points) != points:
        raise ValueError(f"{g['points']} points of {w[1]} numbers")
    return {"kind": kind, "points": points, "dim": dim}


def _clamp(g: Given, _x: Shape, _w: Shape) -> dict[str, Any]:
    low, high = (None if v is False else float(v) for v in (g.get("low", 0.0), g.get("high", 6.0)))
    return {"low": low, "high": high}


def _numbers(**defaults: float) -> Complete:
    return lambda g, _x, _w: {name: float(g.get(name, default)) for name, default in defaults.items()}


def _identity(g: Given, _x: Shape, _w: Shape) -> dict[str, Any]:
    return {"contiguous": True} if g.get("contiguous") else {}


COMPLETE: dict[str, Complete] = {
    "conv": _conv,
    "batch_norm": _numbers(eps=1e-5),
    "layer_norm": _layer_norm,
    "max_pool": _max_pool,
    "avg_pool": _avg_pool,
    "mean": _dims,
    "amax": _dims,
    "argmax": _argmax,
    **{f"{word}_scalar": _numbers(value=1.0) for word in ("add", "sub", "mul", "div", "rsub")},
    "pow_scalar": _numbers(value=2.0),
    "concat": lambda g, x, _w: {"dim": _dim(g.get("dim", 1), x)},
    "slice": _slice,
    "select": _select,
    "pad": _pad,
    "reshape": _reshape,
    "permute": _permute,
    "identity": _identity,
    "upsample_nearest": _upsample,
    "clamp": _clamp,
    "elu": _numbers(alpha=1.0),
    "celu": _numbers(alpha=1.0),
    "gelu": lambda g, _x, _w: {"approximate": g.get("approximate", "none")},
    "leaky_relu": _numbers(slope=0.01),
    "learned_function": _learned_function,
    "softplus": _numbers(beta=1.0, threshold=20.0),
    "hard_shrink": _numbers(lambd=0.5),
    "soft_shrink": _numbers(lambd=0.5),
    "threshold": _numbers(threshold=0.0, value=0.0),
    "softmax": _last,
    "log_softmax": _last,
}
"""All attributes of a word from those that a file has, the shape of its first operand and that of its weight."""


def given(word: str, full: Mapping[str, Any], x: Shape, w: Shape) -> dict[str, Attribute]:
    """The fewest attributes that `COMPLETE` makes into these."""
    kinds = OPERATIONS[CODES[word]].attributes
    found = {name: _raw(word, kinds[name], full[name]) for name in kinds if name in full}
    if word == "avg_pool":
        found.setdefault("adaptive", False)
    for name in list(found):
        fewer = {key: value for key, value in found.items() if key != name}
        with suppress(ValueError):
            if completed(word, fewer, x, w) == dict(full):
                found = fewer
    if completed(word, found, x, w) != dict(full):
        raise ValueError(f"attributes of {word} that the format cannot hold")
    return found


def _raw(word: str, kind: str, value: Any) -> Attribute:
    if word == "permute":
        return tuple(value[1:])
    if kind == "pads" and value and isinstance(value[0], tuple):
        value = tuple(n for pair in value[word == "pad" :] for n in pair)
        while word == "pad" and value and value[-1] == 0:
            value = value[:-1]
    if kind in ("sizes", "pads") and isinstance(value, tuple) and word != "pad" and len(set(value)) == 1:
        return value[0]
    if kind == "bound" and value is None:
        return False
    if kind in ("number", "bound") and isinstance(value, float) and value.is_integer():
        return int(value)
    return value


def completed(word: str, given: Given, x: Shape, w: Shape) -> dict[str, Any]:
    rule = COMPLETE.get(word)
    return {} if rule is None else rule(given, x, w)
