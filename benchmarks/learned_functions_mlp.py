"""Fashion-MNIST by 784-H-10: learned functions of few points beside fixed activations, and distilled into fewer units.

    LILLIPUT_TEST_DATA=folder python benchmarks/learned_functions_mlp.py [part of a row's name]

A linear layer, BatchNorm, an activation for each unit, a linear layer; 8 epochs of AdamW on all 60,000 training
images less a tenth, by which the share and the temperature of the distillation were chosen; the last epoch is tested.
"kan" is a layer of splines instead of both: a learned function of 16 points for each pair of input and unit on the
pixels' mean over 2x2 (KAN, Liu et al. 2024, in the form of tables as in KANELE, https://arxiv.org/abs/2512.12850, and
LUT-KAN). Rows are means of 3 seeds, with the sample standard deviation. Distilled rows learn from a network of 128
ReLUs that the same settings train; "and pixels" means one more learned function, which all pixels share.
"""

import json
import sys
import time
from dataclasses import replace
from pathlib import Path
from statistics import mean, stdev

import torch
from published_resnet20 import data_folder
from torch import Tensor, nn

from lilliput.core.artifact import Artifact
from lilliput.core.learned_activation import LearnedActivation
from lilliput.report.result import environment
from lilliput.training.fit import fit
from lilliput.training.settings import FitSettings
from lilliput.zoo import tasks

RESULTS = Path(__file__).parent / "results" / "learned_functions_mlp.json"
SEEDS, POINTS, PIXELS = (0, 1, 2), 16, " and pixels"
ACTIVATIONS = {
    "relu": lambda _: nn.ReLU(),
    "prelu": nn.PReLU,
    "gelu": lambda _: nn.GELU(),
    "bspline": lambda n: LearnedActivation(n, kind="bspline", points=POINTS, init="paper"),
    "cubic": lambda n: LearnedActivation(n, kind="cubic", points=POINTS),
    "table": lambda n: LearnedActivation(n, kind="table", points=POINTS),
    "lerp_psa": lambda n: LearnedActivation(n, kind="lerp_psa", points=POINTS, init="paper"),
    "psa": lambda n: LearnedActivation(n, kind="psa", init="paper"),
}
SETTINGS = FitSettings(
    epochs=8, batch_size=128, optimizer="adamw", learning_rate=5e-3, schedule="one_cycle", keep="last", distillation=0.0
)


class KAN(nn.Module):
    """14x14 means of pixels, a function for each of them and each unit, their sums; a linear layer."""

    def __init__(self, units: int) -> None:
        super().__init__()
        self.pool = nn.AvgPool2d(2)
        self.units = units
        self.functions = LearnedActivation(196 * units, kind="table", points=POINTS, limit=3.0)
        with torch.no_grad():
            grid = torch.linspace(-3, 3, POINTS)
            self.functions.weight.copy_(torch.randn(196 * units, 1) / 14 * grid)
        self.norm, self.last = nn.BatchNorm1d(units), nn.Linear(units, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.functions(self.pool(x).flatten(1).repeat(1, self.units))
        return self.last(self.norm(x.unflatten(1, (self.units, 196)).sum(2)))


def network(activation: str, units: int) -> nn.Module:
    if activation == "kan":
        return KAN(units)
    name = activation.removesuffix(PIXELS)
    layers = [nn.Linear(784, units), nn.BatchNorm1d(units), ACTIVATIONS[name](units), nn.Linear(units, 10)]
    if activation.endswith(PIXELS):
        same = LearnedActivation(784, kind="table", points=17, limit=1.0, share="layer", like=lambda x: x)
        layers.insert(0, same)
    return nn.Sequential(nn.Flatten(), *layers)


def tested(model, task):
    with torch.inference_mode():
        right = [model.eval()(x).argmax(1) == y for x, y in task.data("test").batches(500)]
    return 100 * float(torch.cat(right).double().mean())


def trained(model, task, seed, settings=SETTINGS, teacher=None):
    net = Artifact.of(model, task.spec)
    generator = torch.Generator().manual_seed(seed)
    fit(net, task, settings, generator=generator, teacher=teacher)
    return net.module


def measure(activation, units, task, teachers):
    scores, started = [], time.process_time()
    settings = replace(SETTINGS, distillation=0.9, temperature=1.0) if teachers else SETTINGS
    for seed in SEEDS:
        torch.manual_seed(seed)
        model = network(activation, units)
        scores.append(tested(trained(model, task, seed, settings, teachers.get(seed)), task))
    return {
        "accuracy": round(mean(scores), 2),
        "sd": round(stdev(scores), 2),
        "parameters": sum(p.numel() for p in network(activation, units).parameters()),
        "cpu_s": round(time.process_time() - started, 1),
    }


def rows():
    """{name: (activation, units, distilled?)}"""
    found = {f"{a}, {h} units": (a, h, False) for h in (8, 16, 32) for a in ACTIVATIONS}
    found |= {f"kan, {h} units": ("kan", h, False) for h in (8, 16)}
    found |= {f"relu, {h} units, distilled": ("relu", h, True) for h in (16, 24, 32)}
    found |= {f"relu and pixels, {h} units, distilled": (f"relu{PIXELS}", h, True) for h in (16, 24)}
    learned = ("lerp_psa", "table", "psa", f"lerp_psa{PIXELS}", f"table{PIXELS}")
    return found | {f"{a}, 16 units, distilled": (a, 16, True) for a in learned}


def main():
    torch.set_num_threads(1)
    task = tasks.image_classification("fashion-mnist")(data_folder())
    wanted = sys.argv[1] if len(sys.argv) > 1 else ""
    found = json.loads(RESULTS.read_text()) if wanted and RESULTS.is_file() else {"rows": {}}
    teachers = {}
    for name, (activation, units, distilled) in rows().items():
        if wanted not in name:
            continue
        if distilled and not teachers:
            for seed in SEEDS:
                torch.manual_seed(100 + seed)
                teachers[seed] = trained(network("relu", 128), task, seed)
        row = found["rows"][name] = measure(activation, units, task, teachers if distilled else {})
        found["environment"] = environment()
        RESULTS.write_text(json.dumps(found, indent=1) + "\n")
        print(f"{name:32}", *(f"{k} {v}" for k, v in row.items()), flush=True)


if __name__ == "__main__":
    main()
