"""Safety sets: equal shares, labels that stay with their samples, the same set for the same seed, no other data."""

import json
import sys
from collections import Counter
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.cluster import KMeans
from torch import nn

import lilliput as ll
from lilliput.core.errors import DataError, MissingExtraError, UnsupportedError, UsageError
from lilliput.data.rankings import RANKINGS, Ranking, View
from lilliput.data.safety import SafetySet, safety_set, shares
from lilliput.graph.inside import embedding, structure
from lilliput.graph.stored import save
from lilliput.pipeline.recipe import from_data
from lilliput.pipeline.run import run
from task_kinds import KINDS, model_and_task

CLASSES, SIDE = 4, 8


def images(count, seed, sizes=None):
    """The first pixel says the class; the order is shuffled, and classes may be of other sizes."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(count) % CLASSES
    if sizes is not None:
        y = torch.arange(CLASSES).repeat_interleave(torch.tensor(sizes))
    y = y[torch.randperm(len(y), generator=generator)]
    x = torch.rand((len(y), 1, SIDE, SIDE), generator=generator)
    x[:, 0, 0, 0] = y / CLASSES
    return x, y


def network(seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(1, 6, 3), nn.ReLU(), nn.Conv2d(6, 5, 3), nn.ReLU(), nn.Dropout(0.5), nn.Flatten(),
            nn.Linear(5 * 16, CLASSES),
        )  # fmt: skip


def task(**more):
    roles: dict[str, Any] = {"train": images(300, 1), "validation": images(90, 2), "test": images(50, 3), **more}
    return ll.Task.classification(**roles)


def view_of(given, model, seed=0):
    return View.of(given, model, ("train",), seed, 64, ll.Progress())


def ranking_of(name, view, wanted=0):
    found = RANKINGS[name](view, wanted)
    assert isinstance(found, Ranking), found
    return found


def chosen_by(found, method):
    return [n for (_, n), reason in zip(found.where, found.reasons, strict=True) if reason.method == method]


# --- shares ----------------------------------------------------------------------------------------------------------


@given(st.integers(0, 60), st.lists(st.integers(0, 20), min_size=1, max_size=6))
def test_shares_are_equal_as_far_as_there_is_room(total, room):
    given_ = shares(total, room)
    assert sum(given_) == min(total, sum(room))
    assert all(0 <= part <= most for part, most in zip(given_, room, strict=True))
    open_ = [part for part, most in zip(given_, room, strict=True) if part < most]
    assert not open_ or max(given_) - min(open_) <= 1


@pytest.mark.parametrize("size", [1, 7, 50, 61])
def test_methods_and_classes_have_equal_shares_to_one_sample(size):
    found = safety_set(task(), network(), size=size)
    assert len(found) == len(set(found.where)) == size
    by_method = Counter(r.method for r in found.reasons)
    by_class = Counter(r.label for r in found.reasons)
    for every in (
        [by_method[name] for name in ("grad_cam", "margin", "diversity")],
        [by_class[name] for name in range(CLASSES)],
    ):
        assert sum(every) == size
        assert max(every) - min(every) <= 1
    cells = [n for own in found.counts().values() for n in own.values()]
    assert max(cells) - min(cells) <= 1


def test_a_rare_class_gives_all_it_has_and_the_others_fill_up():
    rare = task(train=images(0, 1, sizes=[100, 2, 80, 5]))
    found = safety_set(rare, network(), size=60)
    assert Counter(r.label for r in found.reasons) == {0: 27, 1: 2, 2: 26, 3: 5}
    assert max(Counter(r.method for r in found.reasons).values()) == 20


def test_more_than_there_are_is_all_there_are():
    found = safety_set(task(), network(), size=10_000, source="train+validation")
    assert found.where == tuple([("train", n) for n in range(300)] + [("validation", n) for n in range(90)])
    assert found.seen == 390


def test_what_one_method_has_taken_another_replaces_by_its_next_of_that_class():
    given_, model = task(), network()
    found = safety_set(given_, model, size=80, methods=("margin", "loss"))
    view = view_of(given_, model)
    labels = given_.train.targets
    taken = set[int]()
    shared = 0
    for name in ("margin", "loss"):
        order = ranking_of(name, view).order.tolist()
        for label in range(CLASSES):
            wanted = [n for n in order if labels[n] == label]
            shared += len(taken.intersection(wanted[:10]))
            wanted = [n for n in wanted if n not in taken][:10]
            assert sorted(wanted) == [n for n in chosen_by(found, name) if labels[n] == label]
            taken |= set(wanted)
    assert shared > 0  # or nothing was replaced


# --- labels ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("source", ["train", "validation", "train+validation"])
def test_every_label_is_that_of_its_own_sample(source):
    """Labels that are collected by batch and images by method would not fit: the pixel gives each label away."""
    given_ = task()
    found = safety_set(given_, network(), size=80, source=source, batch_size=16)
    x, y = found.data(given_).batch(torch.arange(80))
    assert torch.equal((x[:, 0, 0, 0] * CLASSES).round().long(), y)
    assert [r.label for r in found.reasons] == y.tolist()
    for i, (role, n) in enumerate(found.where):
        assert torch.equal(x[i], given_.data(role).inputs[n])


def test_validation_that_is_split_off_train_is_numbered_as_the_task_numbers_it():
    given_ = ll.Task.classification(train=images(300, 1), test=images(50, 3))
    found = safety_set(given_, network(), size=20, source="validation")
    x, y = found.data(given_).batch(torch.arange(20))
    wanted_x, wanted_y = given_.data("validation").batch(found.numbers("validation"))
    assert torch.equal(x, wanted_x)
    assert torch.equal(y, wanted_y)


# --- methods ---------------------------------------------------------------------------------------------------------


def test_margin_is_the_gap_of_the_two_largest_probabilities():
    given_, model = task(), network().eval()
    found = safety_set(given_, model, size=40, methods=["margin"])
    x, y = given_.train.inputs, given_.train.targets
    with torch.no_grad():
        rows = [sorted(row) for row in model(x).double().softmax(1).tolist()]
    gaps = [row[-1] - row[-2] for row in rows]
    order = sorted(range(300), key=gaps.__getitem__)
    wanted = [i for c in range(CLASSES) for i in [i for i in order if y[i] == c][:10]]
    assert chosen_by(found, "margin") == sorted(wanted)
    assert [r.value for r in found.reasons] == pytest.approx([gaps[i] for i in sorted(wanted)], abs=1e-6)


@pytest.mark.parametrize("training", [False, True])
def test_grad_cam_is_what_captum_gives_by_hand_for_the_last_convolution(training):
    captum = pytest.importorskip("captum.attr", reason="captum is not installed")
    given_, model = task(), network().train(training)
    found = safety_set(given_, model, size=24, methods=["grad_cam"], batch_size=37)
    assert all(m.training == training for m in model.modules())
    assert not any(m._forward_hooks for m in model.modules())
    model.eval()
    x, y = given_.train.inputs, given_.train.targets
    answers = model(x).argmax(1)
    maps = captum.LayerGradCam(model, model[2]).attribute(x.clone(), target=answers, relu_attributions=True)
    low, high = (f(maps.detach().flatten(1), dim=1).values for f in (torch.min, torch.max))
    spread = (high - low).where(high > low, torch.ones(()))
    sums = ((maps.detach().flatten(1) - low[:, None]) / spread[:, None]).sum(1)
    order = sorted(range(300), key=lambda i: -sums[i])
    wanted = [i for c in range(CLASSES) for i in [i for i in order if y[i] == c][:6]]
    assert found.where == tuple(("train", i) for i in sorted(wanted))
    assert [r.value for r in found.reasons] == pytest.approx([float(sums[i]) for i in sorted(wanted)], rel=1e-4)
    assert max(r.value for r in found.reasons) <= 16
    assert min(r.value for r in found.reasons) > 1


def features(model, x):
    """What the classifier reads, as means over places."""
    with torch.no_grad():
        return model[:4].eval()(x).mean((2, 3)).double()


def k_means(model, x, clusters, seed):
    """By hand: the cluster of each sample, and how far it is from its centre."""
    points: Any = features(model, x)
    settings: Any = {"n_init": 1, "random_state": seed}
    centres = torch.from_numpy(KMeans(clusters, **settings).fit(points.numpy()).cluster_centers_)
    near = torch.cdist(points, centres).min(1)
    return near.indices, near.values


def test_without_classes_each_centre_of_k_means_gives_its_nearest_sample():
    given_, model = task(), network()
    x = given_.train.inputs
    plain = ll.Task.regression(train=(x, torch.zeros(300, CLASSES)), validation=(x, torch.zeros(300, CLASSES)))
    found = safety_set(plain, model, size=12, methods=["diversity"], seed=3)
    own, distances = k_means(model, x, 12, 3)
    nearest = sorted(int(torch.where(own == k, distances, torch.inf).argmin()) for k in range(12))
    assert chosen_by(found, "diversity") == nearest
    assert [r.value for r in found.reasons] == pytest.approx(distances[nearest].tolist())


def test_with_classes_clusters_give_the_nearest_of_the_class_those_with_most_of_it_first():
    given_, model = task(), network()
    x, y = given_.train.inputs, given_.train.targets
    order = ranking_of("diversity", view_of(given_, model), 6).order.tolist()
    own, distances = k_means(model, x, 6, 0)
    assert sorted(order) == list(range(300))
    for label in range(CLASSES):
        members = {k: [n for n in range(300) if y[n] == label and own[n] == k] for k in range(6)}
        filled = [m for m in members.values() if m]
        assert len(filled) > 1
        nearest = [min(m, key=lambda n: float(distances[n])) for m in sorted(filled, key=len, reverse=True)]
        mine = [n for n in order if y[n] == label][: len(filled)]
        assert set(mine) == set(nearest)
        sizes = [len(members[int(own[n])]) for n in mine]
        assert sizes == sorted(sizes, reverse=True)


def test_equal_embeddings_make_fewer_clusters_and_the_set_is_still_whole():
    x = torch.zeros(40, 1, SIDE, SIDE)
    given_ = ll.Task.classification(train=(x, torch.arange(40) % CLASSES), validation=images(8, 2))
    found = safety_set(given_, network(), size=20, methods=["diversity"])
    assert len(found) == 20
    assert {r.value for r in found.reasons} == {0.0}


def test_loss_is_that_of_each_sample_alone():
    given_, model = task(), network().eval()
    found = safety_set(given_, model, size=8, methods=["loss"], source="validation")
    x, y = given_.validation.inputs, given_.validation.targets
    with torch.no_grad():
        losses = torch.nn.functional.cross_entropy(model(x), y, reduction="none")
    wanted = sorted(int(i) for c in range(CLASSES) for i in torch.where(y == c, losses, -1.0).topk(2).indices)
    assert chosen_by(found, "loss") == wanted
    assert [r.value for r in found.reasons] == pytest.approx(losses[wanted].tolist(), rel=1e-5)


def test_a_loss_that_is_not_finite_names_the_sample():
    given_ = task(loss=lambda outputs, targets: (targets - targets).float().mean() / 0.0)
    with pytest.raises(DataError, match=r"loss of the task: NaN or infinity on sample 0"):
        safety_set(given_, network(), size=4, methods=["loss"])


@pytest.mark.parametrize("methods", [["random"], ["diversity"], None])
def test_the_same_seed_gives_the_same_set(methods):
    one, again, other = (safety_set(task(), network(), size=30, methods=methods, seed=s) for s in (5, 5, 6))
    assert one == again
    assert one.where != other.where


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_task_has_a_set_of_its_default_methods(kind):
    model, given_ = model_and_task(kind)
    found = safety_set(given_, model, size=12, source="train+validation")
    classes = kind == "classification"
    assert len(found) == 12
    assert set(found.counts()) == ({"grad_cam", "margin", "diversity"} if classes else {"loss", "diversity"})
    assert all((r.label is not None) == classes for r in found.reasons)
    x, y = found.data(given_).batch(torch.arange(12))
    for i, (role, n) in enumerate(found.where):
        wanted = given_.data(role).batch(torch.tensor([n]))
        assert torch.equal(x[i], wanted[0][0])
        assert torch.equal(y[i], wanted[1][0])
    largest = max(r.value for r in found.reasons if r.method in ("loss", "grad_cam"))
    assert largest > 0


def first(targets: Any):
    return targets[0]


def test_labelled_anomalies_are_left_out():
    model, given_ = model_and_task("anomaly")
    found = safety_set(given_, model, size=1000, source="validation")
    normal = torch.nonzero(given_.validation.targets == 0).reshape(-1)
    assert 0 < len(normal) < len(given_.validation)
    assert torch.equal(found.numbers("validation"), normal)
    assert found.seen == len(normal)
    x = given_.validation.inputs
    with pytest.raises(DataError, match="anomalies only"):
        safety_set(ll.Task.anomaly(train=(x, torch.ones(len(x)))), model, size=5)


def test_targets_of_several_tensors_stay_together():
    x, y = images(40, 1)
    pairs: Any = [(x[i], (y[i], torch.tensor([float(i)]))) for i in range(40)]
    kind = ll.Task.classification(train=(x, y), validation=(x, y))
    given_ = ll.Task(
        train=pairs,
        validation=pairs,
        loss=lambda o, t: kind.loss(o, t[0]),
        score=ll.Score(name="right", statistics=lambda o, t: (o.argmax(1) == first(t)).double()[:, None]),
        ok=lambda o, t, _before: o.argmax(1) == t[0],
    )
    found = safety_set(given_, network(), size=10)
    assert set(found.counts()) == {"loss", "diversity"}
    chosen_x, chosen_y = found.data(given_).batch(torch.arange(10))
    numbers = found.numbers("train")
    assert torch.equal(chosen_x, x[numbers])
    assert torch.equal(chosen_y[0], y[numbers])
    assert chosen_y[1].reshape(-1).tolist() == numbers.tolist()


# --- networks --------------------------------------------------------------------------------------------------------


def test_a_network_from_a_file_has_the_set_of_the_network_itself(tmp_path):
    given_, model = task(), network()
    save(ll.Artifact.of(model, given_.spec), tmp_path / "net.lil")
    wanted = safety_set(given_, model, size=30)
    found = safety_set(given_, ll.load(tmp_path / "net.lil"), size=30)
    assert found.where == wanted.where
    assert [r.value for r in found.reasons] == pytest.approx([r.value for r in wanted.reasons], rel=1e-4)


def test_a_network_of_integers_answers_in_integers(tmp_path):
    given_ = task()
    recipe = from_data({"guard": "none", "passes": [{"quantization": {"weight_bits": 4}}]})
    save(run(network(), given_, recipe).artifact, tmp_path / "net.lil")
    net = ll.load(tmp_path / "net.lil")
    found = safety_set(given_, net, size=30)
    assert set(found.counts()) == {"grad_cam", "margin", "diversity"}
    x, _ = found.data(given_).batch(torch.arange(30))
    with torch.no_grad():
        top = net(x).double().softmax(1).topk(2, dim=1).values
    for i, reason in enumerate(found.reasons):
        assert reason.method != "margin" or reason.value == pytest.approx(float(top[i, 0] - top[i, 1]), abs=1e-9)


def test_a_network_without_convolution_leaves_the_share_of_grad_cam_to_the_others():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        dense = nn.Sequential(nn.Flatten(), nn.Linear(SIDE * SIDE, 8), nn.ReLU(), nn.Linear(8, CLASSES))
    found = safety_set(task(), dense, size=40)
    assert {name: sum(own.values()) for name, own in found.counts().items()} == {"margin": 20, "diversity": 20}
    (note,) = found.notes
    assert note == "grad_cam: the network has no convolution with more than one place; its share went to the others"
    with pytest.raises(UnsupportedError, match="name other methods"):
        safety_set(task(), dense, size=40, methods=["grad_cam"])


class Branch(nn.Module):
    """Cannot be traced: which way it goes depends on the data."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(SIDE * SIDE, CLASSES)

    def forward(self, x):
        y = self.layer(x.flatten(1))
        return y if float(y.detach().sum()) > 0 else 2 * y


def test_a_network_that_cannot_be_traced_is_ranked_by_its_outputs():
    found = safety_set(task(), Branch(), size=20)
    assert set(found.counts()) == {"margin"}
    assert len(found.notes) == 2


def test_a_linear_network_is_seen_through_its_whole_input():
    model = nn.Sequential(nn.Flatten(), nn.Linear(SIDE * SIDE, CLASSES))
    given_ = task()
    graph, _ = structure(model, given_.spec)
    name, _axis = embedding(graph) or ("", 0)
    assert graph[name].shape[1:] == (SIDE * SIDE,)


# --- refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("source", ["test", "calibration", "train+test", ""])
def test_what_is_tested_is_never_chosen_from(source):
    with pytest.raises(UsageError, match="must not be trained on"):
        safety_set(task(), network(), size=5, source=source)


@pytest.mark.parametrize(
    ("more", "text"),
    [
        ({"size": 0}, "a size of 0"),
        ({"methods": []}, "name at least one"),
        ({"methods": ["margin", "margin"]}, "each once"),
        ({"methods": ["margins"]}, "the method 'margins'; use grad_cam, margin, loss, diversity, random"),
        ({"seed": -1}, "the seed -1"),
        ({"seed": 2**32}, "the seed 4294967296"),
    ],
)
def test_wrong_arguments_are_named(more, text):
    with pytest.raises(UsageError, match=text):
        safety_set(task(), network(), **{"size": 5} | more)


@pytest.mark.parametrize("method", ["margin", "grad_cam"])
def test_methods_for_classes_are_refused_where_there_are_none(method):
    model, given_ = model_and_task("regression")
    with pytest.raises(UsageError, match="the task has no classes; use loss, diversity, random"):
        safety_set(given_, model, size=5, methods=[method])


def test_grad_cam_without_captum_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "captum", None)
    monkeypatch.setitem(sys.modules, "captum.attr", None)
    with pytest.raises(MissingExtraError, match=r"captum is not installed; pip install 'lilliput\[safety\]'"):
        safety_set(task(), network(), size=5)
    assert len(safety_set(task(), network(), size=5, methods=["margin", "diversity"])) == 5


def change_a_chosen_image(found):
    x, y = images(300, 1)
    x[found.numbers("train")[3], 0, 4, 4] += 0.25
    return x, y


def change_a_chosen_label(found):
    x, y = images(300, 1)
    n = int(found.numbers("train")[5])
    y[n] = (y[n] + 1) % CLASSES
    return x, y


def shuffle(_found):
    x, y = images(300, 1)
    order = torch.randperm(300, generator=torch.Generator().manual_seed(9))
    return x[order], y[order]


def fewer(_found):
    x, y = images(300, 1)
    return x[:200], y[:200]


@pytest.mark.parametrize("change", [change_a_chosen_image, change_a_chosen_label, shuffle, fewer])
def test_other_data_are_refused(change):
    found = safety_set(task(), network(), size=70)
    with pytest.raises(DataError, match="chosen from other data than train of this task; choose it again"):
        found.data(task(train=change(found)))
    assert len(found.data(task())) == 70


# --- as data ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["classification", "regression"])
def test_json_brings_the_set_back(kind):
    model, given_ = model_and_task(kind)
    found = safety_set(given_, model, size=9, source="train+validation", seed=4)
    assert SafetySet.from_data(json.loads(json.dumps(found.to_data()))) == found


def drop(name):
    return lambda data: data.pop(name)


def sample(**fields):
    return lambda data: data["samples"][0].update(fields)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (drop("samples"), "no field 'samples'"),
        (drop("lilliput_safety_set"), "no field 'lilliput_safety_set'"),
        (lambda data: data.update(lilliput_safety_set=2), "version 2, this one reads 1"),
        (lambda data: data.update(samples=[]), "samples that are not in order, each once"),
        (lambda data: data["samples"].append(data["samples"][0]), "samples that are not in order, each once"),
        (lambda data: data.update(samples=3), "3 where a list should be"),
        (lambda data: data.update(fingerprints={}), "fingerprints of other roles"),
        (sample(role="test"), "'test' where train or validation should be"),
        (sample(role=["train"]), "where train or validation should be"),
        (sample(number=-1), "-1 where a whole number"),
        (sample(method="margins"), "'margins' where a method should be"),
        (sample(method=["margin"]), "where a name should be"),
        (sample(value=float("nan")), "nan where a finite number should be"),
        (sample(value="0"), "'0' where a finite number should be"),
        (sample(**{"class": "one"}), "'one' where a whole number"),
    ],
)
def test_data_that_are_no_set_are_refused(change, text):
    data = safety_set(task(), network(), size=6, methods=["margin"]).to_data()
    change(data)
    with pytest.raises(DataError, match=text):
        SafetySet.from_data(data)
    for other in (None, [], "x"):
        with pytest.raises(DataError, match="where a map should be"):
            SafetySet.from_data(other)


def test_margin_of_equal_values_takes_the_earlier_sample():
    x = torch.zeros(10, 1, SIDE, SIDE)
    view = view_of(ll.Task.classification(train=(x, torch.arange(10) % CLASSES), validation=images(8, 2)), network())
    assert ranking_of("margin", view).order.tolist() == list(range(10))
