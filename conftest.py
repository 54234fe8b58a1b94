"""Every Python block of README.md and docs/ is a test: Sybil runs a document's blocks in order, in one namespace."""

import contextlib
from collections.abc import Iterator

import pytest
import torch
from sybil import Sybil
from sybil.parsers.markdown import PythonCodeBlockParser, SkipParser

import lilliput.graph.trace
from traced_once import TracedOnce

torch.set_num_threads(1)  # so that tests beside each other do not slow each other down


@pytest.fixture(scope="module")
def own_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """One empty working folder per document: blocks save and load files."""
    with contextlib.chdir(tmp_path_factory.mktemp("document")):
        yield


@pytest.fixture(scope="session", autouse=True)
def traced_once() -> Iterator[None]:
    """Networks of one structure share one trace, in tests and documents."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lilliput.graph.trace, "trace", TracedOnce())
        yield


pytest_collect_file = Sybil(
    parsers=[PythonCodeBlockParser(), SkipParser()],
    patterns=["README.md", "docs/*.md"],
    fixtures=["traced_once", "own_folder"],
).pytest()

collect_ignore_glob = [
    "tests/conftest.py",
    "tests/*/conftest.py",
]  # they load as plugins; as doctest modules their names clash
