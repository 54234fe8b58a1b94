"""Passes: what they select, what they account for, what a recipe needs to know of them."""

import copy
from dataclasses import FrozenInstanceError, dataclass
from typing import Any, ClassVar

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from lilliput.core.artifact import Artifact, InputSpec
from lilliput.core.errors import MethodError, RecipeError
from lilliput.core.method import (
    Context,
    Pass,
    PassResult,
    account,
    apply_checked_,
    check_choice,
    check_patterns,
    check_range,
    layers,
    nearest,
)
from lilliput.core.target import Target
from lilliput.methods import BUILT_IN
from lilliput.methods.normalization.batchnorm import FoldBatchNorm
from lilliput.testing import TINY, tiny_model, tiny_task
from strategies import law


@dataclass(frozen=True, kw_only=True)
class Shrink(Pass):
    """Multiply weights by a factor."""

    name: ClassVar[str] = "shrink"
    summary: ClassVar[str] = "multiply weights by a factor"

    factor: float = 0.5
    rounds: int = 1
    how: str = "plain"
    sizes: tuple[int, ...] = (1, 2)
    loud: bool = False

    def __post_init__(self):
        check_range("shrink factor", self.factor, 0.0, 1.0)
        check_range("shrink rounds", self.rounds, 1, 9)
        check_choice("shrink how", self.how, ("plain", "twice"))
        super().__post_init__()

    def requires(self, net):
        return ["a ReLU is missing; add one first"] if self.how == "twice" else []

    def apply_(self, net, context):
        chosen, skipped = self.pick(net)
        for path, weight in chosen.items():
            net.write_(weight, net.parameter(weight).detach() * self.for_layer(path).factor)
        return PassResult(changed=dict.fromkeys(chosen, "smaller"), skipped=skipped)


SHRINK: Any = Shrink
SPEC = InputSpec(shape=(1, 4, 4))


def of(name):
    return Artifact.of(tiny_model(name), InputSpec(shape=(1, 4, 4)))


def context_of(name):
    return Context.of(tiny_task(), tiny_model(name))


def text_of(call, error: type[Exception] = RecipeError):
    with pytest.raises(error) as raised:
        call()
    return str(raised.value)


@pytest.mark.parametrize(
    "settings",
    [
        {"include": 3},
        {"include": None},
        {"skip": [1]},
        {"skip": {"fc"}},
        {"loud": "no"},
        {"loud": None},
        {"overrides": [1]},
        {"overrides": None},
        {"overrides": {"*": {"loud": "off"}}},
    ],
)
def test_a_setting_of_another_type_is_refused_by_name(settings):
    (name,) = settings
    inner = isinstance(settings[name], dict)
    assert text_of(lambda: SHRINK(**settings)).startswith(f"shrink {'loud' if inner else name}: ")


# Settings


def test_settings_are_frozen_and_by_name():
    with pytest.raises(FrozenInstanceError):
        SHRINK().factor = 1.0
    with pytest.raises(TypeError):
        SHRINK(0.5)


@pytest.mark.parametrize(
    ("method", "settings"),
    [
        (Shrink(), {}),
        (Shrink(factor=0.5, rounds=1), {}),
        (Shrink(factor=0.25), {"factor": 0.25}),
        (SHRINK(include="conv*", skip=("a", "b")), {"include": ["conv*"], "skip": ["a", "b"]}),
        (SHRINK(include=["*"]), {}),
        (Shrink(sizes=(3,)), {"sizes": [3]}),
        (
            Shrink(overrides={"fc": {"factor": 0.1, "sizes": (4,)}}),
            {"overrides": {"fc": {"factor": 0.1, "sizes": [4]}}},
        ),
    ],
)
def test_settings_are_what_differs_from_the_defaults_as_plain_data(method, settings):
    assert method.settings() == settings


def test_a_pattern_given_as_text_is_one_pattern():
    assert SHRINK(include="abc", skip="b").include == ("abc",)
    assert SHRINK(include="abc", skip="b").skip == ("b",)


# Selecting layers


@pytest.mark.parametrize(
    ("include", "skip", "chosen"),
    [
        ("*", (), ["conv1", "conv2", "layer1.0.conv1", "fc"]),
        ("*", "conv*", ["layer1.0.conv1", "fc"]),
        ("layer1.*", (), ["layer1.0.conv1"]),
        (("conv?", "fc"), "conv2", ["conv1", "fc"]),
        ("*conv1", (), ["conv1", "layer1.0.conv1"]),
        ("CONV1", (), []),
        ((), (), []),
        ("*", "*", []),
    ],
)
def test_include_and_skip_are_globs_and_skip_wins(include, skip, chosen):
    method = SHRINK(include=include, skip=skip)
    assert [p for p in ("conv1", "conv2", "layer1.0.conv1", "fc") if method.selects(p)] == chosen


def test_overrides_add_up_and_later_patterns_win():
    method = Shrink(overrides={"*": {"factor": 0.1, "rounds": 2}, "fc*": {"factor": 0.2}, "fc2": {"rounds": 3}})
    assert [(method.for_layer(p).factor, method.for_layer(p).rounds) for p in ("conv", "fc1", "fc2")] == [
        (0.1, 2),
        (0.2, 2),
        (0.2, 3),
    ]
    assert method.for_layer("fc2").overrides == {}
    assert Shrink(overrides={"fc": {"factor": 0.1}}).for_layer("conv").factor == 0.5


@pytest.mark.parametrize(
    ("overrides", "text"),
    [
        ({"fc": {"facto": 0.1}}, "shrink override for 'fc': unknown setting 'facto'; did you mean 'factor'?"),
        (
            {"fc": {"skip": "a"}},
            "shrink override for 'fc': unknown setting 'skip'; known are factor, how, loud, rounds, sizes",
        ),
        (
            {"fc": {"zzz": 1}},
            "shrink override for 'fc': unknown setting 'zzz'; known are factor, how, loud, rounds, sizes",
        ),
        ({"*": {}, "fc": {"factor": 2.0}}, "shrink factor: 2.0; use a number from 0.0 to 1.0"),
        ({"fc": {"how": "thrice"}}, "shrink how: 'thrice'; use one of plain, twice"),
        ({"fc": 0.1}, "shrink override for 'fc': 0.1; give settings by name: {sparsity: 0.5}"),
    ],
)
def test_wrong_overrides_are_refused_when_the_pass_is_made(overrides, text):
    assert text_of(lambda: Shrink(overrides=overrides)) == text


@pytest.mark.parametrize("name", TINY)
def test_pick_accounts_for_every_layer_and_lists_shared_weights_once(name):
    net = of(name)
    chosen, skipped = Shrink().pick(net)
    assert not set(chosen) & set(skipped)
    assert set(chosen) | set(skipped) == set(layers(net))
    assert len(set(chosen.values())) == len(chosen)
    assert all(net.parameter(weight).dim() >= 2 for weight in chosen.values())


def test_pick_says_why_not():
    net = of("shared")
    assert Shrink().pick(net)[1] == {"tied": "shares its weight with middle"}
    assert SHRINK(skip="middle").pick(net) == (
        {"enter": "enter.weight", "head": "head.weight"},
        {"middle": "not selected by include and skip", "tied": "shares its weight with middle"},
    )
    assert Shrink().pick(of("batch_norm"))[1] == {"1": "BatchNorm2d has no weight to compress"}


def test_pick_finds_the_weight_of_a_model_that_is_one_layer():
    net = Artifact.of(nn.Linear(2, 2), InputSpec(shape=(2,)))
    assert Shrink().pick(net) == ({"": "weight"}, {})
    assert list(layers(net)) == [""]


UNMATCHED = [
    ({"skip": "layr1.*"}, "shrink skip 'layr1.*': it matches no layer that has parameters; did you mean 'layer1."),
    (
        {"include": ("stem", "haed")},
        "shrink include 'haed': it matches no layer that has parameters; did you mean 'head'?",
    ),
    (
        {"overrides": {"stm": {"factor": 0.1}}},
        "shrink override for 'stm': it matches no layer that has parameters; did you",
    ),
    ({"skip": "layer1"}, "did you mean 'layer1.*'?"),
    ({"include": "stem.weight"}, "did you mean 'stem'?"),
    (
        {"skip": "act"},
        "shrink skip 'act': it matches no layer that has parameters; its layers are stem, layer1.a, layer1.b",
    ),
]


def nested():
    stage = nn.ModuleDict({"a": nn.Linear(4, 4), "b": nn.Linear(4, 4)})
    layers = {"stem": nn.Linear(16, 4), "act": nn.ReLU(), "layer1": stage, "head": nn.Linear(4, 3)}
    return Artifact.of(nn.ModuleDict(layers), SPEC)


@pytest.mark.parametrize(("settings", "text"), UNMATCHED)
def test_a_pattern_that_matches_no_layer_is_refused_before_anything_is_done(settings, text):
    net = nested()
    before = net.copy()
    found = text_of(lambda: apply_checked_(Shrink(**settings), net, context_of("linear")))
    assert text in found
    assert all(torch.equal(t, before.module.state_dict()[n]) for n, t in net.module.state_dict().items())


@pytest.mark.parametrize("method", [cls(skip=("nothing*",)) for cls in BUILT_IN], ids=lambda m: m.name)
def test_no_pass_takes_a_pattern_that_matches_nothing(method):
    found = text_of(lambda: apply_checked_(method, of("batch_norm"), context_of("batch_norm")))
    what, names = ("layer that has parameters", "0") if method.names_layers else ("activation", "2, 0")
    assert found.startswith(f"{method.name} skip 'nothing*': it matches no {what}; its layers are {names}")


def test_a_layer_that_a_fold_has_taken_away_may_still_be_named():
    net, context = of("batch_norm"), context_of("batch_norm")
    apply_checked_(FoldBatchNorm(), net, context)
    assert "1" not in layers(net)
    assert set(apply_checked_(Shrink(skip=("1",)), net, context).changed) == {"0", "4"}


def test_default_patterns_suit_a_network_without_layers():
    net = Artifact.of(nn.Flatten(), SPEC)
    assert not apply_checked_(Shrink(), net, context_of("linear")).effect
    assert "the network has none" in text_of(lambda: check_patterns(Shrink(skip=("fc",)), net.module))


# Accounting


names = st.sets(st.sampled_from("abcd"))


@given(names, names, names)
@law(150)
def test_account_wants_every_layer_in_exactly_one_list(before, changed, skipped):
    result = PassResult(changed=dict.fromkeys(changed, ""), skipped=dict.fromkeys(skipped, ""))
    if before <= changed | skipped and not changed & skipped:
        account(before, Shrink(), result)
    else:
        with pytest.raises(MethodError):
            account(before, Shrink(), result)


def test_account_names_the_layer():
    both = PassResult(changed={"a": ""}, skipped={"a": ""})
    end = "; return every layer with what happened to it"
    assert text_of(lambda: account({"a"}, Shrink(), both), MethodError) == (
        "shrink on 'a': the layer is both changed and skipped" + end
    )
    assert text_of(lambda: account({"b", "a"}, Shrink(), PassResult(changed={"a": ""})), MethodError) == (
        "shrink on 'b': the layer is neither changed nor skipped" + end
    )


@pytest.mark.parametrize(
    ("result", "summary"),
    [
        (PassResult(), "no effect"),
        (PassResult(skipped={"a": "too small", "b": "too small"}), "no effect: too small"),
        (PassResult(skipped={"a": "too small", "b": "shared"}), "no effect"),
        (PassResult(changed={"a": "x"}, skipped={"b": "y", "c": "y"}), "1 changed, 2 skipped"),
    ],
)
def test_summary_says_no_effect(result, summary):
    assert result.summary() == summary
    assert result.effect == bool(result.changed)


# Applying


@pytest.mark.parametrize("name", TINY)
def test_applied_pass_changes_what_it_says(name):
    net, before = of(name), of(name)
    result = apply_checked_(Shrink(), net, context_of(name))
    for path in layers(net):
        weight = net.canonical(f"{path}.weight")
        factor = 0.5 if path in result.changed or "shares" in result.skipped[path] else 1.0
        assert torch.equal(net.parameter(weight), before.parameter(weight) * factor)


def test_requirements_are_said_with_what_to_do():
    net, context = of("linear"), context_of("linear")
    before = copy.deepcopy(net.module.state_dict())
    assert text_of(lambda: apply_checked_(Shrink(how="twice"), net, context)) == (
        "shrink: a ReLU is missing; add one first"
    )
    assert all(torch.equal(t, before[n]) for n, t in net.module.state_dict().items())


def test_requirement_without_a_remedy_gets_one():
    @dataclass(frozen=True, kw_only=True)
    class Never(Shrink):
        name: ClassVar[str] = "never"
        summary: ClassVar[str] = "never runs"

        def requires(self, net):
            return ["not today"]

    found = text_of(lambda: apply_checked_(Never(), of("linear"), context_of("linear")))
    assert found == "never: not today; change the order of the passes"


def breaking(act):
    @dataclass(frozen=True, kw_only=True)
    class Rogue(Shrink):
        name: ClassVar[str] = "rogue"
        summary: ClassVar[str] = "breaks a law"

        def apply_(self, net, context):
            result = super().apply_(net, context)
            return act(net, result) or result

    return Rogue()


def leave_hook(net, result):
    net.module[1].register_forward_hook(lambda *a: None)


def forget_layer(net, result):
    return PassResult(changed={"1": "x"})


def write_past_the_encoding(net, result):
    net.encode_("1.weight", net.encoding("1.weight").with_mask(torch.zeros(12, 16)))
    net.parameter("1.weight").data.fill_(1.0)


@pytest.mark.parametrize(
    ("act", "text"),
    [
        (leave_hook, "check of '1': a forward hook was left"),
        (forget_layer, "rogue on '3': the layer is neither changed nor skipped"),
        (write_past_the_encoding, "check of '1.weight': the weight is not what its encoding decodes to"),
    ],
)
def test_pass_that_breaks_a_law_is_caught(act, text):
    assert text in text_of(lambda: apply_checked_(breaking(act), of("linear"), context_of("linear")), MethodError)


@pytest.mark.parametrize("missing", ["name", "summary"])
def test_method_without_name_or_summary_is_refused_when_it_is_defined(missing):
    body = {"name": "x", "summary": "y", "apply_": lambda self, net, context: PassResult()}
    del body[missing]
    found = text_of(lambda: type("Nameless", (Pass,), body), MethodError)
    assert found == "method Nameless: no name or no summary; set the class variables name and summary"
    assert issubclass(type("Abstract", (Pass,), {}), Pass)


def test_context_is_seeded_and_counts_uses_of_roles():
    model, task = tiny_model("linear"), tiny_task()
    context = Context.of(task, model, seed=3, target=Target("cortex-m4"), batch_size=7)
    assert torch.equal(
        torch.rand(3, generator=context.generator), torch.rand(3, generator=torch.Generator().manual_seed(3))
    )
    assert (context.target.name, context.batch_size, context.evaluator.batch_size) == ("cortex-m4", 7, 7)
    assert Context.of(task, model).target == Target()
    context.evaluator(model, "validation")
    assert context.evaluator.uses == {"validation": 1}


# Checks of values


@pytest.mark.parametrize("value", [0.0, 1.0, 0.5, 1, 0])
def test_numbers_in_the_range_are_taken(value):
    check_range("x", value, 0.0, 1.0)


@pytest.mark.parametrize("value", [-0.1, 1.1, float("nan"), float("inf"), True, "0.5", None])
def test_numbers_outside_of_the_range_are_refused(value):
    found = text_of(lambda: check_range("magic share", value, 0.0, 1.0))
    assert found == f"magic share: {value!r}; use a number from 0.0 to 1.0"


def test_upper_limit_may_be_excluded():
    check_range("x", 0.99, 0.0, 1.0, below=True)
    assert text_of(lambda: check_range("x", 1.0, 0.0, 1.0, below=True)) == "x: 1.0; use a number from 0.0 to below 1.0"


@pytest.mark.parametrize(
    ("value", "word"), [(4.5, "whole number"), (4.0, "whole number"), (9, "number"), (True, "number")]
)
def test_counts_are_whole_numbers(value, word):
    check_range("x", 4, 2, 8)
    assert text_of(lambda: check_range("x", value, 2, 8)) == f"x: {value!r}; use a {word} from 2 to 8"


def test_choices_are_named():
    check_choice("x", "a", ("a", None, 3))
    assert text_of(lambda: check_choice("x", "b", ("a", None, 3))) == "x: 'b'; use one of a, None, 3"


def test_nearest_names_one_or_all():
    assert nearest("sparcity", {"sparsity", "scope"}) == "did you mean 'sparsity'?"
    assert nearest("qqq", {"sparsity", "scope"}) == "known are scope, sparsity"
