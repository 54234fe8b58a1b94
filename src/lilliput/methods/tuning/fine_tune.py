"""Fine-tuning with the stored form in the loop: what is trained is what is stored.

Masks, shared values and weight grids stay as they are while the numbers in them train, straight through the rounding
(Bengio et al., 2013, https://arxiv.org/abs/1308.3432), with the float original as a teacher (Hinton et al., 2015,
https://arxiv.org/abs/1503.02531). Clusters train as in Han et al. (2016), section 3.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import torch

from lilliput.core import container
from lilliput.core.artifact import Artifact
from lilliput.core.method import Context, PassResult, check_range
from lilliput.training.coded_rate import CodedRate, countable
from lilliput.training.settings import Factors, FitSettings
from lilliput.training.trained import TrainingPass, values_of

STEP_RATE = 0.01


@dataclass(frozen=True, kw_only=True)
class FineTune(TrainingPass):
    """Train every parameter for `epochs`; encoded ones inside their slots.

    Main arguments: `epochs`, `learning_rate`. Others: `distillation` (share of the loss that follows the original's
    outputs, 0 = none), `temperature`, `batch_size`, `optimizer`, `schedule`, `batch_norm` "train" or "freeze", `keep`
    "best" (by validation score) or "last". Parameters of layers that are not selected stay as they are.

    `step_rate` moves weights on grids in steps of their grids, at this learning rate of their own: 0.005 to 0.02 where
    integers shall change. `max_bytes` (weights on grids, such as those of `rate_distortion`) holds the file (without
    recipe and graph) at this size: what integers take once coded is a part of the loss, at a price that is controlled.

    `blend` is the share that the weights from before have in those of the end (Wortsman et al., 2022): halfway between
    two good networks of which one was trained from the other lies a better one. For weights that are not encoded yet;
    `reestimate_batchnorm` should follow.
    """

    name: ClassVar[str] = "fine_tune"
    summary: ClassVar[str] = "train the stored numbers, with masks, sharing and grids in the loop"
    citations: ClassVar[tuple[str, ...]] = (
        "https://arxiv.org/abs/1308.3432",
        "https://arxiv.org/abs/1503.02531",
        "https://arxiv.org/abs/2109.01903",
    )

    step_rate: float | None = None
    max_bytes: int | None = None
    blend: float = 0.0

    def __post_init__(self) -> None:
        if self.max_bytes is not None:
            check_range("fine_tune max_bytes", self.max_bytes, 1, 1 << 40)
        check_range("fine_tune blend", self.blend, 0.0, 1.0)
        super().__post_init__()

    def fit_settings(self, groups: Mapping[str, Factors]) -> FitSettings:
        rate = STEP_RATE if self.max_bytes is not None and self.step_rate is None else self.step_rate
        return replace(super().fit_settings(groups), step_rate=rate)

    def requires(self, net: Artifact) -> list[str]:
        if net.activations:
            do = "put fine_tune before quantization, or use quantization_aware_training"
            return [f"activations are already on integer grids; {do}"]
        if self.max_bytes is not None and not any(countable(e) for e in net.encodings.values()):
            return ["fine_tune max_bytes needs weights on grids; put rate_distortion before it"]
        if self.blend > 0 and net.encodings:
            return [f"{next(iter(net.encodings))} is encoded already, which blend would undo; blend before"]
        return []

    def apply_(self, net: Artifact, context: Context) -> PassResult:
        stopped = self.untrainable(net, context)
        if stopped is not None:
            return stopped
        before = values_of(net)
        rate = None if self.max_bytes is None else CodedRate(net, self.max_bytes)
        result = self.train_(net, context, rate=rate)
        if self.blend > 0:
            for name, old in before.items():
                net.write_(name, torch.lerp(net.parameter(name).detach(), old, self.blend))
        changed, skipped = self.account(net, before, result.epochs_run)
        return PassResult(changed=changed, skipped=skipped, notes=self._size_of(net))

    def _size_of(self, net: Artifact) -> tuple[str, ...]:
        if self.max_bytes is None:
            return ()
        size = len(container.dumps(net, strip=True))
        return (f"{size:,} bytes, {'more than ' if size > self.max_bytes else 'at most '}{self.max_bytes:,} wanted",)
