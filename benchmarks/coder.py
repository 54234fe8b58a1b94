"""The context coder beside general compressors, on the indices of k-means of real networks.

    LILLIPUT_TEST_DATA=folder python benchmarks/coder.py        (zstandard, if installed, takes part)

For ResNet-20 (268,336 weights) and LeNet-5 (430,500), each weight tensor with one table of 16, 8 or 4 values: bytes of
all index streams. `order 0` is the entropy of each tensor: no coder without contexts can be smaller. `order 1` is the
ideal length of an adaptive model that knows the symbol before. zstd -22 and xz -9e code each tensor twice, packed and
one byte a symbol, and the smaller counts. Our bytes hold everything that decoding needs but the shape. Speeds are
millions of symbols for each second of CPU time, one thread, best of 9, all in turn. Writes results/coder.*.
"""

import json
import lzma
import math
import os
import time
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

from lilliput.ops.clustering import optimal_1d
from lilliput.ops.context_coding import decode, encode
from lilliput.ops.packing import pack
from lilliput.report.result import environment

RESULTS = Path(__file__).parent / "results" / "coder.json"
NETWORKS = {"ResNet-20": "resnet20_cifar10", "LeNet-5": "sic_lenet5_tanh_mnist"}
ROUNDS = 9


def order_0(symbols):
    share = np.bincount(symbols) / len(symbols)
    share = share[share > 0]
    return -(share * np.log2(share)).sum() * len(symbols) / 8


def order_1(symbols, bits):
    """Counts that start at a half, one table for each symbol before."""
    counts = np.full((1 << bits, 1 << bits), 0.5)
    before, length = 0, 0.0
    for s in symbols.tolist():
        row = counts[before]
        length -= math.log2(row[s] / row.sum())
        row[s] += 1
        before = s
    return length / 8


def general(symbols, bits):
    """{name: bytes} of compressors that know nothing of weights."""
    layouts = [pack(symbols, bits), symbols.astype(np.uint8).tobytes()]
    found = {"xz -9e": min(len(lzma.compress(x, preset=9 | lzma.PRESET_EXTREME)) for x in layouts)}
    try:
        import zstandard  # pyright: ignore[reportMissingImports] - it may be there
    except ImportError:
        return found
    return {"zstd -22": min(len(zstandard.ZstdCompressor(level=22).compress(x)) for x in layouts), **found}


def cpu(call):
    started = time.process_time()
    call()
    return time.process_time() - started


def main():
    folder = Path(os.environ["LILLIPUT_TEST_DATA"]) / "models"
    rows = []
    for network, file in NETWORKS.items():
        weights = {k: v for k, v in load_file(folder / f"{file}.safetensors").items() if v.ndim > 1}
        for bits in (4, 3, 2):
            row = {"network": network, "bits": bits, "symbols": sum(v.size for v in weights.values()), "packed": 0}
            jobs = []
            for v in weights.values():
                symbols = np.ascontiguousarray(optimal_1d(v.reshape(-1), 1 << bits).labels, np.int64)
                widths = np.full(v.size, bits, np.uint8)
                coded = encode(symbols, widths, v.shape)
                assert np.array_equal(decode(coded, widths, v.shape), symbols)
                jobs.append((symbols, coded, widths, v.shape))
                parts = {"packed": len(pack(symbols, bits)), "order 0": order_0(symbols)}
                parts |= {"order 1": order_1(symbols, bits)} | general(symbols, bits) | {"ours": len(coded)}
                for name, size in parts.items():
                    row[name] = row.get(name, 0) + size
            times = {"encode": [], "decode": []}
            for _ in range(ROUNDS):
                times["encode"].append(sum(cpu(lambda j=j: encode(j[0], j[2], j[3])) for j in jobs))
                times["decode"].append(sum(cpu(lambda j=j: decode(j[1], j[2], j[3])) for j in jobs))
            row |= {f"{name} M/s": row["symbols"] / min(t) / 1e6 for name, t in times.items()}
            rows.append(row)
    names = list(rows[0])
    table = [names] + [
        [f"{v:.1f}" if "M/s" in k else f"{v:.0f}" if k not in names[:1] else v for k, v in r.items()] for r in rows
    ]
    widths = [max(len(line[i]) for line in table) for i in range(len(names))]
    text = "\n".join("  ".join(cell.rjust(w) for cell, w in zip(line, widths, strict=True)) for line in table)
    print(text)
    RESULTS.with_suffix(".txt").write_text(text + "\n")
    RESULTS.write_text(json.dumps({"rows": rows, "environment": environment()}, indent=1) + "\n")


if __name__ == "__main__":
    main()
