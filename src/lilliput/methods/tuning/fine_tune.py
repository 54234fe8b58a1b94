"""Fine-tuning with the stored form in the loop: what is trained is what is stored.

Masks, shared values and weight grids stay as they are while the numbers in them train, straight through the rounding
(Bengio et al., 2013, https://arxiv.org/abs/1308.3432), with the float original as a teacher (Hinton et al., 2015,
https://arxiv.org/abs/1503.02531). Clusters train as in Han et al. (2016), section 3.
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from lilliput.core import container
from lilliput.core.artifact import Artifact
from lilliput.core.errors import RecipeError
from lilliput.core.method import Context, Pass, PassResult, check_choice, check_range, layers
from lilliput.training.coded_rate import CodedRate, countable
from lilliput.training.fit import fit
from lilliput.training.settings import Factors, FitSettings

STEP_RATE = 0.01


@dataclass(frozen=True, kw_only=True)
class FineTune(Pass):
    """Train every parameter for `epochs`; encoded ones inside their slots.

    Main arguments: `epochs`, `learning_rate`. Others: `distillation` (share of the loss that follows the original's
    outputs, 0 = none), `temperature`, `batch_size`, `optimizer`, `schedule`, `batch_norm` "train" or "freeze", `keep`
    "best" (by validation score) or "last". Parameters of layers that are not selected stay as they are.

    `step_rate` moves weights on grids in steps of their grids, at this learning rate of their own: 0.005 to 0.02 where
    integers shall change. `max_bytes` (weights on grids, such as those of `rate_distortion`) holds the file (without
    recipe and graph) at this size: what integers take once coded is a part of the loss, at a price that is controlled.
    """

    name: ClassVar[str] = "fine_tune"
    summary: ClassVar[str] = "train the stored numbers, with masks, sharing and grids in the loop"
    citations: ClassVar[tuple[str, ...]] = ("https://arxiv.org/abs/1308.3432", "https://arxiv.org/abs/1503.02531")

    epochs: int = 10
    learning_rate: float = 1e-3
    distillation: float = 0.5
    temperature: float = 4.0
    batch_size: int = 128
    optimizer: str = "adamw"
    schedule: str = "cosine"
    batch_norm: str = "train"
    keep: str = "best"
    step_rate: float | None = None
    max_bytes: int | None = None

    def __post_init__(self) -> None:
        self.fit_settings({})  # checks the values
        check_range("fine_tune distillation", self.distillation, 0.0, 1.0)
        check_choice("fine_tune keep", self.keep, ("best", "last"))
        if self.max_bytes is not None:
            check_range("fine_tune max_bytes", self.max_bytes, 1, 1 << 40)
        super().__post_init__()
        if self.overrides:
            raise RecipeError(
                "fine_tune overrides", "a training has one setting for all layers", "use include and skip"
            )

    def fit_settings(self, frozen: dict[str, Factors]) -> FitSettings:
        return FitSettings(
            epochs=self.epochs,
            batch_size=self.batch_size,
            optimizer=self.optimizer,
            learning_rate=self.learning_rate,
            schedule=self.schedule,
            distillation=self.distillation,
            temperature=self.temperature,
            batch_norm=self.batch_norm,
            keep=self.keep,
            step_rate=STEP_RATE if self.max_bytes is not None and self.step_rate is None else self.step_rate,
            parameter_groups=frozen,
        )

    def requires(self, net: Artifact) -> list[str]:
        if net.activations:
            return ["activations are already on integer grids; put fine_tune before quantization"]
        if self.max_bytes is not None and not any(countable(e) for e in net.encodings.values()):
            return ["fine_tune max_bytes needs weights on grids; put rate_distortion before it"]
        return []

    def apply_(self, net: Artifact, context: Context) -> PassResult:
        known = layers(net)
        frozen = {
            name: Factors(learning_rate=0.0, weight_decay=0.0)
            for path, module in known.items()
            if not self.selects(path)
            for name in names_in(path, module)
        }
        if context.task.train is None:
            return PassResult(skipped=dict.fromkeys(known, "the task has no training data"))
        trained = [p for path, m in known.items() if self.selects(path) for p in m.parameters(recurse=False)]
        if not any(p.requires_grad for p in trained):
            reason = "its parameters do not require gradients"
            return PassResult(
                skipped={p: reason if self.selects(p) else "not selected by include and skip" for p in known}
            )
        before = {name: p.detach().clone() for name, p in net.module.named_parameters()}
        teacher = context.evaluator.original if self.distillation > 0 else None
        result = fit(
            net,
            context.task,
            self.fit_settings(frozen),
            generator=context.generator,
            progress=context.progress,
            device=context.device,
            checkpoint=context.checkpoint,
            teacher=teacher,
            rate=None if self.max_bytes is None else CodedRate(net, self.max_bytes),
        )
        changed: dict[str, str] = {}
        skipped: dict[str, str] = {}
        for path, module in known.items():
            moved = any(
                not before[net.canonical(n)].equal(net.parameter(n).detach().to(before[net.canonical(n)].device))
                for n in names_in(path, module)
            )
            if moved:
                changed[path] = f"trained for {result.epochs_run} epochs"
            else:
                skipped[path] = (
                    "not selected by include and skip"
                    if not self.selects(path)
                    else "training kept the weights from before"
                )
        return PassResult(changed=changed, skipped=skipped, notes=self._size_of(net))

    def _size_of(self, net: Artifact) -> tuple[str, ...]:
        if self.max_bytes is None:
            return ()
        size = len(container.dumps(net, strip=True))
        return (f"{size:,} bytes, {'more than ' if size > self.max_bytes else 'at most '}{self.max_bytes:,} wanted",)


def names_in(path: str, layer: nn.Module) -> list[str]:
    """The full names of the parameters that a layer itself owns."""
    return [f"{path}.{name}" if path else name for name, _ in layer.named_parameters(recurse=False)]
