"""Integer networks compute what the rules say, to the last bit; an oracle in fractions says the same in its own way."""

import itertools
import math
import struct
from fractions import Fraction

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils._pytree import tree_flatten

from lilliput.core.artifact import Artifact, InputSpec
from lilliput.core.encoding import Encoding, Grid, Sharing
from lilliput.core.method import Context, apply_checked_
from lilliput.core.task import Task
from lilliput.graph.integer import IntegerNet, Quantized, fusions, grids_of, integer_bias, integer_values, runnable
from lilliput.graph.trace import trace
from lilliput.methods.normalization.batchnorm import FoldBatchNorm
from lilliput.methods.quantization.post_training import Quantization
from lilliput.testing import TINY, tiny_model, tiny_task
from program_networks import Code

HALF = Fraction(1, 2)


def f32(x):
    """Rounded to the nearest float32. Products and quotients of float32 numbers lose nothing in float64 before."""
    return struct.unpack("f", struct.pack("f", x))[0]


class Values:
    """Integers on a grid: an object array of Python's own integers."""

    def __init__(self, q, grid):
        self.q, self.grid = np.asarray(q, dtype=object), grid
        self.scale, self.zero = float(grid.scale), int(grid.zero_point)

    @property
    def centred(self):
        return self.q - self.zero

    @property
    def real(self):
        return np.vectorize(lambda v: f32(float(Fraction(self.scale) * v)), otypes=[object])(self.centred)


class Oracle:
    """The stored numbers of an artifact, computed in Python's integers and fractions: none of Lilliput's arithmetic."""

    def __init__(self, net):
        self.net = net

    def saturated(self, q, grid):
        bits = int(grid.bit_width)
        low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if grid.signed else (0, 2**bits - 1)
        return max(low, min(high, q))

    def quantized(self, real, node):
        """Real numbers to the grid of a node: nearest, halves up."""
        grid = self.net.activations[node]
        scale, zero = Fraction(float(grid.scale)), int(grid.zero_point)
        round_ = np.vectorize(
            lambda v: self.saturated(math.floor(Fraction(float(v)) / scale + HALF) + zero, grid), otypes=[object]
        )
        return Values(round_(np.asarray(real, dtype=object)), grid)

    def finished(self, accumulator, unit, node, axis=0):
        """Accumulators, one unit of which is worth `unit` (one for all, or one for each index of `axis`)."""
        units = np.asarray(unit, dtype=object)
        if units.ndim:
            units = units.reshape([-1 if d == axis else 1 for d in range(accumulator.ndim)])
        units = np.broadcast_to(units, accumulator.shape)
        if node is None:
            return np.vectorize(lambda a, u: f32(float(a) * u), otypes=[float])(accumulator, units)
        grid = self.net.activations[node]
        out, zero = float(grid.scale), int(grid.zero_point)
        step = np.vectorize(
            lambda a, u: self.saturated(math.floor(Fraction(f32(u / out)) * a + HALF) + zero, grid), otypes=[object]
        )
        return Values(step(accumulator, units), grid)

    def weights(self, layer, source):
        """Centred weights and biases, and what a unit of each channel's accumulator is worth."""
        e = self.net.encodings[f"{layer}.weight"]
        q = np.array(e.integers().tolist(), dtype=object)
        zeros = np.array(e.grid.zero_point.tolist(), dtype=object)
        spread = [-1, *[1] * (q.ndim - 1)] if e.grid.axis == 0 else [1] * q.ndim
        bias = self.net.encodings.get(f"{layer}.bias")
        b = [0] * len(q) if bias is None else bias.integers().tolist()
        units = [f32(source.scale * s) for s in e.grid.scale.tolist()]
        return q - zeros.reshape(spread), b, units if len(units) > 1 else units[0]

    def linear(self, x, layer, node):
        w, b, units = self.weights(layer, x)
        acc = [
            sum(wi * xi for wi, xi in zip(row, x.centred, strict=True)) + bias for row, bias in zip(w, b, strict=True)
        ]
        return self.finished(np.array(acc, dtype=object), units, node)

    def conv(self, x, layer, node, *, stride=1, pad=0, groups=1):
        w, b, units = self.weights(layer, x)
        channels, height, width = x.q.shape
        padded = np.zeros((channels, height + 2 * pad, width + 2 * pad), dtype=object)
        padded[:, pad : pad + height, pad : pad + width] = x.centred
        out, per, kh, kw = w.shape
        rows, columns = (padded.shape[1] - kh) // stride + 1, (padded.shape[2] - kw) // stride + 1
        acc = np.zeros((out, rows, columns), dtype=object)
        for o, r, c in itertools.product(range(out), range(rows), range(columns)):
            first = o // (out // groups) * per
            patch = padded[first : first + per, r * stride : r * stride + kh, c * stride : c * stride + kw]
            acc[o, r, c] = int((w[o] * patch).sum()) + b[o]
        return self.finished(acc, units, node)

    def add(self, a, b, node, sign=1):
        """The larger ratio to 31 bits, the other to the same precision; one rounding of the sum."""
        grid = self.net.activations[node]
        ratios = [Fraction(f32(v.scale / float(grid.scale))) for v in (a, b)]
        shift = 0
        while max(ratios) * 2**shift < 2**30:
            shift += 1
        m = [math.floor(r * 2**shift + HALF) for r in ratios]
        total = a.centred * m[0] + sign * b.centred * m[1]
        end = np.vectorize(
            lambda t: self.saturated(math.floor(Fraction(t, 2**shift) + HALF) + int(grid.zero_point), grid),
            otypes=[object],
        )
        return Values(end(total), grid)

    def mul(self, a, b, node):
        return self.finished(a.centred * b.centred, f32(a.scale * b.scale), node)

    def concat(self, parts, node):
        grid = self.net.activations[node]
        same = [v.grid.same(grid) for v in parts]
        done = [v.q if s else self.finished(v.centred, v.scale, node).q for v, s in zip(parts, same, strict=True)]
        return Values(np.concatenate(done), grid)

    def average(self, x, node, kernel):
        """Windows of `kernel` x `kernel` side by side; 0 = one window of everything."""
        channels, height, width = x.q.shape
        k = (height, width) if kernel == 0 else (kernel, kernel)
        acc = np.zeros((channels, height // k[0], width // k[1]), dtype=object)
        for c, i, j in itertools.product(*(range(s) for s in acc.shape)):
            acc[c, i, j] = int(x.centred[c, i * k[0] : (i + 1) * k[0], j * k[1] : (j + 1) * k[1]].sum())
        return self.finished(acc, f32(x.scale / (k[0] * k[1])), node)

    def clipped(self, x, low, high=None):
        """A relu or clamp after the rounding."""

        def code(bound):
            rounded = math.floor(Fraction(bound) / Fraction(x.scale) + HALF) + x.zero
            return self.saturated(rounded, x.grid)

        end = np.vectorize(
            lambda q: max(q, code(low)) if high is None else min(max(q, code(low)), code(high)), otypes=[object]
        )
        return Values(end(x.q), x.grid)


def moved(o, x):
    """Zero padding, max pooling 2x2 and a slice: codes that are moved, never computed."""
    channels, height, width = x.q.shape
    padded = np.full((channels, height + 1, width + 1), x.zero, dtype=object)
    padded[:, 1:, 1:] = x.q
    pooled = padded.reshape(channels, (height + 1) // 2, 2, (width + 1) // 2, 2).max((2, 4))
    return Values(pooled[1:].reshape(-1), x.grid)


def flat(x):
    return Values(x.q.reshape(-1), x.grid)


NETS = {
    "linear": (
        lambda: Code(lambda m, x: m.b(F.relu(m.a(x))), a=nn.Linear(5, 4), b=nn.Linear(4, 3)),
        (5,),
        lambda o, x: o.linear(o.clipped(o.linear(x, "a", "relu"), 0), "b", None),
    ),
    "clamp": (
        lambda: Code(lambda m, x: m.b(m.a(x).clamp(-0.25, 0.5)), a=nn.Linear(5, 4, bias=False), b=nn.Linear(4, 3)),
        (5,),
        lambda o, x: o.linear(o.clipped(o.linear(x, "a", "clamp"), -0.25, 0.5), "b", None),
    ),
    "conv": (
        lambda: Code(
            lambda m, x: m.b(F.avg_pool2d(F.relu(m.a(x)), 2).flatten(1)),
            a=nn.Conv2d(2, 4, 3, padding=1, groups=2),
            b=nn.Linear(16, 3),
        ),
        (2, 4, 4),
        lambda o, x: o.linear(
            flat(o.average(o.clipped(o.conv(x, "a", "relu", pad=1, groups=2), 0), "avg_pool", 2)), "b", None
        ),
    ),
    "strides": (
        lambda: Code(lambda m, x: m.b(m.a(x)), a=nn.Conv2d(2, 3, 2, stride=2), b=nn.Conv2d(3, 2, 2, bias=False)),
        (2, 5, 4),
        lambda o, x: o.conv(o.conv(x, "a", "a", stride=2), "b", None),
    ),
    "add": (
        lambda: Code(
            lambda m, x: m.c(F.relu(m.a(x) + m.b(x))),
            a=nn.Conv2d(2, 3, 1),
            b=nn.Conv2d(2, 3, 1, bias=False),
            c=nn.Conv2d(3, 2, 2),
        ),
        (2, 3, 3),
        lambda o, x: o.conv(o.clipped(o.add(o.conv(x, "a", "a"), o.conv(x, "b", "b"), "relu"), 0), "c", None),
    ),
    "sub": (
        lambda: Code(lambda m, x: m.c(m.a(x) - x), a=nn.Linear(4, 4), c=nn.Linear(4, 2)),
        (4,),
        lambda o, x: o.linear(o.add(o.linear(x, "a", "a"), x, "sub", -1), "c", None),
    ),
    "concat": (
        lambda: Code(
            lambda m, x: m.c(torch.cat([m.a(x), x, m.b(x)], 1)),
            a=nn.Linear(4, 2),
            b=nn.Linear(4, 3),
            c=nn.Linear(9, 2),
        ),
        (4,),
        lambda o, x: o.linear(o.concat([o.linear(x, "a", "a"), x, o.linear(x, "b", "b")], "concat"), "c", None),
    ),
    "mul": (
        lambda: Code(
            lambda m, x: m.c(m.a(x) * m.b(x).clamp(min=-1)), a=nn.Linear(4, 3), b=nn.Linear(4, 3), c=nn.Linear(3, 2)
        ),
        (4,),
        lambda o, x: o.linear(o.mul(o.linear(x, "a", "a"), o.clipped(o.linear(x, "b", "clamp"), -1), "mul"), "c", None),
    ),
    "mean": (
        lambda: Code(lambda m, x: m.b(m.a(x).mean((2, 3))), a=nn.Conv2d(1, 3, 2), b=nn.Linear(3, 2)),
        (1, 4, 4),
        lambda o, x: o.linear(flat(o.average(o.conv(x, "a", "a"), "mean", 0)), "b", None),
    ),
    "moves": (
        lambda: Code(
            lambda m, x: m.b(F.max_pool2d(F.pad(m.a(x), (1, 0, 1, 0)), 2)[:, 1:].flatten(1)),
            a=nn.Conv2d(1, 3, 2),
            b=nn.Linear(8, 2),
        ),
        (1, 4, 4),
        lambda o, x: o.linear(moved(o, o.conv(x, "a", "a")), "b", None),
    ),
    "table": (
        lambda: Code(lambda m, x: m.b(m.a(x) * 0.5), a=nn.Linear(4, 3), b=nn.Linear(3, 2)),
        (4,),
        lambda o, x: o.linear(o.quantized([f32(v / 2) for v in o.linear(x, "a", "a").real], "mul_scalar"), "b", None),
    ),
}


def random_grid(generator, shape=(), *, axis=None, bits=None):
    """Scales over two decades, zero points anywhere on the grid, signed and unsigned, 3 to 8 bits."""
    n = shape[0] if axis == 0 else 1
    width = int(torch.randint(3, 9, (), generator=generator)) if bits is None else bits
    signed = bool(torch.randint(2, (), generator=generator))
    low = -(2 ** (width - 1)) if signed else 0
    return Grid(
        scale=(10 ** (2 * torch.rand(n, generator=generator) - 2)).float() / 2 ** (width - 6),
        zero_point=torch.randint(low, low + 2**width, (n,), generator=generator),
        bit_width=torch.full((n,), width),
        signed=signed,
        axis=axis,
    )


def random_weight(tensor, generator):
    """A weight on a random grid, per tensor or channel, perhaps masked and sharing values."""
    e = Encoding.of(tensor)
    kind = int(torch.randint(4, (), generator=generator))
    if kind == 1:
        e = e.with_mask(torch.rand(tensor.shape, generator=generator) > 0.4)
    if kind == 2:
        table = torch.linspace(-0.4, 0.4, 3)
        indices = torch.randint(3, tensor.shape, generator=generator)
        e = e.with_sharing(Sharing(indices=indices, sizes=torch.tensor([3])), table)
    return e.with_grid(random_grid(generator, tuple(tensor.shape), axis=0 if kind in (0, 1) else None))


def randomized(name, graph, seed):
    """The network on random grids: saturation, dead ranges and odd zero points all happen."""
    generator = torch.Generator().manual_seed(seed)
    make, shape, _ = NETS[name]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = Artifact.of(make(), InputSpec(shape=shape))
    net.activations = {node: random_grid(generator) for node in integer_values(graph)}
    grids = grids_of(graph, net.activations)
    for node in graph.nodes:
        if node.op in ("conv", "linear"):
            weight = random_weight(net.parameter(node.state["weight"]), generator)
            net.encode_(node.state["weight"], weight)
            if "bias" in node.state and weight.grid is not None:
                bias = torch.randn(weight.shape[0], generator=generator)
                net.encode_(node.state["bias"], integer_bias(bias, grids[node.inputs[0]], weight.grid))
    return net


@pytest.fixture(scope="module")
def graphs():
    return {name: trace(make().eval(), torch.randn(2, *shape)) for name, (make, shape, _) in NETS.items()}


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("name", NETS)
def test_integer_networks_equal_exact_arithmetic(name, seed, graphs):
    net = randomized(name, graphs[name], seed)
    oracle, (_, shape, compute) = Oracle(net), NETS[name]
    integer = IntegerNet(net, graphs[name])
    assert integer.floats == {}
    x = 2 * torch.randn((3, *shape), generator=torch.Generator().manual_seed(seed))
    expected = [compute(oracle, oracle.quantized(sample.tolist(), "input")) for sample in x]
    assert torch.equal(integer(x), torch.tensor(np.stack(expected).astype(float)).float())


def test_values_on_the_way_are_integers_inside_their_grids(graphs):
    net = randomized("conv", graphs["conv"], 3)
    seen = {}
    integer = IntegerNet(net, graphs["conv"])
    integer.values((5 * torch.randn(4, 2, 4, 4),), lambda node, value: seen.update({node.name: value}))
    assert isinstance(seen.pop("b"), torch.Tensor)  # the output stays in its accumulators: no rounding at the end
    for value in seen.values():
        assert isinstance(value, Quantized)
        low, high = value.grid.range()
        assert torch.equal(value.q, value.q.round())
        assert int(low) <= int(value.q.min()) <= int(value.q.max()) <= int(high)


@pytest.mark.parametrize("name", TINY)
def test_eight_bits_stay_within_the_noise_of_quantization(name):
    model, task = tiny_model(name), tiny_task()
    net = Artifact.of(model, task.spec)
    context = Context.of(task, model)
    for method in (FoldBatchNorm(), Quantization(activation_range="min_max")):
        apply_checked_(method, net, context)
    x = task.data("train").inputs
    with torch.no_grad():
        wanted, found = model(x), runnable(net)(x)
    noise = (found - wanted).square().mean() / wanted.square().mean()
    assert 10 * math.log10(1 / float(noise)) > 27


def test_each_bit_less_costs_about_six_decibels():
    model, task = tiny_model("conv"), tiny_task()
    x = task.data("train").inputs
    with torch.no_grad():
        wanted = model(x)
    noise = []
    for bits in (8, 6, 4):
        net = Artifact.of(model, task.spec)
        apply_checked_(Quantization(weight_bits=bits, activation_bits=bits), net, Context.of(task, model))
        noise.append(float((runnable(net)(x) - wanted).square().mean()))
    gains = [10 * math.log10(b / a) / 2 for a, b in itertools.pairwise(noise)]
    assert all(3.5 < gain < 9 for gain in gains)


def quantized(model, shape, *methods):
    x = torch.randn((64, *shape), generator=torch.Generator().manual_seed(0))
    net = Artifact.of(model, InputSpec(shape=shape))
    task = Task.classification(train=(x, torch.zeros(64).long()), forward=lambda m, b: m(b[0]).flatten(1))
    for method in methods or (Quantization(),):
        apply_checked_(method, net, Context.of(task, net.module))
    return net


def tied_biases(model):
    model.b.bias = model.a.bias
    return model


FLOATS = {
    "layer norm": (
        lambda: Code(lambda m, x: m.b(m.n(m.a(x))), a=nn.Linear(4, 4), n=nn.LayerNorm(4), b=nn.Linear(4, 2)),
        (4,),
        {"n": "layer_norm has no integer rule here"},
    ),
    "unfolded norm": (
        lambda: Code(lambda m, x: m.b(m.n(m.a(x))), a=nn.Linear(4, 4), n=nn.BatchNorm1d(4), b=nn.Linear(4, 2)),
        (4,),
        {"n": "BatchNorm is not folded"},
    ),
    "one bias for two weights": (
        lambda: tied_biases(Code(lambda m, x: m.b(F.relu(m.a(x))), a=nn.Linear(4, 4), b=nn.Linear(4, 4))),
        (4,),
        dict.fromkeys(("a", "b"), "its weight or bias has no integer grid"),
    ),
    "argmax inside": (
        lambda: Code(lambda m, x: m.b(m.a(x)) + m.a(x).argmax(1, keepdim=True), a=nn.Linear(4, 4), b=nn.Linear(4, 2)),
        (4,),
        {"argmax": "argmax is not the last operation", "add": "it feeds only the output"},
    ),
    "the end": (
        lambda: Code(lambda m, x: m.a(x) + m.b(x), a=nn.Linear(4, 4), b=nn.Linear(4, 4)),
        (4,),
        {"add": "it feeds only the output"},
    ),
    "unknown code": (
        lambda: Code(lambda m, x: m.b(torch.cumsum(m.a(x), 1)), a=nn.Linear(4, 4), b=nn.Linear(4, 2)),
        (4,),
        {"cumsum": "aten.cumsum.default has no integer rule"},
    ),
    "uneven pooling": (
        lambda: Code(
            lambda m, x: m.b(F.avg_pool2d(m.a(x), 2, padding=1, count_include_pad=False).flatten(1)),
            a=nn.Conv2d(1, 2, 1),
            b=nn.Linear(18, 2),
        ),
        (1, 4, 4),
        {"avg_pool": "its windows count different numbers of values"},
    ),
}


@pytest.mark.parametrize("name", FLOATS)
def test_what_stays_in_float_is_named_with_its_reason(name):
    make, shape, expected = FLOATS[name]
    net = quantized(make().eval(), shape)
    assert IntegerNet(net).floats == expected
    x = net.input.example(20)
    with torch.no_grad():
        assert torch.isfinite(runnable(net)(x)).all()


def test_a_network_without_grids_runs_as_it_is():
    model = tiny_model("residual")
    net = Artifact.of(model, InputSpec(shape=(1, 4, 4)))
    assert runnable(net) is net.module
    x = net.input.example(3)
    with torch.no_grad():
        assert torch.equal(IntegerNet(net)(x), model(x))


class Forms(nn.Module):
    """Returns its answer in some form."""

    def __init__(self, form):
        super().__init__()
        self.a, self.b, self.form = nn.Linear(4, 3), nn.Linear(3, 2), form

    def forward(self, x):
        y = F.relu(self.a(x))
        return self.form(y, self.b(y))


FORMS = {
    "one in a tuple": lambda y, z: (z,),
    "two": lambda y, z: (z, y),
    "dictionary": lambda y, z: {"logits": z, "features": [y, y]},
    "with constants": lambda y, z: {"logits": z, "scale": 2, "nothing": None},
}


@pytest.mark.parametrize("name", FORMS)
def test_outputs_come_in_the_form_that_the_model_gives_them(name):
    model = Forms(FORMS[name]).eval()
    net = Artifact.of(model, InputSpec(shape=(4,)))
    x = net.input.example(6)
    with torch.no_grad():
        wanted = model(x)
        exact, rounded = IntegerNet(net)(x), None
        net.activations = {n: Grid.per_tensor(0.02, 128, 8, signed=False) for n in integer_values(trace(model, x))}
        rounded = runnable(net)(x)
    leaves, form = tree_flatten(wanted)
    for found in (exact, rounded):
        others, same = tree_flatten(found)
        assert same == form
        assert all(
            torch.allclose(a, b, atol=0.1) if isinstance(a, torch.Tensor) else a == b
            for a, b in zip(leaves, others, strict=True)
        )


def test_a_relu_is_fused_only_where_it_alone_reads():
    model = Code(lambda m, x: m.b(F.relu(y := m.a(x)) + y), a=nn.Linear(4, 4), b=nn.Linear(4, 2))
    graph = trace(model.eval(), torch.randn(2, 4))
    assert fusions(graph) == {}
    assert integer_values(graph) == ["input", "a", "relu", "add"]


def test_sums_beyond_float32_are_still_exact():
    """Partial sums reach 2^25 and the last product is 126: float32 would lose it."""
    model = Code(lambda m, x: m.b(m.a(x)), a=nn.Linear(2001, 1, bias=False), b=nn.Linear(1, 1, bias=False))
    net = Artifact.of(model, InputSpec(shape=(2001,)))
    net.activations = {"input": Grid.per_tensor(1.0, 0, 8, signed=False), "a": Grid.per_tensor(1.0, 0, 16, signed=True)}
    weight = torch.tensor([[127] * 1000 + [-127] * 1000 + [-126]])
    grid = Grid.per_tensor(1.0, 0, 8, signed=True)
    net.encode_("a.weight", Encoding.of(torch.zeros(1, 2001)).with_grid(grid, weight))
    net.encode_("b.weight", Encoding.of(torch.zeros(1, 1)).with_grid(grid, torch.tensor([[1]])))
    x = torch.full((1, 2001), 255.0)
    x[0, 1999] = 0.0
    x[0, 2000] = 1.0
    assert float(runnable(net)(x)) == 255 * 127 - 126


def test_a_range_that_is_nearly_dead_saturates_and_is_no_error():
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)).eval()
    with torch.no_grad():
        model.get_parameter("0.weight").mul_(1e-15)
        model.get_parameter("0.bias").fill_(-1.0)
        model.get_parameter("0.bias")[0] = 1e-15
    net = quantized(model, (4,))
    x = net.input.example(8)
    with torch.no_grad():
        assert torch.allclose(runnable(net)(x), model(x), atol=1e-2)
