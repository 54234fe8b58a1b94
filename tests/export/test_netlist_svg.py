"""Pictures of circuits: every gate, wire and output once, left to right, without overlaps; numbers are its own."""

import re
from itertools import combinations
from typing import Any
from xml.etree import ElementTree as ET

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lilliput.core.errors import UsageError
from lilliput.export.netlist_svg import MOST_DRAWN, svg
from lilliput.ops.cartesian_functions import BINARY, CONSTANTS, COUNT, NAMES, ONE
from lilliput.ops.netlist import Gate, Netlist, sources

SPACE = "{http://www.w3.org/2000/svg}"


@st.composite
def circuits(draw):
    inputs = draw(st.lists(st.integers(-128, 127), max_size=4))
    gates = []
    for k in range(draw(st.integers(0 if inputs else 1, 14))):
        pins = len(inputs) + k
        function = draw(st.sampled_from(range(COUNT) if pins else CONSTANTS))
        reads = 0 if function in CONSTANTS else 2 if function in BINARY else 1
        gates.append(Gate(function, *(draw(st.integers(0, pins - 1)) for _ in range(reads))))
    n = len(inputs) + len(gates)
    outputs = draw(st.lists(st.integers(0, n - 1), min_size=1, max_size=8))
    return Netlist(bits=8, inputs=len(inputs), gates=tuple(gates), outputs=tuple(outputs)), inputs


def drawn(net, inputs, **options):
    root: Any = ET.fromstring(svg(net, inputs, **options))
    nodes = [g for g in root.iter(f"{SPACE}g") if "node" in (g.get("class") or "")]
    boxes = [{k: float(g.find(f"{SPACE}rect").get(k)) for k in ("x", "y", "width", "height")} for g in nodes]
    kinds = [g.get("class").split()[1] for g in nodes]
    texts = [[t.text for t in g.iter(f"{SPACE}text")] for g in nodes]
    wires = [[float(v) for v in re.findall(r"-?\d+\.\d", p.get("d"))] for p in root.iter(f"{SPACE}path")]
    return root, kinds, boxes, texts, wires


@settings(deadline=None)
@given(circuits())
def test_all_that_the_outputs_need_is_drawn_once_and_nothing_overlaps(circuit):
    net, inputs = circuit
    root, kinds, boxes, texts, wires = drawn(net, inputs)
    small = net.pruned()
    values = net.evaluate(inputs).tolist()
    read = {pin for gate in small.gates for pin in sources(gate)} | set(small.outputs)
    assert kinds.count("gate") == len(small.gates)
    assert kinds.count("given") == sum(pin in read for pin in range(net.inputs))
    assert kinds.count("output") == len(set(values))
    made = [(t[0], t[1].replace("\N{MINUS SIGN}", "-")) for t, kind in zip(texts, kinds, strict=True) if kind == "gate"]
    known = small.values(inputs).tolist()[net.inputs :]
    assert made == [(NAMES[g.function], str(v)) for g, v in zip(small.gates, known, strict=True)]
    assert len(wires) == sum(len(sources(g)) for g in small.gates) + len(set(values))
    for a, b in combinations(boxes, 2):
        assert any(a[x] + a[w] <= b[x] or b[x] + b[w] <= a[x] for x, w in (("x", "width"), ("y", "height")))
    assert all(wire[0] < wire[-2] for wire in wires)  # to the right
    width, height = float(root.get("width")), float(root.get("height"))
    for box in boxes:
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= width
        assert box["y"] >= 0
        assert box["y"] + box["height"] <= height


@settings(deadline=None)
@given(circuits())
def test_wires_end_at_their_gates(circuit):
    net, inputs = circuit
    _, kinds, boxes, _, wires = drawn(net, inputs)
    starts = {(box["x"] + box["width"], box["y"] + box["height"] / 2) for box in boxes}
    ends = [
        (box["x"], box["y"], box["y"] + box["height"])
        for box, kind in zip(boxes, kinds, strict=True)
        if kind != "given"
    ]
    for wire in wires:
        assert any(abs(wire[0] - x) < 0.2 and abs(wire[1] - y) < 0.2 for x, y in starts)
        assert any(abs(wire[-2] - x) < 0.2 and low <= wire[-1] <= high for x, low, high in ends)


def test_outputs_say_how_many_weights_have_them():
    net = Netlist(bits=8, inputs=2, gates=(Gate(1, 0, 1),), outputs=(0, 1, 2))
    root, kinds, _, texts, _ = drawn(net, [3, -5], weights={3: 1200, -2: 600})
    shown = [t for t, kind in zip(texts, kinds, strict=True) if kind == "output"]
    assert shown == [["\N{MINUS SIGN}5", "0"], ["\N{MINUS SIGN}2", "600"], ["3", "1,200"]]
    bars = [float(r.get("width")) for r in root.iter(f"{SPACE}rect") if r.get("class") == "share"]
    assert bars[1] / bars[2] == 0.5
    titles = {t.text for t in root.iter(f"{SPACE}title")}
    assert {"gate 0: a + b with a = 3, b = -5 gives -2", "output 3: 1,200 weights have it"} <= titles


def test_names_are_text_and_what_cannot_be_drawn_is_refused():
    net = Netlist(bits=8, inputs=1, gates=(Gate(12, 0),), outputs=(1,))
    assert '<title id="c-title">a &lt;b&gt;</title>' in svg(net, [1], ident="c", title="a <b>")
    with pytest.raises(UsageError, match="2 values for 1 inputs"):
        svg(net, [1, 2])
    gates = (Gate(ONE), *(Gate(12, k) for k in range(MOST_DRAWN)))
    with pytest.raises(UsageError, match="151 gates"):
        svg(Netlist(bits=8, inputs=0, gates=gates, outputs=(MOST_DRAWN,)), [])
