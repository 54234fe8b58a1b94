"""The operation `grouped_sum`: groups are really summed, and the integers are those of the dense operation."""

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import lilliput as ll
from lilliput.core.encoding import Encoding, Grid, Sharing
from lilliput.core.errors import ExportError
from lilliput.core.program import Operation, Program, Rescale, Value
from lilliput.graph import interpreter
from lilliput.graph.integer import IntegerNet, integer_bias
from lilliput.graph.interpreter import decode, quantize_input, run
from lilliput.graph.lower import lower
from lilliput.graph.support import TABLE
from lilliput.testing import TINY, tiny_model, tiny_task
from lowered import quantized, task_of


@st.composite
def programs(draw):
    """One dense layer of few different integers; its input has a zero point, its output channels their multipliers."""
    random = np.random.default_rng(draw(st.integers(0, 10_000)))
    small = st.integers(1, 3)
    rank, groups = draw(st.integers(0, 2)), draw(st.sampled_from([1, 2, 3]))
    zero = draw(st.integers(-128, 127))
    if rank == 0:
        inputs, outputs = draw(st.integers(1, 300)), draw(small)
        before = [draw(small)] if draw(st.booleans()) else []
        shape, weight_shape, out, channel, kind, attributes = (
            (*before, inputs), (outputs, inputs), (*before, outputs), len(before), "linear", {}
        )  # fmt: skip
    else:
        kernel, stride, dilation = (tuple(draw(small) for _ in range(rank)) for _ in range(3))
        pads = tuple((draw(st.integers(0, 2)), draw(st.integers(0, 2))) for _ in range(rank))
        planes, channels = groups * draw(small), groups * draw(small)
        reach = [d * (k - 1) + 1 for d, k in zip(dilation, kernel, strict=True)]
        sizes = [r + draw(st.integers(0, 4)) for r in reach]
        places = [(n + sum(p) - r) // s + 1 for n, p, r, s in zip(sizes, pads, reach, stride, strict=True)]
        shape, weight_shape, out, channel, kind = (
            (planes, *sizes), (channels, planes // groups, *kernel), (channels, *places), 0, "conv"
        )  # fmt: skip
        attributes = {"kernel": kernel, "stride": stride, "dilation": dilation, "pads": pads, "groups": groups}
    values = np.array(draw(st.sampled_from([[0], [0, 5], [-7, 0, 3, 100], [-32768, 1, 32767], list(range(-128, 128))])))
    weight = random.choice(values, weight_shape).astype(np.int64)
    bias = random.integers(-9999, 9999, weight_shape[0]) if draw(st.booleans()) else None
    most = int(np.abs(weight.reshape(len(weight), -1)).sum(1).max()) * 255 + 9999
    rescale = ()
    if draw(st.booleans()):
        multiplier = random.integers(1 << 29, 1 << 30, weight_shape[0])
        shift = np.full(weight_shape[0], min(62, 30 + max(0, most.bit_length() - 8)))
        rescale = (Rescale(multiplier=multiplier, shift=shift, zero_point=-3, low=-128, high=127),)
    ends = (-128, 127) if rescale else (-most, most)
    operation = Operation(
        kind=kind,
        inputs=("x",),
        output="y",
        attributes=attributes,
        weight="w",
        bias=None if bias is None else "b",
        rescale=rescale,
    )
    values_of = {
        "x": Value(name="x", shape=shape, low=-128, high=127, scale=(0.1,), zero_point=zero),
        "y": Value(name="y", shape=out, low=ends[0], high=ends[1], scale=(1.0,), channel=channel),
    }
    tensors = {"w": weight} | ({} if bias is None else {"b": bias})
    return Program(values=values_of, operations=(operation,), input="x", outputs=("y",), tensors=tensors)


def grouped(program):
    operations = tuple(dataclasses.replace(o, kind="grouped_sum") for o in program)
    return dataclasses.replace(program, operations=operations)


@settings(max_examples=80, deadline=None)
@given(programs())
def test_groups_give_the_integers_of_the_dense_operation(program):
    value = program.values["x"]
    x = np.random.default_rng(0).integers(value.low, value.high + 1, (3, *value.shape))
    (expected,) = run(program, x, fast=False)
    assert expected.shape[1:] == program.values["y"].shape
    for fast in (True, False):
        assert np.array_equal(run(grouped(program), x, fast=fast)[0], expected)


class Counting(np.ndarray):
    """Integers that count how often weights multiply."""

    multiplies = 0

    def __array_ufunc__(self, ufunc, method, *inputs, **options):
        if ufunc is np.multiply:
            Counting.multiplies += max(np.size(i) for i in inputs)
        plain = [np.asarray(i) if isinstance(i, Counting) else i for i in inputs]
        if "out" in options:
            options["out"] = tuple(np.asarray(o) for o in options["out"])
        result = getattr(ufunc, method)(*plain, **options)
        return result.view(Counting) if isinstance(result, np.ndarray) else result


@pytest.mark.parametrize("weight", [[[3, 3, 0, -2], [0, 0, 0, 0], [1, 2, 3, 4]], [[5, 5, 5, 5]]])
def test_the_reference_multiplies_once_for_each_group(weight):
    rows = np.array(weight)
    values = {
        "x": Value(name="x", shape=(4,), low=-128, high=127, scale=(1.0,)),
        "y": Value(name="y", shape=(len(rows),), low=-(1 << 20), high=1 << 20, scale=(1.0,)),
    }
    operation = Operation(kind="grouped_sum", inputs=("x",), output="y", weight="w")
    program = Program(values=values, operations=(operation,), input="x", outputs=("y",), tensors={"w": rows})
    codes = np.array([[7, -3, 100, 2]])
    Counting.multiplies = 0
    found = interpreter._product_of_sums(codes.view(Counting), rows)
    assert np.array_equal(np.asarray(found), run(program, codes, fast=False)[0])
    assert np.array_equal(np.asarray(found), codes @ rows.T)
    assert Counting.multiplies == sum(len({w for w in row if w}) for row in weight)


CLUSTERED = ll.WeightClustering(n_clusters=5)


@pytest.mark.parametrize("per", ["layer", "channel"])
@pytest.mark.parametrize("name", list(TINY))
def test_lowered_networks_are_the_same_but_for_the_kind_of_their_layers(name, per):
    task = tiny_task()
    net = quantized(tiny_model(name), task, ll.WeightClustering(n_clusters=3, per=per))
    dense, sums = lower(net), lower(net, product_of_sums=True)
    kinds = {o.output: o.kind for o in dense}
    assert {o.kind for o in sums if kinds[o.output] in ("conv", "linear")} == {"grouped_sum"}
    assert all(o.kind == kinds[o.output] for o in sums if o.kind != "grouped_sum")
    assert sums.values == dense.values
    assert set(sums.tensors) == set(dense.tensors)  # no second copy of a weight
    x = task.data("validation").batch(torch.arange(8))[0]
    codes = quantize_input(dense, x.numpy())
    expected = run(dense, codes, fast=False)
    for fast in (True, False):
        assert all(np.array_equal(a, b) for a, b in zip(run(sums, codes, fast=fast), expected, strict=True))
    found = decode(sums.values[sums.outputs[0]], run(sums, codes, fast=False)[0])
    assert np.array_equal(found, IntegerNet(net)(x).numpy())


def test_pruning_after_sharing_is_in_the_groups():
    task = task_of((6,))
    net = quantized(nn.Linear(6, 3), task, CLUSTERED, ll.MagnitudePruning(sparsity=0.5))
    program = lower(net, product_of_sums=True)
    weight = program.tensors[program.operations[0].weight or ""]
    assert int((weight == 0).sum()) >= 9
    codes = np.arange(-60, 60).reshape(20, 6) + program.values[program.input].low + 128
    assert np.array_equal(run(program, codes, fast=False)[0], run(lower(net), codes, fast=False)[0])


def test_layers_without_shared_weights_stay_dense_and_a_network_of_them_is_refused():
    torch.manual_seed(0)
    model, task = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3)).eval(), task_of((6,))
    net = quantized(model, task, dataclasses.replace(CLUSTERED, skip=("0",)))
    assert [o.kind for o in lower(net, product_of_sums=True)] == ["linear", "grouped_sum"]
    plain = quantized(model, task)
    with pytest.raises(ExportError, match="no linear layer or convolution shares values; put sic or weight_clustering"):
        lower(plain, product_of_sums=True)


def test_sums_that_only_the_bias_brings_back_into_32_bits_are_refused():
    """44 inputs of 0..32767 and weights of -2047: products down to -2.95e9, sums with the bias within 1.5e9."""
    torch.manual_seed(0)
    model, task = nn.Sequential(nn.Linear(4, 44), nn.ReLU(), nn.Linear(44, 2)).eval(), task_of((4,))
    net = quantized(model, task, CLUSTERED, ll.Quantization(activation_bits=16))
    one = Sharing(indices=torch.zeros(2, 44, dtype=torch.int64), sizes=torch.ones(1, dtype=torch.int64))
    weight = Encoding.of(-torch.ones(2, 44)).with_sharing(one, -torch.ones(1))
    grid = Grid.per_tensor(1 / 2047, 0, 12, signed=True, narrow=True)
    net.encode_("2.weight", weight.with_grid(grid))
    source = net.activations["0"] if "0" in net.activations else net.activations["1"]
    net.encode_("2.bias", integer_bias(torch.full((2,), 1.5e9 / 2047 * float(source.scale)), source, grid))
    sums = lower(net).operations[-1].sums
    assert sums is not None
    assert max(map(abs, sums)) < 1 << 31
    with pytest.raises(ExportError, match=r"sums from -29\d{8} to 0 .*use fewer bits"):
        lower(net, product_of_sums=True)


def test_the_table_of_support_names_the_option():
    for word in ("conv", "linear"):
        row = next(row for row in TABLE if word in row.words)
        assert "product of sums" in row.conditions
