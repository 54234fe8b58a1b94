"""A `.lil` file as a network that runs."""

import copy
import os

from torch import nn

from lilliput.core import container
from lilliput.core.artifact import Artifact
from lilliput.graph.integer import runnable


def load(path: str | os.PathLike[str], into: nn.Module) -> nn.Module:
    """The network of the file, in evaluation mode, computing what was measured: in integers where it was quantized.

    `into` is a fresh module of the architecture that the file was made from; it is not changed. Raises `ArtifactError`
    for a damaged file, another format version, or another architecture.
    """
    return runnable(load_artifact(path, into))


def load_artifact(path: str | os.PathLike[str], into: nn.Module) -> Artifact:
    """The same as an `Artifact`: the plain module with its encodings, activation grids, edits and recipe."""
    return container.read(path).replay(copy.deepcopy(into))
