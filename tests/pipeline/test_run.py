"""Runs: the same seed gives the same bytes, interrupted or not; what is refused or foreign leaves no trace."""

import dataclasses
import hashlib
import json
import pickle
from typing import ClassVar

import numpy as np
import pytest
import torch

from lilliput.core import container
from lilliput.core.artifact import Artifact
from lilliput.core.errors import ArtifactError, MethodError, RecipeError, UsageError
from lilliput.core.guard import MaxDrop, Verdict
from lilliput.core.method import Pass, PassResult, layers
from lilliput.core.progress import Progress
from lilliput.core.task import Task
from lilliput.methods.clustering.weight_clustering import WeightClustering
from lilliput.methods.normalization.batchnorm import FoldBatchNorm
from lilliput.methods.pruning.magnitude import MagnitudePruning
from lilliput.methods.quantization.post_training import Quantization
from lilliput.methods.tuning.fine_tune import FineTune
from lilliput.pipeline.folder import RunFolder
from lilliput.pipeline.recipe import Recipe, Step, from_data
from lilliput.pipeline.run import run, threads, weights_hash
from lilliput.testing import tiny_model, tiny_task

LOOSE = MaxDrop(max_drop="100pt")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Never(MaxDrop):
    """Refuses."""

    def judge(self, task, candidate, original):
        return Verdict(accepted=False, reason="never", evidence={"interval": [float("-inf"), float("inf")]})


@dataclasses.dataclass(frozen=True, kw_only=True)
class Kill(Pass):
    """Ends the process, as Ctrl-C does."""

    name: ClassVar[str] = "kill"
    summary: ClassVar[str] = "raises KeyboardInterrupt"

    def apply_(self, net, context):
        raise KeyboardInterrupt


@dataclasses.dataclass(frozen=True, kw_only=True)
class Careless(Pass):
    """Writes into the weight past its encoding, forgets a layer, or leaves a hook."""

    name: ClassVar[str] = "careless"
    summary: ClassVar[str] = "breaks laws"
    law: str = "decode"

    def apply_(self, net, context):
        known = layers(net)
        if self.law == "decode":
            net.encode_("1.weight", net.encoding("1.weight").with_mask(torch.ones(12, 16).bool()))
            with torch.no_grad():
                net.parameter("1.weight").add_(1)
        elif self.law == "layers":
            known.pop("1")
        else:
            net.module.register_forward_hook(lambda *_: None)
        return PassResult(changed=dict.fromkeys(known, "changed"))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Noise(Pass):
    """Adds noise from the generator of the context to one layer."""

    name: ClassVar[str] = "noise"
    summary: ClassVar[str] = "adds noise"

    def apply_(self, net, context):
        weight = net.parameter("1.weight")
        net.write_("1.weight", weight + 0.01 * torch.randn(weight.shape, generator=context.generator))
        return PassResult(changed={"1": "noise"}, skipped=dict.fromkeys(set(layers(net)) - {"1"}, "not 1"))


class Lines(Progress):
    def __init__(self):
        self.lines = []

    def say(self, text):
        self.lines.append(text)


@pytest.fixture(scope="module")
def task():
    return tiny_task(48)


RECIPE = Recipe(
    seed=5,
    threads=1,
    steps=(
        Step(passes=(FoldBatchNorm(),), guard=LOOSE),
        Step(passes=(MagnitudePruning(sparsity=0.4), FineTune(epochs=2, batch_size=16)), guard=LOOSE),
        Step(passes=(WeightClustering(n_clusters=2),), guard=Never(max_drop=1)),
        Step(passes=(FoldBatchNorm(),), guard=LOOSE),
        Step(passes=(Quantization(),), guard=LOOSE),
    ),
)


def cut(recipe, after):
    """The recipe as long as it takes to be killed after so many steps."""
    return dataclasses.replace(recipe, steps=(*recipe.steps[:after], Step(passes=(Kill(),))))


@pytest.fixture(scope="module")
def whole(task, tmp_path_factory):
    """A run that nothing disturbed."""
    folder = RunFolder.create(tmp_path_factory.mktemp("whole"), "net")
    return run(tiny_model("batch_norm"), task, RECIPE, folder=folder), folder


def test_the_same_seed_gives_the_same_bytes_with_and_without_a_folder(whole, task):
    again = run(tiny_model("batch_norm"), task, RECIPE)
    assert container.dumps(again.artifact) == container.dumps(whole[0].artifact)


def test_each_pass_draws_from_its_own_seed(task):
    steps = tuple(Step(passes=(Noise(),)) for _ in range(2))

    def noise(recipe):
        return run(tiny_model("linear"), task, recipe).artifact.parameter("1.weight").detach()

    original = tiny_model("linear").get_parameter("1.weight").detach()
    once = noise(Recipe(steps=steps[:1])) - original
    twice = noise(Recipe(steps=steps)) - original - once
    together = noise(Recipe(steps=(Step(passes=(Noise(), Noise())),))) - original
    assert not torch.allclose(once, twice)
    assert not torch.allclose(together, once + twice)
    assert torch.equal(noise(Recipe(steps=steps, seed=0)), noise(Recipe(steps=steps)))
    assert not torch.equal(noise(Recipe(steps=steps, seed=1)), noise(Recipe(steps=steps)))


def test_the_trail_says_what_each_step_did(whole):
    outcome, folder = whole
    assert [e["name"] for e in outcome.trail] == [
        "fold_batchnorm",
        "magnitude_pruning + fine_tune",
        "weight_clustering",
        "fold_batchnorm",
        "quantization",
    ]
    assert [(e["effect"], e["verdict"]["accepted"]) for e in outcome.trail] == [
        (True, True),
        (True, True),
        (True, False),
        (False, True),
        (True, True),
    ]
    assert outcome.trail[3]["verdict"]["reason"] == "no effect"
    assert outcome.trail[0]["passes"][0]["changed"] == {"0": "took in 1", "1": "folded into 0"}
    assert outcome.trail[0]["passes"][0]["skipped"] == {"4": "not a BatchNorm, and none goes into it"}
    assert outcome.trail[2]["bytes"] == outcome.trail[1]["bytes"]
    assert outcome.trail[-1]["bytes"] == len(container.dumps(outcome.artifact, strip=True))
    assert folder.trail() == json.loads(
        json.dumps(outcome.trail).replace("-Infinity", "null").replace("Infinity", "null")
    )
    for entry in outcome.trail:
        data = (folder.path / f"step-{entry['step']:02d}.lil").read_bytes()
        assert hashlib.blake2b(data, digest_size=16).hexdigest() == entry["snapshot"]
    assert not list(folder.path.glob("*.checkpoint"))


def test_the_recipe_that_was_run_is_in_the_artifact(whole):
    (entry,) = whole[0].artifact.recipe
    assert {"lilliput": 1, **entry["recipe"]} == RECIPE.to_data()
    assert from_data(entry["recipe"]).to_data() == RECIPE.to_data()


def test_a_refused_step_leaves_no_trace(task):
    never = Never(max_drop=0)
    steps = (Step(passes=(FoldBatchNorm(), MagnitudePruning(), Quantization()), guard=never),)
    refused = run(tiny_model("batch_norm"), task, Recipe(steps=steps)).artifact
    untouched = run(tiny_model("batch_norm"), task, Recipe()).artifact
    refused.recipe = untouched.recipe = []
    assert container.dumps(refused) == container.dumps(untouched)


def test_a_guard_compares_with_the_original_and_not_with_the_step_before(task):
    """Two steps may each cost nothing by themselves; what counts is the distance from the start."""
    guard = MaxDrop(max_drop="0pt")
    outcome = run(
        tiny_model("linear"), task, Recipe(steps=(Step(passes=(MagnitudePruning(sparsity=0.9),), guard=guard),))
    )
    evidence = outcome.trail[0]["verdict"]["evidence"]
    assert evidence["original"] == outcome.context.evaluator.task.score.value(
        outcome.context.evaluator.reference("validation").rows
    )
    assert outcome.trail[0]["verdict"]["accepted"] == (evidence["drop"] <= 0)


def test_guards_are_counted_by_role_and_never_touch_the_test_role(task):
    with_test = dataclasses.replace(task, test=task.data("validation"))
    guards = (LOOSE, LOOSE, dataclasses.replace(LOOSE, role="train"), None)
    steps = tuple(Step(passes=(MagnitudePruning(sparsity=0.1 * i + 0.1),), guard=g) for i, g in enumerate(guards))
    assert run(tiny_model("linear"), with_test, Recipe(steps=steps)).context.evaluator.uses == {
        "validation": 2,
        "train": 1,
    }


@pytest.mark.parametrize("after", range(len(RECIPE.steps)))
def test_a_run_killed_after_any_step_goes_on_to_the_same_bytes(whole, task, tmp_path, after):
    folder = RunFolder.create(tmp_path, "net")
    with pytest.raises(KeyboardInterrupt):
        run(tiny_model("batch_norm"), task, cut(RECIPE, after), folder=folder)
    folder.write_json("run.json", folder.read_json("run.json") | {"recipe": RECIPE.to_data()})
    lines = Lines()
    outcome = run(tiny_model("batch_norm"), task, RECIPE, folder=folder, progress=lines)
    assert container.dumps(outcome.artifact) == container.dumps(whole[0].artifact)
    assert [line for line in lines.lines if line.startswith("resumed")] == (
        [f"resumed after step {after - 1}: {RECIPE.steps[after - 1].name}"] if after else []
    )
    assert [e["snapshot"] for e in outcome.trail] == [e["snapshot"] for e in whole[0].trail]
    assert [e["uses"] for e in outcome.trail] == [e["uses"] for e in whole[0].trail]


def test_a_training_killed_between_epochs_goes_on_from_its_checkpoint(whole, task, tmp_path):
    class Impatient(Lines):
        def say(self, text):
            super().say(text)
            if text.startswith("epoch 2"):  # the checkpoint of epoch 1 is written, that of epoch 2 is not
                raise KeyboardInterrupt

    folder = RunFolder.create(tmp_path, "net")
    with pytest.raises(KeyboardInterrupt):
        run(tiny_model("batch_norm"), task, RECIPE, folder=folder, progress=Impatient())
    lines = Lines()
    outcome = run(tiny_model("batch_norm"), task, RECIPE, folder=folder, progress=lines)
    assert "resumed after epoch 1" in lines.lines
    assert container.dumps(outcome.artifact) == container.dumps(whole[0].artifact)


def killed(task, tmp_path, after=4):
    folder = RunFolder.create(tmp_path, "net")
    with pytest.raises(KeyboardInterrupt):
        run(tiny_model("batch_norm"), task, cut(RECIPE, after), folder=folder)
    folder.write_json("run.json", folder.read_json("run.json") | {"recipe": RECIPE.to_data()})
    return folder


def test_a_torn_last_line_of_the_trail_costs_one_step(whole, task, tmp_path):
    folder = killed(task, tmp_path)
    trail = folder.path / "trail.jsonl"
    trail.write_bytes(trail.read_bytes()[:-9])
    lines = Lines()
    outcome = run(tiny_model("batch_norm"), task, RECIPE, folder=folder, progress=lines)
    assert "resumed after step 2: weight_clustering" in lines.lines
    assert container.dumps(outcome.artifact) == container.dumps(whole[0].artifact)
    assert [e["step"] for e in folder.trail()] == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("damage", ["missing", "changed"])
def test_a_snapshot_that_is_lost_costs_its_step(whole, task, tmp_path, damage):
    folder = killed(task, tmp_path)
    snapshot = folder.path / "step-03.lil"
    if damage == "missing":
        snapshot.unlink()
    else:
        snapshot.write_bytes(snapshot.read_bytes()[:-1])
    lines = Lines()
    outcome = run(tiny_model("batch_norm"), task, RECIPE, folder=folder, progress=lines)
    assert "resumed after step 2: weight_clustering" in lines.lines
    assert container.dumps(outcome.artifact) == container.dumps(whole[0].artifact)
    assert [e["step"] for e in folder.trail()] == [0, 1, 2, 3, 4]


def test_a_finished_run_is_not_run_again(whole, task):
    lines = Lines()
    outcome = run(tiny_model("batch_norm"), task, RECIPE, folder=whole[1], progress=lines)
    assert lines.lines == ["resumed after step 4: quantization"]
    assert container.dumps(outcome.artifact) == container.dumps(whole[0].artifact)


def other_weights():
    model = tiny_model("batch_norm")
    with torch.no_grad():
        model.get_parameter("0.weight").add_(1e-6)
    return model


CHANGED = {
    "seed": (
        lambda: tiny_model("batch_norm"),
        RECIPE,
        {"seed": 6},
        "recipe not as in the run (seed: 5, now 6)",
    ),
    "steps": (
        lambda: tiny_model("batch_norm"),
        RECIPE,
        {"steps": ()},
        "recipe not as in the run (passes: [",
    ),
    "model": (lambda: tiny_model("linear"), RECIPE, {}, "model not as in the run;"),
    "weights": (other_weights, RECIPE, {}, "weights not as in the run;"),
}


@pytest.mark.parametrize("name", CHANGED)
def test_a_run_of_something_else_is_not_resumed(whole, task, name):
    model, recipe, changes, text = CHANGED[name]
    before = {p.name: p.read_bytes() for p in whole[1].path.iterdir()}
    with pytest.raises(ArtifactError) as error:
        run(model(), task, dataclasses.replace(recipe, **changes), folder=whole[1])
    assert str(error.value).startswith(f"resume {whole[1].path}: {text}")
    assert str(error.value).endswith("resume with the same model, data and recipe, or start a new run")
    assert {p.name: p.read_bytes() for p in whole[1].path.iterdir()} == before


def test_a_run_on_other_data_is_not_resumed(whole):
    with pytest.raises(ArtifactError, match=r"data not as in the run \(train: [0-9a-f]+, now [0-9a-f]+\)"):
        run(tiny_model("batch_norm"), tiny_task(48, seed=1), RECIPE, folder=whole[1])


def test_a_damaged_run_file_is_an_error_with_a_remedy(task, tmp_path):
    folder = RunFolder.create(tmp_path, "net")
    folder.write("run.json", "{")
    with pytest.raises(ArtifactError, match=r"read .*run.json: it is missing or damaged; start a new run"):
        run(tiny_model("linear"), task, Recipe(), folder=folder)


def test_the_callers_model_and_all_global_state_are_left_alone(task):
    model = tiny_model("batch_norm").train()
    model.get_submodule("4").eval()
    modes = [m.training for m in model.modules()]
    before = {n: t.clone() for n, t in model.state_dict().items()}
    torch.manual_seed(11)
    np.random.seed(11)  # noqa: NPY002 - the global generator is what must not move
    states = torch.get_rng_state(), pickle.dumps(np.random.get_state())  # noqa: NPY002
    many, grad = torch.get_num_threads(), torch.is_grad_enabled()
    run(model, task, dataclasses.replace(RECIPE, threads=2))
    assert torch.equal(torch.get_rng_state(), states[0])
    assert pickle.dumps(np.random.get_state()) == states[1]  # noqa: NPY002
    assert (torch.get_num_threads(), torch.is_grad_enabled()) == (many, grad)
    assert [m.training for m in model.modules()] == modes
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


def test_threads_are_put_back_after_an_error():
    before = torch.get_num_threads()

    def fail():
        with threads(before + 1) as used:
            assert used == torch.get_num_threads() == before + 1
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert torch.get_num_threads() == before


def test_the_number_of_threads_that_was_used_is_in_the_recipe(task):
    assert run(tiny_model("linear"), task, Recipe()).recipe.threads == torch.get_num_threads()
    assert run(tiny_model("linear"), task, Recipe(threads=2)).recipe.threads == 2


def test_a_guard_that_this_score_cannot_judge_is_found_before_the_first_step(tmp_path):
    x = torch.randn(20, 1, 4, 4)
    task = Task.regression(train=(x, x.mean((1, 2, 3))), validation=(x, x.mean((1, 2, 3))))
    steps = (Step(passes=(Kill(),)), Step(passes=(FoldBatchNorm(),), guard=MaxDrop(max_drop="1pt")))
    with pytest.raises(UsageError, match=r"max_drop='1pt': MAE is not in percent; write \"1%\" or a number"):
        run(tiny_model("linear"), task, Recipe(steps=steps))


@pytest.mark.parametrize(
    ("law", "text"),
    [
        ("decode", "check of '1.weight': the weight is not what its encoding decodes to"),
        ("layers", "careless on '1': the layer is neither changed nor skipped"),
        ("hook", "check of 'the model': a forward hook was left"),
    ],
)
def test_a_pass_that_breaks_a_law_is_stopped(task, law, text):
    with pytest.raises(MethodError) as error:
        run(tiny_model("linear"), task, Recipe(steps=(Step(passes=(Careless(law=law),)),)))
    assert str(error.value).startswith(text)


def test_an_order_that_cannot_work_is_refused_with_a_remedy(task):
    recipe = Recipe(steps=(Step(passes=(Quantization(), FineTune(epochs=1))),))
    with pytest.raises(
        RecipeError, match="fine_tune: activations are already on integer grids; put fine_tune before quantization"
    ):
        run(tiny_model("linear"), task, recipe)


def test_the_hash_of_weights_sees_every_bit_and_every_name():
    a, b = tiny_model("batch_norm"), tiny_model("batch_norm")
    assert weights_hash(a) == weights_hash(b)
    b.get_buffer("1.running_mean")[0] += 1e-7
    assert weights_hash(a) != weights_hash(b)


def test_a_network_with_nan_is_refused(task):
    model = tiny_model("linear")
    with torch.no_grad():
        model.get_parameter("1.weight")[0, 0] = torch.nan
    with pytest.raises(UsageError, match=r"1.weight holds NaN or infinity; mend the model first"):
        run(model, task, Recipe())


def test_an_empty_recipe_gives_the_network_as_it_came(task):
    model = tiny_model("residual")
    outcome = run(model, task, Recipe())
    assert outcome.trail == []
    assert weights_hash(outcome.artifact.module) == weights_hash(model)
    assert isinstance(outcome.artifact, Artifact)
