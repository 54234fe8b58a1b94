"""Data sets as tasks: what the zoo's networks are trained and judged on."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from lilliput.core.artifact import InputSpec
from lilliput.core.progress import SILENT, Progress
from lilliput.core.task import Data, Task
from lilliput.data.arrays import Features, read_features
from lilliput.data.augment import affine, horizontal_flip, random_crop
from lilliput.data.load import load
from lilliput.data.roles import by_role

CIFAR_MEAN, CIFAR_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SVHN_MEAN, SVHN_STD = (0.4377, 0.4438, 0.4728), (0.1980, 0.2010, 0.1970)
NORMAL_DIGIT = 3
INK = 8
"""A pixel of the digits (0..16) belongs to the mask from this grey level up."""
KEYWORDS = ("down", "go", "left", "no", "off", "on", "right", "stop", "up", "yes", "silence", "unknown")
"""In the order of MLPerf Tiny."""


def scaled(highest: float, mean: tuple[float, ...] = (), std: tuple[float, ...] = ()) -> Callable[[Tensor], Tensor]:
    """Raw uint8 images to floats: divided by `highest`, then normalized by channel."""
    m, s = torch.tensor(mean).reshape(-1, 1, 1), torch.tensor(std).reshape(-1, 1, 1)

    def transform(x: Tensor) -> Tensor:
        x = x.float() / highest
        return (x - m) / s if mean else x

    return transform


def image_classification(
    name: str,
    *,
    highest: float = 255.0,
    mean: tuple[float, ...] = (),
    std: tuple[float, ...] = (),
    augment: Callable[[Tensor, torch.Generator], Tensor] | None = None,
) -> Callable[..., Task]:
    """A task factory for one of the image data sets: `factory(data_root, download, progress)`."""

    def make(data_root: str | Path | None = None, *, download: bool = False, progress: Progress = SILENT) -> Task:
        raw = load(name, data_root=data_root, download=download, progress=progress)
        transform = scaled(highest, mean, std)
        roles = {role: Data(x, y, transform) for role, (x, y) in by_role(raw).items()}
        spec = InputSpec(shape=tuple(raw.train[0].shape[1:]), layout="CHW", mean=mean, std=std, labels=raw.labels)
        return Task.classification(**roles, labels=raw.labels, input=spec, augment=augment)

    return make


def flip_and_crop(x: Tensor, generator: torch.Generator) -> Tensor:
    return horizontal_flip(random_crop(x, 4, generator), generator)


def crop(x: Tensor, generator: torch.Generator) -> Tensor:
    """Without mirror images: a mirrored digit is another sign."""
    return random_crop(x, 4, generator)


def small_shifts(x: Tensor, generator: torch.Generator) -> Tensor:
    """Rotations by up to 8 degrees, shifts by up to 8% and scales by up to 8%: hand-written digits vary like this."""
    return affine(x, 8.0, 0.08, (0.92, 1.08), generator)


def one_class_digits(_data_root: Any = None, **_where: Any) -> Task:
    """Anomaly detection: train on one digit only; every other digit is an anomaly."""
    raw = load("digits")
    roles: dict[str, Any] = {}
    for role, (x, y) in by_role(raw).items():
        strange = (y != NORMAL_DIGIT).long()
        rows = torch.nonzero(strange == 0).reshape(-1) if role == "train" else torch.arange(len(y))
        roles[role] = Data(x[rows], strange[rows], scaled(16.0))
    return Task.anomaly(**roles)


def digit_masks(_data_root: Any = None, **_where: Any) -> Task:
    """Segmentation: which pixels of a dim and noisy digit are ink? Noise is the same at every call."""
    raw = load("digits")
    generator = torch.Generator().manual_seed(0)
    roles: dict[str, Any] = {}
    for role, (x, _) in by_role(raw).items():
        dim = 0.3 + 0.7 * torch.rand((len(x), 1, 1, 1), generator=generator)
        noisy = x.float() / 16 * dim + 0.1 * torch.randn(x.shape, generator=generator)
        roles[role] = Data(noisy, (x[:, 0] >= INK).long())
    return Task.segmentation(**roles, n_classes=2, labels=("paper", "ink"))


def diabetes(_data_root: Any = None, **_where: Any) -> Task:
    """Regression: disease progression after a year from ten measurements (442 patients, scikit-learn).

    Targets are standardized with the training samples' mean and deviation; the error is printed in these units.
    """
    from sklearn.datasets import load_diabetes

    x, y = cast(Any, load_diabetes(return_X_y=True))
    inputs, wanted = torch.from_numpy(x).float() * len(x) ** 0.5, torch.from_numpy(y).float()
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    train, validation, test = order[:262], order[262:352], order[352:]
    wanted = (wanted - wanted[train].mean()) / wanted[train].std()
    roles = {"train": train, "validation": validation, "test": test}
    data: dict[str, Any] = {role: (inputs[rows], wanted[rows]) for role, rows in roles.items()}
    return Task.regression(**data, unit="std")


def speech(data_root: str | Path | None = None, **_where: Any) -> Task:
    """Which of nine speakers says the vowel? 12 cepstrum coefficients over up to 29 frames."""
    raw = load("japanese-vowels", data_root=data_root)
    spec = InputSpec(shape=tuple(raw.train[0].shape[1:]), layout="CL", labels=raw.labels)
    roles = {role: Data(x, y) for role, (x, y) in by_role(raw).items()}
    return Task.classification(**roles, labels=raw.labels, input=spec)


def own_features(
    features: Features,
    *,
    labels: tuple[str, ...] = (),
    augment: Callable[[Tensor, torch.Generator], Tensor] | None = None,
) -> Callable[..., Task]:
    """A task factory for arrays that the user gives: classes, or normal samples and anomalies.

    uint8 is taken for pixels and divided by 255; other numbers are taken as they are. Of an anomaly's recording every
    row is judged by itself.
    """

    def make(data_root: str | Path | None = None, **_where: Any) -> Task:
        splits = read_features(features, data_root)
        roles = {role: Data(x, y, scaled(255.0 if x.dtype == torch.uint8 else 1.0)) for role, (x, y) in splits.items()}
        spec = InputSpec(shape=features.shape, layout="CHW" if len(features.shape) == 3 else "C", labels=labels)
        more: dict[str, Any] = {**roles, "input": spec, "augment": augment}
        return Task.anomaly(**more) if features.anomaly else Task.classification(**more, labels=labels)

    return make
