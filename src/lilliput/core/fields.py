"""Fields of a file's header, checked: each function gives the value in its type, or raises ValueError."""

import math
import reprlib
from collections import Counter
from collections.abc import Iterable
from typing import Any

from lilliput.core.errors import UNSEEN

MAX_RANK, MAX_DIM, MAX_NAME = 8, 1 << 40, 1000


def unique(pairs: Iterable[tuple[str, Any]]) -> list[tuple[str, Any]]:
    result = list(pairs)
    names = [name for name, _ in result]
    if len(set(names)) != len(names):
        twice = Counter(names).most_common(1)[0][0]
        raise ValueError(f"the name {shown(twice)} appears twice")
    return result


def shown(value: Any) -> str:
    text = reprlib.repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def items(value: Any, count: int | None = None) -> list[Any]:
    if type(value) is not list or (count is not None and len(value) != count):
        raise ValueError(f"{shown(value)} where {'a list' if count is None else f'{count} fields'} should be")
    return value


def mapping(value: Any) -> dict[str, Any]:
    if type(value) is not dict:
        raise ValueError(f"{shown(value)} where a map should be")
    _check_plain(value)
    return value


def _check_plain(value: Any) -> None:
    """No byte strings inside: recipes, trails and settings are also written as JSON and YAML."""
    if type(value) is bytes:
        raise ValueError(f"{shown(value)} in a map")
    for item in value.values() if type(value) is dict else value if type(value) is list else ():
        _check_plain(item)


def text(value: Any) -> str:
    if type(value) is not str or len(value) > MAX_NAME or UNSEEN.search(value):
        raise ValueError(f"{shown(value)} where a name should be")
    return value


def number(value: Any, highest: int = MAX_DIM, lowest: int = 0) -> int:
    if type(value) is not int or not lowest <= value <= highest:
        where = f"up to {highest}" if lowest == 0 else f"from {lowest} to {highest}"
        raise ValueError(f"{shown(value)} where a whole number {where} should be")
    return value


def numbers(value: Any, highest: int = MAX_DIM, lowest: int = 0) -> list[int]:
    return [number(n, highest, lowest) for n in items(value)]


def floats(value: Any) -> tuple[float, ...]:
    values = items(value)
    if not all(type(v) is float and math.isfinite(v) for v in values):
        raise ValueError(f"{shown(value)} where finite numbers should be")
    return tuple(values)


def shape(value: Any) -> tuple[int, ...]:
    sizes = numbers(value)
    if len(sizes) > MAX_RANK or 0 in sizes:
        raise ValueError(f"shape {shown(sizes)}")
    return tuple(sizes)
