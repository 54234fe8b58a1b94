"""A circuit of integers as a picture: SVG that needs no other program, and follows light and dark."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import NamedTuple

from lilliput.core.errors import UsageError
from lilliput.ops import cartesian_functions as f
from lilliput.ops.netlist import Netlist, sources

MOST_DRAWN = 150
"""Gates; nobody reads pictures of more."""
WIDTH, HEIGHT, LOW = 68, 30, 20
"""Of a node; the height of an output."""
ACROSS, DOWN, STEP, MARGIN = 108, 38, 25, 12
"""From node to node, from output to output, and around all."""
BAR = 70
"""For the output that most weights take."""
SWEEPS = 12
STYLE = """
.circuit { --t: var(--text, #1a1e24); --q: var(--quiet, #56606c); --b: var(--sheet, #f5f6f8);
  --g: var(--ours, #1d4ed8); --i: var(--int8, #a84b08); --o: var(--third, #0f766e); font: 12px system-ui, sans-serif; }
@media (prefers-color-scheme: dark) { .circuit.alone { --t: #e7e9ec; --q: #a6aeb9; --b: #1c2027;
  --g: #7ea8ff; --i: #f0a561; --o: #5cc7bb; background: #14171c; } }
.circuit .wire { fill: none; stroke: var(--q); stroke-opacity: .6; stroke-width: 1.1; }
.circuit .wire.out { stroke: var(--o); stroke-opacity: .5; stroke-dasharray: 3 3; }
.circuit .node rect { fill: var(--b); stroke: var(--m); stroke-width: 1.3; }
.circuit .node rect.share { fill: var(--m); fill-opacity: .45; stroke: none; }
.circuit .node:hover rect { stroke: var(--t); stroke-width: 2; }
.circuit .given { --m: var(--i); } .circuit .gate { --m: var(--g); } .circuit .output { --m: var(--o); }
.circuit .made rect { fill: color-mix(in srgb, var(--o) 16%, var(--b)); }
.circuit text { fill: var(--t); text-anchor: middle; font-variant-numeric: tabular-nums; }
.circuit text.function { fill: var(--q); font-size: 10.5px; }
.circuit text.value { font-weight: 600; }
.circuit text.share { text-anchor: start; fill: var(--q); font-size: 10.5px; }
"""


class _Place(NamedTuple):
    """The left end of a node, at half of its height."""

    x: float
    y: float


def svg(
    net: Netlist,
    given: Sequence[int],
    *,
    ident: str = "circuit",
    title: str = "circuit",
    weights: Mapping[int, int] | None = None,
    alone: bool = True,
) -> str:
    """Inputs on the left, gates by depth, on the right the values of the outputs, ascending and each once.

    `weights`: how many have each value, drawn as bars. Gates that no output needs are left out. A file of its own
    (`alone`) brings a background and dark colours. Raises `UsageError` for more than 150 gates.
    """
    net = net.pruned()
    if len(net.gates) > MOST_DRAWN:
        found = f"{len(net.gates)} gates"
        raise UsageError("a picture of a circuit", found, f"draw circuits of up to {MOST_DRAWN}; Graphviz takes more")
    if len(given) != net.inputs:
        raise UsageError("a picture of a circuit", f"{len(given)} values for {net.inputs} inputs", "give one for each")
    values = net.values(list(given)).tolist()
    outputs = sorted({values[pin]: pin for pin in net.outputs}.items())
    columns = _columns(net, [pin for _, pin in outputs])
    rows = max((len(column) for column in columns), default=0)
    height = max(rows * DOWN, len(outputs) * STEP) + 2 * MARGIN
    at: dict[int, _Place] = {}
    for i, column in enumerate(columns):
        at |= dict(zip(column, _spread(MARGIN + i * ACROSS, len(column), height, DOWN), strict=True))
    right = MARGIN + len(columns) * ACROSS
    ends = _spread(right, len(outputs), height, STEP)
    wires = [wire for k in range(len(net.gates)) for wire in _into(net, k, at)]
    wires += [_wire(at[pin], end, 0.0, "wire out") for (_, pin), end in zip(outputs, ends, strict=True)]
    nodes = [_input(net, pin, values[pin], at[pin]) for pin in range(net.inputs) if pin in at]
    nodes += [_gate(net, k, values, at[net.inputs + k]) for k in range(len(net.gates))]
    most = max((weights or {0: 0}).values(), default=0)
    nodes += [
        _output(value, end, None if weights is None else weights.get(value, 0), most)
        for (value, _), end in zip(outputs, ends, strict=True)
    ]
    width = right + WIDTH + (BAR + 60 if weights else 0) + MARGIN
    css = "chart circuit alone" if alone else "chart circuit"
    space = ' xmlns="http://www.w3.org/2000/svg"' if alone else ""
    head = f'<svg{space} id="{ident}" class="{css}" width="{width}" height="{height}" viewBox="0 0 {width} {height}"'
    named = f' role="img" aria-labelledby="{ident}-title"><title id="{ident}-title">{escape(title)}</title>'
    return "".join([head, named, f"<style>{STYLE}</style>", *wires, *nodes, "</svg>"])


def _columns(net: Netlist, outputs: Sequence[int]) -> list[list[int]]:
    """Pins by depth; in each column near to what they read and to what reads them, so that few wires cross."""
    depth = [0] * net.inputs
    for gate in net.gates:
        depth.append(1 + max((depth[pin] for pin in sources(gate)), default=0))
    read = {pin for gate in net.gates for pin in sources(gate)} | set(outputs)
    shown = [pin for pin in range(net.pins) if pin in read or pin >= net.inputs]
    first = 0 if any(pin < net.inputs for pin in shown) else 1
    last = max((depth[pin] for pin in shown), default=0)
    columns = [[pin for pin in shown if depth[pin] == d] for d in range(first, last + 1)]
    beside: dict[int, list[int]] = {pin: [] for pin in shown}
    for k, gate in enumerate(net.gates, start=net.inputs):
        for pin in sources(gate):
            beside[k].append(pin)
            beside[pin].append(k)
    height = {pin: (i + 0.5) / len(outputs) for i, pin in enumerate(outputs)}
    final = dict(height)
    for column in columns:
        for i, pin in enumerate(column):
            height.setdefault(pin, (i + 0.5) / len(column))
    for sweep in range(SWEEPS):
        for column in columns if sweep % 2 == 0 else columns[::-1]:
            wanted = {
                pin: [height[other] for other in beside[pin]] + ([final[pin]] if pin in final else []) for pin in column
            }
            column.sort(key=lambda pin, wanted=wanted: sum(wanted[pin]) / max(len(wanted[pin]), 1))
            height.update({pin: (i + 0.5) / len(column) for i, pin in enumerate(column)})
    return columns


def _spread(x: float, count: int, height: float, step: float) -> list[_Place]:
    """Places of a column, around the middle."""
    top = height / 2 - (count - 1) * step / 2
    return [_Place(x, top + i * step) for i in range(count)]


def _into(net: Netlist, k: int, at: Mapping[int, _Place]) -> list[str]:
    """The wires of a gate's sources: a enters above b."""
    read = sources(net.gates[k])
    steps = (0.0,) if len(read) == 1 else (-HEIGHT / 5, HEIGHT / 5)
    end = at[net.inputs + k]
    return [_wire(at[pin], end, step, "wire") for pin, step in zip(read, steps, strict=False)]


def _wire(start: _Place, end: _Place, step: float, css: str) -> str:
    x, y, to = start.x + WIDTH, start.y, end.y + step
    bend = min(0.5 * (end.x - x), 60)
    curve = f"M{x:.1f},{y:.1f} C{x + bend:.1f},{y:.1f} {end.x - bend:.1f},{to:.1f} {end.x:.1f},{to:.1f}"
    return f'<path class="{css}" d="{curve}"/>'


def _node(css: str, place: _Place, function: str, value: int, hint: str, more: str = "") -> str:
    height = HEIGHT if function else LOW
    top, middle = place.y - height / 2, place.x + WIDTH / 2
    box = f'<rect x="{place.x:.1f}" y="{top:.1f}" width="{WIDTH}" height="{height}" rx="4"/>'
    low = top + (25 if function else 14.5)
    texts = f'<text class="function" x="{middle:.1f}" y="{top + 11:.1f}">{escape(function)}</text>' if function else ""
    texts += f'<text class="value" x="{middle:.1f}" y="{low:.1f}">{_number(value)}</text>'
    return f'<g class="node {css}"><title>{escape(hint)}</title>{box}{texts}{more}</g>'


def _input(net: Netlist, pin: int, value: int, place: _Place) -> str:
    return _node(_css("given", net, pin), place, "given", value, f"input {pin}: {value}")


def _css(kind: str, net: Netlist, pin: int) -> str:
    return f"{kind} made" if pin in net.outputs else kind


def _gate(net: Netlist, k: int, values: Sequence[int], place: _Place) -> str:
    gate, made = net.gates[k], values[net.inputs + k]
    name = f.NAMES[gate.function]
    read = ", ".join(f"{which} = {values[pin]}" for which, pin in zip("ab", sources(gate), strict=False))
    css = _css("gate", net, net.inputs + k)
    return _node(css, place, name, made, f"gate {k}: {name}{f' with {read}' if read else ''} gives {made}")


def _output(value: int, place: _Place, weights: int | None, most: int) -> str:
    if weights is None:
        return _node("output", place, "", value, f"output {value}")
    x, width = place.x + WIDTH + 6, BAR * weights / max(most, 1)
    bar = f'<rect class="share" x="{x:.1f}" y="{place.y - 7:.1f}" width="{width:.1f}" height="14"/>'
    text = f'<text class="share" x="{x + width + 5:.1f}" y="{place.y + 4:.1f}">{weights:,}</text>'
    return _node("output", place, "", value, f"output {value}: {weights:,} weights have it", bar + text)


def _number(value: int) -> str:
    return f"\N{MINUS SIGN}{-value}" if value < 0 else str(value)
