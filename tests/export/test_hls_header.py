"""Headers of any integer network: what they say is enough to compute it; hostile names are refused or made harmless."""

import re
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from hls_files import constants, replayed
from lilliput.core.errors import ExportError, UsageError
from lilliput.core.program import Operation, Program, Value
from lilliput.export.hls import header
from lilliput.export.hls.constants import parts
from lilliput.export.hls.header import _part
from lilliput.export.hls.names import Names, c_name
from lilliput.graph.interpreter import quantize_input, run
from lilliput.graph.lower import lower
from lilliput.methods.quantization.post_training import Quantization
from lilliput.testing import TINY
from lowered import Operations, quantized, quantized_tiny, task_of

needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="g++ is not installed")
REPLAY = r"""
#include "net_parameters.h"
#include "net_samples.h"
MISSING
#include <cstdio>
typedef long long num;
static num clipped(num y, num low, num high) { return y < low ? low : y > high ? high : y; }
static num rescaled(num sum, num m, num s) { return (sum * m + (1LL << s >> 1)) >> s; }
static long compared = 0, wrong = 0;
static void compare(num found, num wanted) { compared++; wrong += found != wanted; }
#define DONE(name, sum, c) \
  clipped(rescaled((sum) + name##_sum_b[c], name##_m[c], name##_s[c]) + name##_b[c] + name##_z, name##_low, name##_high)
int main() {
  for (int n = 0; n < 8; n++) {
    static num first[4][4][4], second[8][2][2], total[8][2][2], mean[8];
    for (int c = 0; c < 4; c++) for (int y = 0; y < 4; y++) for (int x = 0; x < 4; x++) {
      num sum = 0;
      for (int i = 0; i < 3; i++) for (int j = 0; j < 3; j++) {
        int p = y + i - 1, q = x + j - 1;
        if (p >= 0 && p < 4 && q >= 0 && q < 4) sum += first_w[c][0][i][j] * (samples_input[n][0][p][q] - first_in_z);
      }
      first[c][y][x] = DONE(first, sum, c);
      compare(first[c][y][x], samples_inter_0[n][c][y][x]);
    }
    for (int c = 0; c < 8; c++) for (int y = 0; y < 2; y++) for (int x = 0; x < 2; x++) {
      num sum = 0;
      for (int k = 0; k < 4; k++) for (int i = 0; i < 3; i++) for (int j = 0; j < 3; j++) {
        int p = 2 * y + i - 1, q = 2 * x + j - 1;
        if (p >= 0 && p < 4 && q >= 0 && q < 4) sum += second_w[c][k][i][j] * (first[k][p][q] - second_in_z);
      }
      second[c][y][x] = DONE(second, sum, c);
      compare(second[c][y][x], samples_inter_1[n][c][y][x]);
      num a = second[c][y][x] - add_in_z[0], b = 0;
      if (c >= 2 && c < 6) b = first[c - 2][2 * y][2 * x] - add_in_z[1];
#ifdef ADD_SHIFTS
      num both = rescaled(a, 1, add_s[0]) + rescaled(b, 1, add_s[1]);
#else
      num both = rescaled(a * add_m[0] + b * add_m[1], 1, add_s);
#endif
      total[c][y][x] = clipped(both + add_z, add_low, add_high);
      if (ADD_AT) compare(total[c][y][x], ADD_SEEN[n][c][y][x]);
    }
    for (int c = 0; c < 8; c++) {
      num sum = 0;
      for (int y = 0; y < 2; y++) for (int x = 0; x < 2; x++) sum += total[c][y][x] - mean_in_z;
      mean[c] = clipped(rescaled(sum, mean_m, mean_s) + mean_z, mean_low, mean_high);
      compare(mean[c], MEAN_SEEN[n][c]);
    }
    for (int o = 0; o < 3; o++) {
      num sum = head_sum_b[o];
      for (int c = 0; c < 8; c++) sum += head_w[o][c] * (mean[c] - head_in_z);
#ifdef HEAD_SUMS
      compare(sum, samples_output[n][o]);
#else
      compare(DONE(head, sum - head_sum_b[o], o), samples_output[n][o]);
#endif
    }
  }
  std::printf("%ld %ld\n", compared, wrong);
}
"""


def filled_in(found, seen):
    """What a header leaves out, as its own text says, and which forms it has."""
    sizes = {"first": 4, "second": 8, "head": 3}
    known = {"_in_z": 0, "_z": 0, "_low": -128, "_high": 127}
    lines = [
        f"const ap_int<8> {name}{part} = {value};"
        for name in (*sizes, "add", "mean")
        for part, value in known.items()
        if f"{name}{part}" not in found and (name, part) != ("add", "_in_z")
    ]
    for part, value in {"_sum_b": 0, "_b": 0, "_m": 1, "_s": 0}.items():
        for name, size in sizes.items():
            if f"{name}{part}" not in found:
                lines.append(f"const ap_int<8> {name}{part}[{size}] = {{{', '.join([str(value)] * size)}}};")
    if "add_in_z" not in found:
        lines.append("const ap_int<8> add_in_z[2] = {0, 0};")
    lines += [] if "mean_m" in found else ["const ap_int<8> mean_m = 1;"]
    if "add_m" not in found:
        lines.append("#define ADD_SHIFTS")
        lines += [] if "add_s" in found else ["const ap_int<8> add_s[2] = {0, 0};"]
    lines += [] if "head_s" in found else ["#define HEAD_SUMS"]
    last = len([name for name in seen if "inter" in name]) - 1
    has_add = last == 3
    lines.append(
        f"#define ADD_AT {int(has_add)}\n#define ADD_SEEN {'samples_inter_2' if has_add else 'samples_inter_1'}"
    )
    lines.append(f"#define MEAN_SEEN samples_inter_{last}")
    return "\n".join(lines)


SETTINGS = {
    "affine": Quantization(),
    "signed": Quantization(signed=True, weight_per="tensor"),
    "four bits": Quantization(weight_bits=4, activation_bits=4, signed=True),
    "power of two": Quantization(requantization="power_of_two"),
    "power of two, four bits": Quantization(weight_bits=4, requantization="power_of_two", weight_range="mse"),
}


@needs_compiler
@pytest.mark.parametrize("kind", SETTINGS)
def test_the_headers_are_enough_to_compute_a_network(kind, tmp_path):
    program = lower(quantized_tiny("residual", SETTINGS[kind]))
    paths = header.write(program, tmp_path)
    found, seen = (constants(path.read_text()) for path in paths)
    compared, wrong = map(int, replayed(tmp_path, REPLAY.replace("MISSING", filled_in(found, seen))))
    inside = sum(values[0].size for name, (_, values) in seen.items() if name != "samples_input")
    assert (compared, wrong) == (8 * inside, 0)
    multiplies = header.multiplying(program)
    assert bool(multiplies) == (not kind.startswith("power"))
    assert any(name.endswith("_m") for name in found) == bool(multiplies)


def test_real_samples_become_codes(tmp_path):
    net = quantized_tiny("residual", SETTINGS["power of two"])
    program, x = lower(net), net.input.example(3).numpy()
    seen = constants(header.write(program, tmp_path, inputs=x)[1].read_text())
    codes = quantize_input(program, x)
    assert np.array_equal(seen["samples_input"][1], codes)
    assert np.array_equal(seen["samples_output"][1], run(program, codes)[0])


@pytest.mark.parametrize("name", [*TINY, "operations"])
@pytest.mark.parametrize("requantization", ["multiplier", "power_of_two"])
def test_every_number_of_a_program_is_in_its_header(name, requantization, tmp_path):
    method = Quantization(requantization=requantization)
    if name == "operations":
        net = quantized(Operations().eval(), task_of((2, 7, 9), classes=5), method)
    else:
        net = quantized_tiny(name, method)
    program = lower(net)
    found = constants(header.write(program, tmp_path)[0].read_text())
    for o in program:
        own = c_name(o.output)
        if o.weight is not None:
            assert np.array_equal(found[f"{own}_w"][1].ravel(), program.tensors[o.weight].ravel())
        if o.table is not None:
            assert np.array_equal(found[f"{own}_lerp_lut"][1], o.table)
    assert all(re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*", constant) for constant in found)
    if requantization == "multiplier" or name == "operations":
        assert any(constant.endswith("_m") for constant in found)


class Twins(nn.Module):
    """Two modules whose paths are one name in C."""

    def __init__(self, first, second):
        super().__init__()
        self.add_module(first, nn.ModuleDict({"b": nn.Linear(16, 4)}))
        self.add_module(second, nn.Linear(4, 3))
        self.names = first, second

    def forward(self, x):
        x = self.get_submodule(f"{self.names[0]}.b")(x.flatten(1))
        return self.get_submodule(self.names[1])(x)


def test_two_paths_with_one_name_are_one_error(tmp_path):
    program = lower(quantized(Twins("a", "a_b").eval(), task_of((1, 4, 4))))
    with pytest.raises(ExportError, match=r"'a.b' and 'a_b' would both be a_b; rename one"):
        header.write(program, tmp_path)
    assert not list(tmp_path.iterdir())


def test_two_constants_with_one_name_are_one_error(tmp_path):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.act, self.act_lerp_lut, self.last = nn.Tanh(), nn.Linear(16, 4), nn.Linear(4, 3)

        def forward(self, x):
            return self.last(self.act_lerp_lut(self.act(x.flatten(1))))

    program = lower(quantized(Net().eval(), task_of((1, 4, 4))))
    with pytest.raises(ExportError, match="'act' and 'act_lerp_lut' would both have a constant act_lerp_lut_s"):
        header.write(program, tmp_path)


HOSTILE = ["x*/\n#error no\n/*", "x\\", "0.1", "é", "_Reserved", "x??/", "x\r#error no", "/* x"]


@needs_compiler
@pytest.mark.parametrize("path", HOSTILE)
def test_a_path_cannot_become_code(path, tmp_path):
    value = {name: Value(name=name, shape=(2,), low=-9999, high=9999, scale=(1.0,)) for name in ("in", path)}
    value["in"] = Value(name="in", shape=(2,), low=-128, high=127, scale=(1.0,))
    layer = Operation(kind="linear", inputs=("in",), output=path, weight="w")
    tensors = {"w": np.array([[1, 2], [3, 4]])}
    program = Program(values=value, operations=(layer,), input="in", outputs=(path,), tensors=tensors)
    header.write(program, tmp_path)
    name = c_name(path)
    code = f'#include "net_parameters.h"\n#include "net_samples.h"\nint main() {{ return {name}_w[1][1] != 4; }}'
    replayed(tmp_path, code + "\n")


def test_shared_functions_have_rows(tmp_path):
    value = Value(name="in", shape=(3,), low=-128, high=127, scale=(1.0,))
    table = np.arange(18).reshape(2, 9)
    attributes = {"first": -128, "shift": 5, "channel": 0, "owner": (1, 0, 1)}
    lines = Operation(kind="interpolate", inputs=("in",), output="act", attributes=attributes, table=table)
    values = {"in": value, "act": replace(value, name="act")}
    program = Program(values=values, operations=(lines,), input="in", outputs=("act",), tensors={})
    found = constants("\n".join(_part(program, part) for part in parts(program, Names.for_program(program))))
    assert np.array_equal(found["act_lerp_lut"][1], table)
    assert np.array_equal(found["act_lerp_lut_row"][1], [1, 0, 1])
    assert found["act_lerp_lut_s"] == ("ap_uint<8>", 5)


def test_nothing_of_somebody_else_is_written_over(tmp_path):
    program = lower(quantized_tiny("linear"))
    (tmp_path / "net_samples.h").write_text("mine")
    with pytest.raises(UsageError, match="Lilliput has not made"):
        header.write(program, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["net_samples.h"]
    (tmp_path / "net_samples.h").unlink()
    before = [path.read_bytes() for path in header.write(program, tmp_path)]
    assert [path.read_bytes() for path in header.write(program, tmp_path)] == before


@pytest.mark.parametrize("name", ["", "1x", "a b", "../x", "x" * 32])
def test_names_that_are_none_in_c_are_refused(name, tmp_path):
    with pytest.raises(UsageError, match="use letters, digits and _"):
        header.write(lower(quantized_tiny("linear")), tmp_path, name=name)


def test_several_outputs_are_refused(tmp_path):
    program = lower(quantized_tiny("linear"))
    twice = Program(**{**vars(program), "outputs": program.outputs * 2})
    with pytest.raises(ExportError, match="2 outputs; give the network one output"):
        header.write(twice, tmp_path)


def test_samples_of_another_shape_are_refused(tmp_path):
    with pytest.raises(UsageError, match="input of shape"):
        header.write(lower(quantized_tiny("linear")), tmp_path, inputs=torch.zeros(2, 3).numpy())
