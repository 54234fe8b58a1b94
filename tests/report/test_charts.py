"""Axes, charts and the panels that are read generically: curves of an analysis, the front of a search."""

import re
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lilliput.report.html.axes import categories, linear, logarithmic
from lilliput.report.html.charts import LARGE, SMALL, Plot, fitting
from lilliput.report.html.panels.front import front
from lilliput.report.html.panels.sensitivity import sensitivity
from lilliput.report.html.source import Source
from page_parser import Page

many = settings(max_examples=100, deadline=None)
FRAMES = (LARGE, SMALL)
numbers = st.floats(-1e7, 1e7, allow_nan=False).map(lambda v: round(v, 6))


@many
@given(st.lists(numbers, min_size=1, max_size=8), st.booleans(), st.sampled_from(["", "B", "%"]))
def test_a_linear_axis_holds_its_values_between_round_ticks(values, zero, unit):
    axis = linear("x", values, unit, zero=zero)
    assert axis.low < axis.high
    assert all(-1e-6 <= axis.at(v) <= 1 + 1e-6 for v in values)
    places = [axis.at(v) for v, _ in axis.ticks]
    assert places == sorted(places)
    assert places[0] == pytest.approx(0)
    assert places[-1] == pytest.approx(1)
    assert 2 <= len(axis.ticks) <= 13
    assert len({text for _, text in axis.ticks}) == len(axis.ticks)
    if zero:
        assert any(abs(v) < 1e-9 for v, _ in axis.ticks)


@many
@given(st.lists(st.floats(0, 1e6) | st.sampled_from([5e-324, 1e-40, 1e-7]), min_size=1, max_size=8))
def test_a_logarithmic_axis_ends_at_decades_and_puts_the_rest_at_its_edge(values):
    axis = logarithmic("y", values)
    assert all(0 <= axis.at(v) <= 1 + 1e-9 for v in values)
    assert axis.at(0) == 0
    assert 2 <= len(axis.ticks) <= 7
    assert all(float(text) == pytest.approx(value) for value, text in axis.ticks)


@many
@given(st.lists(st.tuples(numbers, numbers), min_size=2, max_size=8), st.text(max_size=8), st.sampled_from(FRAMES))
def test_what_is_drawn_lies_in_the_picture_and_texts_are_escaped(points, text, frame):
    plot = Plot("p", text, linear("x", [a for a, _ in points]), linear("y", [b for _, b in points]), frame=frame)
    plot.line(points, "ours", text)
    for a, b in points:
        plot.dot(a, b, "ours", text)
        plot.bar(a, a, b, "ours", text)
    plot.level(points[0][1], text)
    plot.upright(points[0][0], text)
    page = Page(plot.svg())
    for circle in page.all("circle"):
        assert 0 <= float(circle["cx"]) <= frame.width
        assert 0 <= float(circle["cy"]) <= frame.height
    for bar in page.all("rect"):
        assert float(bar["y"]) + float(bar["height"]) <= frame.height
    assert {e.tag for e in page.elements} <= {"svg", "title", "g", "polyline", "circle", "line", "rect", "text"}


def test_names_are_shortened_to_their_place():
    assert fitting(["cat", "dog"]) == ["cat", "dog"]
    short = fitting(["a very long name of a class"] * 10)
    assert all(name.endswith("\N{HORIZONTAL ELLIPSIS}") and len(name) < 6 for name in short)


def test_ticks_do_not_write_over_each_other():
    plot = Plot("p", "t", categories("x", [f"category {i}" for i in range(40)]), linear("y", [1.0]))
    shown = [e for e in Page(plot.svg()).all("text", "tick") if e["text-anchor"] == "middle"]
    places = [float(e["x"]) for e in shown]
    assert 2 <= len(places) < 10
    assert min(b - a for a, b in pairwise(places)) > 60


def shown(panel) -> Any:
    assert panel is not None
    return panel


def probe(layer, kind, level, divergence):
    return {"layer": layer, "kind": kind, "level": level, "divergence": divergence, "effect": True}


def analysis(kinds, layers, **more):
    levels = {"bits": (8, 4, 2)}
    probes = [
        probe(layer, kind, level, 10.0 ** (i - 5) * (n + 1))
        for kind in kinds
        for n, layer in enumerate(layers)
        for i, level in enumerate(levels.get(kind, (0.25, 0.5, 0.75)))
    ]
    proposals = [{"kind": kinds[0], "threshold": 1e-4}]
    return {"probes": probes, "proposals": proposals, "measure": "KL divergence", "samples": 64, **more}


def test_curves_of_every_kind_are_drawn_also_of_one_that_nobody_knew():
    layers = [f"layer{i}" for i in range(6)]
    panel = shown(sensitivity(Source(title="x", result={}, analysis=analysis(["bits", "rotation"], layers))))
    assert [c["title"] for c in panel["charts"]] == ["bits of a weight", "rotation"]
    for chart, limits in zip(panel["charts"], (1, 0), strict=True):
        page = Page(chart["svg"])
        assert len(page.all("polyline")) == len(layers)
        ticks = [float(e["x"]) for e in page.all("text", "tick") if e["text-anchor"] == "middle"]
        for line in page.all("polyline"):  # a point above each level, higher the stronger the change
            places = [tuple(map(float, place.split(","))) for place in line["points"].split()]
            assert [x for x, _ in places] == pytest.approx(ticks, abs=0.1)
            assert [y for _, y in places] == sorted((y for _, y in places), reverse=True)
        assert [t for _, t in chart["legend"]] == ["layer5", "layer4", "layer3", "layer2", "2 more"]
        assert len(page.all("g", "rule")) == limits
        assert len([t for t in page.all("title") if t.text.startswith("layer")]) == len(layers)


def test_layers_changed_together_have_a_line_of_their_own():
    alone = [probe("a", "bits", level, 0.1) | {"layers": ["a"]} for level in (8, 4)]
    together = [probe("a", "bits", level, 0.3) | {"layers": ["a", "b", "c"]} for level in (8, 4)]
    panel = shown(sensitivity(Source(title="x", result={}, analysis={"probes": alone + together})))
    assert [name for _, name in panel["charts"][0]["legend"]] == ["a with 2 more", "a"]
    assert [len(e["points"].split()) for e in Page(panel["charts"][0]["svg"]).all("polyline")] == [2, 2]


def test_layers_may_have_other_levels_and_no_number():
    data = {
        "probes": [
            probe("a", "channels", 0.5, 0.1),
            probe("b", "channels", 0.25, 0.2),
            probe("b", "channels", 0.5, None),
        ]
    }
    panel = shown(sensitivity(Source(title="x", result={}, analysis=data)))
    assert len(Page(panel["charts"][0]["svg"]).all("circle")) == 2


def test_without_an_analysis_there_are_no_curves():
    assert sensitivity(Source(title="x", result={})) is None


def source_of(points, **more):
    return Source(title="x", result={}, details={"points": points, **more})


candidates = st.builds(
    lambda size, score, ok: {"name": "c", "bytes": size, "score": score, "feasible": ok},
    st.integers(1, 60),
    st.integers(0, 20).map(float),
    st.booleans(),
)


@many
@given(st.lists(candidates, min_size=1, max_size=12), st.booleans())
def test_the_line_of_the_front_joins_what_no_smaller_feasible_one_reaches(points, higher):
    panel = shown(front(source_of(points, task={"higher_is_better": higher})))
    page = Page(panel["chart"])
    assert len(page.all("circle", "dot")) == len(points)
    sign = 1 if higher else -1
    feasible = {(p["bytes"], p["score"]) for p in points if p["feasible"]}
    best = {
        (size, score)
        for size, score in feasible
        if not any(
            (s, -sign * v) != (size, -sign * score) and s <= size and sign * v >= sign * score for s, v in feasible
        )
    }
    lines = page.all("polyline")
    assert len(lines) == (len(best) > 1)
    if lines:
        assert len(re.findall(r"[\d.]+,[\d.]+", lines[0]["points"])) == len(best)


def test_without_candidates_there_is_no_front():
    assert front(source_of([])) is None
    assert front(source_of([{"name": "c", "bytes": None, "score": None, "feasible": False}])) is None
