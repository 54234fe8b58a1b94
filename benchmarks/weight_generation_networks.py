"""Whole networks whose weights circuits make, beside clusters stored in tables: size, modelled energy, accuracy.

    LILLIPUT_TEST_DATA=folder python benchmarks/weight_generation_networks.py [lenet | resnet20] [part of a row's name]

LeNet-5 is the one of weight_generation.py, ResNet-20 the published one. BatchNorm is folded first. "table" rows keep
the values of each layer in a table of its own (`weight_clustering`; "8-bit" on integers), "circuit" rows have a
circuit that serves all layers, or one for each (`weight_generation`); scales of channels are a byte each there.
"tuned" rows train for EPOCHS more epochs with the float network as the teacher: tables move their values, circuits
move weights among theirs, and integers on plain grids (with float scales) move as well. Bytes are those of the `.lil`
file without recipe and graph. The modelled energy is to fetch the weights once: their coded bytes from DRAM
(`EYERISS`), the gates, and a multiplexer for each weight that has an index; what tables take to be read on the chip
is left out. One thread, CPU seconds; test images are read once for each row.
Writes results/weight_generation_networks.json and .txt.
"""

import json
import sys
import time
from dataclasses import replace
from pathlib import Path

import resnet20_trained
import torch
import weight_generation as lenet_tools
from published_resnet20 import data_folder
from resnet20_tools import answers, compressed

import lilliput as ll
from lilliput.core import container
from lilliput.data.mnist import read_mnist
from lilliput.graph.integer import runnable
from lilliput.measure.energy import EYERISS, PUBLISHED, circuit_cost
from lilliput.ops import cartesian_functions as f
from lilliput.report.result import environment

RESULTS = Path(__file__).parent / "results"
EPOCHS = 2
TUNE = ll.FineTune(
    epochs=EPOCHS,
    optimizer="adam",
    learning_rate=1e-3,
    schedule="one_cycle",
    distillation=1.0,
    temperature=2.0,
    keep="last",
)


def rows(tune):
    fold, whole = ll.FoldBatchNorm(), ll.Quantization(activation_bits=0)
    found = {"float": [fold], "8 bits": [fold, whole]}
    circuits = {
        "circuit, exact": ll.WeightGeneration(solver="exact", share="layer"),
        "circuit for each layer, 16 clusters": ll.WeightGeneration(share="layer"),
    }
    for count in (16, 8, 4):
        table = [fold, ll.WeightClustering(n_clusters=count)]
        found[f"table, {count} clusters"] = table
        found[f"8-bit table, {count} clusters"] = [*table, whole]
        found[f"table, {count} clusters, tuned"] = [*table, tune]
        circuits[f"circuit, {count} clusters"] = ll.WeightGeneration(values=count)
        circuits[f"circuit, {count} free values"] = ll.WeightGeneration(values=count, solver="free")
    for bits in (4, 3, 2):
        found[f"integers of {bits} bits, tuned"] = [fold, ll.Quantization(weight_bits=bits, activation_bits=0), tune]
    found |= {name: [fold, method] for name, method in circuits.items()}
    found |= {f"{name}, tuned": [fold, method, tune] for name, method in circuits.items() if "exact" not in name}
    return found


def energy(net, contents):
    """(pJ of fetching all weights once, of which gates)."""
    sizes, banks = container.sizes(contents), []
    coded = choosing = gates = 0.0
    for name, e in contents.tensors.items():
        if len(e.shape) < 2:
            continue
        coded += sum(sizes[name].values())
        count = int(e.sharing.sizes.max()) if e.sharing is not None else 0
        if e.bank is not None:
            count = len(e.bank.values)
            if not any(e.bank.same(bank) for bank in banks):
                banks.append(e.bank)
                gates += circuit_cost(e.bank.netlist).energy_pj
        choosing += max(count - 1, 0) * net.parameter(name).numel() * PUBLISHED.energy_pj[f.MULTIPLEXER]
    return EYERISS.read_pj(8 * coded, "dram") + choosing + gates, gates


def measure(model, task, passes):
    net, notes, seconds = compressed(model, task, passes)
    data = container.dumps(net, strip=True)
    contents = container.loads(data)
    total, gates = energy(net, contents)
    banks = [e.bank for e in contents.tensors.values() if e.bank is not None]
    sizes = container.sizes(contents).values()
    return {
        "accuracy": 100 * float(answers(runnable(net), task).double().mean()),
        "lil_bytes": len(data),
        "modelled_uj": round(total / 1e6, 4),
        "gates_pj": gates,
        "gates": len(banks[0].netlist.gates) if banks else 0,
        "circuit_bytes": sum(row.get("circuit", 0) + row.get("inputs", 0) for row in sizes),
        "cpu_s": round(seconds, 1),
        "notes": notes,
    }


def lenet():
    data = read_mnist(data_folder() / "MNIST" / "raw")
    (train_x, train_y), (test_x, test_y) = data.train, data.test
    train_x, test_x = ((x.reshape(-1, 1, 28, 28).float() / 255 - 0.1307) / 0.3081 for x in (train_x, test_x))
    train_y, test_y = train_y.long(), test_y.long()
    model = lenet_tools.train(train_x[:-5000], train_y[:-5000])
    task = ll.Task.classification(
        (train_x[:-5000], train_y[:-5000]), (train_x[-5000:], train_y[-5000:]), test=(test_x, test_y)
    )
    return model, task, TUNE


def resnet20():
    model, task = resnet20_trained.make()
    return model, replace(task, augment=resnet20_trained.augment), replace(TUNE, precision="bfloat16")


def text(found):
    lines = []
    for network, known in found["networks"].items():
        lines.append(f"{network:44}   test   .lil bytes  modelled uJ  gates  circuit's bytes")
        for name, row in known.items():
            lines.append(
                f"{name:44}{row['accuracy']:7.2f}{row['lil_bytes']:13,}{row['modelled_uj']:13.4g}"
                f"{row['gates'] or '':>7}{row['circuit_bytes'] or '':>17}"
            )
        lines.append("")
    return "\n".join(lines)


def main():
    torch.set_num_threads(1)
    network = sys.argv[1] if len(sys.argv) > 1 else ""
    wanted = sys.argv[2] if len(sys.argv) > 2 else ""
    path = RESULTS / "weight_generation_networks.json"
    for name, make in {"LeNet-5, MNIST": lenet, "ResNet-20, CIFAR-10": resnet20}.items():
        if network not in make.__name__:
            continue
        started = time.process_time()
        model, task, tune = make()
        print(f"{name}: ready after {time.process_time() - started:.0f} CPU s", flush=True)
        for row, passes in rows(tune).items():
            if wanted in row:
                measured = measure(model, task, passes)
                found = json.loads(path.read_text()) if path.is_file() else {"networks": {}}
                found["networks"].setdefault(name, {})[row] = measured
                found["environment"] = environment()
                path.write_text(json.dumps(found, indent=1) + "\n")
                (RESULTS / "weight_generation_networks.txt").write_text(text(found))
                print(row, {k: v for k, v in measured.items() if k != "notes"}, flush=True)


if __name__ == "__main__":
    main()
