"""The networks of resmlp_cifar10.py in 8 bits, trained through their integers: scores, bytes, and C on all test images.

    LILLIPUT_TEST_DATA=folder python benchmarks/resmlp_cifar10_int8.py [part of a row's name]

BatchNorm is folded, what is left of it becomes layers; then weights and activations have 8 bits, functions are
integer points with lines between them, and 100 steps of 128 images of the training set (without augmentation) train
what remains; the teacher is the network itself in float. "rounded" is the score without these steps. The last weights
are tested. `differences`: outputs of the C on the 10,000 test images that are not those of the interpreter;
`training_differences`: of the network that was trained. "17 points" takes the functions of PSA at 17 points, and
trains two more epochs in float first ("adapted").
"""

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path

import torch
from learned_functions_tables import in_c
from published_resnet20 import data_folder, make
from resmlp_cifar10 import ROWS, WORK, Remembered, settings_of, tested

from lilliput.core import container
from lilliput.core.artifact import Artifact
from lilliput.core.learned_activation import LearnedActivation
from lilliput.core.method import Context, apply_checked_
from lilliput.graph import stored
from lilliput.graph.integer import runnable
from lilliput.graph.lower import lower
from lilliput.methods.normalization.batchnorm import FoldBatchNorm
from lilliput.methods.quantization.aware_training import QuantizationAwareTraining
from lilliput.nn.models.resmlp import ACTIVATIONS, ResMLP
from lilliput.report.result import environment
from lilliput.training.fit import fit
from lilliput.zoo.tasks import flip_and_crop

RESULTS = Path(__file__).parent / "results" / "resmlp_cifar10_int8.json"
STEPS, BATCH, EPOCHS_AT_POINTS = 100, 128, 2


def trained(activation, hidden, points, epochs, rate):
    """The float network of a row, its functions at so many points."""
    made = ACTIVATIONS[activation]
    if points is not None:
        kind = {"spline": "bspline", "psa": "lerp_psa"}[activation]
        made = lambda n: LearnedActivation(n, kind=kind, points=points)  # noqa: E731
    model = ResMLP(hidden=hidden, activation=made, before=activation in ("spline", "psa"))
    state = torch.load(WORK / f"{activation}-{hidden}-{epochs}-{rate}.pt", weights_only=True)
    model.load_state_dict(state)
    return model.eval()


def adapted(model, task):
    """After two epochs of the training in float, at a lower rate."""
    net, augmented = Artifact.of(model, task.spec), replace(task, augment=flip_and_crop)
    settings = replace(settings_of("psa", EPOCHS_AT_POINTS, 1e-3), schedule="cosine")
    teacher = Remembered(make()[0], WORK / "answers")
    fit(net, augmented, settings, generator=torch.Generator().manual_seed(0), teacher=teacher)
    return net.module.eval()


def measure(activation, hidden, points, task, given):
    model = trained(activation, hidden, points, given.epochs, given.rate)
    started = time.process_time()
    chosen = torch.randperm(len(task.data("train")), generator=torch.Generator().manual_seed(0))[: STEPS * BATCH]
    short = replace(task, train=task.data("train").subset(chosen))
    found = {"float": tested(model, task)}
    if points is not None:
        model = adapted(model, task)
        found["adapted"] = tested(model, task)
    net, context = Artifact.of(model, task.spec), Context.of(short, model, seed=0)
    apply_checked_(FoldBatchNorm(rest="layer"), net, context)
    settings = {"weight_bits": 8, "keep": "last", "distillation": 0.9, "batch_size": BATCH}
    rounded = net.copy()
    training = QuantizationAwareTraining(**settings, epochs=1, learning_rate=given.tune)
    apply_checked_(training.rounding(), rounded, context)
    found["rounded"] = tested(runnable(rounded), task)
    apply_checked_(training, net, context)
    found["int8"] = tested(runnable(net), task)
    data, program = stored.dumps(net), lower(net)
    functions = [n for n, p in net.module.named_modules() if isinstance(p, LearnedActivation)]
    sizes = container.sizes(container.loads(data))
    of_c, of_training = in_c(program, task, runnable(net))
    found |= {
        "parameters": sum(p.numel() for p in net.module.parameters()),
        "lil_bytes": len(data),
        "function_bytes": sum(sum(sizes[f"{path}.weight"].values()) for path in functions),
        "c_table_bytes": sum(o.table.size for o in program if o.table is not None),
        "differences": of_c,
        "training_differences": of_training,
        "cpu_s": round(time.process_time() - started, 1),
    }
    return found


def rows():
    """{name: (activation, hidden, points of its functions if not those of the training)}"""
    found = {name: (*row, None) for name, row in ROWS.items()}
    return found | {f"psa, h{hidden}, 17 points": ("psa", hidden, 17) for hidden in (96, 48)}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("row", nargs="?", default="")
    parser.add_argument("--epochs", type=int, default=28)
    parser.add_argument("--rate", type=float, default=8e-3)
    parser.add_argument("--tune", type=float, default=1e-4)
    given = parser.parse_args()
    torch.set_num_threads(1)
    data_folder()
    _, task = make()
    for name, (activation, hidden, points) in rows().items():
        if given.row not in name:
            continue
        row = measure(activation, hidden, points, task, given)
        kept = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {"rows": {}}
        kept["rows"][name] = row
        kept["environment"] = environment()
        RESULTS.write_text(json.dumps(kept, indent=1) + "\n")
        print(name, row, flush=True)


if __name__ == "__main__":
    main()
