"""Edits are data: replaying them on a fresh module gives the edited structure."""

import re
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from lilliput.core.edits import EDITS, REPLACEMENTS, Fold, Replace, ReplaceCall, Separate, Slice, fingerprint
from lilliput.core.errors import ArtifactError
from lilliput.core.learned_activation import LearnedActivation
from lilliput.testing import TINY, tiny_model
from strategies import law


def refused(edit, module, text):
    with pytest.raises(ArtifactError, match="^" + re.escape(text) + "$"):
        edit.replay_(module)


# Fold


@pytest.mark.parametrize("bias", [False, True])
def test_fold_gives_the_layer_a_bias_and_leaves_an_identity(bias):
    module: Any = nn.Sequential(nn.Conv2d(1, 3, 2, bias=bias), nn.BatchNorm2d(3))
    weight, old = module[0].weight, module[0].bias
    Fold(layer="0", norm="1").replay_(module)
    assert isinstance(module[1], nn.Identity)
    assert module[0].weight is weight
    assert module[0].bias.shape == (3,)
    assert isinstance(module[0].bias, nn.Parameter)
    if bias:
        assert module[0].bias is old
    else:
        assert not bool(module[0].bias.any())
    assert set(module.state_dict()) == {"0.weight", "0.bias"}


def test_fold_into_a_transposed_convolution_counts_its_output_channels():
    module = nn.Sequential(nn.ConvTranspose2d(5, 2, 3, bias=False), nn.BatchNorm2d(2))
    Fold(layer="0", norm="1").replay_(module)
    assert module[0].bias.shape == (2,)
    assert module(torch.zeros(1, 5, 4, 4)).shape == (1, 2, 6, 6)


@pytest.mark.parametrize(
    ("layer", "outputs"),
    [
        (nn.Linear(12, 5, bias=False), 5),
        (nn.Conv1d(3, 5, 2, bias=False), 5),
        (nn.Conv2d(6, 4, 2, groups=2, bias=False), 4),
        (nn.ConvTranspose1d(6, 4, 2, groups=2, bias=False), 4),
    ],
    ids=str,
)
def test_fold_counts_the_outputs_of_the_layer_and_not_the_channels_of_the_norm(layer, outputs):
    """Forward, a norm of three channels goes into a layer of as many outputs as it likes."""
    module: Any = nn.Sequential(nn.BatchNorm2d(3), layer)
    Fold(layer="1", norm="0").replay_(module)
    assert module[1].bias.shape == (outputs,)
    assert isinstance(module[0], nn.Identity)


def test_norm_with_two_paths_is_replaced_at_both():
    norm = nn.BatchNorm1d(3)
    module: Any = nn.ModuleDict({"a": nn.Linear(2, 3), "b": norm, "c": nn.Sequential(norm)})
    Fold(layer="a", norm="c.0").replay_(module)
    assert isinstance(module["b"], nn.Identity)
    assert module["c"][0] is module["b"]


FOLD = "give the module that the file was made from"


@pytest.mark.parametrize(
    ("edit", "text"),
    [
        (Fold(layer="5", norm="1"), f"replay of an edit at '5': the module has nothing there; {FOLD}"),
        (Fold(layer="0", norm="x.y"), f"replay of an edit at 'x.y': the module has nothing there; {FOLD}"),
        (Fold(layer="0", norm="2"), f"replay of fold into '0': '2' is ReLU; {FOLD}"),
        (Fold(layer="2", norm="1"), f"replay of fold into '2': '2' is ReLU; {FOLD}"),
        (Fold(layer="1", norm="1"), f"replay of fold into '1': '1' is BatchNorm1d; {FOLD}"),
        (Fold(layer="3", norm="1"), f"replay of fold into '3': '3' is Embedding; {FOLD}"),
        (Fold(layer="0", norm="4"), f"replay of fold into '0': '4' is InstanceNorm1d; {FOLD}"),
    ],
)
def test_fold_that_does_not_fit_is_refused(edit, text):
    others = nn.Embedding(2, 3), nn.InstanceNorm1d(3)
    refused(edit, nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.ReLU(), *others), text)


# Slice


@given(st.data(), st.integers(0, 3))
@law(60)
def test_slice_is_index_select_and_keeps_the_rest(data, dim):
    module: Any = nn.Sequential(nn.Conv2d(3, 4, (2, 5)))
    before = module[0].weight.detach().clone()
    index = data.draw(st.lists(st.integers(0, before.shape[dim] - 1), min_size=1, unique=True))
    Slice(path="0.weight", dim=dim, index=tuple(index)).replay_(module)
    assert torch.equal(module[0].weight, before.index_select(dim, torch.tensor(index)))
    assert isinstance(module[0].weight, nn.Parameter)
    assert (module[0].out_channels, module[0].in_channels) == tuple(module[0].weight.shape[:2])


def test_slice_keeps_frozen_parameters_frozen_and_buffers_buffers():
    module: Any = nn.Sequential(nn.BatchNorm1d(4))
    module[0].weight.requires_grad_(False)
    for name in ("weight", "bias", "running_mean", "running_var"):
        Slice(path=f"0.{name}", dim=0, index=(3, 1)).replay_(module)
    assert not module[0].weight.requires_grad
    assert module[0].bias.requires_grad
    assert dict(module.named_buffers())["0.running_mean"].shape == (2,)
    assert module[0].num_features == 2
    assert module(torch.zeros(5, 2)).shape == (5, 2)


def test_a_sliced_norm_without_scale_and_shift_remembers_its_size():
    module: Any = nn.Sequential(nn.BatchNorm1d(4, affine=False))
    for name in ("running_mean", "running_var"):
        Slice(path=f"0.{name}", dim=0, index=(3, 1)).replay_(module)
    assert module[0].num_features == 2


def test_sliced_layers_remember_their_new_sizes():
    linear, conv, grouped = nn.Linear(4, 3), nn.Conv1d(4, 6, 3), nn.Conv2d(4, 6, 1, groups=2)
    depthwise, multiplied = nn.Conv2d(4, 4, 3, groups=4), nn.Conv2d(4, 8, 3, groups=4)
    module = nn.ModuleDict(
        {"linear": linear, "conv": conv, "grouped": grouped, "depthwise": depthwise, "multiplied": multiplied}
    )
    for path, dim, index in (
        ("linear.weight", 0, (0, 2)),
        ("linear.weight", 1, (3,)),
        ("conv.weight", 0, (5, 0)),
        ("grouped.weight", 0, (0, 1, 3, 4)),
        ("depthwise.weight", 0, (1, 2, 3)),
        ("depthwise.bias", 0, (1, 2, 3)),
        ("multiplied.bias", 0, tuple(range(8))),
    ):
        Slice(path=path, dim=dim, index=index).replay_(module)
    assert (linear.out_features, linear.in_features) == (2, 1)
    assert (conv.out_channels, conv.in_channels) == (2, 4)
    assert (grouped.out_channels, grouped.in_channels, grouped.groups) == (4, 4, 2)
    assert (depthwise.out_channels, depthwise.in_channels, depthwise.groups) == (3, 3, 3)
    assert (multiplied.out_channels, multiplied.in_channels, multiplied.groups) == (8, 4, 4)
    assert depthwise(torch.zeros(1, 3, 5, 5)).shape == (1, 3, 3, 3)
    assert multiplied(torch.zeros(1, 4, 5, 5)).shape == (1, 8, 3, 3)


def test_sliced_transposed_layers_multiplied_depthwise_ones_and_prelu_remember_their_new_sizes():
    turned, multiplied, prelu = nn.ConvTranspose2d(4, 6, 3), nn.Conv1d(4, 8, 3, groups=4), nn.PReLU(5)
    apart, pairs = nn.ConvTranspose1d(4, 8, 3, groups=4, bias=False), nn.ConvTranspose1d(4, 6, 3, groups=2, bias=False)
    module = nn.ModuleDict({"turned": turned, "multiplied": multiplied, "prelu": prelu, "apart": apart, "pairs": pairs})
    for path, dim, index in (
        ("turned.weight", 0, (0, 2, 3)),
        ("turned.weight", 1, (1, 5)),
        ("turned.bias", 0, (1, 5)),
        ("multiplied.weight", 0, (0, 1, 4, 5)),
        ("multiplied.bias", 0, (0, 1, 4, 5)),
        ("prelu.weight", 0, (0, 4)),
        ("apart.weight", 0, (1, 2, 3)),
        ("pairs.weight", 1, (0, 2)),
    ):
        Slice(path=path, dim=dim, index=index).replay_(module)
    assert (turned.in_channels, turned.out_channels, turned.groups) == (3, 2, 1)
    assert (multiplied.in_channels, multiplied.out_channels, multiplied.groups) == (2, 4, 2)
    assert (apart.in_channels, apart.out_channels, apart.groups) == (3, 6, 3)
    assert (pairs.in_channels, pairs.out_channels, pairs.groups) == (4, 4, 2)
    assert prelu.num_parameters == 2
    assert turned(torch.zeros(1, 3, 5, 5)).shape == (1, 2, 7, 7)
    assert multiplied(torch.zeros(1, 2, 5)).shape == (1, 4, 3)
    assert apart(torch.zeros(1, 3, 5)).shape == (1, 6, 7)
    assert pairs(torch.zeros(1, 4, 5)).shape == (1, 4, 7)


def test_slice_of_a_tied_weight_keeps_it_tied():
    module: Any = nn.ModuleDict({"a": nn.Linear(3, 3), "b": nn.Linear(3, 3)})
    module["b"].weight = module["a"].weight
    Slice(path="a.weight", dim=1, index=(2, 0)).replay_(module)
    assert module["b"].weight is module["a"].weight
    assert (module["b"].in_features, module["b"].out_features) == (2, 3)


def test_slice_of_a_parameter_of_the_network_itself():
    module = nn.Linear(2, 3)
    Slice(path="bias", dim=0, index=(1,)).replay_(module)
    assert module.bias.shape == (1,)


@pytest.mark.parametrize(
    ("edit", "found"),
    [
        (Slice(path="0.bla", dim=0, index=(0,)), "no such tensor"),
        (Slice(path="0.weight", dim=2, index=(0,)), "shape (3, 2)"),
        (Slice(path="0.weight", dim=0, index=(3,)), "shape (3, 2)"),
        (Slice(path="0.weight", dim=0, index=(1, 1)), "an index that is empty or has a slice twice"),
        (Slice(path="0.weight", dim=0, index=()), "an index that is empty or has a slice twice"),
    ],
)
def test_slice_that_does_not_fit_is_refused(edit, found):
    module = nn.Sequential(nn.Linear(2, 3))
    refused(edit, module, f"replay of slice of '{edit.path}': {found}; {FOLD}")
    assert module[0].weight.shape == (3, 2)


# Replace


@pytest.mark.parametrize("cls", REPLACEMENTS)
def test_replace_puts_another_module_there(cls):
    module = nn.Sequential(nn.Linear(2, 2), nn.Tanh())
    Replace(path="1", cls=cls, settings={"channels": 2} if cls == "LearnedActivation" else {}).replay_(module)
    assert type(module[1]) is REPLACEMENTS[cls]


def test_replace_takes_settings():
    module = nn.Sequential(nn.Tanh())
    Replace(path="0", cls="Hardtanh", settings={"min_val": -2.0, "max_val": 0.5}).replay_(module)
    assert module(torch.tensor([-9.0, 9.0])).tolist() == [-2.0, 0.5]


@pytest.mark.parametrize(
    ("edit", "text"),
    [
        (
            Replace(path="0", cls="Linear"),
            (
                "replay of replace at '0': unknown class 'Linear'; "
                "known are Identity, ReLU, ReLU6, Hardswish, Hardsigmoid, Hardtanh, LearnedActivation"
            ),
        ),
        (Replace(path="9", cls="ReLU"), f"replay of an edit at '9': the module has nothing there; {FOLD}"),
        (
            Replace(path="", cls="ReLU"),
            "replay of an edit: it replaces the whole network; make the file again",
        ),
        (
            Replace(path="0", cls="ReLU", settings={"slope": 0.1}),
            (
                "replay of replace at '0': settings {'slope': 0.1} for ReLU "
                "(ReLU.__init__() got an unexpected keyword argument 'slope'); make the file again"
            ),
        ),
    ],
)
def test_replace_that_cannot_be_is_refused(edit, text):
    refused(edit, nn.Sequential(nn.Tanh()), text)


def test_every_edit_has_a_word():
    assert {"fold": Fold, "separate": Separate, "slice": Slice, "replace": Replace, "call": ReplaceCall} == EDITS


# Fingerprints


@pytest.mark.parametrize("name", TINY)
def test_fingerprint_tells_architectures_and_not_weights(name):
    assert fingerprint(tiny_model(name)) == fingerprint(tiny_model(name, seed=7).train())
    assert [other for other in TINY if fingerprint(tiny_model(other)) == fingerprint(tiny_model(name))] == [name]


@pytest.mark.parametrize(
    "other",
    [
        nn.Sequential(nn.Conv2d(2, 4, 3, stride=2)),
        nn.Sequential(nn.Conv2d(2, 4, 3, padding=1)),
        nn.Sequential(nn.Conv2d(2, 4, 3, dilation=2)),
        nn.Sequential(nn.Conv2d(2, 4, 3, bias=False)),
        nn.Sequential(nn.Conv2d(4, 4, 3, groups=2)),
        nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU()),
        nn.Sequential(nn.Conv2d(2, 4, 3)).half(),
        nn.ModuleList([nn.Conv2d(2, 4, 3)]),
    ],
    ids=str,
)
def test_fingerprint_sees_every_change_of_a_layer(other):
    assert fingerprint(other) != fingerprint(nn.Sequential(nn.Conv2d(2, 4, 3)))


@pytest.mark.parametrize("other", [{"kind": "psa"}, {"points": 17}, {"dim": -1}], ids=str)
def test_fingerprint_sees_what_functions_of_one_shape_differ_in(other):
    assert fingerprint(LearnedActivation(4, **other)) != fingerprint(LearnedActivation(4, kind="lerp_psa"))
