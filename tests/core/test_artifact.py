"""An artifact is a plain module whose encoded parameters hold exactly what their encodings decode to."""

import re
import threading
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import parametrizations, prune

from lil_files import artifact, sequential
from lilliput.core.artifact import Artifact, InputSpec, weights_of
from lilliput.core.edits import Fold
from lilliput.core.encoding import Encoding, Grid
from lilliput.core.errors import MethodError, UsageError
from lilliput.testing import tiny_model
from strategies import encodings, law

SPEC = InputSpec(shape=(4,))


def plain() -> Any:
    return Artifact.of(sequential(4, 3, 2), SPEC)


def text_of(error, call):
    with pytest.raises(error) as raised:
        call()
    return str(raised.value)


@given(st.data())
@law(80)
def test_encoded_parameter_holds_what_its_encoding_decodes_to(data):
    net = plain()
    e = data.draw(encodings(shape=(3, 4)))
    net.encode_("0.weight", e)
    net.check()
    assert torch.equal(net.parameter("0.weight"), e.decode())
    assert ("0.weight" in net.encodings) == (not e.is_plain)
    assert net.encoding("0.weight").same(e)


def test_model_is_copied_and_never_touched():
    model: Any = tiny_model("batch_norm").train()
    net = Artifact.of(model, SPEC)
    assert not net.module.training
    assert model.training
    with torch.no_grad():
        net.parameter("0.weight").zero_()
    assert bool(model[0].weight.any())


def test_copy_is_independent_and_restore_goes_back():
    net = artifact("integer")
    before, other = net.copy(), net.copy()
    weight = net.parameter("1.weight").clone()
    other.encode_("1.weight", Encoding.of(torch.zeros_like(weight)))
    other.activations.clear()
    other.edits.append(Fold(layer="1", norm="2"))
    other.recipe[0]["quantization"]["weight_bits"] = 4
    assert torch.equal(net.parameter("1.weight"), weight)
    assert (len(net.activations), net.edits, net.recipe) == (3, [], before.recipe)
    other.restore_(before)
    other.parameter("1.weight").data.zero_()
    other.recipe.clear()
    assert torch.equal(before.parameter("1.weight"), weight)
    assert before.recipe
    assert other.encodings["1.weight"].same(net.encodings["1.weight"])


def test_tied_parameters_have_one_encoding_under_their_first_name():
    net = Artifact.of(tiny_model("shared"), SPEC)
    assert net.canonical("tied.weight") == "middle.weight"
    e = net.encoding("tied.weight").with_grid(Grid.per_tensor(0.01, 0, 6, signed=True))
    net.encode_("tied.weight", e)
    assert list(net.encodings) == ["middle.weight"]
    assert net.encoding("tied.weight") is e
    assert torch.equal(net.parameter("tied.weight"), net.parameter("middle.weight"))
    assert "tied.weight" not in net.stored()
    net.check()


def test_stored_has_every_float_tensor_and_counters_every_other():
    net = artifact("residual")
    state = net.module.state_dict()
    assert list(net.stored()) == [n for n, t in state.items() if t.is_floating_point()]
    assert list(net.counters()) == [n for n, t in state.items() if not t.is_floating_point()]
    assert all(torch.equal(e.decode(), state[n]) for n, e in net.stored().items())
    shared = nn.BatchNorm1d(2)
    twice = Artifact.of(nn.Sequential(shared, shared), SPEC)
    assert list(twice.counters()) == ["0.num_batches_tracked"]


def test_values_are_written_where_there_is_no_encoding_only():
    net = plain()
    net.write_("0.weight", torch.ones(3, 4))
    assert net.parameter("0.weight").tolist() == torch.ones(3, 4).tolist()
    net.encode_("0.weight", net.encoding("0.weight").with_mask(torch.eye(3, 4)))
    assert text_of(MethodError, lambda: net.write_("0.weight", torch.ones(3, 4))) == (
        "write '0.weight': it is stored in an encoding; change the encoding instead"
    )


def test_check_notices_a_weight_that_is_not_its_encoding():
    net = plain()
    net.encode_("0.weight", net.encoding("0.weight").with_mask(torch.eye(3, 4)))
    net.parameter("0.weight").data[0, 1] = 1e-30
    assert text_of(MethodError, net.check) == (
        "check of '0.weight': the weight is not what its encoding decodes to; write weights through Artifact.encode_"
    )


def test_check_notices_an_encoding_without_a_parameter():
    net = plain()
    net.encode_("0.weight", net.encoding("0.weight").with_mask(torch.eye(3, 4)))
    net.module[0] = nn.Identity()
    assert text_of(MethodError, net.check) == (
        "check of '0.weight': an encoding without a parameter; drop it where the layer goes"
    )


@pytest.mark.parametrize("register", ["register_forward_hook", "register_forward_pre_hook"])
def test_check_notices_a_hook(register):
    net = plain()
    handle = getattr(net.module[1], register)(lambda *a: None)
    assert text_of(MethodError, net.check) == "check of '1': a forward hook was left; remove hooks after use"
    handle.remove()
    net.check()
    getattr(net.module, register)(lambda *a: None)
    assert "check of 'the model': a forward hook was left" in text_of(MethodError, net.check)


def test_encoding_of_another_shape_is_refused():
    found = text_of(MethodError, lambda: plain().encode_("0.weight", Encoding.of(torch.zeros(4, 3))))
    assert found == (
        "encode '0.weight': an encoding of shape (4, 3) for (3, 4); edit the module and the encoding together"
    )


def test_unknown_parameter_is_named_with_those_there_are():
    assert text_of(UsageError, lambda: plain().parameter("2.weight")) == (
        "parameter '2.weight': the network has none of this name; use one of 0.weight, 0.bias, 1.weight, 1.bias, ..."
    )


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["0.weight", "1.running_mean"])
def test_broken_weights_are_refused(name, value):
    model = tiny_model("batch_norm")
    model.state_dict()[name].view(-1)[1] = value
    text = f"compress Sequential: {name} holds NaN or infinity; mend the model first"
    assert text_of(UsageError, lambda: Artifact.of(model, SPEC)) == text


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_of_another_precision_are_refused(dtype):
    model = sequential(4, 2).to(dtype)
    text = f"compress Sequential: 0.weight is of {dtype}; convert it with model.float()"
    assert text_of(UsageError, lambda: Artifact.of(model, SPEC)) == text


def test_parametrized_model_is_refused():
    model = nn.Sequential(nn.Linear(2, 2), parametrizations.weight_norm(nn.Linear(2, 2)))
    assert text_of(UsageError, lambda: Artifact.of(model, SPEC)) == (
        "compress Sequential: '1' is parametrized; "
        "bake it first with torch.nn.utils.parametrize.remove_parametrizations"
    )


OLD_FORMS = {
    "remove_weight_norm": nn.utils.weight_norm,
    "remove_spectral_norm": nn.utils.spectral_norm,
    "prune.remove": lambda layer: prune.l1_unstructured(layer, "weight", amount=0.5),
}


@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated:FutureWarning")
@pytest.mark.parametrize("remedy", OLD_FORMS)
def test_weights_that_hooks_compute_are_refused_with_the_way_to_bake_them(remedy):
    layer = OLD_FORMS[remedy](nn.Linear(2, 2))
    found = text_of(UsageError, lambda: Artifact.of(nn.Sequential(nn.ReLU(), layer), SPEC))
    assert found.startswith("compress Sequential: '1' has the forward hook ")
    assert f"; bake it with torch.nn.utils.{remedy}(module" in found


@pytest.mark.parametrize("register", ["register_forward_hook", "register_forward_pre_hook"])
def test_a_hook_of_the_caller_is_refused_before_it_can_be_lost(register):
    model = sequential(4, 2)

    def double(*given):
        return None

    for module, path in ((model[0], "0"), (model, "the model")):
        handle = getattr(module, register)(double)
        assert re.fullmatch(
            rf"compress Sequential: '{path}' has the forward hook \S*double, which no file can hold; "
            "remove it first: handle.remove\\(\\), with the handle that registering it gave",
            text_of(UsageError, lambda: Artifact.of(model, SPEC)),
        )
        handle.remove()
    Artifact.of(model, SPEC)


@pytest.mark.parametrize("kept", [lambda m: threading.Lock(), lambda m: m[0].weight * 2, lambda m: (i for i in ())])
def test_a_model_that_cannot_be_copied_is_one_clear_error(kept):
    model = sequential(4, 2)
    model.kept = kept(model)
    found = text_of(UsageError, lambda: Artifact.of(model, SPEC))
    assert found.startswith("compress Sequential: copy.deepcopy cannot copy it (")
    assert found.endswith(
        "; give a module that copies: without locks, open files, or tensors computed from other tensors"
    )


def test_example_is_always_the_same_and_of_the_right_shape():
    spec = InputSpec(shape=(3, 5))
    assert spec.example(2).shape == (2, 3, 5)
    state = torch.random.get_rng_state()
    assert torch.equal(spec.example(), spec.example())
    assert torch.equal(torch.random.get_rng_state(), state)


def test_weights_of_gives_layers_of_the_wanted_types_in_order():
    model = tiny_model("residual")
    assert list(weights_of(model, (nn.Conv2d,))) == ["first", "second"]
    assert re.fullmatch("[0-9a-f]{16}", Artifact.of(model, SPEC).origin)
