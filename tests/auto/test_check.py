"""The check answers before any data is read, and says what the later steps will do."""

import json
import sys

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lilliput.auto.check import check
from lilliput.core.artifact import Artifact, InputSpec
from lilliput.core.errors import DataError, ExportError, RecipeError, UnsupportedError, UsageError
from lilliput.core.method import Context, apply_checked_
from lilliput.core.target import Target
from lilliput.core.task import Task
from lilliput.graph.integer import IntegerNet
from lilliput.graph.lower import lower
from lilliput.graph.trace import trace
from lilliput.measure.memory import plan_memory
from lilliput.methods.normalization.batchnorm import FoldBatchNorm
from lilliput.methods.pruning.magnitude import MagnitudePruning
from lilliput.methods.quantization.post_training import Quantization
from lilliput.testing import TINY, tiny_model, tiny_task

TASK = tiny_task(32)
SHAPE = (1, 4, 4)


class Unread(torch.utils.data.Dataset):
    """Raises when it is read."""

    def __len__(self):
        return 10

    def __getitem__(self, i):
        raise AssertionError("data was read")


def quantized(model, target="onnx-x86"):
    net = Artifact.of(model, TASK.spec)
    for method in (FoldBatchNorm(), Quantization()):
        apply_checked_(method, net, Context.of(TASK, model, target=Target(target)))
    return net


def test_no_data_is_read():
    task = Task.classification(train=Unread(), validation=Unread(), test=Unread(), input=InputSpec(shape=SHAPE))
    assert check(tiny_model("linear"), task).supported


def test_a_shape_a_spec_a_task_and_arrays_say_the_same():
    model = tiny_model("conv")
    x, y = np.zeros((20, *SHAPE), dtype=np.float32), np.zeros(20, dtype=np.int64)
    texts = {str(check(model, task)) for task in (SHAPE, InputSpec(shape=SHAPE), TASK, (x, y))}
    assert len(texts) == 1


@pytest.mark.parametrize("wrong", [None, "digits", (), 16, (1, 2.5)])
def test_what_is_no_task_is_refused(wrong):
    with pytest.raises((UsageError, DataError), match=r"task"):
        check(tiny_model("linear"), wrong)


def test_operators_parameters_and_macs_are_those_of_the_network_as_it_came():
    model = tiny_model("batch_norm")
    found = check(model, SHAPE)
    assert found.parameters == sum(p.numel() for p in model.parameters())
    assert found.operators == {"conv": 1, "batch_norm": 1, "relu": 1, "reshape": 1, "linear": 1}
    assert found.macs == 4 * 4 * 9 + 16 * 3
    assert found.untouched == found.unsupported == {}


@pytest.mark.parametrize("name", TINY)
def test_the_plan_is_that_of_the_network_that_quantization_makes(name):
    model = tiny_model(name)
    found, net = check(model, SHAPE), quantized(model)
    plan = plan_memory(trace(net.module, net.input.example(2)), net)
    assert found.plan.ram_bytes == plan.ram_bytes
    assert found.plan.ram_bytes < found.float_plan.ram_bytes
    if IntegerNet(net).floats == {}:
        assert abs(found.plan.flash_bytes - plan.flash_bytes) <= 4 * 16  # biases may need another width


class Code(nn.Module):
    """Layers by name, and functional code around them."""

    def __init__(self, code, **layers):
        super().__init__()
        self.code = code
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, x):
        return self.code(self, x.flatten(1))


LEFT = {
    "nothing": lambda: tiny_model("residual"),
    "layer norm": lambda: Code(lambda m, x: m.b(m.n(m.a(x))), a=nn.Linear(16, 8), n=nn.LayerNorm(8), b=nn.Linear(8, 3)),
    "shared layer": lambda: tiny_model("shared"),
    "end": lambda: Code(lambda m, x: m.a(x) + m.b(x), a=nn.Linear(16, 3), b=nn.Linear(16, 3)),
    "norm first": lambda: Code(lambda m, x: m.b(m.n(x).tanh()), n=nn.BatchNorm1d(16), b=nn.Linear(16, 3)),
}


@pytest.mark.parametrize("name", LEFT)
def test_what_is_said_to_stay_in_float_is_what_stays_in_float(name):
    model = LEFT[name]().eval()
    found = check(model, SHAPE)
    left = {n: r for n, r in found.untouched.items() if not n.endswith("(BatchNorm)")}
    assert left == IntegerNet(quantized(model)).floats
    assert all(f"left in float: {n}: {r}" in str(found) for n, r in found.untouched.items())


def test_a_norm_that_cannot_be_folded_is_named():
    found = check(LEFT["norm first"]().eval(), SHAPE)
    assert found.untouched == {
        "n (BatchNorm)": "it follows reshape, not a convolution or linear layer; "
        "forward: tanh (tanh) does not commute with a scale and shift",
        "n": "BatchNorm is not folded",
    }


def test_what_a_recipe_leaves_alone_stays_in_float_and_says_so():
    model = tiny_model("residual")
    recipe = [FoldBatchNorm(skip=("norm2",)), MagnitudePruning(skip=("first",)), Quantization(skip=("head",))]
    found = check(model, SHAPE, recipe=recipe)
    assert found.untouched["norm2 (BatchNorm)"] == "skipped by the recipe (include and skip of fold_batchnorm)"
    assert found.untouched["head"] == "skipped by the recipe (include and skip of quantization)"
    assert "first" not in found.untouched
    net = Artifact.of(model, TASK.spec)
    for method in recipe:
        apply_checked_(method, net, Context.of(TASK, model))
    assert {n for n in found.untouched if not n.endswith(")")} == set(IntegerNet(net).floats)
    assert check(model, SHAPE).untouched == {}


def test_a_recipe_is_held_against_the_network():
    with pytest.raises(RecipeError, match=r"quantization skip 'haed': it matches no layer .*did you mean 'head'"):
        check(tiny_model("residual"), SHAPE, recipe=Quantization(skip=("haed",)))
    arm = {"target": "onnx-arm", "passes": ["quantization"]}
    assert check(tiny_model("linear"), SHAPE, recipe=arm).target == Target("onnx-arm")
    assert check(tiny_model("linear"), SHAPE, "c-host", recipe=arm).target == Target("c-host")


def test_what_cannot_be_exported_is_named_with_its_line():
    model = Code(lambda m, x: m.a(torch.cumsum(x, 1)), a=nn.Linear(16, 3)).eval()
    found = check(model, SHAPE)
    assert not found.supported
    assert list(found.unsupported) == ["cumsum"]
    assert "UNSUPPORTED: cumsum: " in str(found)
    assert str(found).endswith("export: not supported as it is")
    assert check(tiny_model("linear"), SHAPE).supported


def test_a_network_that_cannot_be_traced_is_an_error_of_its_own():
    model = Code(lambda m, x: m.a(x) if x.sum() > 0 else x, a=nn.Linear(16, 16)).eval()
    with pytest.raises(UnsupportedError, match=r"trace of Code: torch.export stopped with") as error:
        check(model, SHAPE)
    assert error.value.exit_code == 3
    with pytest.raises(UnsupportedError, match="check that the model runs on the example input"):
        check(tiny_model("linear"), (3, 5))


def test_budgets_that_are_missed_are_named_with_both_numbers():
    model = tiny_model("linear")
    found = check(model, SHAPE, Target("cortex-m4", flash="4kB", ram=5))
    assert found.misses == (f"RAM: {int(found.ram.value):,} bytes planned, at most 5 wanted",)
    assert f"OVER BUDGET: {found.misses[0]}" in str(found)
    assert check(model, SHAPE, Target("cortex-m4", flash="4kB", ram="1kB")).misses == ()


def test_data_of_a_check_is_json():
    found = check(tiny_model("shared"), SHAPE, "onnx-arm")
    data = json.loads(json.dumps(found.to_data(), allow_nan=False))
    assert data["target"] == "onnx-arm"
    assert data["supported"] is True
    assert data["untouched"] == found.untouched
    assert data["planned_ram_bytes"] == found.plan.ram_bytes


def test_the_model_and_the_randomness_are_left_alone():
    model = tiny_model("batch_norm").train()
    before = {n: t.clone() for n, t in model.state_dict().items()}
    torch.manual_seed(3)
    state = torch.get_rng_state()
    check(model, SHAPE)
    assert model.training
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())


def test_no_extra_package_is_needed(monkeypatch):
    for name in [n for n in sys.modules if n.split(".")[0] in ("onnx", "onnxruntime")]:
        monkeypatch.delitem(sys.modules, name)
    for name in ("onnx", "onnxruntime"):
        monkeypatch.setitem(sys.modules, name, None)
    assert check(tiny_model("conv"), SHAPE).supported


def test_an_unknown_target_is_refused():
    with pytest.raises(UsageError, match="target 'onnx-ar': not a known target; did you mean 'onnx-arm'"):
        check(tiny_model("linear"), SHAPE, "onnx-ar")


class Counted(nn.Module):
    """Computes with a buffer of whole numbers."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(16, 3)
        self.register_buffer("times", torch.tensor([3]))

    def forward(self, x):
        return self.fc(x.flatten(1) * self.times)


def test_buffers_of_whole_numbers_are_planned_too():
    assert check(Counted(), SHAPE).plan.flash_bytes >= 8 + 16 * 3


def test_networks_without_multiplications_are_checked_too():
    class Pool(nn.Module):
        def forward(self, x):
            return F.max_pool2d(x, 2)

    found = check(Pool(), SHAPE)
    assert (found.macs, found.parameters, found.supported) == (0, 0, True)


def test_what_has_no_integer_form_is_listed_with_its_line_and_what_to_do():
    model = Code(
        lambda m, x: m.c(F.softmax(m.b(m.n(m.a(x))), 1)), a=nn.Linear(16, 8), n=nn.LayerNorm(8), b=nn.Linear(8, 4),
        c=nn.Linear(4, 3),
    ).eval()  # fmt: skip
    found = check(model, SHAPE)
    assert [(r.node, r.do) for r in found.not_integer] == [
        ("n", "use BatchNorm, which folds into the layer before it or behind it"),
        ("softmax", "end the network before it, for the order of its outputs is the same; inside, use sigmoid"),
    ]
    assert all(r.source.startswith("test_check.py:") for r in found.not_integer)
    text = str(found.not_integer[0])
    assert f"not an integer program: {text}" in str(found)
    assert json.loads(json.dumps(found.to_data()))["not_integer"][0]["found"] == found.not_integer[0].found
    with pytest.raises(ExportError, match=r"lower 'n' to integers: .*layer_norm"):
        lower(quantized(model))


@pytest.mark.parametrize("name", TINY)
def test_what_lowers_is_not_listed(name):
    model = tiny_model(name)
    assert check(model, SHAPE).not_integer == ()
    lower(quantized(model))


def test_a_recipe_of_more_bits_is_checked_with_more_bits():
    model = tiny_model("linear")
    found = check(model, SHAPE, recipe=Quantization(activation_bits=16))
    assert (found.bits, found.not_integer) == (16, ())
    assert "16-bit plan for" in str(found)
    assert found.plan.ram_bytes > check(model, SHAPE).plan.ram_bytes
    found = check(model, SHAPE, recipe=Quantization(activation_bits=16, weight_bits=16))
    assert {r.found for r in found.not_integer} == {"its sums may need more than 32 bits"}
    assert found.untouched["1"] == "its sums may need more than 32 bits"


def test_a_layer_called_twice_is_no_obstacle():
    found = check(tiny_model("shared"), SHAPE)
    assert found.untouched == {}
