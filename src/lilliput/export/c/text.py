"""What all generated files have in common."""

import re
from collections.abc import Mapping

MARK = "Made by Lilliput."
"""In the first lines of every file: only files that have it are written over."""
NOTE = f"{MARK} The output is yours: no licence of Lilliput applies to it."


def filled(text: str, marks: Mapping[str, str]) -> str:
    """`text` with each mark replaced, the longest that fits first; what is filled in is not looked at again."""
    known = {"@NOTE": NOTE, **marks}
    pattern = "|".join(sorted(map(re.escape, known), key=len, reverse=True))
    return re.sub(pattern, lambda found: known[found[0]], text)
