# /// script
# dependencies = ["torch==2.13.0", "torchvision==0.28.0", "numpy==1.26.4", "nncodec==2.1.3"]
# ///
"""DeepCABAC as in the neural network coding standard (nncodec, its default settings but for the step), no data.

What is judged is decoded from the bit stream.
"""

# pyright: reportMissingImports=false

import os
import tempfile

from exchange import Made, Row, arrays, folder, run, without_compiled_torchvision

STEPS = {-38: "near-lossless", -32: "near-lossless", -28: "4-bit", -26: "small", -24: "small"}


def made(**settings):
    without_compiled_torchvision()
    from nncodec import nn as codec

    weights = arrays("folded")
    with tempfile.TemporaryDirectory(dir=folder()) as results:
        settings = {"results": results, "verbose": False, **settings}
        stream = bytes(codec.encode(dict(weights), settings))
    found = codec.decode(bytearray(stream), settings)
    return Made(artifact=stream, weights={name: found[name].reshape(v.shape) for name, v in weights.items()})


if __name__ == "__main__":
    os.chdir(folder())
    rows = [Row(group=g, name=f"DeepCABAC, qp {qp}", make=lambda qp=qp: made(qp=qp)) for qp, g in STEPS.items()]
    plain = Row(group="small", name="DeepCABAC, qp -24, steps not dependent", make=lambda: made(qp=-24, use_dq=False))
    run([*rows, plain], ("nncodec", "torch", "numpy"))
