"""A published integer-only ResMLP, as a program: every intermediate tensor and the logits, in the interpreter and in C.

Its rescaling is a rounding shift for each channel, and its biases are on the scale of the output.
"""

import math
import shutil

import numpy as np
import pytest
from test_c_writer import compiled, ran

from lilliput.core.program import Operation, Program, Rescale, Value
from lilliput.graph.interpreter import run


class Maker:
    """Builds a program on int8 values, tensors as [channels, tokens]."""

    def __init__(self, arrays):
        self.arrays, self.values, self.operations, self.tensors = arrays, {}, [], {}

    def value(self, name, shape):
        self.values[name] = Value(name=name, shape=shape, low=-128, high=127, scale=(1.0,))
        return name

    def emit(self, kind, inputs, output, shape, **parts):
        self.operations.append(Operation(kind=kind, inputs=inputs, output=self.value(output, shape), **parts))
        return output

    def rescale(self, name, low=-128):
        shift, offset = (self.arrays[f"{name}_{part}"].astype(np.int64) for part in "sb")
        return (Rescale(multiplier=np.ones_like(shift), shift=shift, zero_point=0, low=low, high=127, offset=offset),)

    def layer(self, kind, x, name, shape, weight, low=-128, **attributes):
        self.tensors[name] = weight.astype(np.int64)
        rescale = self.rescale(name, low)
        return self.emit(kind, (x,), name, shape, weight=name, rescale=rescale, attributes=attributes)

    def pointwise(self, x, name, low=-128):
        """A linear layer over channels."""
        w = self.arrays[f"{name}_w"]
        conv = {"kernel": (1,), "stride": (1,), "dilation": (1,), "pads": ((0, 0),), "groups": 1}
        return self.layer("conv", x, name, (len(w), 64), w[:, :, None], low, **conv)

    def affine(self, x, name):
        """A factor for each channel."""
        w = self.arrays[f"{name}_w"]
        conv = {"kernel": (1,), "stride": (1,), "dilation": (1,), "pads": ((0, 0),), "groups": len(w)}
        return self.layer("conv", x, name, (len(w), 64), w[:, None, None], **conv)

    def add(self, a, b, output):
        rescale = Rescale(
            multiplier=np.ones(1, np.int64), shift=np.zeros(1, np.int64), zero_point=0, low=-128, high=127
        )
        return self.emit("add", (a, b), output, (96, 64), rescale=(rescale,), attributes={"multipliers": (1, 1)})


def resmlp(arrays):
    m = Maker(arrays)
    m.value("input", (64, 48))
    m.layer("linear", "input", "embed_linear", (64, 96), arrays["embed_linear_w"])
    x = m.emit("transpose", ("embed_linear",), "inter_0", (96, 64), attributes={"order": (1, 0)})
    for i in range(4):
        token, mlp = f"blocks_{i}_token_mixer", f"blocks_{i}_mlp"
        y = m.affine(x, f"{token}_affine_1")
        y = m.layer("linear", y, f"{token}_linear", (96, 64), arrays[f"{token}_linear_w"])
        y = m.affine(y, f"{token}_affine_2")
        x = m.add(m.affine(x, f"{token}_res_affine"), y, f"{token}_sum")
        y = m.pointwise(m.pointwise(x, f"{mlp}_linear_1", low=0), f"{mlp}_linear_2")
        x = m.add(m.affine(x, f"{mlp}_res_affine"), y, f"inter_{i + 1}")
    mean = Rescale(multiplier=np.ones(1, np.int64), shift=np.array([6]), zero_point=0, low=-128, high=127)
    m.emit("sum", (x,), "mean", (96,), rescale=(mean,), attributes={"dims": (1,)})
    m.layer("linear", "mean", "classifier_linear", (10,), arrays["classifier_linear_w"])
    return Program(
        values=m.values,
        operations=tuple(m.operations),
        input="input",
        outputs=("classifier_linear",),
        tensors=m.tensors,
    )


@pytest.fixture(scope="module")
def arrays(published_data):
    path = published_data / "psa" / "resmlp_relu_h96_int8.npz"
    if not path.is_file():
        pytest.skip(f"{path} is not here")
    with np.load(path) as file:
        return dict(file)


@pytest.mark.parametrize("fast", [False, True])
def test_all_intermediate_tensors_and_logits_are_the_published_ones(arrays, fast):
    seen = {}
    codes = arrays["samples_input"].astype(np.int64)
    (logits,) = run(resmlp(arrays), codes, fast=fast, visit=lambda o, q: seen.update({o.output: q}))
    for i in range(5):
        assert np.array_equal(seen[f"inter_{i}"].transpose(0, 2, 1), arrays[f"samples_inter_{i}"]), i
    assert np.array_equal(logits, arrays["samples_output"])


@pytest.mark.skipif(shutil.which("gcc") is None, reason="gcc is not installed")
def test_c_gives_the_published_logits(arrays, tmp_path):
    binary = compiled(resmlp(arrays), tmp_path)
    found = np.frombuffer(ran(binary, arrays["samples_input"].tobytes()), np.int8)
    assert np.array_equal(found.reshape(8, 10), arrays["samples_output"])
    random = np.random.default_rng(0).integers(-128, 128, (20, 64, 48))
    expected = run(resmlp(arrays), random)[0]
    found = np.frombuffer(ran(binary, random.astype(np.int8).tobytes()), np.int8)
    assert np.array_equal(found.reshape(20, math.prod(expected.shape[1:])), expected)
