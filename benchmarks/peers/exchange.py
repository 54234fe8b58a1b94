"""What a peer's runner is given and hands back: a folder of arrays, in the runner's own environment.

Given: `network.npz` (the published state dict), `folded.npz` (BatchNorm folded), `calibration.npz` (normalized training
images, no labels), and `test.npz` (test images, no labels) only for runners whose output is logits. Handed back:
`rows.json`, and for each row its artifact and what accuracy is computed from: decoded weights of the folded network,
logits of the test images, or an ONNX file. Nothing here knows a label.
"""

import itertools
import json
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

Arrays = dict[str, np.ndarray]
KEPT: list[Any] = []
"""Definitions of operators live as long as their library."""


@dataclass(frozen=True, kw_only=True)
class Made:
    """One compressed network. One of `weights`, `logits` (called after the clock has stopped), `onnx`.

    `facts` go into the row as they are; `cpu_s` among them replaces the time of the whole call.
    """

    artifact: bytes
    weights: Arrays | None = None
    logits: Callable[[], np.ndarray] | None = None
    onnx: bytes | None = None
    facts: dict[str, Any] = field(default_factory=dict[str, Any])


@dataclass(frozen=True, kw_only=True)
class Row:
    group: str
    name: str
    make: Callable[[], Made]


def folder():
    return Path(sys.argv[1])


def arrays(name):
    with np.load(folder() / f"{name}.npz") as found:
        return {key: found[key] for key in found.files}


def images(name):
    return arrays(name)["images"]


def network(name="folded"):
    """The network in torch: "folded" with biases and without BatchNorm, or "network" as published."""
    import torch
    from published_resnet20 import ResNet  # pyright: ignore[reportMissingImports] - the harness names its folder

    torch.set_num_threads(1)
    model = ResNet()
    if name == "folded":
        fold_(model)
    model.load_state_dict({key: torch.from_numpy(value) for key, value in arrays(name).items()})
    return model.eval()


def fold_(model):
    """Each BatchNorm into the convolution before it, by torch's own function."""
    from torch import nn
    from torch.nn.utils.fusion import fuse_conv_bn_eval

    model.eval()
    for block in model.modules():
        children = list(block.named_children())
        for (first, conv), (second, norm) in itertools.pairwise(children):
            if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                setattr(block, first, fuse_conv_bn_eval(conv, norm))
                setattr(block, second, nn.Identity())
    return model


def reestimate_(model, calibration):
    """BatchNorm statistics taken anew: the mean over batches of 128."""
    import torch

    for norm in model.modules():
        if isinstance(norm, torch.nn.BatchNorm2d):
            norm.reset_running_stats()
            norm.momentum = None
            norm.train()
    with torch.no_grad():
        for batch in calibration.split(128):
            model(batch)
    model.eval()


def weights_of(model):
    return {key: value.detach().numpy() for key, value in model.state_dict().items()}


def run(rows, packages):
    """Make each row; what a peer raises is kept as the row's error, and the others go on."""
    done = []
    for number, row in enumerate(rows):
        entry: dict[str, Any] = {"group": row.group, "name": row.name}
        try:
            entry |= _made(row, number)
        except Exception as error:  # noqa: BLE001 - whatever a peer raises is its result
            traceback.print_exc()
            entry["error"] = f"{type(error).__name__}: {error}"[:600]
        done.append(entry)
        report = {"rows": done, "versions": {name: version(name) for name in packages}}
        (folder() / "rows.json").write_text(json.dumps(report, indent=1))
        print(json.dumps(entry), flush=True)


def _made(row, number):
    started = time.process_time()
    made = row.make()
    entry = {"cpu_s": round(time.process_time() - started, 2), **made.facts, "artifact": f"{number}.bin"}
    (folder() / entry["artifact"]).write_bytes(made.artifact)
    if made.weights is not None:
        entry["weights"] = f"{number}.npz"
        np.savez(folder() / entry["weights"], **made.weights)  # pyright: ignore[reportArgumentType]
    elif made.logits is not None:
        entry["logits"] = f"{number}.npz"
        np.savez(folder() / entry["logits"], logits=made.logits())
    elif made.onnx is not None:
        entry["onnx"] = f"{number}.onnx"
        (folder() / entry["onnx"]).write_bytes(made.onnx)
    return entry


def without_compiled_torchvision():
    """Let torchvision be imported beside torch for CPUs.

    The wheel of the package index is built for CUDA: its operators do not load, and its import then fails on two names
    that nothing here calls.
    """
    if KEPT:
        return
    import torch

    library = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    KEPT.append(library)
