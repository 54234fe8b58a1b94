"""The contract catches what it names: for each law a method that breaks it, and the text of the error."""

import random
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import pytest
import torch
from torch import nn

from lilliput import testing
from lilliput.core import method as core_method
from lilliput.core.artifact import Artifact
from lilliput.core.encoding import Grid
from lilliput.core.errors import MissingExtraError, RecipeError, UnsupportedError
from lilliput.core.method import Context, Pass, PassResult, check_range, layers
from lilliput.testing import ContractError, check_method


@dataclass(frozen=True, kw_only=True)
class Scale(Pass):
    """Weights become `factor` times themselves, in their slots. Keeps every law; the others break one each."""

    name: ClassVar[str] = "toy"
    summary: ClassVar[str] = "scale the weights"

    factor: float = 0.5
    whole: int = 3

    def __post_init__(self) -> None:
        check_range("toy factor", self.factor, 0.0, 1.0)
        super().__post_init__()

    def apply_(self, net: Artifact, context: Context) -> PassResult:
        chosen, skipped = self.pick(net)
        return self.result(net, context, chosen, skipped)

    def result(self, net: Artifact, context: Context, chosen: Mapping[str, str], skipped: dict[str, str]) -> PassResult:
        for path, weight in chosen.items():
            self.change_(net, context, path, weight)
        return PassResult(changed=dict.fromkeys(chosen, "scaled"), skipped=skipped)

    def change_(self, net: Artifact, context: Context, path: str, weight: str) -> None:
        self.scale_(net, weight, self.for_layer(path).factor)

    def scale_(self, net: Artifact, weight: str, factor: float) -> None:
        encoding = net.encoding(weight)
        net.encode_(weight, encoding.encode(encoding.decode() * factor))


class Refuses(Scale):
    name: ClassVar[str] = "toy"
    summary: ClassVar[str] = "cannot do networks with BatchNorm, nor what is on a grid"

    def requires(self, net: Artifact) -> list[str]:
        return ["activations are on grids; put toy before quantization"] if net.activations else []

    def result(self, net, context, chosen, skipped):
        if any(isinstance(m, nn.BatchNorm2d) for m in net.module.modules()):
            raise UnsupportedError("toy on '1'", "BatchNorm", "put toy after fold_batchnorm")
        return super().result(net, context, chosen, skipped)


class KnowsNoEncodings(Scale):
    name: ClassVar[str] = "toy"
    summary: ClassVar[str] = "writes weights as if nothing else had stored them"

    def change_(self, net, context, path, weight):
        net.write_(weight, net.parameter(weight) * 0.5)


class WritesInPlace(Scale):
    name: ClassVar[str] = "toy"
    summary: ClassVar[str] = "goes around encode_"

    def change_(self, net, context, path, weight):
        with torch.no_grad():
            net.parameter(weight).mul_(0.5)


class OwnGrid(Scale):
    name: ClassVar[str] = "toy"
    summary: ClassVar[str] = "a grid for each channel, whatever is there"

    def change_(self, net, context, path, weight):
        encoding = net.encoding(weight)
        n = encoding.shape[0]
        zero, bits = torch.zeros(n, dtype=torch.int64), torch.full((n,), 8)
        grid = Grid(scale=torch.full((n,), 0.01), zero_point=zero, bit_width=bits, axis=0)
        net.encode_(weight, encoding.with_grid(grid))


class ForgetsTheMask(Scale):
    name: ClassVar[str] = "toy"
    summary: ClassVar[str] = "keeps numbers where nothing is stored"

    def change_(self, net, context, path, weight):
        encoding = net.encoding(weight)
        net.encode_(weight, replace(encoding, values=encoding.values + 1))


class LosesThePrecision(Scale):
    name: ClassVar[str] = "toy"
    summary: ClassVar[str] = "stores what no file holds"

    def change_(self, net, context, path, weight):
        encoding = net.encoding(weight)
        net.encode_(weight, replace(encoding, mask=torch.ones(encoding.shape) > 0, values=encoding.values.double()))


class NamelessRefusal(Scale):
    name: ClassVar[str] = "toy"
    summary: ClassVar[str] = "refuses, and nobody knows who"

    def change_(self, net, context, path, weight):
        if net.encoding(weight).mask is not None:
            raise RecipeError("weights", "a mask", "do not prune")


class SwapsModules(Scale):
    name: ClassVar[str] = "toy"
    summary: ClassVar[str] = "changes the network without an edit"

    def result(self, net, context, chosen, skipped):
        net.module.add_module("2", nn.Tanh())
        return super().result(net, context, chosen, skipped)


class ForgetsALayer(Scale):
    name: ClassVar[str] = "toy"
    summary: ClassVar[str] = "does not say what happened to one"

    def result(self, net, context, chosen, skipped):
        found = super().result(net, context, chosen, skipped)
        return PassResult(changed={p: w for p, w in found.changed.items() if p != "0"}, skipped=found.skipped)


class IgnoresSkip(Scale):
    name: ClassVar[str] = "toy"
    summary: ClassVar[str] = "changes what it says it skips"

    def result(self, net, context, chosen, skipped):
        for path in layers(net):
            if path != "1" and path not in chosen:
                self.scale_(net, f"{path}.weight", self.factor)
        return super().result(net, context, chosen, skipped)


class DoesNotReportSkipped(Scale):
    name: ClassVar[str] = "toy"
    summary: ClassVar[str] = "says it changed what it left alone"

    def result(self, net, context, chosen, skipped):
        found = super().result(net, context, chosen, skipped)
        return PassResult(changed=dict.fromkeys(layers(net), "scaled") if found.effect else {}, skipped={})


class IgnoresInclude(Scale):
    name: ClassVar[str] = "toy"
    summary: ClassVar[str] = "knows skip only"

    def result(self, net, context, chosen, skipped):
        for path in layers(net):
            if path != "1" and path not in chosen and path not in self.skip:
                self.scale_(net, f"{path}.weight", self.factor)
        return super().result(net, context, chosen, skipped)


@dataclass(frozen=True, kw_only=True)
class ForgetsSuper(Scale):
    name: ClassVar[str] = "toy"
    summary: ClassVar[str] = "checks no overrides"

    def __post_init__(self) -> None:
        check_range("toy factor", self.factor, 0.0, 1.0)


@dataclass(frozen=True, kw_only=True)
class StopsOnOverrides(Scale):
    name: ClassVar[str] = "toy"
    summary: ClassVar[str] = "an error of Python's instead of a refusal"

    def __post_init__(self) -> None:
        super().__post_init__()
        if any("factor" in settings for settings in self.overrides.values()):
            raise ValueError("no factor here")


@dataclass(frozen=True, kw_only=True)
class RefusesWithoutRemedy(Scale):
    name: ClassVar[str] = "toy"
    summary: ClassVar[str] = "refuses overrides and does not say what to do"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.overrides:
            raise RecipeError("toy overrides", "there are none", "")


class AppliesOverridesTwice(Scale):
    name: ClassVar[str] = "toy"
    summary: ClassVar[str] = "once for all, once for the layer"

    def change_(self, net, context, path, weight):
        self.scale_(net, weight, self.factor * (self.for_layer(path).factor if self.overrides else 1))


class IgnoresOverrides(Scale):
    name: ClassVar[str] = "toy"
    summary: ClassVar[str] = "accepts them and that is all"

    def change_(self, net, context, path, weight):
        self.scale_(net, weight, self.factor)


@dataclass(frozen=True, kw_only=True)
class NoOverrides(IgnoresOverrides):
    name: ClassVar[str] = "toy"
    summary: ClassVar[str] = "refuses what it would ignore"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.overrides:
            raise RecipeError("toy overrides", "all layers are scaled alike", "use several passes with include")


class DrawsGlobally(Scale):
    name: ClassVar[str] = "toy"
    summary: ClassVar[str] = "noise that no seed of the recipe decides"

    def change_(self, net, context, path, weight):
        self.scale_(net, weight, float(torch.rand(())))


class SeedsGlobally(Scale):
    name: ClassVar[str] = "toy"
    summary: ClassVar[str] = "noise with a seed for everybody"

    def change_(self, net, context, path, weight):
        torch.manual_seed(0)
        self.scale_(net, weight, float(torch.rand(())))


class DrawsInAFork(Scale):
    name: ClassVar[str] = "toy"
    summary: ClassVar[str] = "hides that it draws, not what it drew"

    def change_(self, net, context, path, weight):
        with torch.random.fork_rng(devices=[]):
            self.scale_(net, weight, float(torch.rand(())))


class DrawsFromPython(Scale):
    name: ClassVar[str] = "toy"
    summary: ClassVar[str] = "another generator, just as global"

    def change_(self, net, context, path, weight):
        self.scale_(net, weight, random.random())


class DrawsFromTheContext(Scale):
    name: ClassVar[str] = "toy"
    summary: ClassVar[str] = "noise as it should be"

    def change_(self, net, context, path, weight):
        self.scale_(net, weight, float(torch.rand((), generator=context.generator)))


class BadCitation(Scale):
    name: ClassVar[str] = "toy"
    summary: ClassVar[str] = "cites a name"
    citations: ClassVar[tuple[str, ...]] = ("Han et al. (2015)",)


@dataclass(frozen=True, kw_only=True)
class SettingThatIsNoData(Scale):
    name: ClassVar[str] = "toy"
    summary: ClassVar[str] = "a setting that a recipe gives back as another one"

    pairs: tuple[tuple[int, int], ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "pairs", (*self.pairs, (1, 2)))
        super().__post_init__()


class NeedsAnExtra(Scale):
    name: ClassVar[str] = "toy"
    summary: ClassVar[str] = "needs a package"

    def change_(self, net, context, path, weight):
        raise MissingExtraError("toy", "onnx is missing", "pip install 'lilliput[onnx]'")


class Fussy(Scale):
    name: ClassVar[str] = "fussy"
    summary: ClassVar[str] = "a partner that stops at what others left"

    def change_(self, net, context, path, weight):
        raise KeyError(weight)


BROKEN: dict[type[Pass], str] = {
    KnowsNoEncodings: "magnitude_pruning then toy on batch_norm: write '0.weight': it is stored in an encoding; "
    "change the encoding instead",
    WritesInPlace: "magnitude_pruning then toy on batch_norm: check of '0.weight': the weight is not what its encoding "
    "decodes to; write weights through Artifact.encode_",
    OwnGrid: "weight_clustering then toy on batch_norm: toy stopped with UsageError (grid: one scale for each channel "
    "under a table shared by all channels; use one grid for the tensor, or share per channel); make it work, or refuse "
    "with a RecipeError that says what to do",
    ForgetsTheMask: "magnitude_pruning then toy on batch_norm: 0.weight: encode(decode(z)) is not z",
    LosesThePrecision: "toy on batch_norm: what it made stops with ValueError (values must be a vector of float32 or "
    "float16, not float64 of shape (36,))",
    NamelessRefusal: "magnitude_pruning then toy on batch_norm: it refuses without its name or a remedy (weights: a "
    "mask; do not prune); raise RecipeError(name, found, do)",
    SwapsModules: "toy on batch_norm: the file computes something else",
    ForgetsALayer: "toy on batch_norm: toy on '0': the layer is neither changed nor skipped; return every layer with "
    "what happened to it",
    IgnoresSkip: "toy with skip=('0',) on batch_norm: '0.weight' was changed; use self.pick or self.selects",
    DoesNotReportSkipped: "toy with skip=('0',) on batch_norm: '0' is not reported as skipped; use self.pick or "
    "self.selects",
    IgnoresInclude: "toy with include=('4',) on batch_norm: '0.weight' was changed; use self.pick or self.selects",
    ForgetsSuper: "toy: an override of an unknown setting is accepted; call super().__post_init__()",
    StopsOnOverrides: "toy with factor=0.5 for '0' on batch_norm: building the method stopped with ValueError (no "
    "factor here); refuse the setting with a RecipeError",
    RefusesWithoutRemedy: "toy with factor=0.5 for '0' on batch_norm: a setting is refused without a remedy (toy "
    "overrides: there are none; )",
    AppliesOverridesTwice: "toy with its own settings for '0' on batch_norm: an override that changes nothing gave "
    "other bytes; use self.for_layer(path)",
    IgnoresOverrides: "toy with factor=0.25 for '0' on batch_norm: the override is accepted but ignored; use "
    "self.for_layer(path)",
    DrawsGlobally: "toy on batch_norm: it drew from torch's global generator; draw from context.generator",
    SeedsGlobally: "toy on batch_norm: it drew from torch's global generator; draw from context.generator",
    DrawsInAFork: "toy on batch_norm: the same seed gave other bytes; draw from context.generator only",
    DrawsFromPython: "toy on batch_norm: the same seed gave other bytes; draw from context.generator only",
    BadCitation: "toy: citation 'Han et al. (2015)' is not a link to a paper",
}


@pytest.mark.parametrize("toy", [Scale, Refuses, NoOverrides, DrawsFromTheContext], ids=lambda t: t.__name__)
def test_what_keeps_the_laws_passes(toy):
    results = check_method(toy(), ("linear", "batch_norm", "shared"))
    assert list(results) == ["linear", "shared"] if toy is Refuses else ["linear", "batch_norm", "shared"]
    assert all(result.effect for result in results.values())


@pytest.mark.parametrize("toy", BROKEN, ids=lambda t: t.__name__)
def test_a_broken_law_is_caught_and_named(toy):
    with pytest.raises(ContractError) as caught:
        check_method(toy(), ("batch_norm",))
    assert str(caught.value) == BROKEN[toy]


def test_a_recipe_that_reads_back_as_another_one_is_caught():
    with pytest.raises(ContractError, match=r"^toy: the recipe .* reads back as another one$"):
        check_method(SettingThatIsNoData(), ("batch_norm",))


@pytest.mark.parametrize(
    ("partner", "text"),
    [
        (Fussy(), "fussy then toy on linear: fussy stopped with KeyError ('1.weight'); make it work, or refuse"),
        (Refuses(), None),
    ],
    ids=["stops", "refuses"],
)
def test_a_partner_may_refuse_but_not_stop(partner, text, monkeypatch):
    monkeypatch.setattr(testing, "PARTNERS", (partner,))
    if text is None:
        assert check_method(Scale(), ("linear",))
    else:
        with pytest.raises(ContractError, match=f"^{re.escape(text)}"):
            check_method(Scale(), ("linear",))


def test_a_pattern_that_matches_no_layer_must_be_refused(monkeypatch):
    monkeypatch.setattr(core_method, "check_patterns", lambda *_: None)
    text = (
        "toy with its own settings for '0' on batch_norm: an override for a layer that does not exist is accepted; "
        "raise a RecipeError"
    )
    with pytest.raises(ContractError, match=f"^{re.escape(text)}$"):
        check_method(Scale(), ("batch_norm",))


def test_a_missing_package_is_no_broken_law():
    with pytest.raises(MissingExtraError):
        check_method(NeedsAnExtra(), ("linear",))


def test_the_global_generator_is_as_it_was():
    before = torch.get_rng_state()
    check_method(Scale(), ("linear",))
    assert torch.equal(before, torch.get_rng_state())


def test_what_only_some_networks_show_is_named_with_the_network():
    """Two layers share a weight: whoever scales by layer scales it twice."""
    with pytest.raises(ContractError, match=r"^toy with skip=\('enter',\) on shared: "):
        check_method(IgnoresSkip(), ("shared",))
