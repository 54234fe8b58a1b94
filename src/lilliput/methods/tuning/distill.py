"""Distillation: block by block from the blocks of a teacher, then from its answers.

Blocks: Romero et al. (2015), "FitNets", https://arxiv.org/abs/1412.6550, in the form of Li et al. (2020), "Few sample
knowledge distillation", https://arxiv.org/abs/1812.01839: the blocks before stand still. Answers: Hinton, Vinyals and
Dean (2015), https://arxiv.org/abs/1503.02531.
"""

import copy
import fnmatch
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import nn

from lilliput.core import container
from lilliput.core.artifact import Artifact
from lilliput.core.errors import RecipeError
from lilliput.core.method import Context, PassResult, check_range, nearest
from lilliput.graph.integer import runnable
from lilliput.graph.stored import stored_artifact
from lilliput.training.distillation import Imitation
from lilliput.training.restore import restoring
from lilliput.training.settings import Factors
from lilliput.training.trained import TrainingPass, values_of


@dataclass(frozen=True, kw_only=True)
class Distill(TrainingPass):
    """Train each of `blocks` to give what the teacher's gives, then all of the network on the teacher's answers.

    `blocks` are patterns of paths of modules ("blocks.*"), in the order of the network. Each trains alone for
    `block_epochs`, at a constant `block_rate`; those before it stand still, and nothing behind it is computed. Then
    come `epochs` of the whole network, of whose loss the share `distillation` is the teacher's, at `temperature`.

    The teacher is the float original, or the network of the file `teacher`, which needs the same answers; blocks are
    learned from the original alone. Others as in `fine_tune`.
    """

    name: ClassVar[str] = "distill"
    summary: ClassVar[str] = "learn from a teacher: each block from its block, then from its answers"
    citations: ClassVar[tuple[str, ...]] = ("https://arxiv.org/abs/1412.6550", "https://arxiv.org/abs/1503.02531")

    blocks: tuple[str, ...] = ()
    block_epochs: int = 5
    block_rate: float = 1e-3
    teacher: str | None = None
    distillation: float = 0.8
    temperature: float = 1.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "blocks", tuple(self.blocks))
        check_range(f"{self.name} block_epochs", self.block_epochs, 1, 1_000_000)
        check_range(f"{self.name} block_rate", self.block_rate, 1e-12, 1e6)
        if self.blocks and self.teacher is not None:
            do = "learn the answers of another teacher in a second distill"
            raise RecipeError(f"{self.name} blocks", "with a teacher from a file", do)
        super().__post_init__()

    def requires(self, net: Artifact) -> list[str]:
        if net.activations:
            return [f"activations are already on integer grids; put {self.name} before quantization"]
        return []

    def apply_(self, net: Artifact, context: Context) -> PassResult:
        stopped = self.untrainable(net, context)
        if stopped is not None:
            return stopped
        before, blocks = values_of(net), self._blocks(net)
        self._check(net, context, blocks)
        with restoring(net, context.generator):
            history = {path: self._imitate_(net, context, path) for path in blocks}
            settings, teacher = self.fit_settings(self.frozen(net)), self._teacher(context)
            answers = self.part_(net, context, settings, "answers", teacher=teacher)
        changed, skipped = self.account(net, before, answers.epochs_run)
        notes = [f"{path}: squared error {rows[-1]['train_loss']:.3g}" for path, rows in history.items()]
        statistics = {"blocks": history, "answers": answers.history}
        return PassResult(changed=changed, skipped=skipped, notes=tuple(notes), statistics=statistics)

    def _imitate_(self, net: Artifact, context: Context, path: str) -> list[dict[str, float]]:
        """Train the module at `path` alone; the history of its training."""
        still = Factors(learning_rate=0.0, weight_decay=0.0)
        inside = {id(p) for p in net.module.get_submodule(path).parameters()}
        groups = {name: still for name, p in net.module.named_parameters() if id(p) not in inside} | self.frozen(net)
        settings = replace(
            self.fit_settings(groups),
            epochs=self.block_epochs,
            learning_rate=self.block_rate,
            schedule="constant",
            keep="last",
        )
        original = context.evaluator.original
        return self.part_(net, context, settings, path, teacher=original, imitate=Imitation(path=path)).history

    def _blocks(self, net: Artifact) -> list[str]:
        """Paths of modules that can train, pattern by pattern."""
        paths = [path for path, _ in net.module.named_modules() if path]
        found: list[str] = []
        for pattern in self.blocks:
            depth = pattern.count(".")  # "blocks.*" are blocks.0 and blocks.1, not what is inside of them
            match = [p for p in paths if p.count(".") == depth and fnmatch.fnmatchcase(p, pattern)]
            if not match:
                raise RecipeError(
                    f"{self.name} blocks {pattern!r}", "no module has such a path", nearest(pattern, set(paths))
                )
            found += [p for p in match if p not in found]
        frozen = self.frozen(net)
        for path in found:
            names = {
                f"{path}.{name}" for name, p in net.module.get_submodule(path).named_parameters() if p.requires_grad
            }
            if not names - set(frozen):
                raise RecipeError(f"{self.name} block {path!r}", "it has nothing to train", "leave it out")
        return found

    @staticmethod
    def _check(net: Artifact, context: Context, blocks: list[str]) -> None:
        """Raise what a training would raise: all blocks before the first of them trains."""
        task = context.task
        ours, theirs = (copy.deepcopy(m).cpu().eval() for m in (net.module, context.evaluator.original))
        data = task.data("train")
        batch = data.batch(torch.arange(min(2, len(data))))
        for path in blocks:
            Imitation(path=path).loss(ours, theirs, lambda network: task.forward(network, batch))

    def _teacher(self, context: Context) -> nn.Module | None:
        if self.distillation == 0:
            return None
        if self.teacher is None:
            return context.evaluator.original
        return runnable(stored_artifact(container.read(self.teacher), self.teacher))
