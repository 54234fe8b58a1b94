"""What a loader returns: the published samples, unscaled, with the names of their labels."""

from dataclasses import dataclass

import torch

from lilliput.core.errors import DataError

Split = tuple[torch.Tensor, torch.Tensor]
"""Inputs and labels; labels are int64 [n]."""


@dataclass(frozen=True, kw_only=True, eq=False)
class RawData:
    """A data set, split into train and test by its publisher.

    Images are uint8 [n, channels, height, width], series float32 [n, channels, frames]; values are those of the file
    (0..16 for the digits, 0..255 for the other images). A label is the index of its name in `labels`.
    `validation_rows` are the rows of `train` that play the validation role, by a fixed rule of the data set, so that
    figures can be compared. `source` says where the samples were read and whether they are the published bytes.
    """

    name: str
    train: Split
    test: Split
    labels: tuple[str, ...]
    validation_rows: torch.Tensor
    source: str

    def __post_init__(self) -> None:
        for role, split in (("train", self.train), ("test", self.test)):
            _check(f"{role} split of '{self.name}' ({self.source})", split, len(self.labels))
        if self.train[0].shape[1:] != self.test[0].shape[1:] or self.train[0].dtype != self.test[0].dtype:
            found = f"train samples are {_kind(self.train[0])}, test samples {_kind(self.test[0])}"
            raise DataError(f"data set '{self.name}' ({self.source})", found, "use files that belong together")


def _kind(inputs: torch.Tensor) -> str:
    return f"{str(inputs.dtype).removeprefix('torch.')} {list(inputs.shape[1:])}"


def _check(asked: str, split: Split, n_labels: int) -> None:
    inputs, labels = split
    if labels.dtype != torch.int64 or labels.ndim != 1 or len(inputs) != len(labels):
        found = f"{len(inputs)} samples and labels {str(labels.dtype).removeprefix('torch.')} {list(labels.shape)}"
        raise DataError(asked, found, "give one int64 label per sample")
    if len(labels) == 0:
        raise DataError(asked, "it has no samples", "get the files again")
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= n_labels:
        raise DataError(asked, f"labels {low}..{high}, expected 0..{n_labels - 1}", "get the files again")
