"""Charts as SVG text. Colours are classes of the style sheet, so they follow the theme; a `<title>` is a tooltip."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape

from lilliput.report.html.axes import Axis


@dataclass(frozen=True, kw_only=True)
class Frame:
    """A picture and the margins around what is drawn in it."""

    width: int
    height: int
    left: int
    right: int
    top: int
    bottom: int


LARGE = Frame(width=460, height=280, left=76, right=12, top=14, bottom=46)
SMALL = Frame(width=216, height=158, left=54, right=10, top=8, bottom=38)
"""For one of many pictures beside each other."""
CHARACTER = 8.2
"""About the width of a character in the units of the picture, on a narrow screen."""


class Plot:
    """Marks between two axes; later ones lie above earlier ones. `ident` must be unique on a page."""

    def __init__(self, ident: str, title: str, x: Axis, y: Axis, *, frame: Frame = LARGE) -> None:
        self.ident, self.title, self.axes, self.frame = ident, title, (x, y), frame
        self.end, self.floor = frame.width - frame.right, frame.height - frame.bottom
        self.marks: list[str] = []

    def x(self, value: float) -> float:
        return self.frame.left + self.axes[0].at(value) * (self.end - self.frame.left)

    def y(self, value: float) -> float:
        return self.floor - self.axes[1].at(value) * (self.floor - self.frame.top)

    def line(self, points: Iterable[tuple[float, float]], css: str, title: str = "", *, dots: bool = True) -> None:
        places = [(self.x(a), self.y(b)) for a, b in points]
        path = " ".join(f"{a:.1f},{b:.1f}" for a, b in places)
        circles = "".join(f'<circle cx="{a:.1f}" cy="{b:.1f}" r="2.6"/>' for a, b in places) if dots else ""
        self.marks.append(f'<g class="line {css}">{tooltip(title)}<polyline points="{path}"/>{circles}</g>')

    def dot(self, x: float, y: float, css: str, title: str, radius: float = 4.0) -> None:
        place = f'cx="{self.x(x):.1f}" cy="{self.y(y):.1f}" r="{radius:g}"'
        self.marks.append(f'<circle class="dot {css}" {place}>{tooltip(title)}</circle>')

    def bar(self, left: float, right: float, top: float, css: str, title: str) -> None:
        """From the lower axis up to `top`."""
        x, width = self.x(left), max(self.x(right) - self.x(left), 0.6)
        y, floor = self.y(top), self.floor
        place = f'x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{max(floor - y, 0):.1f}"'
        self.marks.append(f'<rect class="bar {css}" {place}>{tooltip(title)}</rect>')

    def level(self, y: float, text: str, css: str = "limit") -> None:
        """A dashed line across, with its name."""
        at = self.y(y)
        line = f'<line x1="{self.frame.left}" x2="{self.end}" y1="{at:.1f}" y2="{at:.1f}"/>'
        label = f'<text x="{self.end - 2}" y="{at - 4:.1f}" text-anchor="end">{escape(text)}</text>'
        self.marks.append(f'<g class="rule {css}">{line}{label}</g>')

    def upright(self, x: float, text: str, css: str = "limit") -> None:
        """A dashed line upwards, with its name."""
        at = self.x(x)
        line = f'<line x1="{at:.1f}" x2="{at:.1f}" y1="{self.frame.top}" y2="{self.floor}"/>'
        before = at > self.frame.width * 0.66
        anchor = "end" if before else "start"
        place = f'x="{at + (-4 if before else 4):.1f}" y="{self.frame.top + 10}" text-anchor="{anchor}"'
        self.marks.append(f'<g class="rule {css}">{line}<text {place}>{escape(text)}</text></g>')

    def text(self, x: float, y: float, text: str, css: str = "name", *, anchor: str = "start") -> None:
        place = f'x="{self.x(x):.1f}" y="{self.y(y):.1f}" text-anchor="{anchor}"'
        self.marks.append(f'<text class="{css}" {place}>{escape(text)}</text>')

    def svg(self) -> str:
        body = "".join([self._grid(), *self.marks])
        return picture(self.ident, self.title, body, self.frame.width, self.frame.height)

    def _grid(self) -> str:
        x, y = self.axes
        frame, floor, parts = self.frame, self.floor, list[str]()
        for value, text in y.ticks:
            at = self.y(value)
            parts.append(f'<line class="grid" x1="{self.frame.left}" x2="{self.end}" y1="{at:.1f}" y2="{at:.1f}"/>')
            parts.append(
                f'<text class="tick" x="{frame.left - 6}" y="{at + 4:.1f}" text-anchor="end">{escape(text)}</text>'
            )
        for value, text in _shown(x.ticks, [self.x(value) for value, _ in x.ticks]):
            at, half = self.x(value), len(text) * CHARACTER / 2
            place = f'x="{min(at, frame.width - half):.1f}" y="{floor + 18}" text-anchor="middle"'
            parts.append(f'<line class="axis" x1="{at:.1f}" x2="{at:.1f}" y1="{floor}" y2="{floor + 4}"/>')
            parts.append(f'<text class="tick" {place}>{escape(text)}</text>')
        parts.append(f'<line class="axis" x1="{frame.left}" x2="{self.end}" y1="{floor}" y2="{floor}"/>')
        middle, centre = (frame.left + self.end) / 2, (frame.top + floor) / 2
        place = f'x="{middle}" y="{frame.height - 6}" text-anchor="middle"'
        parts.append(f'<text class="label" {place}>{escape(x.label)}</text>')
        turn = f'transform="translate(14 {centre}) rotate(-90)"'
        parts.append(f'<text class="label" {turn} text-anchor="middle">{escape(y.label)}</text>')
        return "".join(parts)


def picture(ident: str, title: str, body: str, width: float, height: float) -> str:
    """An `<svg>` that scales, with a name for those who do not see it."""
    box = f'viewBox="0 0 {width:g} {height:g}" role="img" aria-labelledby="{ident}-title"'
    return f'<svg id="{ident}" class="chart" {box}><title id="{ident}-title">{escape(title)}</title>{body}</svg>'


def sparkline(lines: Sequence[Sequence[float]], title: str) -> str:
    """Up to three lines between 0 and 1, without axes."""
    width, height, parts = 128, 48, list[str]()
    for css, line in zip(("ours", "int8", "third"), lines, strict=False):
        step = (width - 4) / max(len(line) - 1, 1)
        path = " ".join(f"{2 + step * i:.1f},{2 + (height - 4) * (1 - v):.1f}" for i, v in enumerate(line))
        parts.append(f'<polyline class="{css}" points="{path}"/>')
    box = f'viewBox="0 0 {width} {height}" role="img" aria-label="{escape(title)}"'
    return f'<svg class="spark" {box}>{"".join(parts)}</svg>'


def shortened(text: str, room: float) -> str:
    """As much of a text as has room, in the units of the picture."""
    most = max(1, int(room / CHARACTER))
    return text if len(text) <= most else f"{text[: max(1, most - 1)]}\N{HORIZONTAL ELLIPSIS}"


def fitting(names: Sequence[str]) -> list[str]:
    """Names for places beside each other on the lower axis."""
    return [shortened(name, (LARGE.width - LARGE.left - LARGE.right) / len(names)) for name in names]


def tooltip(text: str) -> str:
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
