"""Exact 1-D clustering against its peers: CPU time of one thread, all in turn in one process, median.

    pip install jenkspy==0.4.1 kmeans1d==0.5.0 ckwrap==1.2.3 ckmeans==1.2.0
    python benchmarks/clustering.py

Our "tables" are the optimum for every k = 1..k, with errors; "all k" adds centroids and labels for each of
them. Ours at "one k" and all peers are that single k. Values
are normal float32 for us, the same as float64 for the peers; a peer gets the type it takes without conversion: an
array, or a list for jenkspy. jenkspy returns the breaks and ckmeans the clusters, not the labels. A peer is left out
where one call would take more than about two seconds. Rows: a matrix of 10,000 x 400; peers in a loop over its first
200 rows, scaled up. Writes results/clustering.txt.
"""

import platform
import statistics
import sys
import time
from importlib.metadata import version
from pathlib import Path

import ckmeans  # pyright: ignore[reportMissingImports]
import ckwrap  # pyright: ignore[reportMissingImports]
import jenkspy
import kmeans1d
import numpy as np

from lilliput.ops.clustering import optimal_1d, optimal_1d_all
from lilliput.ops.clustering_rows import optimal_1d_rows, optimal_1d_rows_all

RESULTS = Path(__file__).parent / "results" / "clustering.txt"
ROUNDS = 7
CASES = [
    (25, 8), (150, 8), (150, 64), (400, 4), (400, 16), (400, 250), (1152, 16), (4096, 8), (4096, 64), (4096, 250),
    (44_426, 16), (272_000, 16), (1_000_000, 4), (1_000_000, 16), (1_000_000, 64),
]  # fmt: skip
PEERS = {
    "ckmeans": ckmeans.ckmeans,
    "ckwrap": lambda x, k: ckwrap.ckmeans(x, k, method="loglinear"),
    "kmeans1d": kmeans1d.cluster,
    "jenkspy": lambda x, k: jenkspy.jenks_breaks(x, n_classes=k),
}
NS = {"ckmeans": 80, "ckwrap": 160, "kmeans1d": 300, "jenkspy": 9}
"""About ns for each point and cluster, and again for each point with jenkspy; for what to leave out."""


def processor():
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":")[1].strip()
    return platform.processor()


def medians(calls, seconds=0.02):
    """Median CPU ms of each call, the calls in turn; short ones are repeated for about `seconds` in each round."""
    repeats = {}
    for name, call in calls.items():
        call()
        started = time.process_time()
        call()
        repeats[name] = max(1, int(seconds / max(time.process_time() - started, 1e-6)))
    times = {name: [] for name in calls}
    for _ in range(ROUNDS):
        for name, call in calls.items():
            started = time.process_time()
            for _ in range(repeats[name]):
                call()
            times[name].append((time.process_time() - started) / repeats[name])
    return {name: 1000 * statistics.median(t) for name, t in times.items()}


def show(ms):
    return "-" if ms is None else f"{ms:.4f}" if ms < 1 else f"{ms:.2f}" if ms < 100 else f"{ms:.0f}"


def one_line(n, k, rng):
    x = rng.normal(size=n).astype(np.float32)
    x64, as_list = x.astype(np.float64), x.tolist()
    row = x[None]
    calls = {
        "one k": lambda: optimal_1d(x, k),
        "tables": lambda: optimal_1d_rows_all(row, k, threads=1),
        "all k": lambda: optimal_1d_all(x, k),
    }
    if n >= 100_000:
        calls["65,536 bins"] = lambda: optimal_1d(x, k, bins=65_536)
    for name, call in PEERS.items():
        if NS[name] * n * k * (n if name == "jenkspy" else 1) < 2e9:
            calls[name] = lambda call=call, name=name: call(as_list if name == "jenkspy" else x64, k)
    found = medians(calls)
    cells = [show(found.get(name)) for name in ("one k", "tables", "all k", "65,536 bins", *PEERS)]
    best = min((found[name] for name in PEERS if name in found), default=None)
    ratio = "-" if best is None else f"{best / found['one k']:.1f}"
    return [f"{n:,}", str(k), *cells, ratio]


def excess(n, k, rng):
    x = rng.normal(size=n)
    return f"{optimal_1d(x, k, bins=65_536).sse / optimal_1d(x, k).sse - 1:.1e}"


def rows(k, rng):
    x = rng.normal(size=(10_000, 400)).astype(np.float32)
    some = x[:200].astype(np.float64)
    lists = some.tolist()
    calls = {
        "one k": lambda: optimal_1d_rows(x, k, threads=1),
        "all k": lambda: optimal_1d_rows_all(x, k, threads=1),
    }
    for name, call in PEERS.items():
        own = lists if name == "jenkspy" else some
        calls[name] = lambda call=call, own=own: [call(row, k) for row in own]
    found = medians(calls)
    for name in PEERS:
        found[name] *= len(x) / len(some)
    walls = []
    for _ in range(ROUNDS):
        started = time.perf_counter()
        optimal_1d_rows_all(x, k, threads=2)
        walls.append(time.perf_counter() - started)
    found["all k, 2 threads, wall"] = 1000 * statistics.median(walls)
    return [str(k), *(show(found[name]) for name in ("one k", "all k", "all k, 2 threads, wall", *PEERS))]


def table(head, lines):
    widths = [max(len(row[c]) for row in [head, *lines]) for c in range(len(head))]
    return "\n".join("  ".join(cell.rjust(w) for cell, w in zip(row, widths, strict=True)) for row in [head, *lines])


def main():
    rng = np.random.default_rng(0)
    versions = ", ".join(f"{name} {version(name)}" for name in ("numpy", "numba", *PEERS))
    parts = [
        "python benchmarks/clustering.py",
        f"{processor()}, Python {platform.python_version()}, {versions}",
        f"CPU ms of one thread, median of {ROUNDS} rounds, in turn in one process; ratio: best peer / ours at one k",
        "",
    ]
    lines = []
    for n, k in CASES:
        lines.append(one_line(n, k, rng))
        print("  ".join(lines[-1]), file=sys.stderr, flush=True)
    parts.append(table(["n", "k", "one k", "tables", "all k", "65,536 bins", *PEERS, "ratio"], lines))
    parts += ["", "excess of the squared error with 65,536 bins over the optimum, a million normal values:"]
    parts.append(", ".join(f"k={k} {excess(1_000_000, k, rng)}" for k in (4, 16, 64)))
    parts += ["", "10,000 rows of 400 float32; labels of 'one k' included, 'all k' are tables without labels"]
    head = ["k", "one k", "all k", "all k, 2 threads, wall", *PEERS]
    parts.append(table(head, [rows(k, rng) for k in (4, 16, 32)]))
    text = "\n".join(parts) + "\n"
    RESULTS.write_text(text)
    print(text)


if __name__ == "__main__":
    main()
