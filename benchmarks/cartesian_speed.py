"""Circuits that compute the second convolution of LeNet-5 from the first: offspring per second, error after 12 seconds.

    python benchmarks/cartesian_speed.py [published.json]

One thread, CPU seconds of the process, which are the fewer the less else runs. A grid of 256 x 31 nodes, multiplexed:
each distinct value is made once, and its squared error counts as often as a weight wants it. Instances: a LeNet-5
trained here for 4 epochs, its convolutions in 8 bits by channel (150 weights give 2,400; its integers are in
results/cartesian_lenet.json, without which it is trained again: LILLIPUT_TEST_DATA with MNIST), and, if the file is
given, published lists of distinct values.

Rows: single active mutation; 0.1% of the genes at most, as the published engine counts; 1%, as published. Each searches
for zero error, then for little energy, with four offspring in a generation. "floor": what drawing genes costs by
itself, random numbers and one look at each gene, at the share of active genes where the error stage ended. Writes
results/cartesian_speed.json and .txt.
"""

import json
import os
import sys
import time
from pathlib import Path

os.environ.update(dict.fromkeys(("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OMP_NUM_THREADS"), "1"))  # before numpy

import numpy as np
import torch
from numba import njit
from torch import nn

from lilliput.data.mnist import read_mnist
from lilliput.ops import cartesian_functions as functions
from lilliput.ops.cartesian_goal import whole
from lilliput.ops.cartesian_multiplexed import multiplexed
from lilliput.ops.cartesian_random_kernels import HALF, LOWER, bounded_, word_
from lilliput.ops.cartesian_search import Settings, advance, start
from lilliput.report.result import environment

RESULTS = Path(__file__).parent / "results"
LENET = RESULTS / "cartesian_lenet.json"
SECONDS, ENERGY_SECONDS, CHUNK, SEEDS = 12.0, 4.0, 2000, (0,)
MARKS = (1.0, 3.0, 12.0)
ROWS, COLUMNS = 256, 31
MODES = {
    "single active": Settings(),
    "0.1% at most": Settings(mutation="rate", strength=0.001),
    "1% at most": Settings(mutation="rate", strength=0.01),
}
PJ = {
    functions.MULTIPLY: 0.1515,
    functions.SUBTRACT: 2.5e-2,
    functions.ADD: 1.95e-2,
    functions.NEGATE: 3.3e-3,
    functions.DECREMENT: 3.1e-3,
    functions.INCREMENT: 2.3e-3,
    functions.XOR: 4.35e-4,
    functions.OR: 1.17e-4,
    functions.AND: 9e-5,
    functions.NOT: 4.8e-6,
    functions.FLIP_LOWER: 4e-6,
    functions.FLIP_SIGN: 6e-7,
}
"""Energy of a gate in 8 bits, from published plots of totals; wiring, constants and shifts cost nothing there."""


class LeNet(nn.Sequential):
    def __init__(self):
        convolutions = nn.Conv2d(1, 6, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 16, 5), nn.ReLU()
        linear = nn.Linear(400, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, 10)
        super().__init__(*convolutions, nn.MaxPool2d(2), nn.Flatten(), *linear)


def accuracy(net, images, labels):
    with torch.no_grad():
        return float((torch.cat([net(x).argmax(1) for x in images.split(1000)]) == labels).float().mean())


def trained_lenet() -> dict:
    """int8 weights of both convolutions; 4 epochs of AdamW, one cycle; the first 55,000 images."""
    torch.manual_seed(0)
    data = read_mnist(Path(os.environ["LILLIPUT_TEST_DATA"]) / "MNIST" / "raw")
    (images, labels), (test, test_labels) = ((x.float() / 255, y) for x, y in (data.train, data.test))
    net, epochs, size, count = LeNet(), 4, 128, 55_000
    optimizer = torch.optim.AdamW(net.parameters(), lr=4e-3)
    steps = epochs * (count // size)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=4e-3, total_steps=steps)
    for _ in range(epochs):
        for index in torch.randperm(count)[: count // size * size].split(size):
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(images[index]), labels[index]).backward()
            optimizer.step()
            schedule.step()
    found: dict = {"float_test_accuracy": accuracy(net, test, test_labels)}
    with torch.no_grad():
        for name, layer in (("conv1", net[0]), ("conv2", net[3])):
            assert isinstance(layer, nn.Conv2d)
            scale = layer.weight.abs().amax((1, 2, 3), keepdim=True) / 127
            integers = torch.round(layer.weight / scale)
            found[name] = integers.int().reshape(-1).tolist()
            layer.weight.copy_(integers * scale)
    return found | {"int8_test_accuracy": accuracy(net, test, test_labels)}


def instances():
    if not LENET.exists():
        LENET.write_text(json.dumps(trained_lenet()) + "\n")
    lenet = json.loads(LENET.read_text())
    found = {"LeNet, 150 to 2,400": (lenet["conv1"], lenet["conv2"])}
    for path in sys.argv[1:]:
        lists = json.loads(Path(path).read_text())["layer_bypass"]
        for i, values in enumerate(lists):
            found[f"published lists {i}"] = values["x"], values["y"]
    return found


@njit
def draws(flat, genes, random, count):
    """Random genes and values, and a look at what is there."""
    met = 0
    for _ in range(count):
        word = word_(random)
        gene = genes[bounded_(random, word >> HALF, len(genes))]
        met += flat[gene] != bounded_(random, word & LOWER, 4000)
    return met


def floor_ns(state) -> dict[str, float]:
    """What the draws of one offspring cost under single active mutation."""
    reads = np.asarray(functions.READS)[state.circuit.nodes[:, 2]][:, None]
    used = np.concatenate([np.arange(2) < reads, np.ones_like(reads, dtype=bool)], axis=1)
    active = int((state.circuit.active()[:, None] & used & ~state.locked[0]).sum())
    genes = np.flatnonzero(~state.locked[0].reshape(-1)) // 3 * 8
    flat, random, count = np.zeros(8 * len(state.locked[0]), dtype=np.int32), state.random.copy(), 5_000_000
    draws(flat, genes, random, 10)
    begin = time.process_time()
    draws(flat, genes, random, count)
    tries = len(genes) / active
    return {"active_genes": active, "draws": tries, "ns": 1e9 * (time.process_time() - begin) / count * tries}


def energy_costs():
    energy = np.zeros(functions.COUNT)
    for function, cost in PJ.items():
        energy[function] = cost
    scaled, scale = whole(energy, (1 << 62) // (ROWS * COLUMNS))
    return (scaled, np.zeros(functions.COUNT, dtype=np.int64)), scale


def searched(given, wanted, settings, seed):
    costs, scale = energy_costs()
    task = multiplexed(given, wanted, rows=ROWS, columns=COLUMNS, seed=seed, costs=costs)
    state = start(task.goal, task.circuit, settings, seed, task.locked)
    advance(task.goal, settings, state, 1)  # compiled, or read from the cache
    row = {"inputs": len(task.given), "outputs": len(task.values), "error_at_start": state.error}
    row["missing"] = len(np.setdiff1d(task.values, task.given))
    marks, seconds, begin = {}, 0.0, time.process_time()
    while state.stage == 0 and seconds < SECONDS:
        state = advance(task.goal, settings, state, CHUNK)
        seconds = time.process_time() - begin
        marks |= {str(m): state.error for m in MARKS if seconds >= m and str(m) not in marks}
    row |= {"errors": marks, "seconds": seconds, "error": state.error, "offspring_per_s": state.tried / seconds}
    row |= {"neutral": state.neutral / state.tried, "gates": state.gates}
    if settings.mutation == "single_active":
        row["floor"] = floor_ns(state)
    if state.stage == 1:
        row["energy_pj_at_zero_error"] = state.energy / scale
        tried, seconds, begin = state.tried, 0.0, time.process_time()
        while seconds < ENERGY_SECONDS:
            state = advance(task.goal, settings, state, CHUNK)
            seconds = time.process_time() - begin
        row["energy_stage"] = {
            "seconds": seconds,
            "offspring_per_s": (state.tried - tried) / seconds,
            "energy_pj": state.energy / scale,
            "gates": state.gates,
        }
    made = task.made(state.circuit, wanted)
    assert task.goal.output_weights.sum() == made.size
    assert ((made - np.asarray(wanted)) ** 2).sum() == state.error
    return row


def line(name: str, row: dict) -> str:
    text = f"{name:44s} {row['offspring_per_s']:10,.0f}/s  error {row['error']:8,} after {row['seconds']:5.2f} s"
    if "floor" in row:
        text += f"  {1e9 / row['offspring_per_s']:.0f} ns, floor {row['floor']['ns']:.0f}"
    if "energy_stage" in row:
        stage = row["energy_stage"]
        text += f"; energy stage {stage['offspring_per_s']:,.0f}/s, {stage['energy_pj']:.2g} pJ, {stage['gates']} gates"
    return text


def main() -> None:
    torch.set_num_threads(1)
    found, lines = {}, []
    for instance, (given, wanted) in instances().items():
        for mode, settings in MODES.items():
            for seed in SEEDS:
                name = f"{instance}, {mode}, seed {seed}"
                found[name] = searched(given, wanted, settings, seed)
                lines.append(line(name, found[name]))
                print(lines[-1], flush=True)
    (RESULTS / "cartesian_speed.txt").write_text("\n".join(lines) + "\n")
    (RESULTS / "cartesian_speed.json").write_text(
        json.dumps({"environment": environment(), "rows": found}, indent=1) + "\n"
    )


if __name__ == "__main__":
    main()
