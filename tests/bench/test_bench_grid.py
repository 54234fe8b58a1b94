"""Grids: which cells, and what is wrong with one in one line."""

import re

import pytest
import yaml

from lilliput.bench.grid import load
from lilliput.core.errors import LilliputError, RecipeError


@pytest.fixture
def read(tmp_path):
    """read(key=value, ...) -> the grid of a file with these in place of the usual."""

    def made(text=None, **changes):
        data = {
            "models": ["digits-cnn"],
            "methods": {"prune": [{"magnitude_pruning": {"sparsity": "$sparsity"}}]},
            "budgets": [{"sparsity": 0.5}, {"name": "b", "sparsity": 0.9}],
        }
        (tmp_path / "grid.yaml").write_text(text or yaml.safe_dump(data | changes, sort_keys=False))
        return load(tmp_path / "grid.yaml")

    return made


def titles(grid):
    return [cell.title for cell in grid.cells()]


def test_cells_are_models_by_methods_by_budgets_by_seeds(read):
    grid = read(seeds=[3, 1], models=["digits-cnn", {"source": "digits-cnn", "name": "again"}])
    one = ["float seed 3"] + [f"prune {b} seed {s}" for b in ("sparsity 0.5", "b") for s in (3, 1)]
    assert titles(grid) == [f"{model} {title}" for model in ("digits-cnn", "again") for title in one]
    cell = grid.cells()[-1]
    assert cell.recipe["seed"] == 1
    assert cell.recipe["threads"] == 1
    assert cell.recipe["passes"] == [{"magnitude_pruning": {"sparsity": 0.9}}]


def test_a_plain_value_is_the_placeholder_budget(read):
    grid = read(budgets=[0.5, 0.75], methods={"m": [{"magnitude_pruning": {"sparsity": "$budget"}}]})
    assert titles(grid)[1:] == ["digits-cnn m 0.5 seed 0", "digits-cnn m 0.75 seed 0"]
    assert grid.cells()[2].recipe["passes"] == [{"magnitude_pruning": {"sparsity": 0.75}}]


def test_a_method_runs_at_the_budgets_that_have_its_placeholders_or_once(read):
    methods = {
        "plain": ["quantization"],
        "cluster": [{"weight_clustering": {"n_clusters": "$clusters"}}],
    }
    grid = read(
        methods=methods, budgets=[{"name": "a", "clusters": 4, "sparsity": 0.1}, {"name": "b", "sparsity": 0.9}]
    )
    assert titles(grid)[1:] == ["digits-cnn plain seed 0", "digits-cnn cluster a seed 0"]


def test_a_recipe_may_be_a_file_beside_the_grid(read, tmp_path):
    (tmp_path / "other.yaml").write_text(
        "target: onnx-arm\npasses:\n  - magnitude_pruning:\n      sparsity: ${sparsity}\n"
    )
    cell = read(methods={"m": "other.yaml"}).cells()[2]
    assert cell.recipe["target"] == "onnx-arm"
    assert cell.recipe["passes"] == [{"magnitude_pruning": {"sparsity": 0.9}}]


def test_limits_stand_for_placeholders(read):
    tune = [["magnitude_pruning", {"fine_tune": {"epochs": "$epochs"}}]]
    grid = read(methods={"m": tune}, limits={"epochs": 3})
    assert "{'fine_tune': {'epochs': 3}}" in str(grid.cells()[1].recipe)


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        ({"metods": {}}, "grid: unknown key 'metods'; .*methods"),
        ({"seeds": ["a"]}, r"grid seeds\.0: 'a'; input should be a valid integer"),
        ({"seeds": [1, 1]}, "grid seeds: .*different whole numbers"),
        ({"seeds": [-1]}, "grid seeds: .*different whole numbers"),
        ({"seeds": []}, "grid seeds: none"),
        ({"models": ["digits-cn"]}, "network 'digits-cn': it is not in the zoo; did you mean 'digits-cnn'"),
        ({"models": ["digits-cnn", "digits-cnn"]}, "grid models: two are named 'digits-cnn'"),
        ({"models": [{"name": "x"}]}, "grid models source: nothing; field required"),
        ({"models": [{"source": "digits-cnn", "weight": "a.pt"}]}, "grid models: unknown key 'weight'; .*weights"),
        ({"methods": {}}, "grid methods: none"),
        ({"methods": {"float": ["quantization"]}}, "a method named 'float'"),
        ({"methods": {"m": 3}}, "method 'm': 3; write a list of passes"),
        ({"methods": {"m": {"pases": []}}}, "method 'm': recipe: unknown key 'pases'"),
        ({"methods": {"m": "none.yaml"}}, "method 'm': recipe .*none.yaml: it cannot be read"),
        ({"methods": {"m": ["quantisation"]}}, "method 'm': method 'quantisation': .*quantization"),
        (
            {"methods": {"m": [{"magnitude_pruning": {"sparsity": "$sparsty"}}]}},
            r"method 'm': \$sparsty has no value in any budget and in no limit; .*sparsity",
        ),
        ({"methods": {"m": [{"magnitude_pruning": {"sparsity": "a $sparsity"}}]}}, "magnitude_pruning sparsity"),
        (
            {"methods": {"m": [{"fine_tune": {"epochs": 5}}]}, "limits": {"epochs": 4}},
            "trains for 5 epochs, the limit is 4",
        ),
        ({"limits": {"step": 1}}, "grid limits: unknown key 'step'; .*steps"),
        ({"reference": {"bytes": "few"}}, "grid reference bytes: 'few'"),
        ({"limits": {"steps": -1}}, "grid limits steps: -1"),
        ({"budgets": [1, 1]}, "grid budgets: two are named '1'"),
        ({"budgets": [{"name": "a"}]}, "grid budgets: .* has no values"),
        ({"role": "train"}, "grid role: 'train'"),
        ({"bench": 2}, "grid bench: version 2"),
        ({"baseline": "prun"}, "grid baseline: 'prun'; .*prune"),
        ({"published": [{"model": "digits-cnn", "method": "x"}]}, "grid published source: nothing"),
        ({"published": [{"model": "digits", "method": "x", "source": "y"}]}, "grid published: model 'digits'"),
        ({"published": [{"model": "digits-cnn", "method": "x", "source": "y", "budget": "c"}]}, "budget 'c'"),
    ],
)
def test_what_is_wrong_with_a_grid_is_said_in_one_line(read, changes, wanted):
    with pytest.raises(LilliputError, match=wanted) as error:
        read(**changes)
    assert "\n" not in str(error.value)


def test_a_placeholder_in_braces_within_braces_is_no_yaml_and_said_so(read):
    with pytest.raises(RecipeError, match="not YAML"):
        read("models: [digits-cnn]\nmethods: {m: [magnitude_pruning: {sparsity: ${sparsity}}]}\n")


@pytest.mark.parametrize(
    ("search", "found"),
    [
        ({"trials": 3}, "method 's': search: neither max_bytes nor max_drop"),
        ({"max_bytes": 4000}, "method 's': search: neither trials nor time"),
        ({"max_bytes": 4000, "trials": 0}, "method 's': search trials: 0"),
        ({"max_bytes": "4k", "trials": 3}, "method 's': size '4k'"),
        ({"max_bytes": 4000, "time": "soon"}, "method 's': time 'soon'"),
        ({"max_bytes": 4000, "trails": 3}, "method 's': search: unknown key 'trails'; did you mean 'trials'"),
        ({"max_bytes": "$size", "trials": 3}, "has no value in any budget"),
        (None, "method 's': search: None"),
    ],
)
def test_a_search_that_cannot_be_meant_is_one_line(read, search, found):
    with pytest.raises(RecipeError, match=re.escape(found)):
        read(methods={"s": {"search": search}})


def test_a_search_stands_alone_and_runs_at_each_budget(read):
    grid = read(methods={"s": {"search": {"max_bytes": "$bytes", "trials": 3}}}, budgets=[{"bytes": 10}, {"bytes": 20}])
    assert [c.recipe["search"]["max_bytes"] for c in grid.cells()[1:]] == [10, 20]
    with pytest.raises(RecipeError, match="passes beside search"):
        read(methods={"s": {"search": {"max_bytes": 9, "trials": 3}, "passes": []}})
