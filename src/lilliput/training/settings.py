"""How a training goes, as plain data, and the learning rate of every step."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from lilliput.core.errors import RecipeError
from lilliput.core.method import check_choice, check_range

OPTIMIZERS = ("adamw", "adam", "sgd")
SCHEDULES = ("constant", "cosine", "one_cycle", "step")
PRECISIONS = ("float32", "bfloat16")
ONE_CYCLE_RISE, ONE_CYCLE_START = 0.3, 1 / 25


@dataclass(frozen=True, kw_only=True)
class Factors:
    """Multiply the learning rate and the weight decay of a group. A learning rate of 0 leaves the group as it is.

    `epsilon` is that of Adam's denominator, where it is not torch's usual one.
    """

    learning_rate: float = 1.0
    weight_decay: float = 1.0
    epsilon: float | None = None

    def __post_init__(self) -> None:
        check_range("factor of the learning rate", self.learning_rate, 0.0, 1e6)
        check_range("factor of the weight decay", self.weight_decay, 0.0, 1e6)
        if self.epsilon is not None:
            check_range("epsilon of a group", self.epsilon, 1e-12, 1e3)


@dataclass(frozen=True, kw_only=True)
class FitSettings:
    """Main arguments: `epochs`, `batch_size`, `optimizer`, `learning_rate`, `schedule`.

    `warmup` is the share of the steps in which the learning rate rises; `momentum` is that of "sgd". `weight_decay` is
    decoupled for "adamw" and added to the gradient for the others. `gradient_clip` is the largest norm of the gradient
    of all parameters together. With a teacher, the loss is (1 - `distillation`) times the task's and `distillation`
    times the distance from the teacher's outputs at `temperature`.

    `keep` "best" ends with the weights of the best validation score: of equal epochs that of the lowest training loss;
    those from before the training if they score better than every epoch. "last" ends with those of the last epoch. With
    `patience`, the training stops after so many epochs without a better score. `batch_norm` "freeze" uses the running
    statistics and leaves them (scale and shift still train).

    With `step_rate`, weights on grids move in steps of their grids, at this learning rate in place of `learning_rate`
    (the schedule and factors count for it too, weight decay does not).

    `precision` "bfloat16" multiplies in bfloat16 (torch's autocast), which is faster where the processor has it;
    weights, their gradients, the loss and every score stay in float32.

    With `epoch_steps`, an epoch is so many steps, on samples drawn anew. `part` (k, n) says that this training is the
    k-th, counted from 0, of n that share one course of the learning rate.

    `second_variation` is the price of the bends of learned activations: of how much their slopes change, all together.

    `parameter_groups` gives factors to parameters whose names match a glob pattern ({"*.bias": Factors(...)}); of
    several patterns that match, the last counts.
    """

    epochs: int
    batch_size: int = 128
    optimizer: str = "adamw"
    learning_rate: float = 1e-3
    weight_decay: float = 0.0
    momentum: float = 0.9
    schedule: str = "cosine"
    warmup: float = 0.0
    gradient_clip: float | None = None
    distillation: float = 0.5
    temperature: float = 4.0
    batch_norm: str = "train"
    keep: str = "best"
    patience: int | None = None
    step_rate: float | None = None
    precision: str = "float32"
    epoch_steps: int | None = None
    part: tuple[int, int] = (0, 1)
    second_variation: float = 0.0
    parameter_groups: Mapping[str, Factors] = field(default_factory=dict[str, Factors])

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "patience", "epoch_steps"):
            value = getattr(self, name)
            if isinstance(value, float):
                raise RecipeError(f"fit {name}", f"{value!r}", "use a whole number")
        check_range("fit epochs", self.epochs, 1, 1_000_000)
        check_range("fit batch_size", self.batch_size, 1, 1_000_000)
        check_choice("fit optimizer", self.optimizer, OPTIMIZERS)
        check_range("fit learning_rate", self.learning_rate, 0.0, 1e6)
        check_range("fit weight_decay", self.weight_decay, 0.0, 1e6)
        check_range("fit momentum", self.momentum, 0.0, 1.0, below=True)
        check_choice("fit schedule", self.schedule, SCHEDULES)
        check_range("fit warmup", self.warmup, 0.0, 1.0, below=True)
        if self.gradient_clip is not None:
            check_range("fit gradient_clip", self.gradient_clip, 1e-12, 1e12)
        check_range("fit distillation", self.distillation, 0.0, 1.0)
        check_range("fit temperature", self.temperature, 1e-3, 1e3)
        check_choice("fit batch_norm", self.batch_norm, ("train", "freeze"))
        check_choice("fit keep", self.keep, ("best", "last"))
        check_range("fit second_variation", self.second_variation, 0.0, 1e6)
        check_choice("fit precision", self.precision, PRECISIONS)
        if self.patience is not None:
            check_range("fit patience", self.patience, 1, 1_000_000)
        if self.epoch_steps is not None:
            check_range("fit epoch_steps", self.epoch_steps, 1, 1_000_000_000)
        part, parts = self.part
        if not 0 <= part < parts:
            raise RecipeError("fit part", f"{part} of {parts}", "count parts from 0")
        if self.step_rate is not None:
            check_range("fit step_rate", self.step_rate, 1e-9, 1e3)
            if self.learning_rate == 0:
                raise RecipeError("fit step_rate", "a learning_rate of 0 beside it", "give a learning_rate above 0")


def learning_rate_factor(schedule: str, warmup: float, step: int, steps: int) -> float:
    """What the learning rate is multiplied with at `step` of 0..steps - 1.

    - "constant": 1; "cosine": half a cosine from 1 to 0 (Loshchilov and Hutter, 2017, without restarts);
    - "step": 1, a tenth after half of the steps, a hundredth after three quarters (He et al., 2016);
    - "one_cycle": half a cosine up from 1/25, then one down to 0 (Smith, 2018; momentum stays). It rises for `warmup`
      of the steps, or for 0.3 of them if that is 0.

    The others rise from near 0 on a line during `warmup`; their own course fills the rest.
    """
    rise = round((warmup or ONE_CYCLE_RISE if schedule == "one_cycle" else warmup) * steps)
    if step < rise:
        if schedule == "one_cycle":
            return ONE_CYCLE_START + (1 - ONE_CYCLE_START) * 0.5 * (1 - math.cos(math.pi * step / rise))
        return (step + 1) / (rise + 1)
    done = (step - rise) / (steps - rise)
    if schedule == "constant":
        return 1.0
    if schedule == "step":
        return 1.0 if done < 0.5 else 0.1 if done < 0.75 else 0.01
    return 0.5 * (1 + math.cos(math.pi * done))
