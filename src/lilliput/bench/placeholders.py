"""`$name` and `${name}` in plain data: what a budget puts into a recipe."""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

from lilliput.core.errors import RecipeError
from lilliput.core.method import nearest

NAME = re.compile(r"\$(?:\{([A-Za-z_]\w*)\}|([A-Za-z_]\w*))")


def names_in(data: Any) -> set[str]:
    """The placeholders of plain data; keys of mappings hold none."""
    found: set[str] = set()

    def note(text: str) -> str:
        found.update(a or b for a, b in NAME.findall(text))
        return text

    _leaves(data, note)
    return found


def fill(data: Any, values: Mapping[str, Any], where: str) -> Any:
    """A copy with the values. What is nothing but a placeholder takes the value's type; within a text it is text."""

    def value(name: str) -> Any:
        if name not in values:
            raise RecipeError(where, f"there is no value for ${name}", nearest(name, set(values)))
        return values[name]

    def filled(text: str) -> Any:
        whole = NAME.fullmatch(text)
        if whole is not None:
            return value(whole[1] or whole[2])
        return NAME.sub(lambda found: str(value(found[1] or found[2])), text)

    return _leaves(data, filled)


def _leaves(data: Any, change: Callable[[str], Any]) -> Any:
    if isinstance(data, str):
        return change(data)
    if isinstance(data, Mapping):
        return {key: _leaves(v, change) for key, v in cast(Mapping[Any, Any], data).items()}
    if isinstance(data, (list, tuple)):
        return [_leaves(v, change) for v in cast(Sequence[Any], data)]
    return data
