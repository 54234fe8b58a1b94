"""The published ResNet-20: our file beside zstd and xz of the same integers, and beside the files of other tools.

    pip install zstandard
    LILLIPUT_TEST_DATA=folder python benchmarks/resnet20_sizes.py

"zstd -22" and "xz -9e" code the integers of all weights as one stream, packed or one byte each, whichever is smaller;
what else the file needs (scales, biases, tables) is added as it is. Other tools' files were measured once, in November
2026, on the same network and test images, with the versions that are named; "zstd" and "xz" are of their whole files.
Accuracies of ours are those of results/resnet20_training_free.json. Writes results/resnet20_sizes.txt.
"""

import lzma
from pathlib import Path
from typing import Any

import numpy as np
import zstandard  # pyright: ignore[reportMissingImports] - its users install it
from published_resnet20 import make

from lilliput.core import container
from lilliput.core.artifact import Artifact
from lilliput.core.method import Context, apply_checked_
from lilliput.methods.clustering.weight_clustering import WeightClustering
from lilliput.methods.normalization.batchnorm import FoldBatchNorm
from lilliput.methods.quantization.bias_correction import BiasCorrection
from lilliput.methods.quantization.post_training import Quantization
from lilliput.ops.packing import pack

RESULTS = Path(__file__).parent / "results" / "resnet20_sizes.txt"
SEARCHED: dict[str, Any] = {"weight_range": "output", "rounding": "output"}
OURS = {
    "8 bits per tensor": (8, [Quantization(weight_per="tensor", activation_bits=0)]),
    "7 bits per channel": (7, [Quantization(weight_bits=7, activation_bits=0)]),
    "4 bits per channel, biases corrected": (4, [Quantization(weight_bits=4, activation_bits=0), BiasCorrection()]),
    "4 bits per channel, searched": (4, [Quantization(weight_bits=4, activation_bits=0, **SEARCHED)]),
    "32 shared values a layer": (5, [WeightClustering(n_clusters=32)]),
}
PEERS = """\
LiteRT 2.3 static int8                      91.78   322336   255678   255616
LiteRT 2.3 weight-only int4                 90.12   184600   114341   113972
ONNX Runtime 1.31 static int8, per channel  91.71   367505   258845   253504
NNCF 3.4 int8 for OpenVINO                  91.54   433547   254396   249912
ExecuTorch 1.5 XNNPACK int8                 91.76   314280   257343   255520
torchao 0.18 int8 to ONNX                   91.78   434521   252560   247340
AMD Quark A8W8 ONNX                         91.70   310470   217391   210880
AIMET AdaRound w4, packed by us             91.45   136960   112866   111536
nncodec (DeepCABAC), qp -38                 91.74   215349        -        -
nncodec (DeepCABAC), qp -28                 91.18   136768        -        -"""


def integers(net, bits):
    """The stored integers of all weights, from 0, as one array; and the bytes of everything else."""
    parts, rest = [], 0
    for name, e in net.stored().items():
        if name.endswith("weight") and e.sharing is not None:
            parts.append(e.sharing.indices.reshape(-1).numpy())
            rest += 4 * e.values.numel()
        elif name.endswith("weight") and e.grid is not None:
            parts.append((e.integers() + (1 << (bits - 1))).reshape(-1).numpy())
            rest += 4 * e.grid.scale.numel()
        else:
            rest += 4 * e.values.numel()
    return np.concatenate(parts), rest


def main():
    model, task = make()
    lines = [f"{'':43}{'ours':>9}{'zstd -22':>9}{'xz -9e':>9}{'packed':>9}"]
    for name, (bits, passes) in OURS.items():
        net = Artifact.of(model, task.spec)
        context = Context.of(task, model)
        for method in (FoldBatchNorm(), *passes):
            apply_checked_(method, net, context)
        symbols, rest = integers(net, bits)
        layouts = [pack(symbols, bits), symbols.astype(np.uint8).tobytes()]
        zstd = min(len(zstandard.ZstdCompressor(level=22).compress(x)) for x in layouts) + rest
        xz = min(len(lzma.compress(x, preset=9 | lzma.PRESET_EXTREME)) for x in layouts) + rest
        sizes = (len(container.dumps(net, strip=True)), zstd, xz, len(layouts[0]) + rest)
        lines.append(f"{name:43}" + "".join(f"{size:9}" for size in sizes))
        print(lines[-1])
    lines += ["", f"{'files of other tools':43}{'accuracy':>6}{'file':>8}{'zstd -22':>9}{'xz -9e':>9}", PEERS]
    RESULTS.write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
