"""The file of an experiment: its grid, published problems, and what is refused."""

import itertools

import numpy as np
import pytest
import torch

from lilliput.bench.generation.experiment import Experiment, load
from lilliput.bench.generation.published import FORMS, REFUSED, Published
from lilliput.core.encoding import Encoding
from lilliput.core.errors import LilliputError, RecipeError, UsageError
from lilliput.graph import stored
from lilliput.methods.weight_generation.evolution import EvolutionSettings
from lilliput.methods.weight_generation.selection import choose

SETTINGS = ("threshold", "seed", "n_values")


def test_lists_make_every_combination_once_and_seeds_go_first(write):
    problems = {
        "a": {"given": ["first"], "wanted": ["second"], "importance": ["none", "fisher"]},
        "b": {"wanted": ["head"]},
    }
    solver = [{"kind": "evolution", "threshold": [0, 2.5], "rows": 64}, {"kind": "clustered", "n_values": [2, 4, 8]}]
    runs = load(write(problems=problems, solver=solver, bits=[4, 6], runs=3)).grid()
    found = [
        (r.problem, r.importance, r.bits, r.kind, *(getattr(r.solver, key, None) for key in SETTINGS)) for r in runs
    ]
    posed = [("a", "none"), ("a", "fisher"), ("b", "none")]
    solvers = [("evolution", t, s, None) for t, s in itertools.product((0, 2.5), range(3))]
    solvers += [("clustered", None, None, n) for n in (2, 4, 8)]
    assert found == [(*p, b, *s) for p, b, s in itertools.product(posed, (4, 6), solvers)]
    assert [r.index for r in runs] == list(range(len(runs)))
    assert len({r.name for r in runs}) == len({r.title for r in runs}) == len(runs)
    assert runs[0].title == "a, evolution, bits 4, threshold 0, seed 0"
    assert "rows" not in runs[0].title


def test_seeds_may_be_a_list_or_start_anywhere(write):
    solver = {"kind": "evolution", "seed": [4, 9]}
    assert [getattr(r.solver, "seed", None) for r in load(write(solver=solver)).grid()] == [4, 9]
    assert [getattr(r.solver, "seed", None) for r in load(write(solver={**solver, "seed": 7}, runs=2)).grid()] == [7, 8]
    assert len(load(write(solver={"kind": "exact"}, runs=5)).grid()) == 1
    assert [r.kind for r in load(write(solver=["exact", {"kind": "free"}])).grid()] == ["exact", "free"]


def test_one_run_alone_is_an_experiment_of_that_run(write):
    experiment = load(write(bits=[4, 5], solver={"kind": "evolution", "threshold": [0, 5]}, runs=2))
    for run in experiment.grid():
        place = write().with_name("alone.yaml")
        place.write_text(experiment.alone(run).to_yaml())
        (again,) = load(place).grid()
        assert (again.problem, again.sides, again.importance) == (run.problem, run.sides, run.importance)
        assert (again.bits, again.kind, again.solver) == (run.bits, run.kind, run.solver)


def test_an_experiment_is_read_as_it_is_written(write):
    experiment = load(write(gates="mine.csv", runs=2))
    place = write().with_name("again.yaml")
    place.write_text(experiment.to_yaml())
    assert load(place) == experiment
    assert experiment.gates == str(place.parent / "mine.csv")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"modle": "x"}, "experiment: unknown key 'modle'; did you mean 'model'?"),
        ({"model": "digit-cnn"}, "network 'digit-cnn': it is not in the zoo; did you mean 'digits-cnn'?"),
        ({"model": None}, "experiment model: nothing; field required"),
        ({"cgp": 2}, "experiment cgp: version 2; write version 1, or update Lilliput"),
        ({"problems": {}}, "experiment problems: none; give at least one"),
        ({"problems": {"a": {"givn": []}}}, "problem 'a': unknown key 'givn'; did you mean 'given'?"),
        ({"problems": {"a": {"importance": "fischer"}}}, "problem 'a' importance: 'fischer'; use none or fisher"),
        ({"solver": {"threshold": 1}}, "experiment solver: no kind; name one: evolution, exact, clustered, free"),
        ({"solver": {"kind": "exakt"}}, "experiment solver: the kind 'exakt'; did you mean 'exact'?"),
        ({"solver": "exakt"}, "experiment solver: the kind 'exakt'; did you mean 'exact'?"),
        ({"solver": 3}, "experiment solver: 3; write {kind: evolution, threshold: 5}, or exact"),
        ({"solver": []}, "experiment solver: an empty list; give at least one of evolution, exact, clustered, free"),
        ({"solver": {"kind": "exact", "k": 1}}, "solver exact: unknown setting 'k'; it has no settings"),
        (
            {"solver": {"kind": "evolution", "treshold": 1}},
            "solver evolution: unknown setting 'treshold'; did you mean 'threshold'?",
        ),
        (
            {"solver": {"kind": "evolution", "keep": 2}},
            "experiment solver: keep among its settings; write it beside solver",
        ),
        ({"solver": {"kind": "clustered", "n_values": []}}, "solver n_values: an empty list; give at least one value"),
        ({"solver": {"kind": "clustered", "n_values": 0}}, "solver n_values: 0; give a whole number from 1 up"),
        ({"solver": {"kind": "clustered", "n_values": "many"}}, "solver clustered n_values: 'many'; input should be a"),
        ({"solver": {"kind": "free", "most_pj": -1}}, "solver most_pj: -1.0; give a finite number of at least 0"),
        (
            {"solver": {"kind": "evolution", "offspring": 0}},
            "offspring of an evolution: 0; give a whole number from 1 on",
        ),
        (
            {"solver": {"kind": "evolution", "seed": [1, 2]}, "runs": 2},
            "experiment runs: 2, and seeds [1, 2]; give one of them",
        ),
        ({"bits": [8, 1]}, "experiment bits: 1; give 2 to 12"),
        ({"bits": [8, 8]}, "experiment: run 1 is there already"),
        ({"runs": 0}, "experiment runs: 0; give a whole number from 1 up"),
        ({"model": "net.lil"}, "experiment: a .lil without into; name the model that it was made from"),
        ({"into": "digits-cnn"}, "experiment into: 'digits-cnn', and the model is no .lil; leave into out"),
        (
            {"model": "a.lil", "into": "digits-cnn", "weights": "b.pt"},
            "experiment weights: b.pt, and the model is a .lil",
        ),
    ],
)
def test_what_is_wrong_is_said_in_one_line(write, changed, message):
    with pytest.raises(LilliputError) as error:
        load(write(**changed))
    assert str(error.value).startswith(message)


def test_published_problems_choose_the_weights_that_they_name(opened):
    subject, _ = opened()
    first, second = (np.arange(p.numel()).reshape(p.shape) for p in map(subject.net.parameter, PARAMETERS))
    core = np.zeros((3, 3), dtype=bool)
    core[1, 1] = True
    wanted = {
        "single_filter": ({"second": second[2, 1][core]}, {"second": second[2, 1][~core]}),
        "grid_size": ({"second": second[2, 1][core]}, {"second": second[2, 1][~core]}),
        "reversed_single_filter": ({"second": second[2, 1][~core]}, {"second": second[2, 1][core]}),
        "single_channel": ({"second": second[:, 1]}, {"second": np.delete(second, 1, axis=1)}),
        "layer_bypass": ({"first": first}, {"second": second}),
        "le_selector": ({}, {"first": first, "second": second}),
        "all_layers": (
            {"first": first[..., core], "second": second[..., core]},
            {"first": first[..., ~core], "second": second[..., ~core]},
        ),
    }
    for experiment, expected in wanted.items():
        layers = list(dict.fromkeys(key for side in expected for key in side))
        sides = Published(experiment=experiment, layers=layers, core=1, filter=2, channel=1).sides()
        for expressions, positions in zip(sides, expected, strict=True):
            found = {p.name.removesuffix(".weight"): p.positions for p in choose(subject.net, expressions).places}
            assert {k: sorted(v.reshape(-1).tolist()) for k, v in positions.items()} == {
                k: v.tolist() for k, v in found.items()
            }, experiment
    assert choose(subject.net, Published(experiment="le_selector", layers=["first"]).sides()[0]).constants == (0,)
    assert Published(experiment="mobilenet", layers=["first"]).sides() == (["first"], "given")
    assert set(FORMS) == {*wanted, "mobilenet"}


PARAMETERS = ("first.weight", "second.weight")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"experiment": "layer_bypas"}, "experiment 'layer_bypas': there is no such one; did you mean 'layer_bypass'?"),
        (
            {"experiment": "layer_bypass", "layers": ["a"]},
            "experiment 'layer_bypass' layers: a; name 2 or more of the network",
        ),
        ({"experiment": "mobilenet"}, "experiment 'mobilenet' layers: none; name one of the network"),
        (
            {"experiment": "single_filter", "layers": ["a", "b"]},
            "experiment 'single_filter' layers: a, b; name one of the network",
        ),
        ({"experiment": "single_channel", "layers": ["a"], "channel": -1}, "experiment 'single_channel' channel: -1;"),
        *[({"experiment": name}, f"experiment '{name}': it wants ") for name in REFUSED],
    ],
)
def test_a_published_problem_that_cannot_be_said_is_refused(write, data, message):
    with pytest.raises(RecipeError) as error:
        load(write(problems={"a": data}))
    assert str(error.value).startswith(message)


def test_weights_are_rounded_to_one_grid_or_to_one_for_each_channel(opened):
    for scales in ("layer", "channel"):
        subject, (run,) = opened(scales=scales, bits=4)
        net, before = subject.quantized(run), subject.net.parameter("second.weight").detach()
        integers = net.encoding("second.weight").integers()
        dims = [0, 1, 2, 3] if scales == "layer" else [1, 2, 3]
        step = before.abs().amax(dims, keepdim=True) / 7
        assert torch.equal(integers, torch.floor(before / step + 0.5).long().clamp(-7, 7))
        assert net.encoding("head.weight").grid is None
        assert subject.net.encoding("second.weight").grid is None  # the network itself stays as it came


def test_a_file_keeps_its_own_grids(opened, place):
    subject, _ = opened()
    net = subject.net.copy()
    net.encode_("second.weight", Encoding.on_one_grid(net.parameter("second.weight"), 4))
    stored.save(net, place / "net.lil")
    subject, (run,) = opened(model="net.lil", into="tiny_cgp.py:make", bits=None)
    found = subject.quantized(run)
    assert found.encoding("second.weight").integers().tolist() == net.encoding("second.weight").integers().tolist()
    assert found.encoding("first.weight").integers().abs().max() == 127
    other, (run,) = opened(model="net.lil", into="tiny_cgp.py:make", bits=8)
    with pytest.raises(UsageError, match="it has a grid of 4 bits; leave bits out of the experiment"):
        other.quantized(run)


def test_importance_is_asked_for_by_name(opened):
    subject, (plain, weighed) = opened(
        problems={"a": {"given": ["first"], "wanted": ["second"], "importance": ["none", "fisher"]}}
    )
    counted, important = subject.problem(plain), subject.problem(weighed)
    assert np.array_equal(counted.importance, counted.counts)
    assert np.array_equal(counted.wanted, important.wanted)
    assert important.importance.max() > 0
    assert not np.array_equal(important.importance / important.importance.sum(), counted.counts / counted.counts.sum())


def test_settings_reach_the_solver(write):
    (run,) = load(write(keep=4)).grid()
    assert run.solver == EvolutionSettings(
        rows=32, columns=6, start="random", round_generations=50, threshold=1.0, keep=4
    )
    assert Experiment(model="m", problems={}, solver={}).generations == 100_000
