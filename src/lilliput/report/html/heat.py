"""A matrix of signed numbers as a square of cells."""

from collections.abc import Sequence
from html import escape

from lilliput.report.html.charts import CHARACTER, picture, shortened, tooltip

SIZE, ABOVE, NUMBERED = 400, 44, 18
"""Of the square, in the units of the picture; the space above it; the least cell that has room for a number."""
FAINT, STRONG = 0.12, 0.55
"""Opacity of the smallest and the largest numbers: text on them must stay readable."""


def heat(
    ident: str, title: str, values: Sequence[Sequence[int]], names: Sequence[str], titles: Sequence[Sequence[str]]
) -> str:
    """Rows are labels, columns answers; more is one colour, less the other, 0 is empty."""
    size = SIZE / len(names)
    left = 26 + CHARACTER * min(max(len(name) for name in names), 9)
    most = max((abs(v) for row in values for v in row), default=0) or 1
    middle = ABOVE + SIZE / 2
    parts = [
        f'<text class="label" x="{left + SIZE / 2:.1f}" y="14" text-anchor="middle">answer</text>',
        f'<text class="label" transform="translate(14 {middle:.1f}) rotate(-90)" text-anchor="middle">label</text>',
    ]
    for i, name in enumerate(names):
        beside = f'x="{left - 5:.1f}" y="{ABOVE + (i + 0.5) * size + 4:.1f}" text-anchor="end"'
        above = f'x="{left + (i + 0.5) * size:.1f}" y="{ABOVE - 8}" text-anchor="middle"'
        parts.append(f'<text class="tick" {beside}>{escape(shortened(name, left - 26))}</text>')
        parts.append(f'<text class="tick" {above}>{escape(shortened(name, size))}</text>')
    for r, row in enumerate(values):
        for c, value in enumerate(row):
            place = (left + c * size, ABOVE + r * size)
            parts.append(_cell(value, value / most, place, size, titles[r][c], own=r == c))
    return picture(ident, title, "".join(parts), left + SIZE + 2, ABOVE + SIZE + 2)


def _cell(value: int, share: float, place: tuple[float, float], size: float, title: str, *, own: bool) -> str:
    x, y = place
    css = ("same" if value == 0 else "more" if value > 0 else "less") + (" own" if own else "")
    opacity = "" if value == 0 else f' fill-opacity="{FAINT + (STRONG - FAINT) * abs(share):.2f}"'
    box = f'x="{x:.1f}" y="{y:.1f}" width="{size - 1:.1f}" height="{size - 1:.1f}"'
    rect = f'<rect class="cell {css}" {box}{opacity}>{tooltip(title)}</rect>'
    if value == 0 or size <= NUMBERED:
        return rect
    middle = f'x="{x + size / 2:.1f}" y="{y + size / 2 + 4:.1f}" text-anchor="middle"'
    return f'{rect}<text class="count" {middle}>{value:+d}</text>'
