"""Lilliput beside other tools on the published ResNet-20 for CIFAR-10: equal data, no training.

    pip install zstandard
    LILLIPUT_TEST_DATA=folder python benchmarks/resnet20.py [all|ours|peers|table] [--only NAME] [--venvs FOLDER]

Every tool is given the same 1,024 training images, drawn with seed 0, without labels; no tool sees a test label, and
none chooses anything by the test images, which are read once for each row. Each peer runs in an environment of its
own, made under FOLDER when it is first needed. What was measured is kept in results/resnet20.json: `ours` measures only
our rows again, `--only` those of which NAME is a part (for peers: of the runner's name). `table` writes
results/resnet20.txt from what is kept.
"""

import argparse
import json
import platform
from pathlib import Path

import torch
from peer_runs import header, peer_rows, runners
from published_resnet20 import make
from resnet20_ours import measured, rows
from resnet20_table import text
from resnet20_tools import unlabelled

from lilliput.report.result import environment

RESULTS = Path(__file__).parent / "results" / "resnet20.json"
SAMPLES, SEED = 1024, 0
HOW = f"""\
# ResNet-20 for CIFAR-10, published weights, {SAMPLES:,} unlabelled training images (seed {SEED}), no training

Made by `LILLIPUT_TEST_DATA=folder python benchmarks/resnet20.py`. Accuracy: 10,000 test images, read once a row.
"file" is what the tool writes (Lilliput: the whole .lil), in bytes. CPU seconds of one thread, compression alone."""


def keep(change):
    """Change the kept results, and write the table: as they are now, another run may have written meanwhile."""
    found = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {}
    found["how"] = HOW
    change(found)
    found["ours"] = {name: found["ours"][name] for name in rows() if name in found.get("ours", {})}
    found["peers"] = {name: found["peers"][name] for name in runners() if name in found.get("peers", {})}
    RESULTS.write_text(json.dumps(found, indent=1) + "\n")
    RESULTS.with_suffix(".txt").write_text(text(found))


def measure_ours(model, given, task, only):
    for name, row in rows().items():
        if only in name:
            result = measured(row, model, given, task)
            print(name, json.dumps(result), flush=True)

            def change(found, name=name, result=result):
                found.setdefault("ours", {})[name] = result
                found["environment"] = environment() | {"processor": processor()}

            keep(change)


def measure_peers(model, given, task, only, venvs):
    for name, runner in runners().items():
        if only in name:
            result = peer_rows(runner, model, given, task, venvs)
            result["requirements"] = header(runner)["dependencies"]
            result["environment"] = {"python": platform.python_version(), "processor": processor()}
            for row in result["rows"]:
                print(name, json.dumps(row), flush=True)

            def change(found, name=name, result=result):
                found.setdefault("peers", {})[name] = result

            keep(change)


def processor():
    info = Path("/proc/cpuinfo")
    names = [line.split(":")[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
    return names[0] if names else platform.machine()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="?", default="all", choices=("all", "ours", "peers", "table"))
    parser.add_argument("--only", default="", metavar="NAME")
    parser.add_argument("--venvs", type=Path, default=Path("~/.cache/lilliput-peers"), metavar="FOLDER")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    if asked.what != "table":
        model, task = make()
        given = unlabelled(task, SAMPLES, SEED)
        if asked.what in ("all", "peers"):
            measure_peers(model, given, task, asked.only, asked.venvs.expanduser())
        if asked.what in ("all", "ours"):
            measure_ours(model, given, task, asked.only)
    keep(lambda found: None)
    print(RESULTS.with_suffix(".txt").read_text())


if __name__ == "__main__":
    main()
