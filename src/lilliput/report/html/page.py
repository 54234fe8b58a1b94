"""The page: panels made from plain data, put into the template; one file that asks for nothing else."""

import base64
import hashlib
from collections.abc import Callable, Mapping
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from lilliput.core.errors import ArtifactError, MissingExtraError
from lilliput.report.html.panels.answers import answers
from lilliput.report.html.panels.circuits import circuits
from lilliput.report.html.panels.comparison import comparison
from lilliput.report.html.panels.front import front
from lilliput.report.html.panels.functions import functions
from lilliput.report.html.panels.layers import layers
from lilliput.report.html.panels.learning import learning
from lilliput.report.html.panels.memory import memory
from lilliput.report.html.panels.passes import passes
from lilliput.report.html.panels.repeat import repeat
from lilliput.report.html.panels.samples import samples
from lilliput.report.html.panels.sensitivity import sensitivity
from lilliput.report.html.panels.verdict import verdict
from lilliput.report.html.source import Source, of_folder

PANELS: Mapping[str, tuple[str, Callable[[Source], Any]]] = {
    "verdict": ("", verdict),
    "comparison": ("Comparison", comparison),
    "front": ("Size and score", front),
    "passes": ("What each step bought", passes),
    "learning": ("Bits that were learned", learning),
    "functions": ("Learned functions", functions),
    "circuits": ("Circuits", circuits),
    "layers": ("Layers", layers),
    "samples": ("Answers that changed", samples),
    "answers": ("Answers before and after", answers),
    "sensitivity": ("Sensitivity", sensitivity),
    "memory": ("Memory", memory),
    "repeat": ("To repeat it", repeat),
}
"""Heading and data of each panel; its template has its name. One that gives None has nothing to show."""
SHORT = ("verdict", "comparison")


def page(source: Source) -> str:
    """The whole page. Raises `ArtifactError` where the data are not as a run writes them."""
    panels = {name: _made(name, source) for name in PANELS}
    sections = [(name, PANELS[name][0]) for name, panel in panels.items() if panel is not None and PANELS[name][0]]
    return document("page.html", source.title, "A network compressed by Lilliput", panels=panels, sections=sections)


def document(template: str, title: str, subtitle: str, **values: Any) -> str:
    """A page from a template that extends the base: style and script are inside, and nothing else may run or load."""
    style, script = (_text(name) for name in ("style.css", "script.js"))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    page = _environment().get_template(template)
    return page.render(title=title, subtitle=subtitle, style=style, script=script, digest=digest, **values)


def fragment(source: Source) -> str:
    """Verdict and comparison for a notebook: no script, no style for anything around it."""
    panels = {name: _made(name, source) for name in SHORT}
    return _environment().get_template("fragment.html").render(panels=panels)


def folder_page(folder: Path) -> str:
    """The page of a run folder; needs neither the model nor its data."""
    return page(of_folder(folder))


def _made(name: str, source: Source) -> Any:
    try:
        return PANELS[name][1](source)
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        found = f"{name}: not as a run writes it ({type(error).__name__}: {error})"
        raise ArtifactError(f"page of {source.title}", found, "run the recipe again in a new folder") from error


@cache
def _environment() -> Any:
    """Values are escaped unless a template says that they are markup of ours."""
    try:
        from jinja2 import Environment, FunctionLoader, StrictUndefined
    except ImportError as error:
        raise MissingExtraError("a page", "jinja2 is not installed", "pip install jinja2") from error
    return Environment(
        loader=FunctionLoader(_text), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )


def _text(name: str) -> str:
    return (files("lilliput.report.html") / "templates" / name).read_text(encoding="utf-8")
