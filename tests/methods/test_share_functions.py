"""Channels share functions: the same network where these are equal, everywhere that a network goes."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from knotted import learned
from lilliput.core import container
from lilliput.core.artifact import Artifact
from lilliput.core.errors import ArtifactError, RecipeError
from lilliput.core.learned_activation import LearnedActivation
from lilliput.core.method import Context, apply_checked_
from lilliput.export.onnx import build
from lilliput.export.onnx_check import check_layers, check_with_runtime
from lilliput.graph import stored
from lilliput.graph.integer import IntegerNet, grids_of, runnable
from lilliput.graph.interpreter import decode, quantize_input, run
from lilliput.graph.lower import lower
from lilliput.graph.trace import graph_of
from lilliput.measure.flash import count_flash
from lilliput.methods.learned_functions.replace_activations import ReplaceActivations
from lilliput.methods.learned_functions.share_functions import ShareFunctions
from lilliput.methods.pruning.channel import ChannelPruning
from lilliput.methods.quantization.aware_training import QuantizationAwareTraining
from lilliput.methods.quantization.post_training import Quantization
from lilliput.methods.tuning.fine_tune import FineTune
from lilliput.testing import check_artifact
from lilliput.training.fake_quant import FakeQuant
from lowered import task_of

KINDS = ("table", "cubic", "lerp_psa")
TASK = task_of((2, 6, 6))
X = TASK.data("validation").inputs


class Net(nn.Module):
    """Twelve channels with three different functions, and a call."""

    def __init__(self, kind="table", points=17):
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(2, 12, 3), nn.Conv2d(12, 6, 3), nn.Linear(24, 3)
        self.act = LearnedActivation(12, kind=kind, points=points, limit=2.0)

    def forward(self, x):
        return self.c(F.relu(self.b(self.act(self.a(x)))).flatten(1))


def network(kind="table", different=3, points=17):
    torch.manual_seed(0)
    model = Net(kind, points).eval()
    act = learned(model, "act")
    with torch.no_grad():
        kinds = act.weight[:1] + 0.3 * torch.randn(different, act.weight.shape[1])
        act.weight.copy_(kinds[torch.arange(12) % different])
    return model


def applied(model, *methods, task=TASK):
    net = Artifact.of(model, task.spec)
    results = [apply_checked_(m, net, Context.of(task, model)) for m in methods]
    return net, results[-1]


@pytest.mark.parametrize("kind", KINDS)
def test_equal_functions_are_found_and_nothing_changes(kind):
    model = network(kind)
    net, result = applied(model, ShareFunctions(tables=3))
    act = learned(net.module, "act")
    assert (act.kind, act.share, act.groups, tuple(act.weight.shape)) == ("table", "indexed", 3, (3, 17))
    assert act.owner is not None
    assert act.owner.dtype == torch.uint8
    assert torch.equal(act.owner.reshape(4, 3), act.owner[:3].expand(4, 3))
    assert len(set(act.owner[:3].tolist())) == 3
    with torch.no_grad():
        assert torch.allclose(net.module(X), model(X), atol=1e-4)
    assert set(result.changed) == {"act"}
    assert "12 functions in 3 tables" in result.changed["act"]
    check_artifact(net, model, kind)


def test_what_is_told_is_what_changes():
    model = network(different=12)
    net, result = applied(model, ShareFunctions(tables=4))
    assert result.statistics is not None
    told = torch.tensor(result.statistics["act"]["changed"])
    owner = learned(net.module, "act").owner
    assert owner is not None
    assert result.statistics["act"]["owner"] == owner.tolist()
    x = model.a(TASK.data("calibration").inputs).clamp(-2, 2)
    with torch.no_grad():
        before, after = (learned(m, "act")(x).movedim(1, 0).flatten(1) for m in (model, net.module))
    real = ((after - before) ** 2).mean(1).sqrt() / (before**2).mean(1).sqrt()
    assert torch.allclose(real, told.float(), rtol=0.4)  # between points the change is smaller than at them
    assert float(torch.corrcoef(torch.stack([real, told.float()]))[0, 1]) > 0.95
    one = applied(model, ShareFunctions(tables=1))[1].statistics
    assert one is not None
    assert sum(one["act"]["changed"]) > sum(told.tolist())


@pytest.mark.parametrize("kind", KINDS)
def test_files_have_the_tables_once_and_a_byte_for_each_channel(kind):
    model = network(kind, different=12)
    for methods in ((), (Quantization(),)):
        net, _ = applied(model, ShareFunctions(tables=4), *methods)
        outputs = runnable(net)(X).detach()
        for names in (True, False):
            data = stored.dumps(net, names=names)
            again = stored.stored_artifact(container.loads(data))
            assert torch.equal(runnable(again)(X).detach(), outputs)
            assert stored.dumps(again, names=names) == data
        contents = container.loads(stored.dumps(net))
        assert torch.equal(runnable(contents.replay(Net(kind)))(X).detach(), outputs)
        assert contents.tensors["act.weight"].shape == (4, 17)
        assert contents.counters["act.owner"].dtype == torch.uint8


@pytest.mark.parametrize("tables", ["points", "full"])
def test_integers_are_the_same_everywhere(tables):
    model = network(different=12)
    net, _ = applied(model, ShareFunctions(tables=4), Quantization(tables=tables))
    graph = graph_of(net)
    integer = IntegerNet(net, graph)(X)
    assert torch.equal(FakeQuant(net, graph)(X).detach(), integer)
    program = lower(net)
    operation = next(o for o in program if o.table is not None)
    assert operation.table is not None
    entries = {"points": 17, "full": 256}[tables]
    assert operation.table.shape == (4, entries)
    (codes,) = run(program, quantize_input(program, X.numpy()))
    assert torch.equal(torch.from_numpy(decode(program.values[program.outputs[0]], codes)), integer)
    flash = count_flash(graph, net, grids_of(graph, net.activations))
    assert flash.rows["act"]["flash"].value == 4 * entries + 12
    onnx = build(net, target="onnx-arm", graph=graph)
    assert check_layers(onnx, net, X, graph=graph)["act"] == 0


@pytest.mark.parametrize("kind", KINDS)
def test_onnx_in_float_has_the_tables(kind):
    model = network(kind, different=12)
    net, _ = applied(model, ShareFunctions(tables=4))
    check_with_runtime(build(net, target="onnx-x86"), net, X)


def test_shared_psa_and_its_gradients_are_those_of_copies():
    torch.manual_seed(0)
    for kind in ("psa", *KINDS):
        shared = LearnedActivation(6, kind=kind, points=9, share="indexed", groups=3, init="paper")
        alone = LearnedActivation(6, kind=kind, points=9)
        assert shared.owner is not None
        shared.owner.copy_(torch.tensor([2, 0, 2, 1, 0, 2]))
        with torch.no_grad():
            shared.weight.add_(torch.randn_like(shared.weight))
            alone.weight.copy_(shared.weight[shared.owner.long()])
        x = torch.randn(5, 6, 3)
        y, z = shared(x), alone(x)
        assert torch.allclose(y, z, atol=1e-6)
        by = torch.randn_like(y)
        (y * by).sum().backward()
        (z * by).sum().backward()
        assert alone.weight.grad is not None
        assert shared.weight.grad is not None
        wanted = torch.zeros_like(shared.weight).index_add_(0, shared.owner.long(), alone.weight.grad)
        assert torch.allclose(shared.weight.grad, wanted, atol=1e-4)


def test_shared_tables_train_together_and_then_in_integers():
    model = network(different=12)
    share = ShareFunctions(tables=4)
    tune = FineTune(epochs=1, batch_size=16, learning_rate=1e-2, keep="last")
    aware = QuantizationAwareTraining(epochs=2, batch_size=16, learning_rate=1e-2, weight_bits=8, keep="last")
    first, _ = applied(model, share)
    net, _ = applied(model, share, tune, aware)
    a, b = learned(first.module, "act"), learned(net.module, "act")
    assert a.owner is not None
    assert b.owner is not None
    assert torch.equal(a.owner, b.owner)
    assert not torch.equal(a.weight, b.weight)
    grid = net.encodings["act.weight"].grid
    assert grid is not None
    assert grid.same(net.activations["act"])
    check_artifact(net, model, "shared")


def test_channels_take_their_byte_with_them():
    model = network(different=12)
    net, _ = applied(model, ShareFunctions(tables=4), ChannelPruning(amount=0.5, compensate=False))
    act = learned(net.module, "act")
    assert act.owner is not None
    assert len(act.owner) == act.channels == net.parameter("a.weight").shape[0] < 12
    assert tuple(act.weight.shape) == (4, 17)
    data = stored.dumps(net)
    for again in (stored.stored_artifact(container.loads(data)), container.loads(data).replay(Net())):
        with torch.no_grad():
            assert torch.allclose(again.module(X), net.module(X), atol=1e-5)
    check_artifact(net, model, "pruned")


def test_calls_share_and_equal_functions_before_training_are_dealt_out():
    model = network()
    net, result = applied(model, ReplaceActivations(kind="lerp_psa", points=9), ShareFunctions(tables=2))
    act = learned(net.module, "learned")
    assert act.owner is not None
    assert set(act.owner.tolist()) == {0, 1}
    assert {"act", "learned"} <= set(result.changed)


def test_who_cannot_share_is_skipped_or_refused_with_the_reason():
    model = network("psa")
    _, result = applied(model, ShareFunctions(tables=2))
    assert result.skipped["act"] == "psa has no points"
    _, result = applied(network(), ShareFunctions(tables=12))
    assert result.skipped["act"] == "it has 12 functions already"
    _, result = applied(network(), ShareFunctions(tables=4, skip=("act",)))
    assert result.skipped["act"] == "not selected by include and skip"
    with pytest.raises(RecipeError, match="put share_functions before quantization"):
        applied(network(), Quantization(), ShareFunctions())
    net = Artifact.of(network(), TASK.spec)
    other = stored.stored_artifact(container.loads(stored.dumps(net)))
    with pytest.raises(RecipeError, match="without its code"):
        apply_checked_(ShareFunctions(), other, Context.of(TASK, other.module))


def test_a_file_whose_channels_have_functions_that_are_not_there_is_refused():
    net, _ = applied(network(), ShareFunctions(tables=3))
    act = learned(net.module, "act")
    assert act.owner is not None
    act.owner[5] = 3
    contents = container.loads(stored.dumps(net))
    with pytest.raises(ArtifactError, match="channels with functions 0 to 3 of 3"):
        stored.stored_artifact(contents)
    with pytest.raises(ArtifactError, match="channels with functions 0 to 3 of 3"):
        contents.replay(Net())
