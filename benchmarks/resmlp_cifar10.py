"""ResMLP on CIFAR-10 with ReLU, splines and PSA at two widths, taught by the published ResNet-20, then in 8 bits.

    LILLIPUT_TEST_DATA=folder python benchmarks/resmlp_cifar10.py [part of a row's name] [--epochs 5] [--seed 1]

Every row has the same seed (0, or that of --seed), the same batches, the same augmentation (flips, and crops of 4
pixels) and the same number of epochs of the same distillation; the last epoch is tested.
The learning rate comes from runs of 5 epochs:
69.2, 70.6 and 70.7% on validation for ReLU at 3e-3, 8e-3 and 2e-2, 69.1 and 72.4% for PSA at the first two. Values of
splines have the published rate and price of bends (1e-3 and 1e-5); at that of the others they diverge. The teacher's
answers to a batch are computed by the row that sees it first and kept in a folder, so all rows together pay for them
once; the time of each row counts what it computed. Trainings keep checkpoints there, and go on after the last one.
"""

import argparse
import hashlib
import json
import time
from dataclasses import replace
from pathlib import Path

import torch
from published_resnet20 import data_folder, make
from torch import Tensor, nn

from lilliput.core.artifact import Artifact
from lilliput.core.progress import Progress
from lilliput.nn.models.resmlp import ResMLP
from lilliput.report.result import environment
from lilliput.training.fit import fit
from lilliput.training.settings import Factors, FitSettings
from lilliput.zoo.tasks import flip_and_crop

RESULTS = Path(__file__).parent / "results" / "resmlp_cifar10.json"
WORK = Path(__file__).parents[1] / "runs" / "resmlp"
EPOCHS = 28
ROWS = {f"{name}, h{hidden}": (name, hidden) for hidden in (96, 48) for name in ("relu", "spline", "psa")}


class Remembered(nn.Module):
    """Answers of a teacher, kept in a folder by what was asked."""

    def __init__(self, teacher: nn.Module, folder: Path) -> None:
        super().__init__()
        self.teacher, self.folder = teacher, folder
        folder.mkdir(parents=True, exist_ok=True)

    def __deepcopy__(self, _memo: object) -> "Remembered":
        return self

    def forward(self, x: Tensor) -> Tensor:
        path = self.folder / hashlib.blake2b(x.numpy().tobytes(), digest_size=12).hexdigest()
        if path.is_file():
            return torch.load(path, weights_only=True).float()
        answers = self.teacher(x).float()
        part = path.with_suffix(f".{id(self)}")
        torch.save(answers.half(), part)
        part.rename(path)
        return answers.half().float()


def settings_of(activation: str, epochs: int, rate: float) -> FitSettings:
    own = Factors(learning_rate=1e-3 / rate, weight_decay=0.0)
    return FitSettings(
        epochs=epochs,
        batch_size=128,
        optimizer="adamw",
        learning_rate=rate,
        weight_decay=0.02,
        schedule="one_cycle",
        distillation=0.9,
        temperature=4.0,
        keep="last",
        precision="bfloat16",
        second_variation=1e-5 if activation == "spline" else 0.0,
        parameter_groups={"*.first.weight": own, "*.activation.weight": own} if activation == "spline" else {},
    )


def tested(model, task):
    with torch.inference_mode():
        right = [model.eval()(x).argmax(1) == y for x, y in task.data("test").batches(500)]
    return 100 * float(torch.cat(right).double().mean())


def measure(name, task, teacher, epochs, rate, seed):
    activation, hidden = ROWS[name]
    torch.manual_seed(seed)
    net = Artifact.of(ResMLP(hidden=hidden, activation=activation), task.spec)
    started = time.process_time()
    path = WORK / f"{activation}-{hidden}-{epochs}-{rate}{f'-{seed}' if seed else ''}.ckpt"
    said = fit(
        net,
        task,
        settings_of(activation, epochs, rate),
        generator=torch.Generator().manual_seed(seed),
        teacher=teacher,
        checkpoint=path,
        progress=Lines(name),
    )
    torch.save(net.module.state_dict(), path.with_suffix(".pt"))
    return {
        "accuracy": tested(net.module, task),
        "parameters": sum(p.numel() for p in net.module.parameters()),
        "cpu_s": round(time.process_time() - started, 1),
        "curve": [round(row["validation_score"], 2) for row in said.history],
        "epochs": epochs,
    }


class Lines(Progress):
    def __init__(self, name: str) -> None:
        self.name = name

    def say(self, text: str) -> None:
        print(f"{self.name}: {text}", flush=True)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("row", nargs="?", default="")
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    parser.add_argument("--rate", type=float, default=8e-3)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    torch.set_num_threads(1)
    data_folder()
    model, task = make()
    task = replace(task, augment=flip_and_crop)
    teacher = Remembered(model, WORK / "answers")
    for name in ROWS:
        if given.row not in name:
            continue
        row = measure(name, task, teacher, given.epochs, given.rate, given.seed)
        kept = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {"rows": {}}
        epochs = "" if given.epochs == EPOCHS else f", {given.epochs} epochs"
        kept["rows"][f"{name}{epochs}{f', seed {given.seed}' if given.seed else ''}"] = row
        kept["environment"] = environment()
        RESULTS.write_text(json.dumps(kept, indent=1) + "\n")
        print(name, {k: v for k, v in row.items() if k != "curve"}, flush=True)


if __name__ == "__main__":
    main()
