"""A pickle as inert data: nothing is imported, called or changed while reading it.

Python's unpickler runs whatever a file says. This reader knows the instructions that plain containers need; where a
pickle names a class or a function, it keeps the name, and where it would call it, it keeps a `Call` for the reader
of the result to look at. Format: protocols 2 to 4, as the standard library's `pickletools` documents them.
"""

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from lilliput.core.errors import DataError


@dataclass(frozen=True)
class Name:
    """A class or function that the pickle refers to, as "module name"."""

    path: str


@dataclass(eq=False)
class Call:
    """What the pickle would call, with what, and the state that it would set on the outcome."""

    path: str
    arguments: tuple[Any, ...]
    state: Any = None


_MAX_INSTRUCTIONS = 1_000_000  # one byte of a pickle can make an object of 64 bytes; real files have some 50,000


def read_plain_pickle(data: bytes | bytearray, allowed: frozenset[str], asked: str) -> Any:
    """The value that a pickle holds. Byte strings of Python 2 stay `bytes`.

    A name outside `allowed` ("module name"), an instruction outside of plain data, or damage is a `DataError`
    that starts with `asked`.
    """
    machine = _Machine(allowed)
    try:
        for n_done, (code, argument) in enumerate(_tokens(data)):
            if n_done == _MAX_INSTRUCTIONS:
                raise _RefusedError(f"has more than {_MAX_INSTRUCTIONS} instructions")  # noqa: TRY301
            _ACTIONS[code](machine, argument)
        return machine.stack.pop()
    except _RefusedError as error:
        raise DataError(asked, f"the pickle {error}", "use the binary version of the data") from error
    except (IndexError, KeyError, TypeError, ValueError, struct.error) as error:
        raise DataError(asked, f"the pickle is damaged ({error})", "get the file again") from error


class _RefusedError(Exception):
    pass


_NUMBERS = {"K": "<B", "M": "<H", "J": "<i", "G": ">d", "q": "<B", "r": "<I", "h": "<B", "j": "<I"}
_NUMBERS |= {"\x80": "<B", "\x95": "<Q"}
_STRINGS = {"U": "<B", "T": "<I", "C": "<B", "B": "<I", "\x8a": "<B", "X": "<I", "\x8c": "<B"}
_STOP = "."


def _tokens(data: bytes | bytearray) -> Iterator[tuple[str, Any]]:
    """Instruction and argument, up to STOP."""
    at = 0
    while (code := chr(data[at])) != _STOP:
        at += 1
        argument = None
        if code in _NUMBERS:
            argument = struct.unpack_from(_NUMBERS[code], data, at)[0]
            at += struct.calcsize(_NUMBERS[code])
        elif code in _STRINGS:
            start = at + struct.calcsize(_STRINGS[code])
            at = start + struct.unpack_from(_STRINGS[code], data, at)[0]
            if at > len(data):
                raise ValueError("a string runs past the end")
            argument = bytes(data[start:at])
        elif code == "c":
            middle = data.index(b"\n", at)
            end = data.index(b"\n", middle + 1)
            argument = f"{data[at:middle].decode('ascii')} {data[middle + 1 : end].decode('ascii')}"
            at = end + 1
        elif code not in _ACTIONS:
            raise _RefusedError(f"has the instruction {code!r} at byte {at - 1}, which plain data does not need")
        yield code, argument


class _Machine:
    """The stack of the pickle language; `outer` are the stacks below each open mark."""

    def __init__(self, allowed: frozenset[str]) -> None:
        self.allowed = allowed
        self.stack: list[Any] = []
        self.outer: list[list[Any]] = []
        self.memo: dict[int, Any] = {}

    def top(self, kind: type) -> Any:
        return _expect(self.stack[-1], kind)

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def push_last(self, n: int) -> None:
        self.push(tuple([self.stack.pop() for _ in range(n)][::-1]))

    def mark(self) -> None:
        self.outer.append(self.stack)
        self.stack = []

    def to_mark(self) -> list[Any]:
        items, self.stack = self.stack, self.outer.pop()
        return items

    def put(self, index: int) -> None:
        self.memo[index] = self.stack[-1]

    def extend(self, items: list[Any]) -> None:
        self.top(list).extend(items)

    def update(self, items: list[Any]) -> None:
        keys = [_expect(key, str, bytes, int) for key in items[::2]]
        self.top(dict).update(zip(keys, items[1::2], strict=True))

    def push_name(self, path: str) -> None:
        if path not in self.allowed:
            allowed = ", ".join(sorted(self.allowed)) or "none"
            raise _RefusedError(f"refers to '{path[:80]}'; allowed: {allowed}")
        self.push(Name(path))

    def join_name(self) -> None:
        name, module = _expect(self.stack.pop(), str), _expect(self.stack.pop(), str)
        self.push_name(f"{module} {name}")

    def call(self) -> None:
        arguments, function = _expect(self.stack.pop(), tuple), _expect(self.stack.pop(), Name)
        self.push(Call(function.path, arguments))

    def set_state(self) -> None:
        state = self.stack.pop()
        self.top(Call).state = state


def _expect(value: Any, *kinds: type) -> Any:
    if not isinstance(value, kinds):
        raise TypeError(f"a {type(value).__name__} stands where a {kinds[0].__name__} must be")
    return value


_Action = Callable[[_Machine, Any], None]
_ACTIONS: dict[str, _Action] = {
    **dict.fromkeys("KMJGUTCB", lambda machine, value: machine.push(value)),
    **dict.fromkeys("X\x8c", lambda machine, text: machine.push(text.decode("utf-8"))),
    **dict.fromkeys("\x80\x95", lambda machine, _: None),  # protocol and frame length say nothing needed here
    **dict.fromkeys("qr", lambda machine, index: machine.put(index)),
    **dict.fromkeys("hj", lambda machine, index: machine.push(machine.memo[index])),
    "\x94": lambda machine, _: machine.put(len(machine.memo)),
    "\x8a": lambda machine, digits: machine.push(int.from_bytes(digits, "little", signed=True)),
    "N": lambda machine, _: machine.push(None),
    "\x88": lambda machine, _: machine.push(True),
    "\x89": lambda machine, _: machine.push(False),
    "(": lambda machine, _: machine.mark(),
    "t": lambda machine, _: machine.push(tuple(machine.to_mark())),
    ")": lambda machine, _: machine.push(()),
    "\x85": lambda machine, _: machine.push_last(1),
    "\x86": lambda machine, _: machine.push_last(2),
    "\x87": lambda machine, _: machine.push_last(3),
    "]": lambda machine, _: machine.push([]),
    "a": lambda machine, _: machine.extend([machine.stack.pop()]),
    "e": lambda machine, _: machine.extend(machine.to_mark()),
    "}": lambda machine, _: machine.push({}),
    "s": lambda machine, _: machine.update([machine.stack.pop(), machine.stack.pop()][::-1]),
    "u": lambda machine, _: machine.update(machine.to_mark()),
    "c": lambda machine, path: machine.push_name(path),
    "\x93": lambda machine, _: machine.join_name(),
    "R": lambda machine, _: machine.call(),
    "b": lambda machine, _: machine.set_state(),
    "0": lambda machine, _: machine.stack.pop(),
}
