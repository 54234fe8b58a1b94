"""The only training loop: attach, train, bake.

While it trains, the encoded parameters of the network hold their stored form (`training.attach`), so the network that
is trained and scored is the one that is stored afterwards. Rounding of activations is simulated with `LearnedSteps`
alone; else the forward is that of the plain module, also where `net.activations` has grids.
"""

import copy
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lilliput.core.artifact import Artifact
from lilliput.core.device import as_device, in_float32, moved
from lilliput.core.errors import DataError, UsageError
from lilliput.core.guard import Evaluation, evaluate, outputs_of
from lilliput.core.learned_activation import second_variation_of
from lilliput.core.progress import SILENT, Progress
from lilliput.core.task import Data, Task
from lilliput.training.attach import DIVERGED, Attached
from lilliput.training.checkpoint import identity_of, read_checkpoint, write_checkpoint
from lilliput.training.distillation import Imitation, distillation_loss
from lilliput.training.hooks import Hook, Moment, SizeTerm
from lilliput.training.optimizer import Memory, make_optimizer, memory_of, names_of, recall_
from lilliput.training.restore import restoring, seeded_apart
from lilliput.training.settings import FitSettings, learning_rate_factor

BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
EVALUATION_BATCH = 256
SQUEEZE = 0.7
"""From this share of the epochs on, if none was small enough yet, integers go down after each but the last."""

Penalty = Callable[[nn.Module], Tensor]
"""A number to add to the loss, differentiable in the parameters of the module (which hold their stored form)."""


@dataclass(frozen=True, kw_only=True)
class FitResult:
    """`history` has for each epoch: epoch, train_loss, validation_score, learning_rate (of its last step), seconds.

    `best_epoch` is 0 if no epoch scored at least as well as the network did before, which is `start_score`.
    """

    history: list[dict[str, float]]
    start_score: float
    best_score: float
    best_epoch: int
    epochs_run: int
    stopped_early: bool
    memory: Memory = field(default_factory=dict[str, Mapping[str, Any]], repr=False, compare=False)
    """Of the optimizer after the last epoch."""


def fit(
    net: Artifact,
    task: Task,
    settings: FitSettings,
    *,
    generator: torch.Generator,
    progress: Progress = SILENT,
    device: str | torch.device = "cpu",
    checkpoint: Path | None = None,
    teacher: nn.Module | None = None,
    penalties: Sequence[Penalty] = (),
    hooks: Sequence[Hook] = (),
    rate: SizeTerm | None = None,
    attach: Callable[..., Attached] = Attached,
    memory: Memory | None = None,
    imitate: Imitation | None = None,
) -> FitResult:
    """Train `net` in place, in its encodings: masks, assignments to clusters and grids stay, the stored numbers move.

    Parameters without `requires_grad` are left alone. All randomness comes from `generator` (on the CPU; torch's own
    generator, which dropout uses, is seeded from it and put back). The same seed gives the same bits on one machine
    with one number of threads.

    `rate` holds the network at a size: of the epochs, only those whose file is small enough count as good ones. Where
    its price alone does not do it, integers are moved towards zero: in the last epochs, and at the end if need be.

    `attach` says what else changes: scales of grids (`LearnedSteps`; the forward is then that of `IntegerNet`), or
    masks (`GrowingMasks`). The optimizer starts with `memory`, which an earlier training has left. With `imitate`, the
    loss is how far a block is from the teacher's, and nothing else.

    With `checkpoint`, the state after each epoch is written there, and a training that finds a file there goes on
    after it, to the same end as one that was never interrupted. The file stays; delete it when the network is saved.

    On an error or Ctrl-C, the network and `generator` are as before the call. Raises `DataError` when the loss is no
    longer a number.
    """
    if generator.device.type != "cpu":
        raise UsageError("fit", f"a generator on {generator.device}", "give one on the CPU")
    place = as_device(device)
    with restoring(net, generator), seeded_apart(place):
        loop = _Loop(
            net=net,
            task=task,
            settings=settings,
            generator=generator,
            progress=progress,
            device=place,
            checkpoint=checkpoint,
            teacher=teacher,
            penalties=penalties,
            hooks=hooks,
            rate=rate,
            attach=attach,
            memory=memory or {},
            imitate=imitate,
        )
        return loop.run()


@dataclass(frozen=True, kw_only=True)
class _State:
    """What is known after an epoch, besides the optimizer: all of it is in the checkpoint."""

    epoch: int
    history: list[dict[str, float]]
    start_score: float
    best_score: float
    best_epoch: int
    best: dict[str, dict[str, Tensor]]
    over: float = 0.0
    """By how many bytes the best one is larger than `rate` allows."""
    settled: bool = True
    """Is the best one of the form that the network must end with?"""


@dataclass(kw_only=True, eq=False)
class _Loop:
    net: Artifact
    task: Task
    settings: FitSettings
    generator: torch.Generator
    progress: Progress
    device: torch.device
    checkpoint: Path | None
    teacher: nn.Module | None
    penalties: Sequence[Penalty]
    hooks: Sequence[Hook]
    rate: SizeTerm | None
    attach: Callable[..., Attached]
    memory: Memory
    imitate: Imitation | None

    def __post_init__(self) -> None:
        self.train, self.validation = self.task.data("train"), self.task.data("validation")
        self.module = self.net.module.to(self.device)
        if self.teacher is not None:
            self.teacher = copy.deepcopy(self.teacher).to(self.device).eval()
        self.attached = self.attach(self.net, dither=self.generator if self.settings.step_rate is not None else None)
        aliases = {**names_of(self.module), **self.attached.aliases()}
        in_steps = [name for name, _, _ in self.attached.latents()]
        self.optimizer = make_optimizer(self.attached.trainable(), aliases, self.settings, in_steps)
        recall_(self.optimizer, self.attached.trainable(), self.memory)
        self.moved = [p for group in self.optimizer.param_groups for p in group["params"]]
        self.samples = len(self.train)
        if self.settings.epoch_steps is not None:
            self.samples = self.settings.epoch_steps * self.settings.batch_size
        self.steps = len(_batches(torch.arange(self.samples), self.settings.batch_size))
        self.reference: Tensor | None = None
        self.identity = "" if self.checkpoint is None else self._identity()

    def run(self) -> FitResult:
        state = self._resumed() or self._start()
        with self.progress.task(f"train {self.settings.epochs} epochs", self.settings.epochs * self.steps) as advance:
            advance(state.epoch * self.steps)
            while state.epoch < self.settings.epochs and not self._stale(state):
                state = self._epoch(state, advance)
        kept = self.settings.keep == "best"
        score = state.best_score if kept or not state.history else state.history[-1]["validation_score"]
        if kept:
            self.attached.load_(state.best)
        if self.rate is not None and self._over(score) > 0:
            self.rate.shave_(self.attached)
            state = replace(state, best_score=self._score())
        self.attached.bake_(self.net)
        return FitResult(
            history=state.history,
            start_score=state.start_score,
            best_score=state.best_score,
            best_epoch=state.best_epoch,
            epochs_run=state.epoch,
            stopped_early=self._stale(state),
            memory=memory_of(self.optimizer, self.attached.trainable()),
        )

    def _stale(self, state: _State) -> bool:
        if self.settings.patience is None or not state.settled or state.epoch >= self.settings.epochs:
            return False
        reached = [row["epoch"] for row in state.history if row["validation_score"] == state.best_score]
        first = 0 if state.best_epoch == 0 or not reached else int(reached[0])
        return state.epoch - first >= self.settings.patience

    def _start(self) -> _State:
        score = self._score()
        return _State(
            epoch=0,
            history=[],
            start_score=score,
            best_score=score,
            best_epoch=0,
            best=self.attached.state(),
            over=self._over(score),
            settled=self.attached.settled,
        )

    def _over(self, score: float) -> float:
        return 0.0 if self.rate is None else self.rate.over(self.attached, score)

    def _epoch(self, state: _State, advance: Callable[[int], None]) -> _State:
        started, epoch = time.perf_counter(), state.epoch + 1
        loss = self._train_epoch(epoch, advance)
        score = self._score()
        row = {
            "epoch": epoch,
            "train_loss": loss,
            "validation_score": score,
            "seconds": time.perf_counter() - started,
            "learning_rate": self.settings.learning_rate * self._factor(epoch * self.steps - 1),
        }
        scored = f"{self.task.score.name} {self.task.score.format(score)}"
        self.progress.say(f"epoch {epoch}/{self.settings.epochs}: loss {loss:.4g}, {scored}")
        state = replace(state, epoch=epoch, history=[*state.history, row])
        gain = score - state.best_score if self.task.score.higher_is_better else state.best_score - score
        over = self._over(score)
        if (
            not state.settled
            or over < state.over
            or (
                over == state.over
                and (
                    gain > 0
                    or (
                        gain == 0
                        and (state.best_epoch == 0 or loss < state.history[state.best_epoch - 1]["train_loss"])
                    )
                )
            )
        ):
            best, settled = self.attached.state(), self.attached.settled
            state = replace(state, best_score=score, best_epoch=epoch, best=best, over=over, settled=settled)
        late = SQUEEZE * self.settings.epochs <= epoch < self.settings.epochs
        if self.rate is not None and state.over > 0 and late:
            self.rate.shave_(self.attached)
        for hook in self.hooks:
            hook.on_epoch(Moment(epoch=epoch, module=self.module, optimizer=self.optimizer, row=row))
        if self.checkpoint is not None:
            more = {
                "weights": self.attached.state(),
                "optimizer": self.optimizer.state_dict(),
                "generator": self.generator.get_state(),
                "hooks": [hook.state_dict() for hook in self.hooks],
                "rate": {} if self.rate is None else self.rate.state_dict(),
            }
            write_checkpoint(self.checkpoint, self.identity, vars(state) | more)
        return state

    def _train_epoch(self, epoch: int, advance: Callable[[int], None]) -> float:
        """Mean loss of the samples."""
        passes = -(-self.samples // len(self.train))
        order = torch.cat([torch.randperm(len(self.train), generator=self.generator) for _ in range(passes)])
        order = order[: self.samples]
        seed = int(torch.randint(2**62, (), generator=self.generator))
        torch.default_generator.manual_seed(seed)
        if self.device.type == "cuda":
            torch.cuda.manual_seed(seed)
        self.module.train()
        if self.settings.batch_norm == "freeze":
            for module in self.module.modules():
                if isinstance(module, BATCH_NORMS):
                    module.eval()
        total, step = 0.0, (epoch - 1) * self.steps
        for index in _batches(order, self.settings.batch_size):
            factor = self._factor(step)
            for group in self.optimizer.param_groups:
                group["lr"] = self.settings.learning_rate * group["factor"] * factor
            asked = f"fit, epoch {epoch}, step {step % self.steps + 1}"
            self.attached.advance_(step, self.settings.epochs * self.steps, self.optimizer)
            total += len(index) * self._step(self.train.batch(index), asked, step)
            step += 1
            advance(1)
        self._check_finite(f"fit, epoch {epoch}")
        return total / self.samples

    def _step(self, batch: tuple[Tensor, Any], asked: str, step: int) -> float:
        loss = self._loss(batch, asked)
        value = float(loss.detach())
        if not math.isfinite(value):
            raise DataError(asked, f"the loss is {value}", DIVERGED)
        self.module.zero_grad()
        loss.backward()
        self.attached.pull_()
        if self.rate is not None:
            self.rate.add_(self.attached, step)
        if self.settings.gradient_clip is not None:
            nn.utils.clip_grad_norm_(self.moved, self.settings.gradient_clip)
        self.optimizer.step()
        self.attached.project_()
        return value

    def _loss(self, batch: tuple[Tensor, Any], asked: str) -> Tensor:
        task, (x, y) = self.task, batch
        try:
            if task.augment is not None:
                x = task.augment(x, self.generator)
            loss = self._distance((x.to(self.device), moved(y, self.device)))
            if self.settings.second_variation:
                loss = loss + self.settings.second_variation * second_variation_of(self.module)
            for penalty in self.penalties:
                loss = loss + penalty(self.module)
        except (RuntimeError, ValueError, IndexError, TypeError, AttributeError) as error:
            raise DataError(
                asked,
                f"{type(error).__name__}: {error}",
                "see that model and data fit the task's augment, forward, target and loss",
            ) from error
        if not isinstance(loss, Tensor) or loss.dim() != 0 or not loss.requires_grad:
            shaped = isinstance(loss, Tensor) and loss.dim()
            found = f"a loss of shape {tuple(loss.shape)}" if shaped else "a loss that no parameter changes"
            raise DataError(asked, found, "let the task's loss be one number, computed from the outputs")
        return loss

    def _distance(self, batch: tuple[Tensor, Any]) -> Tensor:
        """From the targets and from the teacher."""
        if self.teacher is None:
            return self.task.loss(self._outputs(self.attached.network, batch), self.task.target(batch))
        if self.imitate is not None:
            return self.imitate.loss(self.module, self.teacher, lambda network: self._outputs(network, batch))
        outputs = self._outputs(self.attached.network, batch)
        loss = self.task.loss(outputs, self.task.target(batch))
        with torch.no_grad():
            taught = self._outputs(self.teacher, batch)
        distance = distillation_loss(outputs, taught, kind=self.task.kind, temperature=self.settings.temperature)
        return (1 - self.settings.distillation) * loss + self.settings.distillation * distance

    def _outputs(self, network: nn.Module, batch: tuple[Tensor, Any]) -> Any:
        if self.settings.precision == "float32":
            return self.task.forward(network, batch)
        with torch.autocast(self.device.type, torch.bfloat16):
            return in_float32(self.task.forward(network, batch))

    def _factor(self, step: int) -> float:
        part, parts = self.settings.part
        steps = self.settings.epochs * self.steps
        return learning_rate_factor(self.settings.schedule, self.settings.warmup, part * steps + step, parts * steps)

    def _score(self) -> float:
        return self.task.score.value(self._evaluate(self.validation).rows)

    def _evaluate(self, data: Data) -> Evaluation:
        size = max(self.settings.batch_size, EVALUATION_BATCH)
        if self.reference is None:
            self.reference = outputs_of(self.attached.network, self.task, data, size, self.device)
        return evaluate(self.attached.network, self.task, data, "validation", self.reference, size, self.device)

    def _check_finite(self, asked: str) -> None:
        for name, tensor in (*self.module.named_parameters(), *self.module.named_buffers()):
            if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
                raise DataError(asked, f"NaN or infinity in {name}", DIVERGED)

    def _identity(self) -> str:
        taught = [] if self.teacher is None else list(self.teacher.state_dict().values())
        texts = [repr(asdict(self.settings)), self.task.kind, str(self.task.augment is not None)]
        texts += [self.train.fingerprint(), self.validation.fingerprint(), str(len(self.penalties))]
        texts += [type(hook).__name__ for hook in self.hooks]
        texts += [] if self.rate is None else [self.rate.describe()]
        texts += [] if self.imitate is None else [repr(self.imitate)]
        grids = [t for grid in self.net.activations.values() for t in (grid.scale, grid.zero_point, grid.bit_width)]
        texts += [self.attached.describe(), *self.net.activations]
        known = [v for state in self.memory.values() for v in state.values() if isinstance(v, Tensor)]
        return identity_of(self.net, [self.generator.get_state(), *taught, *grids, *known], texts)

    def _resumed(self) -> _State | None:
        found = None if self.checkpoint is None else read_checkpoint(self.checkpoint, self.identity)
        if found is None:
            return None
        self.attached.load_(found.pop("weights"))
        self.optimizer.load_state_dict(found.pop("optimizer"))
        self.generator.set_state(found.pop("generator"))
        rate = found.pop("rate")
        if self.rate is not None:
            self.rate.load_state_dict(rate)
        for hook, state in zip(self.hooks, found.pop("hooks"), strict=True):
            hook.load_state_dict(state)
        self.progress.say(f"resumed after epoch {found['epoch']}")
        return _State(**found)


def _batches(order: Tensor, size: int) -> list[Tensor]:
    """A last batch of one sample joins the one before it: BatchNorm cannot train on it."""
    parts = list(order.split(size))
    if size > 1 and len(parts) > 1 and len(parts[-1]) == 1:
        parts[-2:] = [torch.cat(parts[-2:])]
    return parts
