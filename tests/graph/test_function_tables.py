"""What is stored of functions on points is integers of their outputs, and computes what it did."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from knotted import TASK, chain, functions, learned, rounded
from lilliput.core import container
from lilliput.core.artifact import Artifact
from lilliput.core.edits import Replace
from lilliput.core.learned_activation import LearnedActivation
from lilliput.core.method import Context, apply_checked_
from lilliput.graph import stored
from lilliput.graph.function_tables import free_tables_, store_tables_
from lilliput.graph.integer import IntegerNet, runnable
from lilliput.methods.learned_functions.replace_activations import ReplaceActivations
from lilliput.methods.quantization.aware_training import QuantizationAwareTraining
from lilliput.methods.quantization.post_training import Quantization
from lilliput.testing import check_artifact

KINDS = ("table", "cubic", "lerp_psa")
X = TASK.data("validation").inputs


def everything(_):
    return True


@pytest.mark.parametrize(("bits", "points"), [(8, 9), (8, 257), (5, 17), (16, 33)])
@pytest.mark.parametrize("kind", KINDS)
def test_storing_integers_changes_nothing_that_computes(kind, bits, points):
    model = chain(functions(points, kind))
    net = rounded(model, activation_bits=bits)
    outputs, limit = IntegerNet(net)(X), learned(net.module).limit.clone()
    done = store_tables_(net, everything)
    assert set(done) == {"1"}
    net.check()
    assert torch.equal(IntegerNet(net)(X), outputs)
    act = learned(net.module)
    assert (act.kind, act.points, tuple(act.weight.shape)) == ("table", points, (3, points))
    assert torch.equal(act.limit, limit)
    encoding = net.encodings["1.weight"]
    assert encoding.grid is not None
    assert encoding.grid.same(net.activations["1"])
    assert [e.cls for e in net.edits if isinstance(e, Replace)] == ["LearnedActivation"] * (kind != "table")
    again = store_tables_(net, everything)
    assert again == done
    assert torch.equal(IntegerNet(net)(X), outputs)
    free_tables_(net, everything)
    assert "1.weight" not in net.encodings
    assert torch.equal(IntegerNet(net)(X), outputs)


class Called(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.c, self.act = nn.Linear(4, 6), nn.Linear(6, 5), nn.Linear(5, 2), nn.GELU()

    def forward(self, x):
        return self.c(F.relu(self.b(self.act(self.a(x)))))


@pytest.mark.parametrize("method", [Quantization(), QuantizationAwareTraining(epochs=1, batch_size=16)])
@pytest.mark.parametrize("kind", KINDS)
def test_files_hold_a_byte_for_each_point_and_compute_the_same_with_and_without_the_class(kind, method):
    torch.manual_seed(0)
    model = Called().eval()
    net = Artifact.of(model, TASK.spec)
    for each in (ReplaceActivations(kind=kind, points=33), method):
        result = apply_checked_(each, net, Context.of(TASK, model))
    assert {"act", "learned"} <= set(result.changed)
    check_artifact(net, model, kind)
    outputs, data = runnable(net)(X), stored.dumps(net)
    contents = container.loads(data)
    assert sum(s.raw_bits for s in contents.streams["act.weight"]) <= 8 * 6 * 33 + 64  # integers; scale and zero point
    for other in (stored.stored_artifact(contents), contents.replay(Called())):
        assert torch.equal(runnable(other)(X), outputs)
        assert stored.dumps(other) == data


def test_what_is_loaded_without_its_class_trains_and_is_stored_as_integers():
    model = chain(functions(17, "lerp_psa"))
    net = rounded(model)
    unbaked = stored.stored_artifact(container.loads(stored.dumps(net)))
    assert store_tables_(unbaked, everything) == {}  # a graph of words: its functions stay what they are
    store_tables_(net, everything)
    other = stored.stored_artifact(container.loads(stored.dumps(net)))
    before = other.encodings["1.weight"].integers()
    method = QuantizationAwareTraining(epochs=2, batch_size=16, learning_rate=1e-2, keep="last")
    apply_checked_(method, other, Context.of(TASK, model))
    assert not torch.equal(other.encodings["1.weight"].integers(), before)
    grid = other.encodings["1.weight"].grid
    assert grid is not None
    assert grid.same(other.activations["1"])


def test_layers_that_are_skipped_keep_their_floats():
    model = chain(functions(17, "lerp_psa"))
    for method in (Quantization(skip=("1",)), QuantizationAwareTraining(epochs=1, batch_size=16, skip=("1",))):
        net = Artifact.of(model, TASK.spec)
        apply_checked_(method, net, Context.of(TASK, model))
        assert "1.weight" not in net.encodings
        assert torch.equal(learned(net.module).weight, learned(model).weight)


class Twice(nn.Module):
    """One module, two calls: what it gives is on two grids."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, 3), nn.Linear(3, 3), nn.Linear(3, 2)
        self.act = LearnedActivation(3, kind="table", points=9)

    def forward(self, x):
        return self.c(self.act(self.b(self.act(self.a(x)))))


def test_functions_of_two_output_grids_stay_floats():
    torch.manual_seed(0)
    net = rounded(Twice().eval())
    outputs = IntegerNet(net)(X)
    assert store_tables_(net, everything) == {}
    assert torch.equal(IntegerNet(net)(X), outputs)
    first, second = (n for n in net.activations if n.startswith("act"))
    net.activations[second] = net.activations[first]
    assert set(store_tables_(net, everything)) == {"act"}


def test_full_tables_stay_floats():
    net = rounded(chain(functions(17, "lerp_psa")), tables="full")
    assert store_tables_(net, everything) == {}
    assert learned(net.module).kind == "lerp_psa"
