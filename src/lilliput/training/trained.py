"""What passes that train have in common: their settings, what stays frozen, and which layers have changed."""

from abc import ABC
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from lilliput.core.artifact import Artifact
from lilliput.core.errors import RecipeError
from lilliput.core.method import Context, Pass, PassResult, check_choice, check_range, layers
from lilliput.training.fit import FitResult, fit
from lilliput.training.settings import Factors, FitSettings

NOT_SELECTED = "not selected by include and skip"


@dataclass(frozen=True, kw_only=True)
class TrainingPass(Pass, ABC):
    """A pass that trains for `epochs`, with the float original as a teacher."""

    epochs: int = 10
    learning_rate: float = 1e-3
    distillation: float = 0.5
    temperature: float = 4.0
    batch_size: int = 128
    optimizer: str = "adamw"
    weight_decay: float = 0.0
    schedule: str = "cosine"
    batch_norm: str = "train"
    keep: str = "best"
    precision: str = "float32"
    second_variation: float = 0.0

    def __post_init__(self) -> None:
        self.fit_settings({})  # checks the values
        check_range(f"{self.name} distillation", self.distillation, 0.0, 1.0)
        check_choice(f"{self.name} keep", self.keep, ("best", "last"))
        super().__post_init__()
        if self.overrides:
            raise RecipeError(
                f"{self.name} overrides", "a training has one setting for all layers", "use include and skip"
            )

    def fit_settings(self, groups: Mapping[str, Factors]) -> FitSettings:
        return FitSettings(
            epochs=self.epochs,
            batch_size=self.batch_size,
            optimizer=self.optimizer,
            learning_rate=self.learning_rate,
            weight_decay=self.weight_decay,
            schedule=self.schedule,
            distillation=self.distillation,
            temperature=self.temperature,
            batch_norm=self.batch_norm,
            keep=self.keep,
            precision=self.precision,
            second_variation=self.second_variation,
            parameter_groups=groups,
        )

    def untrainable(self, net: Artifact, context: Context) -> PassResult | None:
        """The result where nothing can be trained."""
        known = layers(net)
        if context.task.train is None:
            return PassResult(skipped=dict.fromkeys(known, "the task has no training data"))
        trained = [p for path, m in known.items() if self.selects(path) for p in m.parameters(recurse=False)]
        if any(p.requires_grad for p in trained):
            return None
        reason = "its parameters do not require gradients"
        return PassResult(skipped={p: reason if self.selects(p) else NOT_SELECTED for p in known})

    def frozen(self, net: Artifact) -> dict[str, Factors]:
        """For the parameters of layers that are not selected."""
        still = Factors(learning_rate=0.0, weight_decay=0.0)
        return {
            name: still
            for path, module in layers(net).items()
            if not self.selects(path)
            for name in names_in(path, module)
        }

    def train_(
        self, net: Artifact, context: Context, groups: Mapping[str, Factors] | None = None, **more: Any
    ) -> FitResult:
        """`fit` with these settings, and learning-rate factors of `groups`; `more` are further arguments of it."""
        return self.part_(net, context, self.fit_settings({**(groups or {}), **self.frozen(net)}), **more)

    def part_(self, net: Artifact, context: Context, settings: FitSettings, word: str = "", **more: Any) -> FitResult:
        """`fit` with other settings; where a pass trains in several parts, each has a `word` for its checkpoint."""
        path = context.checkpoint
        if path is not None and word:
            path = path.with_name(f"{path.stem}-{word}{path.suffix}")
        given = {
            "generator": context.generator,
            "progress": context.progress,
            "device": context.device,
            "checkpoint": path,
            "teacher": context.evaluator.original if self.distillation > 0 else None,
        }
        return fit(net, context.task, settings, **given | more)

    def account(
        self, net: Artifact, before: Mapping[str, Tensor], epochs: int
    ) -> tuple[dict[str, str], dict[str, str]]:
        """(changed, skipped) layers, given the parameters as they were `before`."""
        changed: dict[str, str] = {}
        skipped: dict[str, str] = {}
        for path, module in layers(net).items():
            names = [net.canonical(n) for n in names_in(path, module)]
            moved = any(not before[n].equal(net.parameter(n).detach().to(before[n].device)) for n in names)
            if moved:
                changed[path] = f"trained for {epochs} epochs"
            else:
                skipped[path] = "training kept the weights from before" if self.selects(path) else NOT_SELECTED
        return changed, skipped


def values_of(net: Artifact) -> dict[str, Tensor]:
    """Copies of all parameters."""
    return {name: p.detach().clone() for name, p in net.module.named_parameters()}


def names_in(path: str, layer: nn.Module) -> list[str]:
    """The full names of the parameters that a layer itself owns."""
    return [f"{path}.{name}" if path else name for name, _ in layer.named_parameters(recurse=False)]
