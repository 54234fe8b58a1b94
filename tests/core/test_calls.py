"""Calls in a network's own code are counted in order, and go where edits send them."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lilliput.core import container
from lilliput.core.artifact import Artifact, InputSpec
from lilliput.core.calls import calls_of, routes_of
from lilliput.core.edits import Replace, ReplaceCall
from lilliput.core.errors import ArtifactError
from lilliput.core.learned_activation import LearnedActivation

STRUCTURE = LearnedActivation(4, kind="table", points=5, init="zeros").structure()


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer, self.act = nn.Linear(4, 4), nn.SiLU()

    def forward(self, x):
        return F.relu(self.act(self.layer(x)))


class Net(nn.Module):
    """Every way to call a relu, a module that is called twice, and blocks with code of their own."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.act = Block(), Block(), nn.ReLU()

    def forward(self, x):
        x = torch.relu(self.first(x)) + self.act(x - 1)
        x = F.gelu(self.second(x)).relu() + F.relu(x, inplace=True)
        return F.hardswish(self.act(x))


WORDS = ["silu", "relu", "relu", "relu", "silu", "relu", "gelu", "relu", "relu", "relu", "hard_swish"]
X = torch.randn((6, 4), generator=torch.Generator().manual_seed(0))


def call(number, path):
    return ReplaceCall(number=number, path=path, cls="LearnedActivation", settings=STRUCTURE)


def network(*edits):
    torch.manual_seed(0)
    net = Net().eval()
    for edit in edits:
        edit.replay_(net)
    for number, edit in enumerate(edits):
        with torch.no_grad():
            net.get_parameter(f"{edit.path}.weight").fill_(number + 1.0)
    return net


def test_calls_are_counted_in_order():
    with torch.no_grad():
        assert calls_of(network(), X) == WORDS


@pytest.mark.parametrize("number", range(len(WORDS)))
def test_a_call_goes_to_its_module_and_no_other_does(number):
    """Functions that are 1 everywhere: what is 1 in the network with the edit is the call."""
    net = network(call(number, "learned"))
    with torch.no_grad():
        words = calls_of(net, X)
        assert words == [*WORDS[:number], "learned_function", *WORDS[number + 1 :]]
        seen = []
        net.get_submodule("learned").register_forward_hook(lambda *_: seen.append(1))
        net(X)
        assert len(seen) == 1


def test_numbers_do_not_depend_on_what_else_was_replaced():
    edits = [call(9, "act.learned"), Replace(path="first.act", cls="LearnedActivation", settings=STRUCTURE)]
    edits += [call(1, "first.learned"), call(6, "learned")]
    with torch.no_grad():
        wanted = network(*edits)(X)
        for other in (edits[::-1], edits[2:] + edits[:2]):
            net = network(*other)
            for number, edit in enumerate(edits):
                net.get_parameter(f"{edit.path}.weight").fill_(number + 1.0)
            assert torch.equal(net(X), wanted)
            assert calls_of(net, X).count("learned_function") == 4


def test_a_copy_of_a_network_uses_its_own_modules():
    net = network(call(2, "learned"))
    twin = copy.deepcopy(net)
    with torch.no_grad():
        before = net(X)
        twin.get_parameter("learned.weight").add_(1)
        assert torch.equal(net(X), before)
        assert not torch.equal(twin(X), before)


def test_a_network_inside_another_keeps_its_own_numbers():
    inner = network(call(2, "learned"))
    with torch.no_grad():
        wanted = inner(X)
        outer = nn.Sequential(inner, nn.ReLU())
        assert torch.equal(outer(X), wanted.relu())


def test_outside_the_network_nothing_is_changed():
    net = network(call(2, "learned"))
    net(X)
    assert torch.equal(torch.relu(X), X.clamp(min=0))
    with pytest.raises(RuntimeError):
        net(torch.zeros(2, 3))
    assert torch.equal(F.relu(X), X.clamp(min=0))


def test_files_hold_the_edit():
    torch.manual_seed(0)
    model = Net().eval()
    net = Artifact.of(model, InputSpec(shape=(4,)))
    for edit in (call(2, "learned"), call(3, "act.learned")):
        edit.replay_(net.module)
        net.edits.append(edit)
    with torch.no_grad():
        net.module.get_parameter("learned.weight").normal_()
        contents = container.loads(container.dumps(net))
        again = contents.replay(Net())
        assert contents.edits == net.edits
        assert torch.equal(again.module(X), net.module(X))


@pytest.mark.parametrize(
    ("edit", "found"),
    [
        (call(2, "again"), "the place or the call is taken"),
        (call(3, "learned"), "the place or the call is taken"),
        (call(3, "forward"), "the place or the call is taken"),
        (call(3, "first.layer"), "the place or the call is taken"),
        (call(3, "not-a-name"), "the place or the call is taken"),
        (call(3, ""), "the place or the call is taken"),
        (call(3, "nowhere.learned"), "the module has nothing there"),
        (ReplaceCall(number=3, path="x", cls="Conv2d"), "unknown class 'Conv2d'"),
        (
            ReplaceCall(number=3, path="x", cls="LearnedActivation", settings={"channels": 1 << 60}),
            "1152921504606846976",
        ),
    ],
)
def test_edits_that_do_not_fit_are_refused(edit, found):
    net = network(call(2, "learned"))
    names = list(net.state_dict())
    with pytest.raises(ArtifactError) as error:
        edit.replay_(net)
    assert found in str(error.value)
    assert list(net.state_dict()) == names
    assert list(routes_of(net)) == [2]
