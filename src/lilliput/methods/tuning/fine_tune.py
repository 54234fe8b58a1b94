"""Fine-tuning with the stored form in the loop: what is trained is what is stored.

Masks, shared values and weight grids stay as they are while the numbers in them train, straight through the rounding
(Bengio et al., 2013, https://arxiv.org/abs/1308.3432), with the float original as a teacher (Hinton et al., 2015,
https://arxiv.org/abs/1503.02531). Clusters train as in Han et al. (2016), section 3.
"""

from dataclasses import dataclass
from typing import ClassVar

from lilliput.core.artifact import Artifact
from lilliput.core.method import Context, PassResult
from lilliput.training.trained import TrainingPass, values_of


@dataclass(frozen=True, kw_only=True)
class FineTune(TrainingPass):
    """Train every parameter for `epochs`; encoded ones inside their slots.

    Main arguments: `epochs`, `learning_rate`. Others: `distillation` (share of the loss that follows the original's
    outputs, 0 = none), `temperature`, `batch_size`, `optimizer`, `schedule`, `batch_norm` "train" or "freeze", `keep`
    "best" (by validation score) or "last". Parameters of layers that are not selected stay as they are.
    """

    name: ClassVar[str] = "fine_tune"
    summary: ClassVar[str] = "train the stored numbers, with masks, sharing and grids in the loop"
    citations: ClassVar[tuple[str, ...]] = ("https://arxiv.org/abs/1308.3432", "https://arxiv.org/abs/1503.02531")

    def requires(self, net: Artifact) -> list[str]:
        if net.activations:
            do = "put fine_tune before quantization, or use quantization_aware_training"
            return [f"activations are already on integer grids; {do}"]
        return []

    def apply_(self, net: Artifact, context: Context) -> PassResult:
        stopped = self.untrainable(net, context)
        if stopped is not None:
            return stopped
        before = values_of(net)
        result = self.train_(net, context)
        changed, skipped = self.account(net, before, result.epochs_run)
        return PassResult(changed=changed, skipped=skipped)
