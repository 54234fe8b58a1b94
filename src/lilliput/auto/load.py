"""A `.lil` file as a network that runs."""

import copy
import os

from torch import nn

from lilliput.core import container
from lilliput.core.artifact import Artifact
from lilliput.graph.integer import runnable
from lilliput.graph.stored import stored_artifact


def load(path: str | os.PathLike[str], into: nn.Module | None = None) -> nn.Module:
    """The network of the file, in evaluation mode, computing what was measured: in integers where it was quantized.

    It runs from the graph in the file. A file without one needs `into`: a fresh module of the architecture that it was
    made from, which is not changed. Raises `ArtifactError` for a damaged file, another format version, a file without
    graph, or another architecture.
    """
    return runnable(load_artifact(path, into))


def load_artifact(path: str | os.PathLike[str], into: nn.Module | None = None) -> Artifact:
    """The same as an `Artifact`: the plain module with its encodings, activation grids, edits and recipe."""
    contents = container.read(path)
    return stored_artifact(contents, str(path)) if into is None else contents.replay(copy.deepcopy(into))
