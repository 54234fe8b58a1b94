"""What a network is for: data by role, loss, score, and when a sample counts as right.

Users name train, validation and test. What else a method needs (calibration) is derived here, always in the same way,
and `Task.roles()` says how. Nothing assumes classes.
"""

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lilliput.core.artifact import InputSpec
from lilliput.core.errors import DataError
from lilliput.core.score import Score, accuracy, mean_absolute_error, mean_iou, reconstruction_auc

Role = Literal["train", "validation", "test", "calibration"]
CALIBRATION_SAMPLES = 512
VALIDATION_SHARE = 0.2
Batch = tuple[Tensor, Any]


class Data:
    """Samples by number: (input, target) pairs, as tensors or as a map-style data set.

    `transform` turns a batch of raw inputs into what the model expects (uint8 images to normalized floats).
    """

    def __init__(
        self, inputs: Any, targets: Tensor | None, transform: Callable[[Tensor], Tensor] | None = None
    ) -> None:
        self.inputs, self.targets, self.transform = inputs, targets, transform
        if len(self) == 0:
            raise DataError("a data set", "no samples in it", "give at least one sample")
        if targets is not None and len(inputs) != len(targets):
            raise DataError(
                "a data set", f"{len(inputs)} inputs and {len(targets)} targets", "give one target for each input"
            )

    @staticmethod
    def of(source: Any, *, role: str = "data") -> "Data":
        """From `Data`, (inputs, targets) arrays or tensors, a TensorDataset, or anything with len() and [i]."""
        if isinstance(source, Data):
            return source
        if isinstance(source, torch.utils.data.TensorDataset) and len(source.tensors) == 2:
            source = source.tensors
        if (
            isinstance(source, (tuple, list))
            and len(source) == 2
            and all(isinstance(v, (Tensor, np.ndarray)) for v in source)
        ):
            x, y = (_tensor(v, role) for v in source)
            return Data(x, y)
        if isinstance(source, torch.utils.data.DataLoader):
            raise DataError(role, "a DataLoader", "give its dataset: Lilliput makes the batches")
        if callable(getattr(source, "__len__", None)) and callable(getattr(source, "__getitem__", None)):
            return Data(source, None)
        raise DataError(role, f"a {type(source).__name__}", "give (inputs, targets) or a map-style data set of pairs")

    def __len__(self) -> int:
        return len(self.inputs)

    def batch(self, index: Tensor) -> Batch:
        """The samples of these numbers: inputs float [n, ...] and targets."""
        if self.targets is not None:
            x, y = self.inputs[index], cast(Any, self.targets[index])
        else:
            items = [self.inputs[int(i)] for i in index]
            if not all(isinstance(item, (tuple, list)) and len(item) >= 2 for item in items):  # pyright: ignore[reportUnnecessaryIsInstance]
                raise DataError(
                    "a batch", f"items of type {type(items[0]).__name__}", "let the data set give (input, target)"
                )
            x, y = _collate([(item[0], item[1]) for item in items])
        x = self.transform(x) if self.transform else x
        if not isinstance(x, Tensor):
            raise DataError("a batch", f"inputs of type {type(x).__name__}", "let the data set give tensors or arrays")
        if x.is_floating_point() and not bool(torch.isfinite(x).all()):
            raise DataError("a batch", "NaN or infinity in the inputs", "clean the data first")
        if not x.is_floating_point():
            raise DataError("a batch", f"inputs of {x.dtype}", "give float inputs (for uint8 images: a transform)")
        return x.float(), y.float() if isinstance(y, Tensor) and y.is_floating_point() else y

    def batches(self, size: int, order: Tensor | None = None) -> Any:
        """Batches in order, or in the given order of sample numbers."""
        order = torch.arange(len(self)) if order is None else order
        for index in order.split(size):
            yield self.batch(index)

    def subset(self, index: Tensor) -> "Data":
        if self.targets is not None:
            return Data(self.inputs[index], self.targets[index], self.transform)
        return Data(torch.utils.data.Subset(self.inputs, index.tolist()), None, self.transform)

    def fingerprint(self) -> str:
        """16 hex digits of the length and of up to 64 samples spread over the set."""
        index = torch.linspace(0, len(self) - 1, min(64, len(self))).long()
        x, y = self.batch(index)
        digest = hashlib.blake2b(str(len(self)).encode(), digest_size=8)
        for t in (x, y if isinstance(y, Tensor) else torch.zeros(0)):
            digest.update(t.detach().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()


def _tensor(values: Any, role: str) -> Tensor:
    """Floats as float32; an array that torch cannot share is copied."""
    if not isinstance(values, Tensor):
        try:
            values = torch.from_numpy(np.require(values, requirements=["C", "W"]))
        except TypeError:
            raise DataError(role, f"an array of {values.dtype}", "give an array of numbers") from None
    if values.dim() == 0:
        raise DataError(role, "a single number", "give one row for each sample")
    return values.detach().float() if values.is_floating_point() else values


def _collate(items: list[Any]) -> Any:
    try:
        return torch.utils.data.default_collate(items)
    except (RuntimeError, TypeError) as error:
        reason = str(error).splitlines()[0]
        raise DataError("a batch", f"samples that do not stack ({reason})", "give all samples one shape") from error


def _default_forward(model: nn.Module, batch: Batch) -> Tensor:
    return model(batch[0])


def _default_target(batch: Batch) -> Any:
    return batch[1]


@dataclass(frozen=True, kw_only=True)
class Task:
    """Main arguments: the data, `loss(outputs, targets)`, `score`, and `ok(outputs, targets, original)`.

    `ok` tells for each sample whether the answer is acceptable, given what the original network answered. `forward`
    and `target` say how a batch meets the model. `groups` (one number for each training sample) keeps samples of one
    origin, such as one patient, on one side when validation is split off.
    """

    kind: str = "custom"
    train: Any = None
    validation: Any = None
    test: Any = None
    loss: Callable[[Tensor, Any], Tensor]
    score: Score
    ok: Callable[[Tensor, Any, Tensor], Tensor]
    forward: Callable[[nn.Module, Batch], Tensor] = _default_forward
    target: Callable[[Batch], Any] = _default_target
    groups: Tensor | Sequence[int] | None = None
    input: InputSpec | None = None
    labels: tuple[str, ...] = ()
    settings: dict[str, Any] = field(default_factory=dict[str, Any])
    augment: Callable[[Tensor, torch.Generator], Tensor] | None = None

    def __post_init__(self) -> None:
        for role in ("train", "validation", "test"):
            value = getattr(self, role)
            if value is not None:
                object.__setattr__(self, role, Data.of(value, role=role))
        if self.train is None and self.validation is None:
            raise DataError("a task", "neither training nor validation data", "give train=, validation= or both")
        if self.groups is not None:
            object.__setattr__(self, "groups", _groups(self.groups, self.train))
        if self.input is None:
            data: Data = self.train or self.validation
            example = data.batch(torch.tensor([0]))[0]
            layout = {1: "C", 2: "CL", 3: "CHW"}.get(example.dim() - 1, "")
            object.__setattr__(
                self, "input", InputSpec(shape=tuple(example.shape[1:]), layout=layout, labels=self.labels)
            )

    @property
    def spec(self) -> InputSpec:
        if self.input is None:
            raise DataError("a task", "no input spec", "give input=InputSpec(shape=...)")
        return self.input

    def has(self, role: Role) -> bool:
        return getattr(self, role, True) is not None if role != "calibration" else True

    def data(self, role: Role) -> Data:
        """The samples of a role; validation and calibration are derived when they are not given.

        Raises `DataError` for a role that is missing and cannot be derived.
        """
        if role == "calibration":
            source = self.data("train") if self.train is not None else self.data("validation")
            picks = torch.randperm(len(source), generator=torch.Generator().manual_seed(0))[:CALIBRATION_SAMPLES]
            return source.subset(picks.sort().values)
        if role not in ("train", "validation", "test"):
            raise DataError(f"role {role!r}", "there is no such role", "use train, validation, test or calibration")
        if self.train is not None and self.validation is None and role in ("train", "validation"):
            held = self._held_out()
            return self.train.subset(torch.nonzero(held if role == "validation" else ~held).reshape(-1))
        data = getattr(self, role)
        if data is None:
            raise DataError(f"role {role!r}", "the task has no such data", f"give {role}= when you make the task")
        return data

    def roles(self) -> list[str]:
        """One line for each role: how many samples, and where they come from."""
        lines: list[str] = []
        for role in ("train", "validation", "test"):
            if self.has(role):
                lines.append(f"{role}: {len(self.data(role))} samples")
            elif role == "validation":
                lines.append(f"validation: {len(self.data(role))} samples split off train (seed 0)")
            else:
                lines.append(f"{role}: not given")
        source = "train" if self.train is not None else "validation (no training data given)"
        lines.append(f"calibration: {len(self.data('calibration'))} samples of {source} (seed 0)")
        return lines

    def without(self, *roles: str) -> "Task":
        groups = None if "train" in roles else self.groups
        return replace(self, **dict.fromkeys(roles), groups=groups)

    def _held_out(self) -> Tensor:
        """bool [n]: a fifth of the training samples, whole groups, always the same."""
        n = len(self.train)
        groups = torch.arange(n) if self.groups is None else _groups(self.groups, self.train)
        names, inverse = torch.unique(groups, return_inverse=True)
        if len(names) < 2:
            raise DataError("validation", "it is not given, and train has one sample or group", "give validation=")
        order = torch.randperm(len(names), generator=torch.Generator().manual_seed(0))
        chosen = torch.zeros(len(names), dtype=torch.bool)
        chosen[order[: max(1, round(VALIDATION_SHARE * len(names)))]] = True
        return chosen[inverse]

    @staticmethod
    def classification(
        train: Any = None, validation: Any = None, test: Any = None, *, labels: Sequence[str] = (), **more: Any
    ) -> "Task":
        """Outputs [n, classes], integer targets [n]. Score: accuracy. A sample is ok when its class is right."""
        settings: dict[str, Any] = {
            "kind": "classification",
            "loss": _cross_entropy,
            "score": accuracy(),
            "ok": _right_class,
            "labels": tuple(labels),
        }
        return Task(train=train, validation=validation, test=test, **(settings | more))

    @staticmethod
    def regression(
        train: Any = None,
        validation: Any = None,
        test: Any = None,
        *,
        unit: str = "",
        tolerance: float | None = None,
        **more: Any,
    ) -> "Task":
        """Outputs [n, d] or [n], float targets. Score: mean absolute error.

        A sample is ok when its error is at most the original's plus `tolerance` (default: a tenth of the standard
        deviation of the given targets).
        """
        limit = _tolerance(train if train is not None else validation) if tolerance is None else tolerance

        def ok(outputs: Tensor, targets: Any, original: Tensor) -> Tensor:
            wanted = targets.reshape(len(outputs), -1)
            errors = [(o.reshape(len(o), -1) - wanted).abs().amax(1) for o in (outputs, original)]
            return errors[0] <= errors[1] + limit

        settings: dict[str, Any] = {
            "kind": "regression",
            "loss": _squared_error,
            "score": mean_absolute_error(unit),
            "ok": ok,
            "settings": {"tolerance": limit},
        }
        return Task(train=train, validation=validation, test=test, **(settings | more))

    @staticmethod
    def anomaly(
        train: Any = None, validation: Any = None, test: Any = None, *, tolerance: float = 0.1, **more: Any
    ) -> "Task":
        """Reconstruction: outputs like the inputs; targets 1 = anomaly, 0 = normal (train: normal samples).

        Score: AUC of the reconstruction error. A sample is ok when its error has moved by at most `tolerance` of the
        original's in the wrong direction.
        """

        def ok(outputs: Tensor, targets: Any, original: Tensor) -> Tensor:
            inputs, labels = targets
            now, before = ((o - inputs).reshape(len(o), -1).square().mean(1) for o in (outputs, original))
            return torch.where(labels.reshape(-1) > 0, now >= before * (1 - tolerance), now <= before * (1 + tolerance))

        settings: dict[str, Any] = {
            "kind": "anomaly",
            "loss": _reconstruction,
            "score": reconstruction_auc(),
            "ok": ok,
            "target": _input_and_label,
            "settings": {"tolerance": tolerance},
        }
        return Task(train=train, validation=validation, test=test, **(settings | more))

    @staticmethod
    def segmentation(
        train: Any = None,
        validation: Any = None,
        test: Any = None,
        *,
        n_classes: int,
        tolerance: float = 0.02,
        labels: Sequence[str] = (),
        **more: Any,
    ) -> "Task":
        """Outputs [n, classes, height, width], integer targets [n, height, width]. Score: mean IoU.

        A sample is ok when its share of right pixels is at most `tolerance` below the original's.
        """

        def ok(outputs: Tensor, targets: Any, original: Tensor) -> Tensor:
            now, before = ((o.argmax(1) == targets).float().flatten(1).mean(1) for o in (outputs, original))
            return now >= before - tolerance

        settings: dict[str, Any] = {
            "kind": "segmentation",
            "loss": _cross_entropy,
            "score": mean_iou(n_classes),
            "ok": ok,
            "labels": tuple(labels),
            "settings": {"n_classes": n_classes, "tolerance": tolerance},
        }
        return Task(train=train, validation=validation, test=test, **(settings | more))


def _groups(groups: Any, train: Data | None) -> Tensor:
    try:
        numbers = torch.as_tensor(groups)
    except (TypeError, ValueError, RuntimeError):
        raise DataError("groups", f"a {type(groups).__name__} of other things than numbers", "number them") from None
    if train is None or tuple(numbers.shape) != (len(train),):
        found = f"{len(numbers) if numbers.dim() else 1} numbers"
        raise DataError("groups", found, "give one for each training sample")
    return numbers


def _tolerance(source: Any) -> float:
    """A tenth of the standard deviation of up to 2000 targets, the first ones."""
    if source is None:
        return 0.0
    data = Data.of(source, role="train")
    targets = data.batch(torch.arange(min(len(data), 2000)))[1]
    if not isinstance(targets, Tensor):
        raise DataError("targets", f"a {type(targets).__name__}", "give numbers, or tolerance=")
    spread = float(targets.double().std()) if targets.numel() > 1 else 0.0
    if not math.isfinite(spread):
        raise DataError("targets", "NaN or infinity", "clean the data first")
    return 0.1 * spread


def _cross_entropy(outputs: Tensor, targets: Any) -> Tensor:
    return F.cross_entropy(outputs, targets.long())


def _right_class(outputs: Tensor, targets: Any, _original: Tensor) -> Tensor:
    return outputs.argmax(1) == targets.reshape(-1)


def _squared_error(outputs: Tensor, targets: Any) -> Tensor:
    return F.mse_loss(outputs.reshape(len(outputs), -1), targets.reshape(len(outputs), -1).float())


def _reconstruction(outputs: Tensor, targets: Any) -> Tensor:
    inputs = targets[0]
    return F.mse_loss(outputs.reshape(len(outputs), -1), inputs.reshape(len(inputs), -1))


def _input_and_label(batch: Batch) -> Any:
    return batch[0], batch[1]
