"""What a search finds for byte limits, beside pruning alone, quantization alone and clustering alone.

    LILLIPUT_TEST_DATA=folder python benchmarks/search_front.py [digits | fashion] [alone | search] [limit]

One thread. digits-cnn, a minute of search for each limit; LeNet-5 (tanh) on Fashion-MNIST, trained here as the zoo
trains it (12 epochs; the weights are kept in ~/.cache/lilliput), five minutes each. The clock of the searches is the
CPU time of the process, so that a busy machine changes little. "Alone": one method at several strengths on the same
network, without training and trained like the search's full trainings; pruned weights that stay are float32. Files are
whole, with graph and recipe. Test is read once for each network that is shown.

Adds to results/search_front.json, and writes the .txt from it.
"""

import json
import os
import sys
import time
from pathlib import Path

os.environ.update(dict.fromkeys(("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OMP_NUM_THREADS"), "1"))  # before numpy

import torch

import lilliput as ll
from lilliput.auto.compress import epochs_for
from lilliput.core.artifact import Artifact
from lilliput.core.guard import FullForward
from lilliput.core.progress import Progress
from lilliput.graph import stored
from lilliput.graph.integer import runnable
from lilliput.pipeline.run import run
from lilliput.report.result import environment
from lilliput.training.fit import fit
from lilliput.zoo.registry import entry, open_model

PARTS = ("alone", "search")
RESULTS = Path(__file__).parent / "results"
NETWORK = "lenet5-tanh"
WEIGHTS = Path("~/.cache/lilliput/benchmarks/lenet5-tanh-fashion-mnist.lil").expanduser()
LIMITS = {"digits": ((4_000, 3_000, 2_000), "60s"), "fashion": ((150_000, 60_000, 30_000), "5min")}


class Said(Progress):
    def __init__(self, *beginnings):
        self.beginnings = beginnings

    def say(self, text):
        if text.startswith(self.beginnings):
            print("   ", text, flush=True)


def opened(name):
    """The network, trained; the weights of LeNet-5 are kept in the user's cache."""
    if name == "digits":
        return open_model("digits-cnn")
    folder = Path(os.environ["LILLIPUT_TEST_DATA"])
    if not WEIGHTS.exists():
        torch.manual_seed(0)  # initial weights
        model, task = open_model(NETWORK, data="fashion-mnist", data_root=folder, trained=False)
        net = Artifact.of(model, task.spec)
        fit(net, task, entry(NETWORK).training, generator=torch.Generator().manual_seed(0), progress=Said("epoch"))
        WEIGHTS.parent.mkdir(parents=True, exist_ok=True)
        WEIGHTS.write_bytes(stored.dumps(net))
    return open_model(NETWORK, weights=WEIGHTS, data="fashion-mnist", data_root=folder)


def recipes(task):
    """{name: recipes of one method, from strong to mild}; fewer of them for the larger network."""
    epochs = epochs_for(task)
    fold, tune = ll.FoldBatchNorm(), ll.FineTune(epochs=epochs, learning_rate=2e-3)
    aware = ll.QuantizationAwareTraining(epochs=epochs, learning_rate=1e-3)
    every = 1 if len(task.data("train")) < 10_000 else 2
    pruned = [[fold, ll.MagnitudePruning(sparsity=s)] for s in (0.8, 0.9, 0.95, 0.98)[::-every]]
    rounded = [[fold, ll.MixedPrecision(average_bits=b)] for b in (4.0, 3.0, 2.5, 2.0)[::-every]]
    clustered = [[fold, ll.WeightClustering(n_clusters=n)] for n in (8, 4, 3, 2)[::-every]]
    return {
        "prune only": pruned,
        "quantize only": rounded,
        "cluster only": clustered,
        "prune, trained": [[*recipe, tune] for recipe in pruned],
        "cluster, trained": [[*recipe, tune] for recipe in clustered],
        "quantize, trained": [[*recipe, aware] for recipe in rounded],
    }


def scores(model, task, artifact):
    evaluator = FullForward(task, model)
    network = runnable(artifact)
    return {role: task.score.value(evaluator(network, role).rows) for role in ("validation", "test")}


def alone(model, task):
    artifact = Artifact.of(model, task.spec)
    yield {"name": "float", "bytes": len(stored.dumps(artifact))} | scores(model, task, artifact)
    for kind, found in recipes(task).items():
        for recipe in found:
            started = time.process_time()
            steps = tuple(ll.Step(passes=(p,)) for p in recipe)
            artifact = run(model, task, ll.Recipe(steps=steps, threads=1)).artifact
            row = {"name": kind, "bytes": len(stored.dumps(artifact)), "settings": recipe[1].settings()}
            yield row | scores(model, task, artifact) | {"cpu_s": round(time.process_time() - started, 1)}


def searched(model, task, name):
    limits, seconds = LIMITS[name]
    for limit in [n for n in limits if str(n) in sys.argv] or limits:
        started = time.monotonic()
        result = ll.compress(model, task, max_bytes=limit, time=seconds, progress=Said("trial", "best:", "search"))
        ours = result.columns[-1].measurements
        chosen = min((t for t in result.trials if t["feasible"]), key=lambda t: (t["drop"], t["bytes"]))
        row = {"name": f"search, {limit:,} B", "bytes": int(ours["file"].value), "settings": chosen["name"]}
        row |= {"validation": chosen["score"], "test": ours["accuracy"].value, "feasible": result.feasible}
        row |= {"trials": sum(t["trial"] is not None for t in result.trials), "s": round(time.monotonic() - started)}
        front = [{k: t[k] for k in ("name", "bytes", "score", "feasible")} for t in result.trials if t["bytes"]]
        yield row | {"recipe": chosen["recipe"]["passes"], "candidates": front}


def line(row):
    settings = row.get("settings", "")
    text = settings if isinstance(settings, str) else ", ".join(f"{k} {v}" for k, v in settings.items())
    more = f"{row['trials']:>4} trials in {row['s']} s" if "trials" in row else ""
    return (
        f"{row['name']:<18}{row['bytes']:>9,} B{row['validation']:>10.2f}%{row['test']:>10.2f}%  {text} {more}".rstrip()
    )


def keep(name, part, row):
    path = RESULTS / "search_front.json"
    found = json.loads(path.read_text()) if path.exists() else {}  # read late: several of these may run
    rows = found.setdefault(name, {}).setdefault(part, [])
    same = (row["name"], row.get("settings") if part == "alone" else None)
    rows[:] = [r for r in rows if (r["name"], r.get("settings") if part == "alone" else None) != same] + [row]
    rows.sort(key=lambda r: -r["bytes"] if part == "search" else 0)
    found["environment"] = environment()
    path.write_text(json.dumps(found, indent=1) + "\n")
    write_table(found)


def write_table(found):
    text = []
    for known in (n for n in LIMITS if n in found):
        every = [row for p in PARTS for row in found[known].get(p, [])]
        text += [known, f"{'':<18}{'bytes':>11}{'validation':>11}{'test':>11}", *(line(r) for r in every), ""]
    (RESULTS / "search_front.txt").write_text("\n".join(text))


def main():
    torch.set_num_threads(1)
    time.monotonic = time.perf_counter = time.process_time
    for name in [n for n in LIMITS if n in sys.argv] or LIMITS:
        model, task = opened(name)
        for part in [p for p in PARTS if p in sys.argv] or PARTS:
            for row in alone(model, task) if part == "alone" else searched(model, task, name):
                print(line(row), flush=True)
                keep(name, part, row)


if __name__ == "__main__":
    main()
