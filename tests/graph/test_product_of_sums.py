"""Product of sums computes what dense layers compute, as often as a loop that adds first."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

import lilliput as ll
from lilliput.core import container
from lilliput.core.encoding import Encoding, Sharing
from lilliput.core.errors import UsageError
from lilliput.core.method import Context, apply_checked_
from lilliput.graph import product_of_sums as pos
from lilliput.graph.stored import dumps, stored_artifact
from lilliput.graph.trace import Graph, Node, graph_of
from lilliput.measure.macs import count_macs
from lowered import task_of


def shared(weight, axis=None):
    """An encoding with one table, or one for each slice of `axis`; zeros are masked."""
    if axis is None:
        table, indices = weight.unique(return_inverse=True)
        sharing = Sharing(indices=indices, sizes=torch.tensor([len(table)]))
    else:
        found = [part.unique(return_inverse=True) for part in weight.unbind(axis)]
        table, indices = torch.cat([t for t, _ in found]), torch.stack([i for _, i in found], axis)
        sharing = Sharing(indices=indices, sizes=torch.tensor([len(t) for t, _ in found]), axis=axis)
    return Encoding.of(weight).with_mask(weight != 0).with_sharing(sharing, table)


def one_layer(layer, x, axis):
    """An artifact whose weight shares its values, and its graph, without tracing."""
    artifact = ll.Artifact.of(nn.Sequential(layer), ll.InputSpec(shape=tuple(x.shape[1:])))
    artifact.encode_("0.weight", shared(layer.weight.detach(), axis))
    state = {"weight": "0.weight"} | ({"bias": "0.bias"} if layer.bias is not None else {})
    attributes = {}
    if not isinstance(layer, nn.Linear):
        attributes = {
            "stride": layer.stride,
            "pads": tuple((p, p) for p in layer.padding),
            "dilation": layer.dilation,
            "kernel": layer.kernel_size,
            "groups": layer.groups,
            "transposed": False,
        }
    source = Node(name="input", op="input", inputs=(), shape=(1, *x.shape[1:]), module="", target="input", source="")
    node = Node(
        name="0",
        op="linear" if isinstance(layer, nn.Linear) else "conv",
        inputs=("input",),
        shape=(1, *layer(x).shape[1:]),
        module="0",
        source="",
        target="",
        state=state,
        attributes=attributes,
    )
    return artifact, Graph(nodes=(source, node), inputs=("input",), outputs=("0",))


def by_hand(x, node, weight, bias):
    """(outputs of one sample, multiplies, additions): each output by itself, sums first, in exact order."""
    rows = weight.flatten(1).tolist()
    biases = [0.0] * len(rows) if bias is None else bias.tolist()
    if node.op == "linear":
        vectors = {at: [x[at].tolist()] for at in itertools.product(*map(range, x.shape[:-1]))}
    else:
        a = node.attributes
        wide = F.pad(x, [n for p in reversed(a["pads"]) for n in p])
        per_group = len(x) // a["groups"]
        vectors = {}
        for at in itertools.product(*map(range, node.shape[2:])):
            taps = itertools.product(range(len(x)), *map(range, a["kernel"]))
            starts = [i * s for i, s in zip(at, a["stride"], strict=True)]
            found = [
                wide[(c, *(f + k * d for f, k, d in zip(starts, tap, a["dilation"], strict=True)))].item()
                for c, *tap in taps
            ]
            size = per_group * math.prod(a["kernel"])
            vectors[at] = [found[g * size : (g + 1) * size] for g in range(a["groups"])]
    outputs, multiplies, additions = {}, 0, 0
    for at, parts in vectors.items():
        for o, (row, b) in enumerate(zip(rows, biases, strict=True)):
            vector = parts[o * len(parts) // len(rows)]
            members = {}
            for w, value in zip(row, vector, strict=True):
                if w:
                    members.setdefault(w, []).append(value)
            terms = [w * sum(values) for w, values in members.items()]
            multiplies += len(terms)
            additions += sum(len(values) - 1 for values in members.values()) + max(len(terms) - 1 + (b != 0), 0)
            outputs[(*at, o) if node.op == "linear" else (o, *at)] = sum(terms) + b
    result = torch.zeros(node.shape[1:], dtype=torch.float64)
    for at, value in outputs.items():
        result[at] = value
    return result, multiplies, additions


@st.composite
def layers(draw):
    """A layer with few different weights, zeros among them, and inputs that it takes."""
    torch.manual_seed(draw(st.integers(0, 1000)))
    small = st.integers(1, 3)
    rank, bias = draw(st.integers(0, 2)), draw(st.booleans())
    if rank == 0:
        layer = nn.Linear(draw(st.integers(1, 9)), draw(small), bias=bias)
        x = torch.randn((2, *([draw(small)] if draw(st.booleans()) else []), layer.in_features))
    else:
        groups = draw(st.sampled_from([1, 2, 3]))
        kernel, stride, dilation = (tuple(draw(small) for _ in range(rank)) for _ in range(3))
        pads = tuple(draw(st.integers(0, 2)) for _ in range(rank))
        make = nn.Conv1d if rank == 1 else nn.Conv2d
        layer = make(
            groups * draw(st.integers(1, 2)),
            groups * draw(st.integers(1, 2)),
            kernel,
            stride,
            pads,
            dilation,
            groups,
            bias,
        )
        reach = [d * (k - 1) + 1 for d, k in zip(dilation, kernel, strict=True)]
        x = torch.randn((2, layer.in_channels, *(r + draw(st.integers(0, 3)) for r in reach)))
    values = torch.tensor(draw(st.sampled_from([[0.0], [0.0, 0.7], [-0.3, 0.0, 0.3, 1.1], [2.0]])))
    with torch.no_grad():
        layer.weight.copy_(values[torch.randint(len(values), layer.weight.shape)])
        if bias and draw(st.booleans()):
            layer.get_parameter("bias").zero_()
    return layer.requires_grad_(False).eval(), x


@settings(max_examples=60, deadline=None)
@given(layers(), st.sampled_from([None, 0, 1]))
def test_outputs_and_counts_are_those_of_a_loop(case, axis):
    layer, x = case
    artifact, graph = one_layer(layer, x, axis)
    module = ll.product_of_sums(artifact, graph)
    expected, multiplies, additions = by_hand(x[0].double(), graph["0"], layer.weight, layer.bias)
    torch.testing.assert_close(module(x), layer(x), rtol=1e-5, atol=1e-5)
    exact = module.double()(x.double())
    torch.testing.assert_close(exact[0], expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(exact, layer.double()(x.double()), rtol=1e-12, atol=1e-12)
    row = count_macs(graph, artifact)["0"]
    assert row["product_of_sums_multiplies"].value == multiplies
    assert row["effective_additions"].value == additions
    assert module.layers["0"].multiplies == len(
        {(o, w) for o, r in enumerate(layer.weight.flatten(1).tolist()) for w in r if w}
    )


class Many(nn.Module):
    """Every layer on the same input: one trace for many settings."""

    def __init__(self, *members):
        super().__init__()
        self.members = nn.ModuleList(members)

    def forward(self, x):
        return tuple(layer(x) for layer in self.members)


def clustered(model, shape, n_clusters=3):
    task = task_of(shape)
    net = ll.Artifact.of(model.eval(), task.spec)
    apply_checked_(ll.WeightClustering(n_clusters=n_clusters), net, Context.of(task, model))
    return net


def conv_settings(make):
    modes = ("zeros", "reflect", "replicate", "circular")
    return [
        *(make(4, 6, 3, padding=2, padding_mode=mode) for mode in modes),
        *(
            make(4, 6, 4, padding="same", dilation=2, padding_mode=mode) for mode in modes
        ),  # one more behind than before
        make(4, 8, 3, groups=2, stride=2, padding=1, bias=False),
        make(4, 4, 3, groups=4, padding="valid"),
    ]


@pytest.mark.parametrize(("make", "shape"), [(nn.Conv1d, (4, 12)), (nn.Conv2d, (4, 9, 10))])
def test_every_padding_computes_what_the_dense_layer_computes(make, shape):
    torch.manual_seed(0)
    net = clustered(Many(*conv_settings(make)), shape)
    module, x = ll.product_of_sums(net), torch.randn(3, *shape)
    assert len(module.layers) == len(conv_settings(make))
    for found, expected in zip(module(x), net.module(x), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def small_net():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.ConvTranspose2d(4, 3, 2), nn.Flatten(), nn.Linear(75, 3))
    return clustered(model, (2, 6, 6))


def test_pruning_and_quantization_afterwards_are_seen_and_the_module_is_a_copy():
    net, x = small_net(), torch.randn(4, 2, 6, 6)
    before, first = ll.product_of_sums(net), net.module(x).detach()
    task = task_of((2, 6, 6))
    for method in (ll.MagnitudePruning(sparsity=0.6), ll.Quantization(weight_bits=3, activation_bits=0)):
        apply_checked_(method, net, Context.of(task, net.module))
        module = ll.product_of_sums(net)
        torch.testing.assert_close(module(x), net.module(x), rtol=1e-5, atol=1e-6)
        wanted = [net.parameter(f"{i}.weight") for i in (0, 4)]
        assert [len(layer.inputs) for layer in module.layers.values()] == [int(torch.count_nonzero(w)) for w in wanted]
        assert (net.module(x) - first).abs().max() > 1e-3
    torch.testing.assert_close(before(x), first, rtol=1e-5, atol=1e-6)


def test_dense_weights_of_grouped_layers_are_not_kept_and_inputs_take_a_byte():
    module = ll.product_of_sums(small_net())
    assert sorted(module._buffers) == [
        f"dense/{name}" for name in ("0/bias", "2/bias", "2/weight", "4/bias")
    ]  # 2 is transposed: dense
    assert {layer.inputs.dtype for layer in module.layers.values()} == {torch.uint8}
    assert pos.GroupedSum(torch.ones(2, 400), 2).inputs.dtype == torch.int16
    assert pos.GroupedSum(torch.ones(1, 40_000)).inputs.dtype == torch.int32


def test_state_of_one_module_loads_into_another():
    net, x = small_net(), torch.randn(4, 2, 6, 6)
    one, other = ll.product_of_sums(net), ll.product_of_sums(net)
    for buffer in other.buffers():
        buffer.zero_()
    other.load_state_dict(one.state_dict())
    assert torch.equal(one(x), other(x))


def test_everything_moves_with_the_module():
    net, x = small_net(), torch.randn(4, 2, 6, 6)
    module = ll.product_of_sums(net).to("meta")
    assert {t.device.type for t in module.state_dict().values()} == {"meta"}
    assert module(x.to("meta")).shape == (4, 3)


def test_large_batches_in_parts_give_the_same(monkeypatch):
    module, x = ll.product_of_sums(small_net()), torch.randn(7, 2, 6, 6)
    whole = module(x)
    monkeypatch.setattr(pos, "MOST_AT_ONCE", 5000)
    assert torch.equal(module(x), whole)


def test_a_network_from_a_file_runs_without_its_code():
    net, x = small_net(), torch.randn(4, 2, 6, 6)
    again = stored_artifact(container.loads(dumps(net)), "net.lil")
    assert torch.equal(ll.product_of_sums(again)(x), ll.product_of_sums(net)(x))


def test_a_weight_used_by_two_calls_is_grouped_in_both():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(5, 5)

        def forward(self, x):
            return F.linear(torch.relu(self.fc(x)), self.fc.weight)

    torch.manual_seed(0)
    net, x = clustered(Twice(), (5,)), torch.randn(4, 5)
    module = ll.product_of_sums(net)
    assert len(module.layers) == 2
    torch.testing.assert_close(module(x), net.module(x), rtol=1e-5, atol=1e-6)


def test_layers_may_have_any_name():
    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers, self.sum = nn.Linear(5, 5), nn.Linear(5, 2)

        def forward(self, x):
            return self.sum(self.layers(x))

    net, x = clustered(Named(), (5,)), torch.randn(4, 5)
    torch.testing.assert_close(ll.product_of_sums(net)(x), net.module(x), rtol=1e-5, atol=1e-6)


def test_networks_without_shared_weights_stay_as_they_are():
    model = nn.Linear(4, 3).eval()
    net, x = ll.Artifact.of(model, ll.InputSpec(shape=(4,))), torch.randn(2, 4)
    assert torch.equal(ll.product_of_sums(net)(x), model(x))


def test_activation_grids_are_refused_with_what_to_do():
    net = small_net()
    task = task_of((2, 6, 6))
    apply_checked_(ll.Quantization(), net, Context.of(task, net.module))
    with pytest.raises(UsageError, match=r"activations have grids; use lower\(net, product_of_sums=True\)"):
        ll.product_of_sums(net, graph_of(net))
