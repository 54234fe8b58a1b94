"""What stands around the core in C says what Python says: codes, classes, probabilities, scores and decisions."""

import math
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from lilliput.core.artifact import InputSpec
from lilliput.core.errors import ExportError
from lilliput.core.program import Operation, Program, Value
from lilliput.core.task import Task
from lilliput.export.c import project
from lilliput.export.c.interface import Interface, files
from lilliput.export.c.writer import Writer
from lilliput.graph.answers import anomaly_scores, anomaly_threshold, classes
from lilliput.graph.integer import runnable
from lilliput.graph.interpreter import decode, quantize_input, run
from lilliput.graph.lower import lower
from lilliput.methods.quantization.post_training import Quantization
from lilliput.nn.models.digits import TinyAutoencoder
from lilliput.zoo.registry import open_model
from lilliput.zoo.tasks import CIFAR_MEAN, CIFAR_STD, one_class_digits
from lowered import quantized, quantized_tiny

DOCUMENT = Path(__file__).parents[2] / "docs" / "c.md"
GCC = shutil.which("gcc")
needs_gcc = pytest.mark.skipif(GCC is None, reason="gcc is not installed")
FLAGS = ["-std=c99", "-O2", "-Wall", "-Wextra", "-Werror", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
LOOP = """
#include <stdio.h>
#include "net.h"
static {A} a[{NA}]; static {B} b[{NB}];
int main(void) {{
  while (fread(a, sizeof a, 1, stdin)) {{ {CALL}; fwrite(b, sizeof b, 1, stdout); }}
  return 0;
}}
"""


def program_of(*, x=None, y=None, tail="", operations=()):
    """Only the two ends: what `files` looks at."""
    ends = {
        "x": Value(name="x", shape=(4,), low=-128, high=127, scale=(0.25,)),
        "y": Value(name="y", shape=(4,), low=-(2**31), high=2**31 - 1, scale=(1.0,)),
    }
    ends = {"x": replace(ends["x"], **(x or {})), "y": replace(ends["y"], **(y or {}))}
    return Program(values=ends, operations=tuple(operations), input="x", outputs=("y",), tensors={}, tail=tail)


def computed(program, interface, folder, data, kinds, call):
    """Bytes through a C program that has `net_io.c` alone. kinds: C type and length of what goes in and comes out."""
    for name, text in files(program, "net", 0, interface).items():
        (folder / name).write_text(text)
    (a, na), (b, nb) = kinds
    (folder / "main.c").write_text(LOOP.format(A=a, NA=na, B=b, NB=nb, CALL=call))
    built = subprocess.run(
        [GCC or "gcc", *FLAGS, "net_io.c", "main.c", "-lm", "-o", "net"],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert built.returncode == 0, built.stderr
    done = subprocess.run([folder / "net"], input=data, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout


def word(value):
    return ("int" if value.signed else "uint") + str(value.bits) if value.bits < 32 else "int32"


# --- inputs ----------------------------------------------------------------------------------------------------------

GRIDS = [
    {"scale": (2.0**-8,), "low": 0, "high": 255, "zero_point": 0},
    {"scale": (0.003921568859368563,), "low": -128, "high": 127, "zero_point": -128},
    {"scale": (0.1,), "low": -127, "high": 127, "zero_point": 3},
    {"scale": (3.0e-5,), "low": -(2**15), "high": 2**15 - 1, "zero_point": -7},
    {"scale": (1234.5,), "low": 0, "high": 2**16 - 1, "zero_point": 40_000},
    {"scale": (1e-30,), "low": -100, "high": 90, "zero_point": 90},
]


def hard_floats(scale):
    """Random bit patterns, every tie of the grid and its neighbours, what overflows, infinities."""
    random = np.random.default_rng(0)
    patterns = random.integers(0, 2**32, 40_000, dtype=np.uint32).view(np.float32)
    near = (random.uniform(-300, 300, 40_000) * scale).astype(np.float32)
    ties = ((np.arange(-70_000, 70_000, 7) + 0.5) * scale).astype(np.float32)
    around = [np.nextafter(ties, np.float32(end)) for end in (-np.inf, np.inf)]
    ends = np.array([0.0, -0.0, np.inf, -np.inf, 1e38, -1e38, 1e-45, 1e9, -1e9, 4.3e9], np.float32)
    values = np.concatenate([patterns, near, ties, *around, ends])
    values = values[~np.isnan(values)]
    return values[: len(values) // 4 * 4]


@needs_gcc
@pytest.mark.parametrize("grid", GRIDS)
def test_inputs_become_the_codes_of_the_interpreter(grid, tmp_path):
    program = program_of(x=grid)
    value, x = program.values["x"], hard_floats(grid["scale"][0])
    kinds = (("float", 4), ("net_in_t", 4))
    found = computed(program, Interface(), tmp_path, x.tobytes(), kinds, "net_quantize_input(a, b)")
    assert np.array_equal(np.frombuffer(found, word(value)), quantize_input(program, x))


@needs_gcc
@pytest.mark.parametrize("grid", GRIDS[:3])
def test_nan_counts_as_zero(grid, tmp_path):
    program = program_of(x=grid)
    x = np.array([np.nan, 0.0, -np.nan, 0.0], np.float32)
    kinds = (("float", 4), ("net_in_t", 4))
    found = computed(program, Interface(), tmp_path, x.tobytes(), kinds, "net_quantize_input(a, b)")
    codes = np.frombuffer(found, word(program.values["x"]))
    assert set(codes) == set(quantize_input(program, np.zeros(1, np.float32)))


@needs_gcc
def test_raw_pixels_become_the_codes_of_normalized_floats(tmp_path):
    program = program_of(x={"shape": (3, 16, 16), "scale": (0.0187,), "zero_point": 5})
    pixels = np.arange(3 * 256, dtype=np.uint8)  # every value in every channel
    interface = Interface.of(InputSpec(shape=(3, 16, 16), mean=CIFAR_MEAN, std=CIFAR_STD))
    kinds = (("uint8_t", 768), ("net_in_t", 768))
    found = computed(program, interface, tmp_path, pixels.tobytes(), kinds, "net_quantize_pixels(a, b)")
    mean, std = (torch.tensor(v).reshape(-1, 1, 1) for v in (CIFAR_MEAN, CIFAR_STD))
    x = (torch.from_numpy(pixels).reshape(1, 3, 16, 16).float() / 255 - mean) / std
    assert np.array_equal(np.frombuffer(found, np.int8), quantize_input(program, x.numpy()).reshape(-1))
    assert len(set(np.frombuffer(found, np.int8))) > 200


def test_pixels_are_for_images_whose_mean_is_known():
    known = Interface(mean=(0.5,), std=(0.25,))
    image = program_of(x={"shape": (1, 2, 2)})
    assert "net_quantize_pixels" in files(image, "net", 0, known)["net.h"]
    assert "net_quantize_pixels" not in files(image, "net", 0, Interface())["net.h"]
    assert "net_quantize_pixels" not in files(program_of(), "net", 0, known)["net.h"]


# --- answers ---------------------------------------------------------------------------------------------------------

OUTPUTS = {
    "one scale": {"scale": (0.037,)},
    "a scale for each channel": {"scale": (0.3, 0.1, 0.2, 0.30000001)},
    "scales that float32 does not hold": {"scale": (1 / 3,), "zero_point": 17},
    "sums too fine for float32": {"scale": (1e-3,)},
}


def outputs_of(seed=0):
    random = np.random.default_rng(seed)
    wide = random.integers(-(2**31), 2**31, (400, 4))
    small = random.integers(-3, 4, (400, 4))  # many ties
    close = random.integers(2**30, 2**30 + 40, (400, 4))  # equal in float32
    return np.concatenate([wide, small, close])


@needs_gcc
@pytest.mark.parametrize("kind", OUTPUTS)
def test_the_class_is_that_of_python_ties_included(kind, tmp_path):
    program, q = program_of(y=OUTPUTS[kind]), outputs_of()
    kinds = (("net_out_t", 4), ("int", 1))
    found = computed(program, Interface(), tmp_path, q.astype(np.int32).tobytes(), kinds, "b[0] = net_classify(a)")
    real = decode(program.values["y"], q)
    assert np.array_equal(np.frombuffer(found, np.int32), classes(program, q))
    assert np.array_equal(classes(program, q), torch.from_numpy(real).argmax(1).numpy())
    assert (np.sort(real)[:, -1] == np.sort(real)[:, -2]).sum() > (100 if len(OUTPUTS[kind]["scale"]) == 1 else 5)
    found = computed(
        program, Interface(), tmp_path, q.astype(np.int32).tobytes(), (("net_out_t", 4), ("float", 4)),
        "net_dequantize_output(a, b)",
    )  # fmt: skip
    assert np.array_equal(np.frombuffer(found, np.float32).reshape(q.shape), real)


@needs_gcc
def test_each_place_of_a_map_has_its_class(tmp_path):
    shape = (3, 2, 5)
    program = program_of(y={"shape": shape, "scale": (0.5, 0.25, 0.125)})
    q = np.random.default_rng(0).integers(-6, 7, (200, *shape))
    kinds = (("net_out_t", 30), ("int", 10))
    call = "for (int i = 0; i < NET_PLACES; i++) b[i] = net_classify_at(a, i)"
    found = computed(program, Interface(), tmp_path, q.astype(np.int32).tobytes(), kinds, call)
    assert np.array_equal(np.frombuffer(found, np.int32).reshape(200, 2, 5), classes(program, q))


@needs_gcc
@pytest.mark.parametrize("tail", ["softmax", "log_softmax"])
def test_the_softmax_that_ends_a_network_is_in_c(tail, tmp_path):
    program = program_of(y={"scale": (0.01,), "low": -5000, "high": 5000}, tail=tail)
    q = np.random.default_rng(0).integers(-5000, 5001, (300, 4))
    function = {"softmax": "net_probabilities", "log_softmax": "net_log_probabilities"}[tail]
    kinds = (("net_out_t", 4), ("float", 4))
    found = computed(program, Interface(), tmp_path, q.astype(np.int16).tobytes(), kinds, f"{function}(a, b)")
    wanted = getattr(torch, tail)(torch.from_numpy(decode(program.values["y"], q)), 1)
    assert np.allclose(np.frombuffer(found, np.float32).reshape(q.shape), wanted.numpy(), rtol=1e-5, atol=1e-6)


def test_only_a_softmax_needs_the_library():
    for tail in ("", "softmax", "log_softmax"):
        texts = files(program_of(tail=tail), "net", 0, Interface())
        assert ("#include <math.h>" in texts["net_io.c"]) is bool(tail)
        assert ("probabilities" in texts["net.h"]) is bool(tail)


def test_a_network_that_ends_in_argmax_has_decided_already():
    last = Operation(kind="argmax", inputs=("x",), output="y")
    assert "classify" not in files(program_of(operations=[last]), "net", 0, Interface())["net.h"]
    assert "classify" not in files(program_of(y={"shape": (1,)}), "net", 0, Interface())["net.h"]


@needs_gcc
@pytest.mark.parametrize("scale", [(0.05,), (0.03, 0.05, 0.04, 0.061)])
def test_the_score_of_an_anomaly_is_that_of_python_to_the_last_bit(scale, tmp_path):
    program = program_of(x={"zero_point": -3}, y={"scale": scale, "low": -30_000, "high": 30_000})
    random = np.random.default_rng(0)
    codes, q = random.integers(-128, 128, (500, 4)), random.integers(-900, 900, (500, 4))
    wanted = anomaly_scores(program, codes, q)
    threshold = float(wanted[7])  # one of them: not above itself
    pairs = np.concatenate([codes, q], 1).astype(np.int16)
    call = (
        "net_in_t in[4]; net_out_t out[4]; for (int i = 0; i < 4; i++) { in[i] = (net_in_t)a[i]; out[i] = a[4 + i]; } "
        "b[0] = net_score(in, out); b[1] = (float)net_is_anomaly(in, out); b[2] = net_threshold"
    )
    kinds = (("int16_t", 8), ("float", 3))
    found = computed(program, Interface(threshold=threshold), tmp_path, pairs.tobytes(), kinds, call)
    score, decided, limit = np.frombuffer(found, np.float32).reshape(-1, 3).T
    assert np.array_equal(score, wanted)
    assert np.array_equal(decided, wanted > threshold)
    assert decided[7] == 0
    assert set(limit) == {np.float32(threshold)}


# --- whole programs: raw floats from a file, decisions out -----------------------------------------------------------


def example(program, folder, x, interface):
    """What the generated example prints for the floats `x`."""
    project.write(program, folder, interface=interface)
    text = (folder / "net_example.c").read_text()
    assert len(text[text.index("int main") :].splitlines()) <= 20
    done = subprocess.run(["make", "example"], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (folder / "samples.bin").write_bytes(x.astype(np.float32).tobytes())
    done = subprocess.run(
        [folder / "net_example", "samples.bin"], cwd=folder, capture_output=True, text=True, check=True
    )
    return done.stdout.splitlines()


@needs_gcc
def test_a_program_of_20_lines_decides_as_python_on_200_samples_of_digits(tmp_path):
    model, task = open_model("digits-cnn")
    net = quantized(model, task, Quantization(signed=True))
    x = torch.cat([b[0] for b in task.data("test").batches(100)])[:200]
    program = lower(net)
    found = [int(line) for line in example(program, tmp_path, x.numpy(), Interface.of(task.spec))]
    assert found == classes(program, run(program, quantize_input(program, x.numpy()))[0]).tolist()
    with torch.no_grad():
        assert found == runnable(net)(x).argmax(1).tolist()  # what `lilliput predict` says
    assert len(set(found)) == 10


def test_the_program_in_the_documents_is_the_one_that_is_generated(tmp_path):
    model, task = open_model("digits-cnn")
    project.write(lower(quantized(model, task, Quantization(signed=True))), tmp_path, interface=Interface.of(task.spec))
    code = re.findall(r"```c\n(.*?)```", DOCUMENT.read_text(encoding="utf-8"), re.DOTALL)[0]
    assert (tmp_path / "net_example.c").read_text().endswith(code)
    assert f"```c\n{code}```" in (tmp_path / "README.md").read_text()


@pytest.fixture(scope="module")
def autoencoder():
    """A short training: enough for scores that tell something."""
    torch.manual_seed(0)
    model, task = TinyAutoencoder(), one_class_digits()
    x = torch.cat([b[0] for b in task.data("train").batches(64)])
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(200):
        optimizer.zero_grad()
        nn.functional.mse_loss(model(x), x).backward()
        optimizer.step()
    net = quantized(model.eval(), task, Quantization(signed=True))
    return net, task, lower(net)


@needs_gcc
def test_a_program_of_20_lines_finds_the_anomalies_that_python_finds(autoencoder, tmp_path):
    _, task, program = autoencoder
    threshold = anomaly_threshold(program, task)
    x = torch.cat([b[0] for b in task.data("test").batches(100)])[:200].numpy()
    lines = [line.split() for line in example(program, tmp_path, x, Interface(threshold=threshold))]
    codes = quantize_input(program, x)
    scores = anomaly_scores(program, codes, run(program, codes)[0])
    assert [np.float32(line[1]) for line in lines] == scores.tolist()
    assert [line[0] == "1" for line in lines] == (scores > threshold).tolist()
    assert 0 < sum(line[0] == "1" for line in lines) < 200


def test_the_score_of_the_program_is_that_of_the_task(autoencoder):
    net, task, program = autoencoder
    module, rows, own = runnable(net), [], []
    for x, labels in task.data("test").batches(64):
        with torch.no_grad():
            rows.append(task.score.statistics(module(x), (x, labels)))
        codes = quantize_input(program, x.numpy())
        scores = torch.from_numpy(anomaly_scores(program, codes, run(program, codes)[0])).double()
        own.append(torch.stack([scores, labels.double()], 1))
    wanted, found = torch.cat(rows), torch.cat(own)
    step = program.values[program.input].scale[0]
    assert (wanted[:, 0].sqrt() - found[:, 0].sqrt()).abs().max() <= step  # the input's rounding is all that differs
    assert abs(task.score.value(wanted) - task.score.value(found)) < 0.1


@needs_gcc
@pytest.mark.parametrize("name", ["digits-masks", "diabetes"])
def test_networks_with_other_answers_have_an_example_too(name, tmp_path):
    torch.manual_seed(0)
    model, task = open_model(name, trained=False)
    program = lower(quantized(model.eval(), task, Quantization(signed=True)))
    x = torch.cat([b[0] for b in task.data("test").batches(50)])[:50].numpy()
    out = run(program, quantize_input(program, x))[0]
    lines = [[float(v) for v in line.split()] for line in example(program, tmp_path, x, Interface.of(task.spec))]
    real = decode(program.values[program.outputs[0]], out)
    wanted = real if name == "diabetes" else real.argmax(1)
    assert np.array_equal(np.array(lines, np.float32).reshape(wanted.shape), wanted)


# --- forms -----------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(shutil.which("g++") is None, reason="g++ is not installed")
def test_the_header_is_for_cpp_too(tmp_path):
    program = lower(quantized_tiny("conv", Quantization(signed=True)))
    for file, text in Writer(program).files(Interface(labels=("@N", "@U_PLAIN", 'a"\\\n'))).items():
        (tmp_path / file).write_text(text)
    (tmp_path / "main.cpp").write_text(
        '#include "net.h"\nint main() { static net_in_t x[NET_INPUTS]; static net_out_t y[NET_OUTPUTS]; net_run(x, y); '
        "return net_classify(y) < 0 || net_labels[0][0] != '@' || net_labels[0][1] != 'N'; }\n"
    )
    for file in ("net.c", "net_io.c"):
        subprocess.run([GCC or "gcc", "-c", "-std=c99", file], cwd=tmp_path, check=True)
    subprocess.run(
        ["g++", "-Wall", "-Wextra", "-Werror", "main.cpp", "net.o", "net_io.o", "-o", "net"], cwd=tmp_path, check=True
    )
    subprocess.run([tmp_path / "net"], check=True)


def test_every_generated_file_says_that_it_is_the_users(tmp_path):
    program = lower(quantized_tiny("linear", Quantization(signed=True)))
    for path in project.write(program, tmp_path):
        assert "The output is yours: no licence of Lilliput applies to it." in path.read_text(), path
        assert "@" not in path.read_text().replace("-o $@", ""), path


@pytest.mark.parametrize(
    ("interface", "text"),
    [
        (Interface(threshold=1.0), "a threshold, and a network of 16 inputs and 3 outputs; leave the threshold out"),
        (Interface(mean=(0.5, 0.5), std=(1.0, 1.0)), r"2 means and 2 deviations for an input of shape \(1, 4, 4\)"),
        (Interface(mean=(0.5,), std=()), "1 means and 0 deviations"),
        (Interface(mean=(0.5,), std=(0.0,)), "give numbers that float32 can hold and be divided by"),
        (Interface(mean=(math.nan,), std=(1.0,)), "give numbers that float32 can hold and be divided by"),
        (Interface(mean=(1e300,), std=(1.0,)), "give numbers that float32 can hold and be divided by"),
    ],
)
def test_an_interface_that_does_not_fit_is_refused(interface, text):
    program = lower(quantized_tiny("linear", Quantization(signed=True)))
    with pytest.raises(ExportError, match=text):
        Writer(program).files(interface)


@pytest.mark.parametrize("threshold", [math.inf, math.nan, 1e39])
def test_a_threshold_is_a_float(threshold):
    with pytest.raises(ExportError, match=r"a threshold of .*; give a number that float32 can hold"):
        files(program_of(), "net", 0, Interface(threshold=threshold))


def test_the_threshold_is_chosen_by_normal_validation_samples_alone(autoencoder):
    _, task, program = autoencoder
    threshold = anomaly_threshold(program, task)
    x, labels = (torch.cat(parts) for parts in zip(*task.data("validation").batches(64), strict=True))
    codes = quantize_input(program, x.numpy())
    scores = anomaly_scores(program, codes, run(program, codes)[0])
    normal = np.sort(scores[labels.numpy() == 0])
    assert (normal <= threshold).mean() >= 0.95
    assert (normal < threshold).mean() < 0.95
    assert threshold in normal
    only = Task.anomaly(validation=(x[labels == 0], labels[labels == 0]))
    assert anomaly_threshold(program, only) == threshold
