"""The headers of a ResMLP, replayed in C++ by the published rules: inside and at the end, 0 differences."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from test_published_integers import arrays, resmlp  # noqa: F401 - a fixture

from hls_files import constants, replayed
from lilliput.core.artifact import Artifact
from lilliput.core.learned_activation import LearnedActivation
from lilliput.core.method import Context, apply_checked_
from lilliput.export.hls import header
from lilliput.export.hls.names import Names
from lilliput.graph.lower import lower
from lilliput.methods.normalization.batchnorm import FoldBatchNorm
from lilliput.methods.quantization.post_training import Quantization
from lilliput.nn.models.resmlp import ResMLP
from lowered import task_of

needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="g++ is not installed")
REPLAY = r"""
#include "net_parameters.h"
#include "net_samples.h"
#include <cstdio>
#include <cstdlib>
#include <vector>
typedef long long num;
typedef std::vector<num> tensor; /* [tokens][channels] */
static num saturated(num y) { return y < -128 ? -128 : y > 127 ? 127 : y; }
static num requantized(num acc, num k, num b) {
  if (k < 1) std::abort();
  num t = acc >> (k - 1);
  return saturated((t >> 1) + (t & 1) + b);
}
template <class W, class B, class S, int O, int I>
static tensor linear(const tensor &x, const W (&w)[O][I], const B (&b)[O], const S (&s)[O]) {
  tensor y;
  for (unsigned t = 0; t < x.size() / I; t++)
    for (int o = 0; o < O; o++) {
      num acc = 0;
      for (int i = 0; i < I; i++) acc += x[t * I + i] * w[o][i];
      y.push_back(requantized(acc, s[o], b[o]));
    }
  return y;
}
template <int C> static tensor turned(const tensor &x) {
  tensor y;
  int n = x.size() / C;
  for (int c = 0; c < C; c++)
    for (int t = 0; t < n; t++) y.push_back(x[t * C + c]);
  return y;
}
template <class W, class B, class S, int C>
static tensor affine(const tensor &x, const W (&w)[C], const B (&b)[C], const S (&s)[C]) {
  tensor y;
  for (unsigned i = 0; i < x.size(); i++) y.push_back(requantized(x[i] * w[i % C], s[i % C], b[i % C]));
  return y;
}
static tensor sum(const tensor &x, const tensor &y) {
  tensor z;
  for (unsigned i = 0; i < x.size(); i++) z.push_back(saturated(x[i] + y[i]));
  return z;
}
template <class T, int C, int P> inline tensor function(const tensor &x, const T (&table)[C][P], num s) {
  tensor y;
  for (unsigned i = 0; i < x.size(); i++) {
    num index = x[i] + 128, m = index >> s, l = index & ((1 << s) - 1);
    num left = table[i % C][m];
    y.push_back(s == 0 ? left : left + (((table[i % C][m + 1] - left) * l + (1 << s >> 1)) >> s));
  }
  return y;
}
inline tensor relu(tensor x) {
  for (num &v : x) v = v < 0 ? 0 : v;
  return x;
}
template <class T, int N> static void put(const T (&x)[N], tensor &y) { for (const T &v : x) y.push_back(v); }
template <class T, int M, int N> static void put(const T (&x)[M][N], tensor &y) { for (auto &row : x) put(row, y); }
static long compared = 0, wrong = 0;
static void compare(const tensor &found, const tensor &wanted) {
  if (found.size() != wanted.size()) std::abort();
  for (unsigned i = 0; i < found.size(); i++, compared++) wrong += found[i] != wanted[i];
}
#define LINEAR(x, name) linear(x, name##_w, name##_b, name##_s)
#define AFFINE(x, name) affine(x, name##_w, name##_b, name##_s)
#define PSA(x, name) function(x, name##_lerp_lut, name##_lerp_lut_s)
#ifdef HAS_PSA
#define BEFORE(x, i) PSA(AFFINE(x, blocks_##i##_mlp_affine_1), blocks_##i##_mlp_psa_1)
#define BETWEEN(x, i) PSA(x, blocks_##i##_mlp_psa_2)
#else
#define BEFORE(x, i) x
#define BETWEEN(x, i) relu(x)
#endif
#define BLOCK(i, expected) { \
    tensor y = AFFINE(x, blocks_##i##_token_mixer_affine_1); \
    y = turned<TOKENS>(LINEAR(turned<CHANNELS>(y), blocks_##i##_token_mixer_linear)); \
    y = AFFINE(y, blocks_##i##_token_mixer_affine_2); \
    x = sum(AFFINE(x, blocks_##i##_token_mixer_res_affine), y); \
    y = BETWEEN(LINEAR(BEFORE(x, i), blocks_##i##_mlp_linear_1), i); \
    x = sum(AFFINE(x, blocks_##i##_mlp_res_affine), LINEAR(y, blocks_##i##_mlp_linear_2)); \
    tensor wanted; put(expected[n], wanted); compare(x, wanted); }
int main() {
  for (int n = 0; n < 8; n++) {
    tensor x, wanted, mean, logits;
    put(samples_input[n], x);
    x = LINEAR(x, embed_linear);
    put(samples_inter_0[n], wanted); compare(x, wanted);
    BLOCK(0, samples_inter_1)
    BLOCK(1, samples_inter_2)
    for (int c = 0; c < CHANNELS; c++) {
      num total = 0;
      for (int t = 0; t < TOKENS; t++) total += x[t * CHANNELS + c];
      mean.push_back(requantized(total, pool_s, 0));
    }
    put(samples_output[n], logits); compare(LINEAR(mean, classifier_linear), logits);
  }
  std::printf("%ld %ld\n", compared, wrong);
}
"""


@pytest.fixture(scope="module", params=[("relu", 0), ("psa", 65), ("psa", 64)], ids=str)
def network(request):
    kind, points = request.param
    torch.manual_seed(0)

    def psa(channels):
        return LearnedActivation(channels, kind="lerp_psa", points=points, init="paper")

    sizes = {"hidden": 12, "channels": 8, "blocks": 2, "patch": 2, "pixels": 8}
    model = ResMLP(**sizes, activation="relu" if kind == "relu" else psa, before=kind == "psa").eval()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm1d):
            torch.nn.init.normal_(module.get_buffer("running_mean"))
            torch.nn.init.uniform_(module.get_buffer("running_var"), 0.5, 2)
    task = task_of((3, 8, 8), classes=10)
    net = Artifact.of(model, task.spec)
    for method in (FoldBatchNorm(rest="layer"), Quantization(requantization="power_of_two")):
        apply_checked_(method, net, Context.of(task, model))
    return kind, points, net


@needs_compiler
def test_the_published_rules_give_the_integers_of_the_interpreter(network, tmp_path):
    kind, _, net = network
    program = lower(net)
    header.write(program, tmp_path, inputs=np.random.default_rng(1).normal(size=(8, 3, 8, 8)))
    defines = f"#define CHANNELS 8\n#define TOKENS 16\n{'#define HAS_PSA' if kind == 'psa' else ''}\n"
    compared, wrong = map(int, replayed(tmp_path, defines + REPLAY))
    assert (compared, wrong) == (8 * (3 * 16 * 8 + 10), 0)


def test_names_types_and_shapes_are_the_published_ones(network, tmp_path):
    kind, points, net = network
    paths = header.write(lower(net), tmp_path)
    text = paths[0].read_text()
    assert '#ifndef NET_PARAMETERS_H\n#define NET_PARAMETERS_H\n#include "ap_int.h"' in text
    found = constants(text)
    shapes = {name: values.shape for name, (_, values) in found.items()}
    expected = {"embed_linear": (8, 12), "classifier_linear": (10, 8)}
    for i in range(2):
        expected |= {f"blocks_{i}_token_mixer_{part}": (8,) for part in ("affine_1", "affine_2", "res_affine")}
        expected |= {f"blocks_{i}_token_mixer_linear": (16, 16), f"blocks_{i}_mlp_res_affine": (8,)}
        expected |= {f"blocks_{i}_mlp_linear_1": (12, 8), f"blocks_{i}_mlp_linear_2": (8, 12)}
        if kind == "psa":
            expected[f"blocks_{i}_mlp_affine_1"] = (8,)
            for place, channels in (("psa_1", 8), ("psa_2", 12)):
                assert shapes[f"blocks_{i}_mlp_{place}_lerp_lut"] == (channels, points if points == 65 else 256)
                assert found[f"blocks_{i}_mlp_{place}_lerp_lut_s"][1] == (2 if points == 65 else 0)
    for name, shape in expected.items():
        assert shapes[f"{name}_w"] == shape
        assert shapes[f"{name}_b"] == shapes[f"{name}_s"] == shape[:1]
        assert [found[f"{name}_{part}"][0] for part in "wbs"] == ["ap_int<8>", "ap_int<8>", "ap_uint<8>"]
    lows = {f"blocks_{i}_mlp_linear_1_low" for i in range(2)} if kind == "relu" else set()
    rest = {name for name in found if name[:-2] not in expected and "_psa_" not in name}
    assert rest == {"pool_s", *lows}
    seen = constants(paths[1].read_text())
    assert {name: values.shape for name, (_, values) in seen.items()} == {
        "samples_input": (8, 16, 12),
        **{f"samples_inter_{i}": (8, 16, 8) for i in range(3)},
        "samples_output": (8, 10),
    }
    assert header.multiplying(lower(net)) == []


def test_a_network_of_the_same_names_and_another_shape_is_no_resmlp(network):
    program = lower(network[2])
    assert Names.for_program(program).is_resmlp
    first, *others = program.operations
    strided = replace(first, attributes={**first.attributes, "stride": (1, 1)})
    names = Names.for_program(replace(program, operations=(strided, *others)))
    assert (names.is_resmlp, names.of["blocks.0/add_1"]) == (False, "blocks_0_add_1")


def test_a_header_of_the_published_network_holds_the_published_numbers(arrays, tmp_path):  # noqa: F811 - the fixture
    program = resmlp(arrays)
    assert header.multiplying(program) == []
    found = constants(header.write(program, tmp_path)[0].read_text())
    wanted = {name: values for name, values in arrays.items() if not name.startswith("samples")}
    assert len(wanted) > 80
    for name, values in wanted.items():
        own = found[name][1]
        assert np.array_equal(np.broadcast_to(values, own.shape), own), name
