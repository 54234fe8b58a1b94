"""Self-compression: bits are learned at a price, channels without bits vanish, and the file holds what was trained."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

import lilliput as ll
from lilliput.core.artifact import Artifact
from lilliput.core.container import dumps
from lilliput.core.errors import RecipeError
from lilliput.core.method import Context, apply_checked_
from lilliput.graph import stored
from lilliput.graph.coupling import channel_groups, shapes_of
from lilliput.graph.trace import graph_of
from lilliput.methods.clustering.weight_clustering import WeightClustering
from lilliput.methods.normalization.batchnorm import FoldBatchNorm
from lilliput.methods.pruning.magnitude import MagnitudePruning
from lilliput.methods.quantization.post_training import Quantization
from lilliput.methods.self_compression.price import Course
from lilliput.methods.self_compression.safety import Check, Safety, forgotten
from lilliput.methods.self_compression.self_compression import SelfCompression
from lilliput.methods.self_compression.size_term import entries
from lilliput.methods.self_compression.vanishing import dead_channels, remove_dead_
from lilliput.methods.tuning.fine_tune import FineTune
from lilliput.testing import check_artifact, tiny_model, tiny_task
from lilliput.training import trained
from lilliput.training.fit import fit
from lilliput.training.learned_bits import LearnedBits, Widths
from lowered import self_compressed

TASK = tiny_task(48)
SHORT = SelfCompression(steps=24, batch_size=16, rounds=3, learning_rate=1e-2, bit_rate=0.3)
FOLD = FoldBatchNorm()


def applied(model, *methods, seed=0, checkpoint=None) -> tuple[Artifact, Any]:
    net = Artifact.of(model, TASK.spec)
    context = replace(Context.of(TASK, model, seed=seed), checkpoint=checkpoint)
    results = [apply_checked_(m, net, context) for m in methods]
    return net, results[-1]


def score(net):
    data = TASK.data("train")
    with torch.no_grad():
        return float((net.module(data.inputs).argmax(1) == data.targets).float().mean())


@pytest.mark.parametrize("name", ["linear", "conv", "residual", "grouped", "batch_norm"])
@pytest.mark.parametrize("size", ["coded", "bits"])
def test_every_weight_ends_in_integers_of_powers_of_two(name, size):
    net, result = applied(tiny_model(name), FOLD, replace(SHORT, size=size))
    for weight in [n for n, p in net.module.named_parameters() if p.dim() > 1]:
        grid = net.encodings[weight].grid
        assert grid is not None
        exponent = torch.log2(grid.scale)
        assert torch.equal(exponent, exponent.round()), weight
    assert result.changed
    check_artifact(net, tiny_model(name), retrace=False)


@pytest.mark.parametrize("size", ["coded", "bits"])
def test_a_higher_price_gives_a_smaller_file(size):
    longer = replace(SHORT, size=size, steps=60)
    files = [len(dumps(applied(tiny_model("residual"), FOLD, replace(longer, gamma=g))[0])) for g in (0, 10.0)]
    assert files[1] < 0.9 * files[0]


def test_a_wanted_size_is_reached_while_the_network_still_learns():
    free, _ = applied(tiny_model("residual"), FOLD, replace(SHORT, gamma=0.0, steps=60))
    limit = int(0.85 * len(dumps(free, strip=True)))
    held, result = applied(tiny_model("residual"), FOLD, replace(SHORT, steps=60, max_bytes=limit))
    assert len(dumps(held, strip=True)) <= limit
    assert not any("more than" in note for note in result.notes)
    assert score(held) > score(applied(tiny_model("residual"), FOLD)[0])


def test_the_price_follows_the_course_from_both_sides():
    course = Course(start=1000.0, goal=250.0, arrive=10)
    assert [round(course.at(step)) for step in (0, 5, 10, 99)] == [1000, 500, 250, 250]


def test_a_channel_pays_for_its_own_weights_and_those_that_read_it():
    """Equation 5, counted by hand on conv 1->4 (3x3), pooled and flattened 4 x 2 x 2 -> linear 16 -> 3."""
    net = Artifact.of(tiny_model("conv"), TASK.spec)
    coupling = channel_groups(graph_of(net), shapes_of(net.module.state_dict()))
    found = entries(net, coupling, {"0.weight": 0, "4.weight": 0})
    assert found["0.weight"].tolist() == [9 + 4 * 3] * 4
    assert found["4.weight"].tolist() == [16.0] * 3


def dying(model, *rows):
    """The network with these rows of its first convolution at 0."""
    with torch.no_grad():
        first: Any = next(m for m in model.modules() if isinstance(m, nn.Conv2d))
        first.weight[list(rows)] = 0
        first.bias[list(rows)] = torch.linspace(-1, 1, len(rows))
    return model


def test_channels_without_weights_leave_and_what_they_gave_stays():
    model = dying(tiny_model("conv"), 0, 2)
    net = Artifact.of(model, TASK.spec)
    x = TASK.data("train").inputs
    with torch.no_grad():
        before = net.module(x)
    edits, lost = remove_dead_(net, TASK.data("calibration"))
    assert edits
    assert lost == {"0": 2}
    assert net.parameter("0.weight").shape[0] == 2
    assert net.parameter("4.weight").shape[1] == 8
    with torch.no_grad():
        torch.testing.assert_close(net.module(x), before, rtol=1e-4, atol=1e-5)


def test_channels_that_a_layer_reads_which_is_left_out_stay():
    net = Artifact.of(dying(tiny_model("conv"), 0, 2), TASK.spec)
    assert remove_dead_(net, TASK.data("calibration"), lambda path: path != "4") == ([], {})
    assert net.parameter("0.weight").shape[0] == 4


def test_one_channel_is_left_when_all_are_without_weights():
    net = Artifact.of(dying(tiny_model("conv"), 0, 1, 2, 3), TASK.spec)
    _, lost = remove_dead_(net, TASK.data("calibration"))
    assert lost == {"0": 3}
    assert net.parameter("0.weight").shape[0] == 1


def test_a_channel_of_a_sum_is_dead_only_if_no_layer_makes_it():
    model = tiny_model("residual")
    net = Artifact.of(model, TASK.spec)
    coupling = channel_groups(graph_of(net), shapes_of(net.module.state_dict()))
    group = next(g for g in coupling.groups if len({n for n, _ in g.made if net.parameter(n).dim() > 1}) > 1)
    makers = [(n, d) for n, d in group.made if net.parameter(n).dim() > 1]
    with torch.no_grad():
        name, dim = makers[0]
        net.parameter(name).select(dim, group.channels[1][name, dim][0]).zero_()
    assert group not in dead_channels(net, coupling)
    with torch.no_grad():
        for name, dim in makers[1:]:
            net.parameter(name).select(dim, group.channels[1][name, dim][0]).zero_()
    assert dead_channels(net, coupling)[group] == [1]


def test_channels_vanish_while_it_trains_and_the_file_gets_smaller():
    net, result = applied(tiny_model("conv"), replace(SHORT, gamma=20.0, steps=60, rounds=6, settle=0.2))
    rounds = result.statistics["rounds"]
    assert sum(sum(row["removed"].values()) for row in rounds) > 0
    assert net.parameter("0.weight").shape[0] < 4
    assert rounds[-1]["bytes"] < rounds[0]["bytes"]
    check_artifact(net, tiny_model("conv"), retrace=False)


@pytest.mark.parametrize("name", ["conv", "residual", "linear"])
def test_a_size_that_cannot_be_is_refused_before_any_training(monkeypatch, name):
    monkeypatch.setattr(trained, "fit", lambda *_, **__: pytest.fail("it trained"))
    with pytest.raises(RecipeError, match=r"self_compression max_bytes 60: .*allow more bytes"):
        applied(tiny_model(name), FOLD, replace(SHORT, max_bytes=60))


def test_a_mask_stays():
    net, _ = applied(tiny_model("linear"), MagnitudePruning(sparsity=0.5, scope="layer"), SHORT)
    for name in ("1.weight", "3.weight"):
        mask = net.encodings[name].mask
        assert mask is not None
        assert float(mask.float().mean()) == pytest.approx(0.5, abs=0.05)
        assert not bool(net.parameter(name).detach()[~mask].any())


def test_layers_that_are_left_out_stay_as_they_are():
    model = tiny_model("conv")
    net, result = applied(model, replace(SHORT, skip=("0",)))
    assert torch.equal(net.parameter("0.weight"), model.get_parameter("0.weight"))
    assert "0" in result.skipped


def test_same_seed_same_bytes():
    first, again, other = (dumps(applied(tiny_model("conv"), SHORT, seed=s)[0]) for s in (0, 0, 1))
    assert first == again != other


@pytest.mark.parametrize("fails", [1, 2, 4])
def test_a_resumed_run_ends_in_the_same_bytes(tmp_path, monkeypatch, fails):
    method = replace(SHORT, gamma=2.0)
    straight = dumps(applied(tiny_model("residual"), FOLD, method)[0])
    calls = []

    def dies(*args, **more):
        calls.append(1)
        result = fit(*args, **more)
        if len(calls) == fails:
            raise KeyboardInterrupt
        return result

    place = tmp_path / "step-00-1.checkpoint"
    with monkeypatch.context() as patch:
        patch.setattr(trained, "fit", dies)
        with pytest.raises(KeyboardInterrupt):
            applied(tiny_model("residual"), FOLD, method, checkpoint=place)
    assert len(list(tmp_path.iterdir())) == fails
    assert dumps(applied(tiny_model("residual"), FOLD, method, checkpoint=place)[0]) == straight


def test_a_failure_leaves_the_network_as_it_was(monkeypatch):
    def fails(*args, **more):
        fit(*args, **more)
        raise KeyboardInterrupt

    monkeypatch.setattr(trained, "fit", fails)
    net = Artifact.of(tiny_model("residual"), TASK.spec)
    before = dumps(net)
    with pytest.raises(KeyboardInterrupt):
        apply_checked_(SHORT, net, Context.of(TASK, tiny_model("residual")))
    assert dumps(net) == before


@pytest.mark.parametrize("first", [WeightClustering(n_clusters=4), Quantization()])
def test_what_bit_widths_would_undo_is_refused(first):
    with pytest.raises(RecipeError, match=r"self_compression: .*(shared values|activations)"):
        applied(tiny_model("conv"), first, SHORT)


@pytest.mark.parametrize(
    ("settings", "found"),
    [
        ({"gamma": -1.0}, "gamma"),
        ({"size": "float"}, "size"),
        ({"per": "layer"}, "per"),
        ({"per": 0}, "per"),
        ({"start_bits": 0.5}, "start_bits"),
        ({"bit_rate": -1.0}, "bit_rate"),
        ({"steps": 1}, "steps"),
        ({"rounds": 0}, "rounds"),
        ({"settle": 1.0}, "settle"),
        ({"step_rate": 0.0}, "step_rate"),
        ({"max_bytes": 0}, "max_bytes"),
        ({"max_bytes": 900, "settle": 0.0}, "settle"),
        ({"learning_rate": 0.0}, "learning_rate"),
        ({"safety": -1}, "safety"),
        ({"safety_rule": "worst"}, "safety_rule"),
        ({"tolerance": 2.0}, "tolerance"),
        ({"restore": 2.0}, "restore"),
    ],
)
def test_settings_are_checked(settings, found):
    with pytest.raises(RecipeError, match=f"self_compression {found}"):
        SelfCompression(**settings)


SAFE = replace(SHORT, safety=24, safety_methods=("margin", "diversity"), steps=48, rounds=6, settle=0.0)


def widths_of(net, bits=4.0):
    return {
        n: Widths.of(net.encoding(n), axis=0, bits=bits, owner=torch.arange(len(p)))
        for n, p in net.module.named_parameters()
        if p.dim() > 1
    }


def safety_of(model, data=None, rule="best", share=0.2, tolerance=0.02):
    return Safety(TASK, data or TASK.data("train"), model, rule=rule, tolerance=tolerance, share=share)


def test_accuracy_and_the_worst_recall_are_those_counted_by_hand():
    net = Artifact.of(tiny_model("conv"), TASK.spec)
    data: Any = TASK.data("train")
    check = safety_of(tiny_model("conv")).look(net)
    with torch.no_grad():
        right = net.module(data.inputs).argmax(1) == data.targets
    recalls = {int(c): float(right[data.targets == c].double().mean()) for c in data.targets.unique()}
    assert check.accuracy == pytest.approx(float(right.double().mean()))
    assert check.worst == pytest.approx(min(recalls.values()))
    assert check.worst_class is not None
    assert recalls[check.worst_class] == check.worst


def test_the_best_so_far_counts_and_not_the_check_before():
    """A slow decay, each step smaller than the tolerance, is seen."""
    safety = safety_of(tiny_model("conv"), tolerance=0.05)
    checks = [Check(accuracy=a, worst=a, worst_class=None) for a in (0.9, 0.87, 0.84)]
    assert [bool(safety.broken(c)) for c in checks] == [False, False, True]
    before = safety_of(tiny_model("conv"), rule="previous", tolerance=0.05)
    assert [bool(before.broken(c)) for c in checks] == [False, False, False]


def test_a_lost_class_counts_where_the_accuracy_does_not_show_it():
    safety = safety_of(tiny_model("conv"), tolerance=0.05)
    assert not safety.broken(Check(accuracy=0.9, worst=0.8, worst_class=1))
    assert "class 1" in safety.broken(Check(accuracy=0.89, worst=0.2, worst_class=1))


def trained_net():
    net, _ = applied(tiny_model("conv"), FineTune(epochs=30, batch_size=16, learning_rate=3e-2))
    return net


def test_the_channel_that_is_missed_most_comes_back():
    """Against trying each channel by itself."""
    net = trained_net()
    whole = widths_of(net, bits=6.0)
    damaged = {n: replace(w, bits=w.bits.clone()) for n, w in whole.items()}
    damaged["0.weight"].bits[:3] = 1.0
    LearnedBits(net, widths=damaged)
    safety = safety_of(net.copy().module, share=0.01)
    mended, back = safety.repaired(net, damaged, whole, torch.Generator().manual_seed(0))
    assert sum(len(v) for v in back.values()) == 1
    assert set(back) == {"0.weight"}

    def loss(widths):
        trial = net.copy()
        LearnedBits(trial, widths=widths)
        data: Any = TASK.data("train")
        with torch.no_grad():
            return float(nn.functional.cross_entropy(trial.module(data.inputs), data.targets))

    alone = []
    for k in range(3):
        one = replace(damaged["0.weight"], bits=damaged["0.weight"].bits.clone())
        one.bits[k] = 6.0
        alone.append(loss({**damaged, "0.weight": one}))
    assert loss(mended) <= sorted(alone)[1] < loss(damaged) + 1e-9


def test_the_rule_of_the_reference_revives_dead_channels_with_two_bits():
    net = trained_net()
    widths = widths_of(net)
    widths["0.weight"].bits[[1, 3]] = 0.0
    safety = safety_of(net.module, rule="previous", share=0.5)
    mended, back = safety.repaired(net, widths, widths, torch.Generator().manual_seed(0))
    assert set(back) == {"0.weight"}
    assert len(back["0.weight"]) == 1
    assert back["0.weight"][0] in (1, 3)
    assert float(mended["0.weight"].bits[back["0.weight"][0]]) == 2.0


def test_what_the_optimizer_knew_of_channels_that_return_is_gone():
    widths = widths_of(trained_net())
    memory = {
        "0.weight": {"step": torch.tensor(3.0), "exp_avg": torch.ones(widths["0.weight"].raw.shape)},
        "0.weight:bits": {"exp_avg": torch.ones(4)},
    }
    left = forgotten(memory, widths, {"0.weight": [2]})
    assert left["0.weight:bits"]["exp_avg"].tolist() == [1, 1, 0, 1]
    assert left["0.weight"]["exp_avg"].flatten(1).sum(1).tolist() == [9, 9, 0, 9]
    assert left["0.weight"]["step"] == 3


@pytest.mark.parametrize("rule", ["best", "previous"])
def test_under_a_ruinous_price_the_safety_set_brings_channels_back(rule):
    model = trained_net().module
    method = replace(SAFE, gamma=10.0, safety_rule=rule)
    free, _ = applied(model, replace(method, safety=0))
    held, result = applied(model, method)
    assert result.statistics["events"]
    assert sum(result.statistics["events"][0]["returned"].values()) > 0
    assert held.parameter("0.weight").shape[0] > free.parameter("0.weight").shape[0]
    assert [row["safety_accuracy"] for row in result.statistics["rounds"]]


def test_a_guarded_run_resumes_to_the_same_bytes(tmp_path, monkeypatch):
    method = replace(SAFE, gamma=10.0)
    model = trained_net().module
    straight = dumps(applied(model, method)[0])
    calls = []

    def dies(*args, **more):
        calls.append(1)
        result = fit(*args, **more)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return result

    with monkeypatch.context() as patch:
        patch.setattr(trained, "fit", dies)
        with pytest.raises(KeyboardInterrupt):
            applied(model, method, checkpoint=tmp_path / "c")
    assert dumps(applied(model, method, checkpoint=tmp_path / "c")[0]) == straight


def test_the_file_decodes_to_the_network_that_was_trained(tmp_path):
    model, task, net = self_compressed("residual")
    x = task.data("train").batch(torch.arange(16))[0]
    net.module.eval()
    with torch.no_grad():
        expected = net.module(x)
    stored.save(net, tmp_path / "net.lil")
    loaded: Any = ll.load(tmp_path / "net.lil")
    again = ll.load(tmp_path / "net.lil", into=model)
    with torch.no_grad():
        assert torch.equal(loaded(x), expected)
        assert torch.equal(again(x), expected)
    for name, parameter in net.module.named_parameters():
        assert torch.equal(again.get_parameter(name), parameter), name
        assert torch.equal(net.encoding(name).decode(), parameter.detach()), name


@pytest.mark.parametrize(
    ("settings", "dies_at"),
    [({}, 13), ({"max_bytes": 500}, 28), ({"max_bytes": 500}, 35), ({"max_drop": 20.0}, 35), ({"ramp": 0.8}, 13)],
)
def test_a_run_that_dies_in_the_middle_of_a_round_resumes_to_the_same_bytes(tmp_path, settings, dies_at):
    """In the third round (step 13), in the last one (28), and while integers are tuned (35)."""
    method = replace(SHORT, gamma=2.0, steps=48, rounds=6, **settings)
    model = tiny_model("residual")
    straight = dumps(applied(model, FOLD, method)[0])
    seen = []

    def dying_loss(outputs, targets):
        seen.append(1)
        if len(seen) == dies_at:
            raise KeyboardInterrupt
        return TASK.loss(outputs, targets)

    net = Artifact.of(model, TASK.spec)
    context = replace(Context.of(replace(TASK, loss=dying_loss), model), checkpoint=tmp_path / "c")
    apply_checked_(FOLD, net, context)
    with pytest.raises(KeyboardInterrupt):
        apply_checked_(method, net, context)
    assert len(seen) == dies_at
    assert any(tmp_path.iterdir())
    assert dumps(applied(model, FOLD, method, checkpoint=tmp_path / "c")[0]) == straight
