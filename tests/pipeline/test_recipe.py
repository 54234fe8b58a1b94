"""Recipes say the same in Python, as data and in YAML; what is not understood is refused with a remedy."""

import dataclasses
import sys
from importlib import metadata
from typing import ClassVar

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from lilliput.core.errors import LilliputError, RecipeError, UsageError
from lilliput.core.guard import MaxDrop
from lilliput.core.method import Pass, PassResult, layers
from lilliput.core.target import PRESETS, Target
from lilliput.methods import BUILT_IN
from lilliput.methods.clustering.weight_clustering import WeightClustering
from lilliput.methods.normalization.batchnorm import FoldBatchNorm, ReestimateBatchNorm
from lilliput.methods.pruning.magnitude import MagnitudePruning
from lilliput.methods.quantization.post_training import Quantization
from lilliput.methods.tuning.fine_tune import FineTune
from lilliput.pipeline import recipe as recipes
from lilliput.pipeline.recipe import Recipe, Step, build_pass, find_method, from_data, load, methods, to_step

BY_NAME = {method.name: method for method in BUILT_IN}
patterns = st.sampled_from(["fc", "layer1.*", "*.conv?", "[ab]*"])
selection = {"include": st.lists(patterns, max_size=2).map(tuple), "skip": st.lists(patterns, max_size=2).map(tuple)}
percent = st.floats(0, 0.99)
PASSES = st.one_of(
    st.builds(FoldBatchNorm, **selection),
    st.builds(ReestimateBatchNorm, samples=st.integers(2, 999), **selection),
    st.builds(MagnitudePruning, sparsity=percent, scope=st.sampled_from(["global", "lamp"]), **selection),
    st.builds(
        MagnitudePruning,
        scope=st.just("layer"),
        overrides=st.dictionaries(patterns, st.fixed_dictionaries({"sparsity": percent}), max_size=2),
    ),
    st.builds(WeightClustering, n_clusters=st.integers(1, 99), per=st.sampled_from(["layer", "channel", "neuron"])),
    st.builds(
        FineTune, epochs=st.integers(1, 99), learning_rate=st.floats(0, 1), keep=st.sampled_from(["best", "last"])
    ),
    st.builds(
        Quantization,
        weight_bits=st.integers(2, 16),
        symmetric=st.booleans(),
        signed=st.none() | st.booleans(),
        overrides=st.dictionaries(patterns, st.fixed_dictionaries({"weight_bits": st.integers(2, 16)}), max_size=2),
    ),
)
GUARDS = st.none() | st.builds(
    MaxDrop,
    max_drop=st.sampled_from(["1pt", "0.5%", 2, 0.25]),
    role=st.sampled_from(["validation", "train", "calibration"]),
)
TARGETS = st.builds(
    Target,
    st.sampled_from(sorted(PRESETS)),
    flash=st.none() | st.integers(0, 10**6),
    ram=st.none() | st.just("64KiB"),
    reduce_range=st.booleans(),
)
RECIPES = st.builds(
    Recipe,
    steps=st.lists(
        st.builds(Step, passes=st.lists(PASSES, min_size=1, max_size=3).map(tuple), guard=GUARDS), max_size=3
    ).map(tuple),
    seed=st.integers(0, 2**40),
    target=TARGETS,
    threads=st.none() | st.integers(1, 64),
    name=st.text(max_size=8),
)


@settings(max_examples=40, deadline=None)
@given(RECIPES)
def test_data_and_yaml_read_back_as_the_recipe(recipe):
    assert from_data(recipe.to_data()) == recipe
    assert from_data(yaml.safe_load(recipe.to_yaml())) == recipe


def test_a_file_reads_as_its_text_says(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text("""
lilliput: 1
seed: 3
threads: 2
name: small
target: {name: cortex-m4, flash: 256KiB}
guard: {max_drop: 1pt}
passes:
  - fold_batchnorm
  - magnitude_pruning: {sparsity: 0.6, skip: head}
  - [weight_clustering: {n_clusters: 4}, fine_tune]
  - {quantization: {weight_bits: 4, overrides: {head: {weight_bits: 8}}}, guard: {max_drop: 2%, role: train}}
  - {together: [fold_batchnorm, {fine_tune: {epochs: 1}}], guard: none}
  - fine_tune:
""")
    default = MaxDrop(max_drop="1pt")
    assert load(path) == Recipe(
        seed=3,
        threads=2,
        name="small",
        target=Target("cortex-m4", flash=256 * 1024),
        steps=(
            Step(passes=(FoldBatchNorm(),), guard=default),
            Step(passes=(MagnitudePruning(sparsity=0.6, skip=("head",)),), guard=default),
            Step(passes=(WeightClustering(n_clusters=4), FineTune()), guard=default),
            Step(
                passes=(Quantization(weight_bits=4, overrides={"head": {"weight_bits": 8}}),),
                guard=MaxDrop(max_drop="2%", role="train"),
            ),
            Step(passes=(FoldBatchNorm(), FineTune(epochs=1))),
            Step(passes=(FineTune(),), guard=default),
        ),
    )
    assert [step.name for step in load(path).steps][2] == "weight_clustering + fine_tune"


def test_a_bare_list_is_a_recipe_without_guards():
    assert from_data(["fold_batchnorm"]) == Recipe(steps=(Step(passes=(FoldBatchNorm(),)),))
    assert from_data({"passes": []}) == Recipe()


def test_settings_that_are_not_defaults_are_all_that_is_written():
    assert Recipe(steps=(Step(passes=(Quantization(),)),)).to_data() == {
        "lilliput": 1,
        "seed": 0,
        "target": "onnx-x86",
        "passes": ["quantization"],
    }
    assert Quantization(weight_bits=4, skip=("head",)).settings() == {"weight_bits": 4, "skip": ["head"]}


REFUSED = {
    "top key": ({"pases": []}, "recipe: unknown key 'pases'; did you mean 'passes'?"),
    "key like none": (
        {"zzz": []},
        "recipe: unknown key 'zzz'; known are guard, lilliput, name, passes, seed, target, threads",
    ),
    "no passes": ({"seed": 0}, "recipe: passes: None; list at least one pass"),
    "passes as text": ({"passes": "fold_batchnorm"}, "recipe: passes: 'fold_batchnorm'; list at least one pass"),
    "not a mapping": ("fold_batchnorm", "recipe: a str; write a mapping with the key passes"),
    "version": ({"lilliput": 2, "passes": []}, "recipe: version 2; write version 1, or update Lilliput"),
    "seed": ({"seed": -1, "passes": []}, "recipe seed: -1; give a whole number from 0 up"),
    "seed as text": ({"seed": "0", "passes": []}, "recipe seed: '0'; give a whole number from 0 up"),
    "seed as truth": ({"seed": True, "passes": []}, "recipe seed: True; give a whole number from 0 up"),
    "threads": ({"threads": 0, "passes": []}, "recipe threads: 0; give a whole number from 1 up"),
    "target": (
        {"target": "cortex-m5", "passes": []},
        "target 'cortex-m5': not a known target; did you mean 'cortex-m4'?",
    ),
    "target key": (
        {"target": {"nam": "c-host"}, "passes": []},
        "recipe target: {'nam': 'c-host'}; write a name, or a mapping of flash, name, ram, reduce_range",
    ),
    "target flash": (
        {"target": {"name": "c-host", "flash": 1.5}, "passes": []},
        "recipe target flash: 1.5; write for example name: cortex-m4, flash: 256KiB",
    ),
    "target unit": (
        {"target": {"flash": "256k"}, "passes": []},
        "size '256k': not a number with a known unit; write one of B, kB, KiB, MB, MiB, GB, GiB, such as 60kB",
    ),
    "method": (["quantisation"], "method 'quantisation': there is no such method; did you mean 'quantization'?"),
    "step as number": ([5], "recipe: a step 5; write a pass's name, {name: settings}, or a list of these"),
    "empty step": ([[]], "recipe: an empty step; list at least one pass in it"),
    "two methods": (
        [{"fold_batchnorm": None, "fine_tune": None}],
        (
            "recipe: a step with 2 methods (fold_batchnorm, fine_tune); "
            "write one method a step, or a list of methods to judge together"
        ),
    ),
    "only a guard": (
        [{"guard": "none"}],
        "recipe: a step with 0 methods (); write one method a step, or a list of methods to judge together",
    ),
    "together and more": (
        [{"together": ["fine_tune"], "fold_batchnorm": {}}],
        "recipe: a step with together and 'fold_batchnorm'; write one of them",
    ),
    "guard in a list": (
        [[{"fine_tune": {}, "guard": {"max_drop": 1}}, "fold_batchnorm"]],
        "recipe: a guard inside a list; the passes of a list are judged together: {together: [...], guard: ...}",
    ),
    "guard key": (
        {"guard": {"maxdrop": 1}, "passes": []},
        "recipe guard: unknown key 'maxdrop'; did you mean 'max_drop'?",
    ),
    "guard without drop": (
        {"guard": {}, "passes": []},
        "recipe guard: no max_drop; write {max_drop: 1pt}, {agreement: 99%} or none",
    ),
    "guard as text": (
        {"guard": "1pt", "passes": []},
        "recipe guard: '1pt'; write {max_drop: 1pt}, {agreement: 99%} or none",
    ),
    "guard drop": (
        {"guard": {"max_drop": [1]}, "passes": []},
        'recipe guard: max_drop [1]; write "0.5pt", "1%" or a number in the score\'s unit',
    ),
    "guard on test": (
        [{"fine_tune": {}, "guard": {"max_drop": 1, "role": "test"}}],
        "guard: role 'test'; guards look at validation, train or calibration; the test role chooses nothing",
    ),
    "guard role": (
        [{"fine_tune": {}, "guard": {"max_drop": 1, "role": "valid"}}],
        "guard: role 'valid'; guards look at validation, train or calibration; the test role chooses nothing",
    ),
    "setting": (
        [{"quantization": {"weight_bit": 8}}],
        "quantization: unknown setting 'weight_bit'; did you mean 'weight_bits'?",
    ),
    "settings as list": (
        [{"quantization": [8]}],
        "quantization: settings [8]; write them as a mapping: {name: value}",
    ),
    "wrong type": (
        [{"quantization": {"weight_bits": "eight"}}],
        "quantization weight_bits: 'eight'; input should be a valid integer, unable to parse string as an integer",
    ),
    "wrong value": (
        [{"quantization": {"weight_bits": 17}}],
        "quantization weight_bits: 17; use a number from 2 to 16",
    ),
    "wrong choice": (
        [{"weight_clustering": {"per": "row"}}],
        "weight_clustering per: 'row'; use one of layer, channel, neuron",
    ),
    "override setting": (
        [{"quantization": {"overrides": {"fc": {"weightbits": 4}}}}],
        "quantization override for 'fc': unknown setting 'weightbits'; did you mean 'weight_bits'?",
    ),
    "override type": (
        [{"magnitude_pruning": {"scope": "layer", "overrides": {"fc": {"sparsity": "half"}}}}],
        (
            "magnitude_pruning override for 'fc' sparsity: 'half'; input should be a valid number"
            ", unable to parse string as a number"
        ),
    ),
    "override value": (
        [{"quantization": {"overrides": {"fc": {"weight_bits": 18}}}}],
        "quantization weight_bits: 18; use a number from 2 to 16",
    ),
    "override shape": (
        [{"quantization": {"overrides": {"fc": 4}}}],
        "quantization override for 'fc': 4; write a mapping: {setting: value}",
    ),
    "overrides shape": (
        [{"quantization": {"overrides": 4}}],
        "quantization: overrides 4; write {pattern of layers: {setting: value}}",
    ),
    "override without effect": (
        [{"magnitude_pruning": {"overrides": {"fc": {"sparsity": 0.1}}}}],
        (
            "magnitude_pruning overrides: scope 'lamp' compares all layers; override sparsity with scope: layer"
            ", or use several passes with include"
        ),
    ),
    "override of what is shared": (
        [{"quantization": {"overrides": {"fc": {"activation_bits": 4}}}}],
        (
            "quantization override for 'fc': activation_bits counts for the whole network; "
            "override settings of weights only"
        ),
    ),
    "override of a training": (
        [{"fine_tune": {"overrides": {"fc": {"epochs": 4}}}}],
        "fine_tune overrides: a training has one setting for all layers; use include and skip",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_understood_is_refused_with_a_remedy(name):
    data, text = REFUSED[name]
    with pytest.raises(LilliputError) as error:
        from_data(data)
    assert str(error.value) == text
    assert error.value.exit_code == 2


def test_numbers_in_quotes_become_numbers_everywhere():
    data = {"scope": "layer", "sparsity": "0.25", "overrides": {"fc": {"sparsity": "0.5"}}}
    assert build_pass("magnitude_pruning", data) == MagnitudePruning(
        scope="layer", sparsity=0.25, overrides={"fc": {"sparsity": 0.5}}
    )


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (None, "it cannot be read; check the path (FileNotFoundError)"),
        (b"passes: [", "not YAML (while parsing a flow node"),
        (b"\xff\xfe\xff", "it cannot be read; check the path (UnicodeDecodeError)"),
        (b"", "recipe: a NoneType; write a mapping with the key passes"),
        (b"!!python/object/apply:os.system ['true']", "not YAML (could not determine a constructor"),
    ],
)
def test_a_file_that_is_no_recipe_is_refused(tmp_path, content, text):
    path = tmp_path / "recipe.yaml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(RecipeError) as error:
        load(path)
    assert text in str(error.value)


def test_guards_never_look_at_the_test_role():
    with pytest.raises(RecipeError, match=r"role 'test'; .* the test role chooses nothing"):
        Step(passes=(FoldBatchNorm(),), guard=MaxDrop(max_drop=1, role="test"))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Nothing(Pass):
    """Leaves every layer as it is."""

    name: ClassVar[str] = "nothing"
    summary: ClassVar[str] = "does nothing"
    times: int = 1

    def apply_(self, net, context):
        return PassResult(skipped=dict.fromkeys(layers(net), "nothing to do"))


OWN = """
import dataclasses
from typing import ClassVar

from lilliput import Pass, PassResult
from lilliput.core.method import layers


@dataclasses.dataclass(frozen=True, kw_only=True)
class Own(Pass):
    name: ClassVar[str] = "own"
    summary: ClassVar[str] = "of a user"
    strength: float = 1.0

    def apply_(self, net, context):
        return PassResult(skipped=dict.fromkeys(layers(net), "nothing to do"))


class Outer:
    Inner = Own


not_a_pass = 3
"""


@pytest.fixture
def own_module(tmp_path, monkeypatch):
    """The name of a module of the user's, beside the recipe."""
    (tmp_path / "own_passes.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    yield "own_passes"
    sys.modules.pop("own_passes", None)


def test_a_pass_of_the_users_own_file_goes_by_module_and_class(own_module):
    recipe = from_data([{f"{own_module}:Own": {"strength": 2, "skip": ["fc"]}}])
    (own,) = recipe.steps[0].passes
    assert own.settings() == {"strength": 2.0, "skip": ["fc"]}
    assert from_data(recipe.to_data()) == recipe
    assert find_method(f"{own_module}:Outer.Inner") is type(own)


@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("own_passes:Missing", "it cannot be imported (module 'own_passes' has no attribute 'Missing')"),
        ("no_such_module:Own", "it cannot be imported (No module named 'no_such_module')"),
        ("own_passes:not_a_pass", "it is 3, not a Pass; name a subclass of lilliput.Pass"),
        ("own_passes:", "there is no such method"),
        (":Own", "there is no such method"),
        ("../own_passes.py:Own", "there is no such method"),
        (".own_passes:Own", "there is no such method"),
    ],
)
@pytest.mark.usefixtures("own_module")
def test_a_pass_that_cannot_be_imported_is_an_error(key, text):
    with pytest.raises(RecipeError) as error:
        find_method(key)
    assert str(error.value).startswith(f"method {key!r}: {text}")


def test_entry_points_add_methods_and_broken_ones_hurt_only_themselves(monkeypatch, own_module):
    points = metadata.EntryPoints(
        [
            metadata.EntryPoint("own", f"{own_module}:Own", recipes.ENTRY_POINTS),
            metadata.EntryPoint("broken", "no_such_module:Broken", recipes.ENTRY_POINTS),
            metadata.EntryPoint("quantization", f"{own_module}:Own", recipes.ENTRY_POINTS),
        ]
    )
    monkeypatch.setattr(recipes.metadata, "entry_points", lambda group: points)
    assert set(methods()) == {*BY_NAME, "own"}
    assert methods()["quantization"] is Quantization
    (own,) = from_data([{"own": {"strength": 3}}]).steps[0].passes
    assert Recipe(steps=(Step(passes=(own,)),)).to_data()["passes"] == [{"own": {"strength": 3.0}}]
    with pytest.raises(
        RecipeError, match=r"method 'broken': it cannot be imported \(No module named 'no_such_module'\)"
    ):
        find_method("broken")


def test_steps_take_passes_lists_and_data():
    assert to_step(Nothing(times=2)) == Step(passes=(Nothing(times=2),))
    assert to_step([Nothing(), FoldBatchNorm()]).name == "nothing + fold_batchnorm"
    assert to_step(Step(passes=(Nothing(),))) == Step(passes=(Nothing(),))
    assert to_step("fine_tune", MaxDrop(max_drop=1)) == Step(passes=(FineTune(),), guard=MaxDrop(max_drop=1))
    with pytest.raises(RecipeError, match="a step None"):
        to_step(None)


def test_a_pass_in_a_list_with_data_is_taken_as_it_is():
    assert to_step([Nothing(), "fine_tune"]).passes == (Nothing(), FineTune())


def test_targets_may_be_given_as_objects():
    target = Target("c-host", ram=100)
    assert from_data({"target": target, "passes": []}).target == target
    with pytest.raises(UsageError, match="target 'c-hos': not a known target; did you mean 'c-host'"):
        from_data({"target": {"name": "c-hos"}, "passes": []})
