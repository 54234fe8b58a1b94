"""`import lilliput` against `import torch`: whole processes in turn, best of several.

    python benchmarks/import_time.py

Writes results/import_time.json.
"""

import json
import subprocess
import sys
import time
from pathlib import Path

RESULTS = Path(__file__).parent / "results" / "import_time.json"
ROUNDS = 7
COMMANDS = {
    "torch": "import torch",
    "lilliput": "import lilliput",
    "lilliput_all_names": "import lilliput; [getattr(lilliput, name) for name in lilliput.__all__]",
}


def seconds(code):
    started = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True)
    return time.perf_counter() - started


def main():
    times = {name: [] for name in COMMANDS}
    for _ in range(ROUNDS):
        for name, code in COMMANDS.items():
            times[name].append(seconds(code))
    best = {name: round(min(values), 3) for name, values in times.items()}
    ratios = [round(min(times[name]) / min(times["torch"]), 3) for name in list(COMMANDS)[1:]]
    found = {"seconds": best, "lilliput / torch": ratios[0], "lilliput with all names / torch": ratios[1]}
    RESULTS.write_text(json.dumps(found, indent=2) + "\n")
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
