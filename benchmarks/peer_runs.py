"""Runs other tools on the published ResNet-20, each in an environment of its own, and judges all of them in one place.

A runner in `peers/` names its packages in its header (PEP 723). Its environment is made when it is first needed, and
again when the header changes. `peers/exchange.py` says what goes in and out.
"""

import hashlib
import json
import lzma
import os
import re
import subprocess
import tempfile
import tomllib
import venv
from pathlib import Path
from typing import Any

import numpy as np
import torch
import zstandard  # pyright: ignore[reportMissingImports] - its users install it
from peers.exchange import fold_, weights_of
from published_resnet20 import ResNet
from resnet20_tools import answers, file_runner, published_runner, times_faster

from lilliput.core.errors import LilliputError

PEERS = Path(__file__).parent / "peers"
MOST_SECONDS = 3600
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")


def runners():
    """{name: file} of all peers."""
    return {path.stem: path for path in sorted(PEERS.glob("*.py")) if "# /// script" in path.read_text()}


def header(runner):
    lines = re.search(r"^# /// script\n((?:#.*\n)+?)# ///$", runner.read_text(), re.MULTILINE)
    if lines is None:
        raise SystemExit(f"{runner} has no header with its packages")
    return tomllib.loads("\n".join(line[2:] for line in lines[1].splitlines()))


def environment_of(runner, venvs):
    """The interpreter of the runner's own environment, made if it is not there."""
    packages = header(runner)["dependencies"]
    mark = hashlib.sha256("\n".join(packages).encode()).hexdigest()[:8]
    folder = venvs / f"{runner.stem}-{mark}"
    python = folder / "bin" / "python"
    if not (folder / "whole").is_file():
        print(f"{runner.stem}: making {folder}", flush=True)
        venv.create(folder, with_pip=True, clear=True)
        done = subprocess.run(
            [python, "-m", "pip", "install", "-q", *packages], check=False, capture_output=True, text=True
        )
        if done.returncode:
            raise RuntimeError(f"pip install {' '.join(packages)}: {done.stderr.strip()[-600:]}")
        (folder / "whole").touch()
    return python


def write_inputs(folder, model, given, test=None):
    """What a runner may see: weights, calibration images, and test images only if it must run the network itself."""
    np.savez(folder / "calibration.npz", images=every_image(given.data("train")))
    np.savez(folder / "network.npz", **weights_of(model))
    folded = ResNet()
    folded.load_state_dict(model.state_dict())
    np.savez(folder / "folded.npz", **weights_of(fold_(folded)))
    if test is not None:
        np.savez(folder / "test.npz", images=every_image(test))


def every_image(data):
    return data.batch(torch.arange(len(data)))[0].numpy()


def peer_rows(runner, model, given, task, venvs):
    """Rows of one peer. `given` has the images that a tool may see, `task` the labels that judge it."""
    found: dict[str, Any] = {"rows": [], "versions": {}}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        try:
            python = environment_of(runner, venvs)
            logits = header(runner).get("tool", {}).get("lilliput", {}).get("test_images", False)
            write_inputs(folder, model, given, task.data("test") if logits else None)
            done = subprocess.run(
                [python, runner, folder],
                env={**os.environ, **ONE_THREAD, "PYTHONPATH": str(PEERS.parent), "CUDA_VISIBLE_DEVICES": ""},
                check=False, stderr=subprocess.PIPE, text=True, timeout=MOST_SECONDS,
            )  # fmt: skip
            failed = f"exit code {done.returncode}: {done.stderr.strip()[-400:]}" if done.returncode else ""
        except (RuntimeError, subprocess.TimeoutExpired) as error:
            failed = str(error)
        if (folder / "rows.json").is_file():
            found = json.loads((folder / "rows.json").read_text())
        found["rows"] = [judged_or_error(row, folder, model, task) for row in found["rows"]]
    if failed:
        found["rows"].append({"group": "other", "name": f"{runner.stem}: all further rows", "error": failed[:800]})
    return found


def judged_or_error(row, folder, model, task):
    if "error" in row:
        return row
    try:
        return judged(dict(row), folder, model, task)
    except (RuntimeError, LilliputError, KeyError, ValueError, OSError) as error:
        kept = {"group": row["group"], "name": row["name"]}
        return kept | {"error": f"what it gave cannot be judged: {type(error).__name__}: {error}"[:800]}


def judged(row, folder, model, task):
    """The row with its accuracy and sizes: the same code for every tool."""
    row |= sizes((folder / row.pop("artifact")).read_bytes())
    if "weights" in row:
        with np.load(folder / row.pop("weights")) as arrays:
            state = {name: torch.from_numpy(arrays[name]) for name in arrays.files}
        net = fold_(ResNet())
        net.load_state_dict(state)
        row |= score(answers(net.eval(), task))
        weights = [value for name, value in state.items() if name.endswith("weight")]
        row["zeros"] = sum(int((w == 0).sum()) for w in weights) / sum(w.numel() for w in weights)
    elif "logits" in row:
        with np.load(folder / row.pop("logits")) as arrays:
            labels = torch.cat([y for _, y in task.data("test").batches(250)])
            row |= score(torch.from_numpy(arrays["logits"]).argmax(1) == labels)
    else:
        row |= judged_onnx(folder / row.pop("onnx"), model, task)
    return row


def judged_onnx(path, model, task):
    image = task.data("test").batch(torch.arange(1))[0]
    runner, run = file_runner(path, image)
    latency, faster = times_faster(runner, published_runner(model, task, image))
    return score(answers(run, task)) | {"latency_ms": round(latency, 4), "times_faster": round(faster, 3)}


def judged_artifact(data, run, task):
    return sizes(data) | score(answers(run, task))


def sizes(artifact):
    return {
        "bytes": len(artifact),
        "zstd_bytes": len(zstandard.ZstdCompressor(level=22).compress(artifact)),
        "xz_bytes": len(lzma.compress(artifact, preset=9 | lzma.PRESET_EXTREME)),
    }


def score(right):
    return {"accuracy": round(float(right.double().mean()) * 100, 2)}
