# /// script
# dependencies = ["numpy==2.4.6", "kmeans1d==0.5.0", "constriction==0.5.0"]
# ///
"""Exact k-means on a line (kmeans1d), one table for each tensor, indices coded by their order-0 shares (constriction).

The file: for each weight its table in float16, the counts of its indices in uint16 and the coded words; biases in
float16. What is judged is decoded from the file.
"""

# pyright: reportMissingImports=false, reportAttributeAccessIssue=false

import constriction
import kmeans1d
import numpy as np
from exchange import Made, Row, arrays, run


def model_of(counts):
    return constriction.stream.model.Categorical(counts / counts.sum(), perfect=False)


def encoded(weights, k):
    parts = []
    for values in weights.values():
        if values.ndim == 1:
            parts.append(values.astype(np.float16).tobytes())
            continue
        indices, table = kmeans1d.cluster(values.reshape(-1).astype(float), k)
        symbols = np.array(indices, dtype=np.int32)
        counts = np.bincount(symbols, minlength=k).astype(np.uint16)
        coder = constriction.stream.queue.RangeEncoder()
        coder.encode(symbols, model_of(counts.astype(float)))
        words = coder.get_compressed()
        parts += [np.array(table, np.float16).tobytes(), counts.tobytes(), np.uint32(len(words)).tobytes()]
        parts.append(words.tobytes())
    return b"".join(parts)


def decoded(data, shapes, k):
    found, at = {}, 0

    def read(count, kind):
        nonlocal at
        values = np.frombuffer(data, kind, count, at)
        at += values.nbytes
        return values

    for name, shape in shapes.items():
        if len(shape) == 1:
            found[name] = read(shape[0], np.float16).astype(np.float32)
            continue
        table, counts = read(k, np.float16), read(k, np.uint16)
        words = read(int(read(1, np.uint32)[0]), np.uint32)
        coder = constriction.stream.queue.RangeDecoder(words)
        indices = coder.decode(model_of(counts.astype(float)), int(np.prod(shape)))
        found[name] = table[indices].astype(np.float32).reshape(shape)
    return found


def made(k):
    weights = arrays("folded")
    data = encoded(weights, k)
    return Made(artifact=data, weights=decoded(data, {name: v.shape for name, v in weights.items()}, k))


if __name__ == "__main__":
    run(
        [
            Row(group=group, name=f"exact k-means, {k} values a tensor, order-0", make=lambda k=k: made(k))
            for k, group in ((64, "near-lossless"), (32, "near-lossless"), (16, "small"))
        ],
        ("numpy", "kmeans1d", "constriction"),
    )
