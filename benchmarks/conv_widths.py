"""How the time of a convolution in ONNX Runtime depends on its numbers of channels.

    python benchmarks/conv_widths.py

Residual blocks of two 3x3 convolutions, as in the three stages of a ResNet for CIFAR-10: only the inner number of
channels differs. One image, fp32, one thread, each in turn with the full width; `time` is the share of its time,
`macs` of its MACs. Writes results/conv_widths.json: the evidence behind `ChannelPruning(lanes=...)`.
"""

import json
import tempfile
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

from lilliput.core.artifact import Artifact, InputSpec
from lilliput.export import onnx
from lilliput.measure.latency import interleaved, session_runner
from lilliput.measure.runtime import session
from lilliput.report.result import environment

RESULTS = Path(__file__).parent / "results" / "conv_widths.json"
STAGES = ((16, 32), (32, 16), (64, 8))
"""(channels, side of the image)."""
BLOCKS = 6


class Block(nn.Module):
    def __init__(self, channels, inner):
        super().__init__()
        self.first = nn.Conv2d(channels, inner, 3, padding=1)
        self.second = nn.Conv2d(inner, channels, 3, padding=1)

    def forward(self, x):
        return F.relu(self.second(F.relu(self.first(x))) + x)


def runner(channels, side, inner):
    torch.manual_seed(0)
    model = nn.Sequential(*[Block(channels, inner) for _ in range(BLOCKS)]).eval()
    net = Artifact.of(model, InputSpec(shape=(channels, side, side), layout="CHW"))
    with tempfile.TemporaryDirectory() as folder:
        onnx.export(net, Path(folder) / "net.onnx", target="onnx-x86")
        opened = session(Path(folder) / "net.onnx")
    image = torch.randn((1, channels, side, side)).numpy()
    return session_runner(opened, {opened.get_inputs()[0].name: image}, threads=1)


def main():
    torch.set_num_threads(1)
    rows = []
    for channels, side in STAGES:
        full = runner(channels, side, channels)
        for inner in (1, 2, 4, 6, 8, 10, 12, 14, 15, 16, 20, 24, 26, 28, 32, 36, 40, 44, 48, 52, 56, 60, 64):
            if inner >= channels:
                break
            timings = interleaved({"full": full, "this": runner(channels, side, inner)}, repeats=40, min_time_ms=5)
            row = {"channels": channels, "side": side, "inner": inner, "macs": round(inner / channels, 3)}
            row["time"] = round(timings.ratio("this", "full").value, 3)
            row["full_ms"] = round(timings.latency("full").value, 4)
            rows.append(row)
            print(
                f"{channels:4} at {side:2}: {inner:3} inner, {row['macs']:6.3f} MACs, {row['time']:6.3f} time",
                flush=True,
            )
    RESULTS.write_text(json.dumps({"rows": rows, "environment": environment()}, indent=1) + "\n")


if __name__ == "__main__":
    main()
