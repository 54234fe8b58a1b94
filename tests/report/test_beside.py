"""Files side by side: the numbers of each alone, in one table, with what functions take of them."""

import shutil

import pytest
import torch
from torch import nn

from lilliput.core import container
from lilliput.core.artifact import Artifact
from lilliput.core.errors import ArtifactError, UsageError
from lilliput.core.learned_activation import LearnedActivation
from lilliput.core.method import Context, apply_checked_
from lilliput.core.target import Target
from lilliput.export.c.plan import plan
from lilliput.graph import stored
from lilliput.graph.integer import runnable
from lilliput.graph.lower import lower
from lilliput.methods.quantization.post_training import Quantization
from lilliput.report.beside import compare_files
from lilliput.report.text import FUNCTION_ROWS, comparison
from lilliput.testing import tiny_task

TASK = tiny_task(48)
TOOLS = ("cc", "arm-none-eabi-gcc", "qemu-system-arm")
needs_tools = pytest.mark.skipif(not all(map(shutil.which, TOOLS)), reason=f"needs {', '.join(TOOLS)}")


def network(width, act):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, width), act, nn.Linear(width, 3))
    return Artifact.of(model.eval(), TASK.spec)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """relu at twice the width of psa, in float and in integers."""
    folder = tmp_path_factory.mktemp("files")
    for name, width, act in (("relu", 16, nn.ReLU()), ("psa", 8, LearnedActivation(8, init="paper"))):
        net = network(width, act)
        stored.save(net, folder / f"{name}.lil")
        method = Quantization(signed=True)
        apply_checked_(method, net, Context.of(TASK, net.module))
        stored.save(net, folder / f"{name}-int8.lil")
    return {path.stem: path for path in folder.iterdir()}


@pytest.fixture(scope="module")
def columns(files):
    return compare_files([files["relu"], files["psa"]], task=TASK, role="validation")


def test_what_functions_take_is_counted_everywhere(files, columns):
    relu, psa = (c.measurements for c in columns)
    assert psa["parameters"].value == 16 * 8 + 8 + 8 * 3 + 3 + 8 * 26
    assert psa["parameters of functions"].value == 8 * 26
    sizes = container.sizes(container.read(files["psa"]))
    assert psa["file"].value == files["psa"].stat().st_size
    assert psa["file bytes of functions"].value == sum(sum(sizes[f"2.{n}"].values()) for n in ("weight", "limit"))
    assert psa["flash of functions"].value == 4 * (8 * 26 + 1)
    assert psa["values through functions"].value == psa["values through learned functions"].value == 8
    assert relu["values through functions"].value == 16
    assert [relu[name].value for name in FUNCTION_ROWS if name != "values through functions"] == [0] * 4
    assert (relu["MACs"].value, psa["MACs"].value) == (16 * 19, 8 * 19)


def test_scores_are_those_of_running_the_files(columns):
    data = TASK.data("validation")
    x, y = data.batch(torch.arange(len(data)))
    for column in columns:
        with torch.no_grad():
            wanted = TASK.score.value(TASK.score.statistics(runnable(column.artifact)(x), y))
        assert column.measurements[TASK.score.name].value == pytest.approx(wanted)


def test_the_first_file_is_the_reference(columns):
    lines = comparison(columns, TASK.score.name).splitlines()
    assert lines[0].split() == ["relu", "psa", "origin"]
    names = [line.split("  ")[0] for line in lines]
    assert "difference to relu" in names
    assert "latency / relu" in names
    assert "parameters of functions" in names


def test_functions_have_no_rows_where_no_network_has_any(files, tmp_path):
    other = shutil.copy(files["relu"], tmp_path / "same.lil")
    found = compare_files([files["relu"], other], latency=False)
    assert not set(FUNCTION_ROWS) & {line.split("  ")[0] for line in comparison(found, "").splitlines()}
    assert "accuracy" not in found[0].measurements
    assert "latency" not in found[0].measurements


@needs_tools
def test_integers_run_as_c_where_c_is_the_target(files):
    columns = compare_files([files["relu-int8"], files["psa-int8"]], target=Target("cortex-m4"))
    for column in columns:
        m, wanted = column.measurements, plan(lower(column.artifact))
        assert m["planned flash"].value == wanted.flash
        assert m["flash of functions"].value == wanted.functions
        assert m["latency in C"].value > 0
        assert m["instructions"].origin == "measured"
        assert m["instructions"].value > m["MACs"].value
    assert columns[1].measurements["flash of functions"].value == 8 * 33  # bytes, one for each point
    assert "instructions: executed for one sample" in comparison(columns, "")


def test_a_network_in_float_has_no_c_and_says_so(files):
    columns = compare_files([files["relu"], files["psa"]], target=Target("c-host"), latency=False)
    for column in columns:
        assert "instructions" not in column.measurements
        assert any(note.startswith("not run as C: ") and "no grids" in note for note in column.notes)


def test_files_of_one_name_are_told_apart_by_their_folders(files, tmp_path):
    other = shutil.copy(files["psa"], tmp_path / "relu.lil")
    found = compare_files([files["relu"], other], latency=False)
    assert [c.name for c in found] == [str(files["relu"]), str(other)]
    with pytest.raises(UsageError, match="the same file twice"):
        compare_files([files["relu"], files["relu"]])


def test_a_file_without_a_graph_is_named(files, tmp_path):
    bare = tmp_path / "bare.lil"
    stored.save(network(8, nn.ReLU()), bare, strip=True)
    with pytest.raises(ArtifactError, match="bare"):
        compare_files([files["relu"], bare], latency=False)
