"""Weights that circuits make: the published instances, and LeNet-5 whose convolutions store no weight.

    LILLIPUT_TEST_DATA=folder python benchmarks/weight_generation.py [instances | evolution | multiplexers | lenet]

The published instance is `cgp/published_instances.json` of the folder; "from nothing" makes its wanted values without
a given one. Evolutions take 60 CPU seconds each, on the published grid of 256 x 31. Multiplexers and fronts are those
of the integers in results/cartesian_lenet.json: the outer 16 of each 5 x 5 kernel of both convolutions from its middle
9, a million generations; conv2 from conv1. LeNet-5 (ReLU, max pooling) is trained on MNIST without its last 5,000
training images for 4 epochs, its weights are rounded to 8 bits for each channel, and the test images are read once for
each row. One thread, CPU seconds. Writes results/weight_generation.json and .txt.
"""

import json
import os
import sys
import time
from collections import OrderedDict
from pathlib import Path

os.environ.update(dict.fromkeys(("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OMP_NUM_THREADS"), "1"))  # before numpy

import numpy as np
import torch
import torch.nn.functional as F
from published_resnet20 import data_folder
from torch import nn

import lilliput as ll
from lilliput.core import container
from lilliput.core.coding import Places, Writer
from lilliput.core.grid import Grid
from lilliput.data.mnist import read_mnist
from lilliput.measure.energy import EYERISS, HOROWITZ_45NM, NO_WIRES, Wires
from lilliput.methods.weight_generation.codebook import clustered, exact, free
from lilliput.methods.weight_generation.evolution import EvolutionSettings, begin
from lilliput.methods.weight_generation.front import front
from lilliput.methods.weight_generation.importance import fisher
from lilliput.methods.weight_generation.problem import Problem, problem_of
from lilliput.methods.weight_generation.rows import evolved, rows_of_values
from lilliput.methods.weight_generation.solution import substitute_
from lilliput.ops.netlist import width_of
from lilliput.report.result import environment

RESULTS = Path(__file__).parent / "results"
CONVOLUTIONS = ["conv1", "conv2"]
EVERY = list(range(-128, 128))
SECONDS = 60
EVOLUTIONS = {
    "improved, from the constructive circuit": {},
    "improved, at random": {"start": "random"},
    "published": {"mode": "published"},
}


def instances(folder):
    """{name: (given, wanted)}."""
    published = json.loads((folder / "cgp" / "published_instances.json").read_text())["layer_bypass"][0]
    found = {"layer_bypass": (published["x"], published["y"]), "from nothing": ([], published["y"])}
    random = np.random.default_rng(0)
    for count in (0, 1, 16, 64, 96):
        found[f"all 256 from {count}"] = (sorted(random.choice(EVERY, count, replace=False).tolist()), EVERY)
    return found


def solve(given, wanted):
    problem = Problem.of_values(given, wanted)
    started = time.process_time()
    solution = exact(problem)
    seconds = time.process_time() - started
    assert solution.netlist.evaluate(problem.given)[solution.outputs].tolist() == problem.wanted.tolist()
    cost = solution.cost()
    return {
        "missing": len(set(wanted) - set(given)),
        "error": solution.error,
        "energy_pj": cost.circuit.energy_pj,
        "gates": cost.circuit.gates,
        "depth": cost.circuit.depth,
        "delay_ns": round(cost.circuit.delay_ns, 4),
        "wire_pj": round(solution.cost(wires=Wires()).circuit.wire_pj, 3),
        "circuit_bytes": len(solution.netlist.pack()),
        "cpu_s": round(seconds, 3),
    }


def evolve(problem, settings):
    """After so many CPU seconds, without the compilation of the search."""
    begin(problem, settings).advanced(2)
    started = time.process_time()
    before = begin(problem, settings)
    after = before.advanced(1 << 40, watch=lambda now: time.process_time() - started >= SECONDS)
    rows = {}
    for name, evolution in (("before", before), ("after", after)):
        statistics = evolution.statistics()
        tidy = evolution.best.cost(wires=Wires())
        rows[name] = {
            "error": statistics["error"],
            "energy_pj": statistics["energy"],
            "gates": statistics["gate_count"],
            "depth": statistics["depth"],
            "delay_ns": round(float(statistics["delay"]), 4),
            "each_value_once": {
                "energy_pj": tidy.circuit.energy_pj,
                "gates": tidy.circuit.gates,
                "depth": tidy.circuit.depth,
                "wire_pj": round(tidy.circuit.wire_pj, 3),
                "stored_bits": tidy.stored.total,
            },
        }
    return rows | {
        "generations": after.generation,
        "offspring": after.states[0].tried,
        "cpu_s": round(time.process_time() - started, 1),
    }


def fronts(problem):
    """How many points, and how they came about; bursts of 3,000 generations."""
    settings, rows = EvolutionSettings(columns=20, round_generations=3000), {}
    for bursts in (0, 300):
        started = time.process_time()
        points = front(problem, settings, bursts=bursts)
        rows[f"{bursts} bursts"] = {
            "points": len(points),
            "by_bursts": sum(point.name.startswith("burst") for point in points),
            "cpu_s": round(time.process_time() - started, 1),
            "costs": [[point.name, *point.costs] for point in points],
        }
    return rows


def evolutions(folder):
    known = instances(folder)
    found = {}
    for name in ("layer_bypass", "from nothing"):
        for how, chosen in EVOLUTIONS.items():
            found[f"{name}, {how}"] = evolve(Problem.of_values(*known[name]), EvolutionSettings(**chosen))
    return found


def multiplexers():
    """Both layers by one circuit, and what nothing beats of conv2 from conv1."""
    integers = json.loads((RESULTS / "cartesian_lenet.json").read_text())
    kernels = {name: np.reshape(integers[name], (-1, 5, 5)) for name in CONVOLUTIONS}
    middle = np.zeros((5, 5), dtype=bool)
    middle[1:4, 1:4] = True
    given, wanted = ([k[:, part].reshape(-1).tolist() for k in kernels.values()] for part in (middle, ~middle))
    pair, rows = rows_of_values(given, wanted), {}
    for name, settings, generations in (
        ("one circuit for each layer", EvolutionSettings(), 0),
        ("the same, evolved", EvolutionSettings(), 1_000_000),
        ("at random, evolved", EvolutionSettings(start="random"), 1_000_000),
    ):
        started = time.process_time()
        solution = evolved(pair, settings, generations)
        cost, wired = solution.cost(), solution.cost(wires=Wires())
        rows[name] = {
            "error": solution.error,
            "gates": cost.circuit.gates,
            "multiplexers": solution.multiplexers,
            "gates_pj": len(pair.layers) * cost.circuit.energy_pj,
            "wire_pj": round(len(pair.layers) * wired.circuit.wire_pj, 3),
            "stored_bits": cost.stored.total,
            "cpu_s": round(time.process_time() - started, 1),
        }
    cost = exact(pair.shared).cost(wires=Wires())
    rows["one shared bank"] = {
        "error": 0.0,
        "gates": cost.circuit.gates,
        "multiplexers": 0,
        "gates_pj": cost.circuit.energy_pj,
        "wire_pj": round(cost.circuit.wire_pj, 3),
        "stored_bits": cost.stored.total,
        "plain_bits": cost.plain_bits,
    }
    return rows, fronts(Problem.of_values(*(integers[name] for name in CONVOLUTIONS)))


def lenet():
    return nn.Sequential(
        OrderedDict(
            conv1=nn.Conv2d(1, 6, 5, padding=2),
            act1=nn.ReLU(),
            pool1=nn.MaxPool2d(2),
            conv2=nn.Conv2d(6, 16, 5),
            act2=nn.ReLU(),
            pool2=nn.MaxPool2d(2),
            flatten=nn.Flatten(),
            fc1=nn.Linear(400, 120),
            act3=nn.ReLU(),
            fc2=nn.Linear(120, 84),
            act4=nn.ReLU(),
            fc3=nn.Linear(84, 10),
        )
    )


def train(x, y, epochs=4, batch=64):
    torch.manual_seed(0)
    model, order = lenet(), torch.Generator().manual_seed(0)
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=1e-2)
    steps = epochs * (len(x) // batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=5e-3, total_steps=steps)
    for _ in range(epochs):
        for picks in torch.randperm(len(x), generator=order)[: len(x) // batch * batch].split(batch):
            optimizer.zero_grad()
            F.cross_entropy(model(x[picks]), y[picks]).backward()
            optimizer.step()
            schedule.step()
    return model.eval()


def on_grids(model, spec):
    """Weights of 8 bits, with a scale for each output."""
    net = ll.Artifact.of(model, spec)
    for name, weight in list(net.module.named_parameters()):
        if weight.dim() > 1:
            scale = (weight.detach().flatten(1).abs().amax(1) / 127).clamp(min=1e-12)
            many = torch.zeros(len(weight), dtype=torch.int64)
            net.encode_(
                name, net.encoding(name).with_grid(Grid(scale=scale, zero_point=many, bit_width=many + 8, axis=0))
            )
    return net


def coded_bytes(net):
    """Of the two convolutions' weights in the file, without scales' own streams."""
    sizes = container.sizes(container.loads(container.dumps(net)))
    return {name: sum(slots.values()) for name, slots in sizes.items() if name in ("conv1.weight", "conv2.weight")}


def coded_index_bytes(net, solution):
    """Of the indices as the file's coder writes them, in the order of values: the circuit says which these are."""
    writer, problem = Writer(), solution.problem
    known = np.unique(solution.made)
    rank = np.searchsorted(known, solution.made)
    for place in problem.places:
        integers = net.encoding(place.name).integers()
        indices = rank[np.searchsorted(problem.wanted, integers.reshape(-1).numpy())]
        writer.symbols("indices", indices, width_of(len(known)), Places(tuple(integers.shape)))
    return len(writer.data)


def lenet_rows(folder):
    data = read_mnist(folder / "MNIST" / "raw")
    (train_x, train_y), (test_x, test_y) = data.train, data.test
    train_x, test_x = ((x.reshape(-1, 1, 28, 28).float() / 255 - 0.1307) / 0.3081 for x in (train_x, test_x))
    started = time.process_time()
    model = train(train_x[:-5000], train_y[:-5000].long())
    training = time.process_time() - started
    task = ll.Task.classification((train_x[:-5000], train_y[:-5000].long()), (train_x[-5000:], train_y[-5000:].long()))

    def accuracy(module):
        with torch.no_grad():
            found = torch.cat([module(x).argmax(1) for x in test_x.split(1000)])
        return round(100 * float((found == test_y).float().mean()), 2)

    net = on_grids(model, task.spec)
    before = coded_bytes(net)
    rows = {
        "float": {"test": accuracy(model), "bytes_float32": 4 * 2550},
        "int8": {"test": accuracy(net.module), "bytes_packed": 2550, "bytes_coded": sum(before.values())},
    }
    weights = fisher(net, task, ["conv1.weight", "conv2.weight"])
    plain = problem_of(net, wanted=CONVOLUTIONS)
    weighted = problem_of(net, wanted=CONVOLUTIONS, importance=weights)
    bypass = problem_of(net, given=["conv1"], wanted=["conv2"])
    others = {"coded int8": 8 * sum(before.values()), "4-bit clusters": 2550 * 4 + 16 * 8}
    solutions = {
        "from nothing, exact": exact(plain),
        "from nothing, free values": free(plain),
        **{f"from nothing, {k} free values": free(plain, k) for k in (16, 8, 4)},
        **{f"from nothing, {k} clusters": clustered(plain, k) for k in (32, 16, 8, 4)},
        **{f"from nothing, {k} clusters, by Fisher": clustered(weighted, k) for k in (16, 8, 4)},
        "conv1 to conv2, exact": exact(bypass),
        "conv1 to conv2, free values": free(bypass),
    }
    for name, solution in solutions.items():
        changed = net.copy()
        substitute_(changed, solution)
        stored, cost = solution.cost().stored, solution.cost(others=others)
        rows[name] = {
            "test": accuracy(changed.module),
            "values": len(solution.netlist.outputs),
            "error": plain.squared_error(solution.made) if solution.problem is not bypass else solution.error,
            "gates": cost.circuit.gates,
            "gates_pj": cost.circuit.energy_pj,
            "wires_pj": round(solution.cost(wires=Wires()).circuit.wire_pj, 3),
            "index_bytes": -(-stored.indices // 8),
            "circuit_bytes": len(solution.netlist.pack()),
            "bytes": -(-stored.total // 8),
            "bytes_with_coded_indices": coded_index_bytes(net, solution)
            + len(solution.netlist.pack())
            + solution.problem.given_count,
            "pj_from": {
                f"{memory} {level}": [round(c.energy_pj, 3), round(c.plain_energy_pj, 3)]
                for memory, table, level in (
                    ("Eyeriss", EYERISS, "register"),
                    ("Eyeriss", EYERISS, "dram"),
                    ("45 nm", HOROWITZ_45NM, "sram"),
                )
                for c in [solution.cost(memory=table, level=level, wires=NO_WIRES)]
            },
            "warnings": list(cost.warnings()),
        }
    return rows, round(training, 1)


def text(found):
    lines = [f"{'published values':26}missing  gates  depth    energy  CPU s  error   wires, assumed"]
    for name, row in found["instances"].items():
        lines.append(
            f"{name:26}{row['missing']:7}{row['gates']:7}{row['depth']:7}  {row['energy_pj']:.2e}  {row['cpu_s']:5.2f}"
            f"{row['error']:7.0f}  {row['wire_pj']:9.2f} pJ"
        )
    lines += ["", f"{'evolution, 60 CPU s':64}generations   error    energy  gates  depth   wires, assumed"]
    for name, row in found.get("evolution", {}).items():
        for when, generations in (("before", 0), ("after", row["generations"])):
            r, once = row[when], row[when]["each_value_once"]
            start = f"{name + ', ' + when:64}{generations:11}{r['error']:8.0f}"
            lines.append(f"{start}  {r['energy_pj']:.2e}{r['gates']:7}{r['depth']:7}")
            start = f"{'    each value once':83}  {once['energy_pj']:.2e}{once['gates']:7}{once['depth']:7}"
            lines.append(f"{start}{once['wire_pj']:14.2f} pJ")
    lines += ["", f"{'outer from core, both convolutions':40}error  gates  multiplexers  gates' pJ   wires    bits"]
    for name, row in found.get("multiplexers", {}).items():
        start = f"{name:37}{row['error']:8.0f}{row['gates']:7}{row['multiplexers']:14}"
        lines.append(f"{start}   {row['gates_pj']:.2e}{row['wire_pj']:8.2f}{row['stored_bits']:8}")
    for name, row in found.get("front", {}).items():
        lines.append(f"front, conv2 from conv1, {name}: {row['points']} points, {row['by_bursts']} by bursts")
    lines += ["", f"{'LeNet-5, both convolutions':40}test   values  gates  gates' pJ   bytes  circuit  coded"]
    for name, row in found.get("lenet", {}).items():
        if "values" in row:
            lines.append(
                f"{name:38}{row['test']:6.2f}{row['values']:9}{row['gates']:7}   {row['gates_pj']:.2e}{row['bytes']:8}"
                f"{row['circuit_bytes']:9}{row['bytes_with_coded_indices']:7}"
            )
            lines += [f"    {warning}" for warning in row["warnings"]]
        else:
            size = row.get("bytes_packed", row.get("bytes_float32"))
            lines.append(f"{name:38}{row['test']:6.2f}{'':28}{size:8}")
    return "\n".join(lines) + "\n"


def main():
    torch.set_num_threads(1)
    folder, part = data_folder(), sys.argv[1] if len(sys.argv) > 1 else ""
    path = RESULTS / "weight_generation.json"
    found = json.loads(path.read_text()) if part and path.is_file() else {}
    if part in ("", "instances"):
        solve([1], [2])  # numpy wakes up
        found["instances"] = {name: solve(*lists) for name, lists in instances(folder).items()}
    if part in ("", "evolution"):
        found["evolution"] = evolutions(folder)
    if part in ("", "multiplexers"):
        found["multiplexers"], found["front"] = multiplexers()
    if part in ("", "lenet"):
        found["lenet"], found["training_cpu_s"] = lenet_rows(folder)
    found["environment"] = environment()
    path.write_text(json.dumps(found, indent=1) + "\n")
    (RESULTS / "weight_generation.txt").write_text(text(found))
    print(text(found))


if __name__ == "__main__":
    main()
