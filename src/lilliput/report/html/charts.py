"""Charts as SVG text: colours are classes of the style sheet, so that they follow the theme; `<title>` is the tooltip."""

from collections.abc import Iterable, Sequence
from html import escape

from lilliput.report.html.axes import Axis

WIDTH, HEIGHT = 460, 280
LEFT, RIGHT, TOP, BOTTOM = 62, 12, 12, 44
CHARACTER = 6.6
"""About the width of a character of a tick, in the units of the picture."""


class Plot:
    """Marks between two axes; later ones lie above earlier ones. `ident` must be unique on a page."""

    def __init__(self, ident: str, title: str, x: Axis, y: Axis, *, height: int = HEIGHT) -> None:
        self.ident, self.title, self.axes, self.height = ident, title, (x, y), height
        self.marks: list[str] = []

    def x(self, value: float) -> float:
        return LEFT + self.axes[0].at(value) * (WIDTH - LEFT - RIGHT)

    def y(self, value: float) -> float:
        return self.height - BOTTOM - self.axes[1].at(value) * (self.height - TOP - BOTTOM)

    def line(self, points: Iterable[tuple[float, float]], css: str, title: str = "", *, dots: bool = True) -> None:
        places = [(self.x(a), self.y(b)) for a, b in points]
        path = " ".join(f"{a:.1f},{b:.1f}" for a, b in places)
        circles = "".join(f'<circle cx="{a:.1f}" cy="{b:.1f}" r="2.6"/>' for a, b in places) if dots else ""
        self.marks.append(f'<g class="line {css}">{_title(title)}<polyline points="{path}"/>{circles}</g>')

    def dot(self, x: float, y: float, css: str, title: str, radius: float = 4.0) -> None:
        place = f'cx="{self.x(x):.1f}" cy="{self.y(y):.1f}" r="{radius:g}"'
        self.marks.append(f'<circle class="dot {css}" {place}>{_title(title)}</circle>')

    def bar(self, left: float, right: float, top: float, css: str, title: str) -> None:
        """From the lower axis up to `top`."""
        x, width = self.x(left), max(self.x(right) - self.x(left), 0.6)
        y, floor = self.y(top), self.height - BOTTOM
        place = f'x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{max(floor - y, 0):.1f}"'
        self.marks.append(f'<rect class="bar {css}" {place}>{_title(title)}</rect>')

    def level(self, y: float, text: str, css: str = "limit") -> None:
        """A dashed line across, with its name."""
        at = self.y(y)
        line = f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{at:.1f}" y2="{at:.1f}"/>'
        label = f'<text x="{WIDTH - RIGHT - 2}" y="{at - 4:.1f}" text-anchor="end">{escape(text)}</text>'
        self.marks.append(f'<g class="rule {css}">{line}{label}</g>')

    def upright(self, x: float, text: str, css: str = "limit") -> None:
        """A dashed line upwards, with its name."""
        at = self.x(x)
        line = f'<line x1="{at:.1f}" x2="{at:.1f}" y1="{TOP}" y2="{self.height - BOTTOM}"/>'
        before = at > WIDTH * 0.66
        place = f'x="{at + (-4 if before else 4):.1f}" y="{TOP + 10}" text-anchor="{"end" if before else "start"}"'
        self.marks.append(f'<g class="rule {css}">{line}<text {place}>{escape(text)}</text></g>')

    def text(self, x: float, y: float, text: str, css: str = "name", *, anchor: str = "start") -> None:
        place = f'x="{self.x(x):.1f}" y="{self.y(y):.1f}" text-anchor="{anchor}"'
        self.marks.append(f'<text class="{css}" {place}>{escape(text)}</text>')

    def svg(self) -> str:
        body = "".join([self._grid(), *self.marks])
        return picture(self.ident, self.title, body, WIDTH, self.height)

    def _grid(self) -> str:
        x, y = self.axes
        floor, parts = self.height - BOTTOM, list[str]()
        for value, text in y.ticks:
            at = self.y(value)
            parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{at:.1f}" y2="{at:.1f}"/>')
            parts.append(f'<text class="tick" x="{LEFT - 6}" y="{at + 4:.1f}" text-anchor="end">{escape(text)}</text>')
        for value, text in _shown(x.ticks, [self.x(value) for value, _ in x.ticks]):
            at = self.x(value)
            parts.append(f'<line class="axis" x1="{at:.1f}" x2="{at:.1f}" y1="{floor}" y2="{floor + 4}"/>')
            parts.append(f'<text class="tick" x="{at:.1f}" y="{floor + 17}" text-anchor="middle">{escape(text)}</text>')
        parts.append(f'<line class="axis" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{floor}" y2="{floor}"/>')
        middle, centre = (LEFT + WIDTH - RIGHT) / 2, (TOP + floor) / 2
        parts.append(f'<text class="label" x="{middle}" y="{self.height - 6}" text-anchor="middle">{escape(x.label)}</text>')
        turn = f'transform="translate(13 {centre}) rotate(-90)"'
        parts.append(f'<text class="label" {turn} text-anchor="middle">{escape(y.label)}</text>')
        return "".join(parts)


def picture(ident: str, title: str, body: str, width: float, height: float) -> str:
    """An `<svg>` that scales, with a name for those who do not see it."""
    box = f'viewBox="0 0 {width:g} {height:g}" role="img" aria-labelledby="{ident}-title"'
    return f'<svg id="{ident}" class="chart" {box}><title id="{ident}-title">{escape(title)}</title>{body}</svg>'


def heat(ident: str, title: str, values: Sequence[Sequence[int]], names: Sequence[str], titles: Sequence[Sequence[str]]) -> str:
    """Signed whole numbers as a square of cells: more is one colour, less the other, 0 is empty."""
    size, space = 400 / len(names), 8 + CHARACTER * min(max(len(n) for n in names), 9)
    most = max((abs(v) for row in values for v in row), default=0) or 1
    parts: list[str] = []
    for r, row in enumerate(values):
        y = 26 + r * size
        parts.append(f'<text class="tick" x="{space - 4}" y="{y + size / 2 + 4:.1f}" text-anchor="end">{escape(names[r][:9])}</text>')
        for c, value in enumerate(row):
            x = space + c * size
            css = "same" if value == 0 else ("more" if value > 0 else "less") + (" own" if r == c else "")
            strength = 0 if value == 0 else 0.25 + 0.75 * abs(value) / most
            place = f'x="{x:.1f}" y="{y:.1f}" width="{size - 1:.1f}" height="{size - 1:.1f}"'
            parts.append(f'<rect class="cell {css}" {place} fill-opacity="{strength:.2f}">{_title(titles[r][c])}</rect>')
            if value and size > 18:
                parts.append(f'<text class="count" x="{x + size / 2:.1f}" y="{y + size / 2 + 4:.1f}" text-anchor="middle">{value:+d}</text>')
    for c, name in enumerate(names):
        fits = name if len(name) * CHARACTER < size else name[: max(1, int(size / CHARACTER))]
        parts.append(f'<text class="tick" x="{space + (c + 0.5) * size:.1f}" y="18" text-anchor="middle">{escape(fits)}</text>')
    return picture(ident, title, "".join(parts), space + 404, 430)


def _title(text: str) -> str:
    return f"<title>{escape(text)}</title>" if text else ""


def _shown(ticks: Sequence[tuple[float, str]], places: Sequence[float]) -> list[tuple[float, str]]:
    """The ticks whose texts do not meet the one before."""
    found: list[tuple[float, str]] = []
    end = -1e9
    for tick, place in zip(ticks, places, strict=True):
        half = len(tick[1]) * CHARACTER / 2
        if place - half > end + 4:
            found.append(tick)
            end = place + half
    return found
