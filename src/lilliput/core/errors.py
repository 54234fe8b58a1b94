"""Errors that say what was asked, what was found, and what to do about it.

Every error that bad input can cause is a `LilliputError`. Its `exit_code` is what the command line ends with:
2 wrong use, 3 unsupported, 4 verification mismatch. Any other exception is a bug, and ends it with `BUG`.
"""

import re

BUG = 70
"""EX_SOFTWARE of sysexits.h."""
UNSEEN = re.compile("[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")
"""Controls, line separators and changes of direction: what can change how a terminal shows the rest."""


def one_line(text: str) -> str:
    """Line ends become spaces, and what a terminal would obey is written out: whoever chose the text."""
    return UNSEEN.sub(lambda c: ascii(c[0])[1:-1], " ".join(text.splitlines()))


class LilliputError(Exception):
    """One clear line: `asked: found; do.`"""

    exit_code = 2

    def __init__(self, asked: str, found: str, do: str) -> None:
        self.asked, self.found, self.do = asked, found, do
        super().__init__(one_line(f"{asked}: {found}; {do}"))

    def __reduce__(self) -> tuple[type, tuple[str, str, str]]:
        return type(self), (self.asked, self.found, self.do)


class UsageError(LilliputError):
    """An argument, a unit, a name or a path is wrong."""


class DataError(LilliputError):
    """A data set, a batch or a label is not what it must be."""


class RecipeError(LilliputError):
    """A recipe has an unknown key, an unknown method or a wrong value."""


class ArtifactError(LilliputError):
    """A `.lil` file or a run folder is damaged, of another version, or for another model."""


class MissingExtraError(LilliputError):
    """An optional dependency is not installed; the message names the extra."""


class MethodError(LilliputError):
    """A pass broke one of the laws that every method keeps."""


class UnsupportedError(LilliputError):
    """The network has something that the asked operation cannot handle."""

    exit_code = 3


class ExportError(UnsupportedError):
    """A network cannot be written in the asked form; the message names the node."""


class VerificationError(LilliputError):
    """A written file does not compute what the artifact computes."""

    exit_code = 4
