"""A page as a list of elements, read by the parser of the standard library; refuses what is not closed."""

from html.parser import HTMLParser
from typing import Any

VOID = {"meta", "link", "br", "img", "input", "hr"}
SVG_EMPTY = {"rect", "circle", "line", "polyline", "path"}


class Element:
    def __init__(self, tag, attributes, parents):
        self.tag, self.attributes, self.parents, self.text = tag, attributes, parents, ""

    def __getitem__(self, name):
        return self.attributes.get(name)

    @property
    def classes(self):
        return (self["class"] or "").split()

    def inside(self, other):
        return other in self.parents


class Page(HTMLParser):
    """`elements` in order, each with its own and its children's text."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.elements, self._open = [], []
        self.feed(text)
        self.close()
        assert not self._open, [e.tag for e in self._open]

    def handle_starttag(self, tag, attrs):
        names = [name for name, _ in attrs]
        assert len(names) == len(set(names)), (tag, names)
        element = Element(tag, dict(attrs), tuple(self._open))
        self.elements.append(element)
        if tag not in VOID:
            self._open.append(element)

    def handle_startendtag(self, tag, attrs):
        assert tag in SVG_EMPTY, tag
        self.elements.append(Element(tag, dict(attrs), tuple(self._open)))

    def handle_endtag(self, tag):
        assert self._open, f"</{tag}> closes nothing"
        assert self._open[-1].tag == tag, f"</{tag}> closes <{self._open[-1].tag}>"
        self._open.pop()

    def handle_data(self, data):
        for element in self._open:
            element.text += data

    def all(self, tag, css=None, inside=None):
        return [
            e
            for e in self.elements
            if e.tag == tag and (css is None or css in e.classes) and (inside is None or e.inside(inside))
        ]

    def one(self, tag, css=None, inside=None):
        (found,) = self.all(tag, css, inside)
        return found

    def section(self, ident) -> Any:
        """A panel, or None where the page has none of this name."""
        return next((e for e in self.elements if e.tag == "section" and e["id"] == ident), None)

    def rows(self, table):
        """Texts of the cells of its body."""
        rows = [r for r in self.all("tr", inside=table) if any(p.tag == "tbody" for p in r.parents)]
        return [[c.text.strip() for c in self.elements if c.tag in ("td", "th") and c.inside(r)] for r in rows]
