"""Gradual pruning: the schedule of the paper, masks that only grow, and an optimizer that forgets just what is gone."""

from functools import partial

import pytest
import torch

from lilliput.core.artifact import Artifact
from lilliput.core.container import dumps
from lilliput.core.errors import RecipeError
from lilliput.core.guard import evaluate
from lilliput.core.method import Context, apply_checked_
from lilliput.methods.clustering.weight_clustering import WeightClustering
from lilliput.methods.pruning.gradual import GradualPruning
from lilliput.methods.pruning.magnitude import MagnitudePruning, masks_across
from lilliput.methods.quantization.post_training import Quantization
from lilliput.testing import check_artifact, tiny_model, tiny_task
from lilliput.training.fit import fit
from lilliput.training.growing_masks import GrowingMasks, Ramp
from lilliput.training.hooks import Hook
from lilliput.training.settings import FitSettings
from lilliput.zoo.registry import open_model
from stopped import KilledError, Stop

TASK = tiny_task(48)
PRUNE = GradualPruning(sparsity=0.75, epochs=4, batch_size=16, learning_rate=1e-2, every=1, end=0.6)


def applied(model, *methods, task=TASK, seed=0):
    net = Artifact.of(model, task.spec)
    context = Context.of(task, model, seed=seed)
    results = [apply_checked_(m, net, context) for m in methods]
    return net, results[-1]


def zeros(net):
    masks = [e.mask for n, e in net.encodings.items() if n.endswith("weight")]
    return sum(int((~m).sum()) for m in masks) / sum(m.numel() for m in masks)


def test_the_ramp_is_the_cubic_of_the_paper():
    ramp = Ramp(start=0.2, end=0.8, every=3)
    for step in range(100):
        found = ramp.progress(step, 100)
        if step in range(20, 80, 3):  # s_f + (s_i - s_f) (1 - (t - t0) / (n dt))^3 with s_i = 0 and s_f = 1
            assert found == pytest.approx(1 + (0 - 1) * (1 - (step - 20) / 60) ** 3)
        else:
            assert found == (1.0 if step == 80 else None)


@pytest.mark.parametrize("ramp", [Ramp(start=0.0, end=0.0, every=5), Ramp(start=0.9, end=1.0, every=100)])
@pytest.mark.parametrize("steps", [1, 2, 7])
def test_every_ramp_ends_once(ramp, steps):
    assert [ramp.progress(step, steps) for step in range(steps)].count(1.0) == 1


def lamp_by_hand(weights, sparsity):
    """Scores by the double sum of equation 1 of Lee et al., all entries sorted: {name: which are kept}."""
    rows = []
    for name, w in weights.items():
        values = w.reshape(-1).tolist()
        for i, value in enumerate(values):
            below = sum(v * v for v in values if v * v >= value * value)
            rows.append((value * value / below, name, i))
    rows.sort(key=lambda row: row[0])
    gone = {(name, i) for _, name, i in rows[: round(sparsity * len(rows))]}
    return {name: [(name, i) not in gone for i in range(w.numel())] for name, w in weights.items()}


@pytest.mark.parametrize("sparsity", [0.3, 0.8, 0.95])
def test_lamp_takes_from_each_layer_what_its_scores_say(sparsity):
    generator = torch.Generator().manual_seed(1)
    weights = {
        n: k * torch.rand(s, generator=generator).double() for n, k, s in (("a", 1.0, (5, 6)), ("b", 9.0, (40,)))
    }
    masks = masks_across(weights, sparsity, "lamp")
    wanted = lamp_by_hand(weights, sparsity)
    assert {name: mask.reshape(-1).tolist() for name, mask in masks.items()} == wanted


@pytest.mark.parametrize("scope", ["global", "lamp", "uniform"])
def test_exactly_the_share_is_zero_at_the_end(scope):
    net, result = applied(tiny_model("residual"), GradualPruning(sparsity=0.7, scope=scope, epochs=2, batch_size=16))
    masks = {n: e.mask for n, e in net.encodings.items() if e.mask is not None}
    assert len(masks) == 3
    total = sum(m.numel() for m in masks.values())
    if scope == "uniform":
        assert all(int((~m).sum()) == round(0.7 * m.numel()) for m in masks.values())
    else:
        assert sum(int((~m).sum()) for m in masks.values()) == round(0.7 * total)
    assert "% zero, trained for 2 epochs" in result.changed["second"]
    check_artifact(net, tiny_model("residual"))


class Watch(Hook):
    """The mask of the first layer after each epoch, and the moments where it drops."""

    def __init__(self):
        self.zeros, self.moments = [], []

    def on_epoch(self, moment):
        gone = moment.module.get_parameter("1.weight") == 0
        self.zeros.append(gone.clone())
        state = [s for p, s in moment.optimizer.state.items() if p.shape == gone.shape]
        self.moments.append((state[0]["exp_avg"][gone], state[0]["exp_avg"][~gone]))


def growing(net, dither=None, **ramp):
    choose = partial(PRUNE.choose, {"1.weight": 0.0, "3.weight": 0.0})
    return GrowingMasks(net, names=["1.weight", "3.weight"], ramp=Ramp(**ramp), choose=choose, text="", dither=dither)


def test_masks_only_grow_and_the_optimizer_forgets_what_is_gone_and_no_more():
    net, watch = Artifact.of(tiny_model("linear"), TASK.spec), Watch()
    settings = FitSettings(epochs=5, batch_size=16, learning_rate=1e-2)
    attach = partial(growing, start=0.0, end=0.8, every=1)
    fit(net, TASK, settings, generator=torch.Generator().manual_seed(0), attach=attach, hooks=[watch])
    counts = [int(z.sum()) for z in watch.zeros]
    assert counts == sorted(counts)
    assert 0 < counts[0] < counts[-1]
    assert all(bool((b | ~a).all()) for a, b in zip(watch.zeros, watch.zeros[1:], strict=False))
    for dropped, kept in watch.moments:
        assert not dropped.any()
        assert kept.all()


def test_what_is_kept_keeps_its_moments_through_a_cut():
    net = Artifact.of(tiny_model("linear"), TASK.spec)
    attached = growing(net, start=0.0, end=0.5, every=1)
    raw = attached.trainable()["1.weight"]
    optimizer = torch.optim.Adam([raw])
    raw.grad = torch.ones_like(raw)
    optimizer.step()
    before, values = optimizer.state[raw]["exp_avg_sq"].clone(), raw.detach().clone()
    attached.advance_(5, 10, optimizer)
    kept = raw != 0
    assert not kept.all()
    assert torch.equal(optimizer.state[raw]["exp_avg_sq"], torch.where(kept, before, 0.0))
    assert torch.equal(raw.detach(), torch.where(kept, values, 0.0))


@pytest.mark.parametrize(
    "filler",
    [WeightClustering(n_clusters=4), WeightClustering(n_clusters=3, per="channel"), Quantization(activation_bits=0)],
)
def test_clusters_and_grids_stay(filler):
    before, _ = applied(tiny_model("conv"), filler)
    net, _ = applied(tiny_model("conv"), filler, PRUNE)
    assert zeros(net) == pytest.approx(0.75, abs=0.01)
    for name, e in before.encodings.items():
        now = net.encodings[name]
        if e.sharing is not None:
            assert now.sharing is not None
            assert bool((now.sharing.sizes <= e.sharing.sizes).all())
        if e.grid is not None:
            assert e.grid.same(now.grid)
    check_artifact(net, tiny_model("conv"))


def test_zeros_that_are_there_count_and_stay():
    before, _ = applied(tiny_model("conv"), MagnitudePruning(sparsity=0.5))
    net, _ = applied(tiny_model("conv"), MagnitudePruning(sparsity=0.5), PRUNE)
    assert zeros(net) == pytest.approx(0.75, abs=0.01)
    for name, e in before.encodings.items():
        mask = net.encodings[name].mask
        assert e.mask is not None
        assert mask is not None
        assert not bool((mask & ~e.mask).any())


def test_the_best_epoch_has_all_the_zeros():
    """Before they are there, every epoch would score better."""
    harsh = GradualPruning(sparsity=0.97, epochs=4, batch_size=16, learning_rate=1e-4, scope="global", end=1.0)
    net, _ = applied(tiny_model("linear"), harsh)
    assert zeros(net) == pytest.approx(0.97, abs=0.01)


def test_zeros_make_the_file_smaller():
    tuned = GradualPruning(sparsity=0.0, epochs=4, batch_size=16, learning_rate=1e-2)
    assert len(dumps(applied(tiny_model("residual"), PRUNE)[0])) < 0.8 * len(
        dumps(applied(tiny_model("residual"), tuned)[0])
    )


def test_nothing_to_prune_leaves_no_mask():
    net, _ = applied(tiny_model("linear"), GradualPruning(sparsity=0.0, epochs=1, batch_size=16, keep="last"))
    assert not net.encodings


@pytest.mark.parametrize("killed", [2, 4])
def test_a_resumed_training_ends_in_the_same_bytes(tmp_path, killed):
    settings = FitSettings(epochs=5, batch_size=16, learning_rate=1e-2)

    def run(stop, checkpoint):
        net, _ = applied(tiny_model("linear"), WeightClustering(n_clusters=5))
        attach = partial(growing, start=0.0, end=0.7, every=2)
        generator = torch.Generator().manual_seed(0)
        fit(net, TASK, settings, generator=generator, attach=attach, hooks=[Stop(stop)], checkpoint=checkpoint)
        return dumps(net)

    straight = run(0, None)
    with pytest.raises(KilledError):
        run(killed, tmp_path / "fit.checkpoint")
    assert run(0, tmp_path / "fit.checkpoint") == straight


def test_nine_tenths_gone_little_by_little_beats_all_at_once():
    model, task = open_model("digits-cnn")

    def score(method):
        net, _ = applied(model, method, task=task)
        assert zeros(net) == pytest.approx(0.9, abs=0.001)
        data = task.data("validation")
        return task.score.value(evaluate(net.module, task, data, "validation", None, 256, torch.device("cpu")).rows)

    gradual = GradualPruning(sparsity=0.9, epochs=4, batch_size=64, learning_rate=5e-3, every=4)
    assert score(MagnitudePruning(sparsity=0.9)) < 70
    assert score(gradual) > 90


def test_activation_grids_are_refused_with_a_remedy():
    with pytest.raises(RecipeError, match="put gradual_pruning before quantization"):
        applied(tiny_model("conv"), Quantization(), PRUNE)


@pytest.mark.parametrize(
    ("settings", "found"),
    [
        ({"sparsity": 1.0}, "sparsity"),
        ({"scope": "layer"}, "scope"),
        ({"start": 0.8, "end": 0.5}, "end"),
        ({"start": 1.0}, "start"),
        ({"every": 0}, "every"),
        ({"overrides": {"fc": {"sparsity": 0.5}}}, "overrides"),
    ],
)
def test_settings_are_checked(settings, found):
    with pytest.raises(RecipeError, match=found):
        GradualPruning(**settings)
