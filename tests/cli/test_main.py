"""Commands: results on standard output, progress on standard error, one line for an error, exit codes as documented."""

import json
import os
import subprocess
import sys

import pytest
import torch
import yaml

import lilliput
from lilliput.auto import compress as front
from lilliput.auto.load import load
from lilliput.cli import changing
from lilliput.core.errors import VerificationError
from lilliput.graph import stored
from lilliput.methods import BUILT_IN
from lilliput.methods.normalization.batchnorm import FoldBatchNorm
from lilliput.pipeline.recipe import Recipe, Step
from lilliput.report import compare as comparing
from lilliput.zoo.registry import ZOO

OWN = """
import torch
from torch import nn
import lilliput as ll

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc, self.head = nn.Linear(4, 8), nn.Linear(8, 2)

    def forward(self, x):
        return self.head({code})

def make():
    torch.manual_seed(0)
    x = torch.randn(80, 4)
    y = (x[:, 0] > 0).long()
    {spoil}
    return Net(), ll.Task.classification(train=(x[:50], y[:50]), validation=(x[50:65], y[50:65]), test=(x[65:], y[65:]))
"""


@pytest.fixture
def own(tmp_path):
    """Writes a user's file and gives its name for the command line."""
    known = set(sys.modules)

    def write(code="torch.relu(self.fc(x))", spoil="pass", name="own_net"):
        (tmp_path / f"{name}.py").write_text(OWN.format(code=code, spoil=spoil))
        return f"{tmp_path / name}.py:make"

    yield write
    for name in set(sys.modules) - known:
        if name.startswith("own_"):
            del sys.modules[name]


QUICK = "[{weight_clustering: {n_clusters: 8}}, quantization]"


@pytest.fixture
def quick(tmp_path):
    path = tmp_path / "quick.yaml"
    path.write_text(QUICK)
    return path


# --- compress and apply ----------------------------------------------------------------------------------------------


def test_compress_prints_the_table_and_says_what_it_wrote(call, own, quick, tmp_path):
    answer = call("compress", own(), "--recipe", quick, "--out", tmp_path / "runs")
    folder = tmp_path / "runs" / "0001-own_net-make"
    assert answer.code == 0
    assert answer.out.splitlines()[0].split() == ["float", "plain", "int8", "ours", "origin"]
    assert answer.out.rstrip().endswith(
        f"written to {folder}: net.lil, recipe.yaml, result.json, table.txt, float.onnx, plain-int8.onnx, ours.onnx"
    )
    assert answer.out.startswith((folder / "table.txt").read_text())
    assert "train: 50 samples" in answer.err
    assert f"run folder {folder}" in answer.err
    assert "kept: quantization: 2 changed, 0 skipped" in answer.err
    assert "\x1b" not in answer.out + answer.err
    assert (tmp_path / "runs" / "latest").resolve() == folder.resolve()


def test_json_is_all_that_is_on_standard_output(call, own, quick, tmp_path):
    answer = call("compress", own(), "--recipe", quick, "--out", tmp_path / "runs", "--json", "--quiet")
    data = json.loads(answer.out, parse_constant=pytest.fail)
    assert answer.err == ""
    assert [c["name"] for c in data["columns"]] == ["float", "plain int8", "ours"]
    assert data["folder"] == str(tmp_path / "runs" / "0001-own_net-make")
    stored = json.loads((tmp_path / "runs" / "0001-own_net-make" / "result.json").read_text())
    assert {k: v for k, v in data.items() if k != "folder"} == stored


def test_apply_with_its_arguments_swapped_says_so(call, tmp_path):
    (tmp_path / "r.yaml").write_text("passes: [quantization]")
    answer = call("apply", "digits-cnn", str(tmp_path / "r.yaml"))
    assert answer.code == 2
    assert "the recipe stands second; write: lilliput apply" in answer.err


def test_apply_gives_the_same_bytes(call, own, quick, tmp_path):
    assert call("compress", own(), "--recipe", quick, "--out", tmp_path / "runs", "--seed", 4).code == 0
    first = tmp_path / "runs" / "0001-own_net-make"
    answer = call("apply", first / "recipe.yaml", own(), "--out", tmp_path / "again", "--quiet")
    assert answer.code == 0
    second = tmp_path / "again" / "0001-own_net-make"
    assert (second / "net.lil").read_bytes() == (first / "net.lil").read_bytes()
    assert yaml.safe_load((second / "recipe.yaml").read_text())["seed"] == 4


def test_the_command_and_python_give_the_same_bytes(finished, recipe):
    from lilliput.zoo.registry import open_model

    model, task = open_model("digits-cnn")
    result = lilliput.apply(model, task, str(recipe))
    assert (finished / "net.lil").read_bytes() == stored.dumps(result.artifact)


def test_a_missed_budget_is_exit_code_one_and_everything_is_written(call, own, quick, tmp_path):
    answer = call("compress", own(), "--recipe", quick, "--out", tmp_path / "runs", "--max-bytes", "50B", "--quiet")
    assert answer.code == 1
    assert "MISSED max_bytes: " in answer.out
    assert (tmp_path / "runs" / "0001-own_net-make" / "net.lil").is_file()
    assert call("compress", own(), "--recipe", quick, "--out", tmp_path / "runs", "--max-ram", "4B", "-q").code == 1


def test_demo_is_compress_of_the_shipped_network(call, tmp_path, monkeypatch):
    short = Recipe(steps=(Step(passes=(FoldBatchNorm(),)),), threads=1)
    monkeypatch.setattr(front, "default_recipe", lambda *_, **__: short)
    answer = call("demo", "--out", tmp_path, "--quiet")
    assert answer.code == 0
    assert f"written to {tmp_path / '0001-digits-cnn'}" in answer.out


def test_a_file_that_computes_something_else_is_exit_code_four(call, own, quick, tmp_path, monkeypatch):
    def differs(*_, **__):
        raise VerificationError("check", "outputs differ", "report this model")

    monkeypatch.setattr(comparing, "check_with_runtime", differs)
    answer = call("compress", own(), "--recipe", quick, "--out", tmp_path / "runs", "-q")
    assert (answer.code, answer.err) == (4, "error: float: check: outputs differ; report this model\n")
    assert answer.out.count("no ONNX file: check: outputs differ") == 3
    folder = tmp_path / "runs" / "0001-own_net-make"
    assert (folder / "net.lil").is_file()
    assert not list(folder.glob("*.onnx"))


def test_without_onnx_the_rest_works_and_the_extra_is_named(call, own, quick, tmp_path, monkeypatch):
    for name in [n for n in sys.modules if n.split(".")[0] in ("onnx", "onnxruntime")]:
        monkeypatch.delitem(sys.modules, name)
    for name in ("onnx", "onnxruntime"):
        monkeypatch.setitem(sys.modules, name, None)
    answer = call("compress", own(), "--recipe", quick, "--out", tmp_path / "runs", "-q")
    assert answer.code == 0
    assert answer.out.count("no ONNX file: ") == 3
    assert "pip install 'lilliput[onnx]'" in answer.out
    assert answer.out.rstrip().endswith("net.lil, recipe.yaml, result.json, table.txt")
    lil = tmp_path / "runs" / "0001-own_net-make" / "net.lil"
    answer = call("export", lil, "--into", own(), "--out", tmp_path / "fw")
    assert answer.code == 2
    assert "pip install 'lilliput[onnx]'" in answer.err
    assert call("evaluate", lil, "--into", own(), "-q").code == 0


# --- interrupt and resume --------------------------------------------------------------------------------------------

STOPPING = """
import dataclasses
import os
from typing import ClassVar
import lilliput as ll
from lilliput.core.method import layers

@dataclasses.dataclass(frozen=True, kw_only=True)
class Stop(ll.Pass):
    name: ClassVar[str] = "stop"
    summary: ClassVar[str] = "Ctrl-C, once"

    def apply_(self, net, context):
        if "GO_ON_OF_TEST" not in os.environ:
            raise KeyboardInterrupt
        return ll.PassResult(skipped=dict.fromkeys(layers(net), "nothing to do"))
"""


def test_ctrl_c_is_exit_code_130_and_resume_ends_in_the_same_bytes(call, own, tmp_path, monkeypatch):
    (tmp_path / "stopping_of_test.py").write_text(STOPPING)
    monkeypatch.syspath_prepend(tmp_path)
    path = tmp_path / "stop.yaml"
    path.write_text("[{weight_clustering: {n_clusters: 8}}, 'stopping_of_test:Stop', quantization]")
    runs = tmp_path / "runs"
    answer = call("compress", own(), "--recipe", path, "--out", runs)
    folder = runs / "0001-own_net-make"
    assert answer.code == 130
    assert answer.out == ""
    assert answer.err.endswith(f"error: interrupted; finished steps are kept: go on with --resume {folder}\n")
    report = call("report", folder)
    assert "0. weight_clustering: kept" in report.out
    assert f"the run is not finished: go on with --resume {folder}" in report.out
    monkeypatch.setenv("GO_ON_OF_TEST", "1")
    answer = call("compress", own(), "--recipe", path, "--resume", folder)
    assert answer.code == 0
    assert "resumed after step 0: weight_clustering" in answer.err
    assert call("compress", own(), "--recipe", path, "--out", runs, "-q").code == 0
    assert (folder / "net.lil").read_bytes() == (runs / "0002-own_net-make" / "net.lil").read_bytes()
    assert "1. stopping_of_test:Stop" not in call("report", folder).out
    assert "1. stop: no effect" in call("report", folder).out
    sys.modules.pop("stopping_of_test", None)


def test_a_folder_that_is_not_of_this_run_is_not_resumed(call, own, quick, finished, tmp_path):
    answer = call("compress", own(), "--recipe", quick, "--resume", tmp_path)
    assert answer.code == 2
    assert "there is no run in it; give a folder that an earlier run has made" in answer.err
    answer = call("compress", own(), "--recipe", quick, "--resume", finished)
    assert answer.code == 2
    assert "not as in the run" in answer.err


def test_an_interrupted_training_goes_on_to_the_same_bytes(call, own, tmp_path, monkeypatch):
    common = ("train", own(), "--epochs", 4, "--batch-size", 16)
    assert call(*common, "--out", tmp_path / "whole.lil").code == 0

    class Impatient(changing.ConsoleProgress):
        def say(self, text):
            super().say(text)
            if text.startswith("epoch 3/4"):
                raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(changing, "ConsoleProgress", Impatient)
        answer = call(*common, "--out", tmp_path / "part.lil")
    assert answer.code == 130
    assert answer.err.endswith("error: interrupted; the same command goes on after the last finished epoch\n")
    assert not (tmp_path / "part.lil").exists()
    answer = call(*common, "--out", tmp_path / "part.lil")
    assert "resumed after epoch 2" in answer.err
    assert (tmp_path / "part.lil").read_bytes() == (tmp_path / "whole.lil").read_bytes()
    assert not (tmp_path / "part.checkpoint").exists()


# --- train -----------------------------------------------------------------------------------------------------------


def test_train_writes_a_float_file_and_says_the_score_of_what_it_wrote(call, own, tmp_path):
    source = own()
    answer = call("train", source, "--epochs", 3, "--batch-size", 16, "--out", tmp_path / "net.lil", "--json", "-q")
    data = json.loads(answer.out)
    assert answer.code == 0
    assert data["file"] == str(tmp_path / "net.lil")
    assert data["bytes"] == (tmp_path / "net.lil").stat().st_size
    scored = call("evaluate", tmp_path / "net.lil", "--into", source, "--role", "validation", "--json", "-q")
    assert json.loads(scored.out)["value"] == pytest.approx(data["validation accuracy"])
    again = call("evaluate", source, "--weights", tmp_path / "net.lil", "--role", "validation", "--json", "-q")
    assert json.loads(again.out)["value"] == pytest.approx(data["validation accuracy"])


def test_train_prints_lines_for_people(call, own, tmp_path):
    answer = call("train", own(), "--epochs", 1, "--out", tmp_path / "net.lil")
    assert answer.out.splitlines()[0] == f"file: {tmp_path / 'net.lil'}"
    assert answer.out.splitlines()[-1].endswith(f"own_net.py:make --weights {tmp_path / 'net.lil'}")
    assert "epoch 1/1: loss " in answer.err


# --- check, zoo, methods ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["digits-cnn", "resnet8", "lenet5-tanh"])
def test_check_needs_neither_weights_nor_data(call, name, tmp_path, monkeypatch):
    monkeypatch.setenv("LILLIPUT_DATA", str(tmp_path))
    answer = call("check", name)
    assert (answer.code, answer.err) == (0, "")
    assert answer.out.rstrip().endswith("export: supported")


def test_check_of_what_cannot_be_exported_is_exit_code_three(call, own):
    answer = call("check", own(code="torch.relu(self.fc(x)).cumsum(1)"))
    assert answer.code == 3
    assert "UNSUPPORTED: cumsum: " in answer.out
    data = call("check", own(code="torch.relu(self.fc(x)).cumsum(1)"), "--json")
    assert json.loads(data.out)["supported"] is False
    answer = call("check", own(code="self.fc(x) if x.sum() > 0 else self.fc(-x)"))
    assert answer.code == 3
    assert answer.err.startswith("error: trace of Net: torch.export stopped with: ")


def test_check_holds_a_recipe_against_the_network_without_data(call, tmp_path, monkeypatch):
    monkeypatch.setenv("LILLIPUT_DATA", str(tmp_path))
    path = tmp_path / "r.yaml"
    path.write_text("passes: [fold_batchnorm, {quantization: {skip: [linear]}}]")
    answer = call("check", "resnet8", "--recipe", path)
    assert answer.code == 0
    assert "left in float: linear: skipped by the recipe (include and skip of quantization)" in answer.out
    path.write_text("passes: [{quantization: {skip: [layr1.*]}}]")
    wrong = call("check", "resnet8", "--recipe", path)
    assert (wrong.code, wrong.out) == (2, "")
    assert wrong.err.startswith("error: quantization skip 'layr1.*': it matches no layer that has parameters; did you")


def test_check_of_budgets_that_are_missed_is_exit_code_one(call):
    answer = call("check", "digits-cnn", "--target", "cortex-m4", "--max-flash", "1KiB", "--max-ram", "1MiB")
    assert answer.code == 1
    assert "OVER BUDGET: flash: " in answer.out
    assert "OVER BUDGET: RAM" not in answer.out


def test_zoo_and_methods_list_everything(call):
    names = json.loads(call("zoo", "--json").out)
    assert set(names) == set(ZOO)
    assert all(name in call("zoo").out for name in ZOO)
    rows = json.loads(call("methods", "--json").out)
    assert [r["name"] for r in rows] == [m.name for m in BUILT_IN]
    by_name = {r["name"]: r["settings"] for r in rows}
    assert by_name["quantization"]["weight_bits"] == 8
    text = call("methods").out
    assert all(f"{m.name}: {m.summary}" in text for m in BUILT_IN)
    assert all(citation in text for m in BUILT_IN for citation in m.citations)


def test_report_shows_steps_and_table(call, finished):
    answer = call("report", finished)
    assert answer.code == 0
    assert answer.out.startswith("0. fold_batchnorm: kept; accuracy ")
    assert "     skipped by fold_batchnorm: linear: not a BatchNorm, and none goes into it" in answer.out
    assert (finished / "table.txt").read_text() in answer.out


def test_version_and_help(call):
    assert call("--version") == (0, f"lilliput {lilliput.__version__}\n", "")
    for arguments in ((), ("--help",)):
        answer = call(*arguments)
        assert answer.code == 0
        assert answer.out.startswith("Usage: lilliput ")
        assert all(name in answer.out for name in ("compress", "apply", "check", "train", "evaluate", "predict"))
    assert call("compress", "--help").code == 0


# --- wrong use -------------------------------------------------------------------------------------------------------

WRONG = {
    "command": (("compres",), "No such command 'compres'."),
    "no model": (("compress",), "Missing argument 'model'."),
    "option": (("zoo", "--jason"), "No such option: --jason"),
    "name": (("compress", "digit-cnn"), "network 'digit-cnn': it is not in the zoo; did you mean 'digits-cnn'?"),
    "check name": (("check", "resnet-20"), "did you mean 'resnet20'?"),
    "file": (("compress", "none.py:make"), "model file none.py: no such file; check the path"),
    "bytes": (("compress", "digits-cnn", "--max-bytes", "60k"), "size '60k': not a number with a known unit"),
    "flash": (("check", "digits-cnn", "--max-flash", "1 mb"), "size '1 mb': not a number with a known unit"),
    "drop": (("compress", "digits-cnn", "--max-drop", "lots"), "max_drop='lots': not a number with a unit"),
    "target": (("compress", "digits-cnn", "--target", "arm"), "target 'arm': not a known target"),
    "recipe": (("compress", "digits-cnn", "--recipe", "none.yaml"), "recipe none.yaml: it cannot be read"),
    "seed": (("compress", "digits-cnn", "--seed", "-1"), "Invalid value for '--seed'"),
    "seed text": (("compress", "digits-cnn", "--seed", "x"), "Invalid value for '--seed'"),
    "device": (("compress", "digits-cnn", "--device", "gpu"), "--device gpu: Expected one of cpu, cuda"),
    "weights": (("compress", "digits-cnn", "--weights", "none.pt"), "weights none.pt: no such file"),
    "untrained": (("compress", "digits-masks"), "run: lilliput train digits-masks, then give --weights"),
    "data": (("compress", "digits-cnn", "--data", "mnst"), "--data mnst: not a data set for networks of the zoo"),
    "train file": (
        ("train", "digits-cnn", "--out", "net.pt"),
        "train --out net.pt: the file is a .lil; name it net.lil",
    ),
    "epochs": (("train", "digits-cnn", "--epochs", "0"), "Invalid value for '--epochs'"),
    "rate": (("train", "digits-cnn", "--learning-rate", "-1", "-q"), "fit learning_rate: -1.0; use a number from 0.0"),
    "role": (
        ("evaluate", "digits-cnn", "--role", "tset"),
        "--role tset: not a role; use one of train, validation, test",
    ),
    "report": (("report", "none"), "run folder none: there is no run in it"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_use_is_exit_code_two_and_one_line_and_leaves_nothing(call, name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arguments, text = WRONG[name]
    answer = call(*arguments)
    assert answer.code == 2
    assert answer.out == ""
    lines = [line for line in answer.err.splitlines() if not line.startswith("[")]
    assert len(lines) == 1, answer.err
    assert lines[0].startswith("error: ")
    assert text in lines[0]
    assert list(tmp_path.iterdir()) == []


SPOILT = {
    "x[3, 1] = float('nan')": "a batch: NaN or infinity in the inputs; clean the data first",
    "y = y[:0]": "a data set: 50 inputs and 0 targets; give one target for each input",
    "x, y = x[:0], y[:0]": "a data set: no samples in it; give at least one sample",
    "x = x[:, :3]": "trace of Net: torch.export stopped with: ",
    "x = (x * 9).long()": "a batch: inputs of torch.int64; give float inputs",
    "y = y + 7": "fit, epoch 1, step 1: IndexError: Target ",
}


@pytest.mark.parametrize("spoil", SPOILT)
def test_data_that_cannot_work_are_one_line(call, own, quick, tmp_path, spoil):
    quick.write_text("[{fine_tune: {epochs: 1}}, quantization]" if "7" in spoil else QUICK)
    answer = call("compress", own(spoil=spoil), "--recipe", quick, "--out", tmp_path / "runs", "-q")
    assert answer.code in (2, 3)
    assert answer.out == ""
    assert len(answer.err.splitlines()) == 1
    assert answer.err.startswith(f"error: {SPOILT[spoil]}")


def test_a_recipe_is_read_before_data_and_folder_are_touched(call, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "r.yaml").write_text("passes: [{quantization: {weight_bit: 8}}]")
    answer = call("compress", "resnet8", "--recipe", "r.yaml")
    assert answer.code == 2
    assert answer.err == "error: quantization: unknown setting 'weight_bit'; did you mean 'weight_bits'?\n"
    assert [p.name for p in tmp_path.iterdir()] == ["r.yaml"]


def test_patterns_are_held_against_the_network_before_data_and_folder_are_touched(call, own, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LILLIPUT_DATA", str(tmp_path))
    (tmp_path / "r.yaml").write_text("passes: [quantization, {weight_clustering: {include: hed}}]")
    for model in ("resnet8", own()):
        answer = call("compress", model, "--recipe", "r.yaml", "-q")
        assert answer.code == 2
        assert answer.err.startswith("error: weight_clustering include 'hed': it matches no layer that has parameters;")
        assert len(answer.err.splitlines()) == 1
    assert not (tmp_path / "runs").exists()


# --- bugs ------------------------------------------------------------------------------------------------------------


def broken(*given, **more):
    raise KeyError("a key\nthat is not there")


def test_a_bug_is_exit_code_seventy_and_one_line(call, monkeypatch):
    monkeypatch.delenv("LILLIPUT_DEBUG", raising=False)
    monkeypatch.setattr("lilliput.auto.check.check", broken)
    answer = call("check", "digits-cnn")
    assert (answer.code, answer.out) == (70, "")
    assert len(answer.err.splitlines()) == 1
    assert answer.err.startswith("error: unexpected KeyError at test_main.py:")
    assert "this is a bug, in Lilliput or in your own code: please report it with what --debug shows" in answer.err


@pytest.mark.parametrize("arguments", [("--debug", "check", "digits-cnn"), ("check", "digits-cnn", "--debug")])
def test_the_traceback_of_a_bug_is_shown_when_asked_for(call, monkeypatch, arguments):
    monkeypatch.setattr("lilliput.auto.check.check", broken)
    answer = call(*arguments)
    assert answer.code == 70
    assert answer.err.startswith("Traceback (most recent call last):")
    assert "raise KeyError" in answer.err
    monkeypatch.setenv("LILLIPUT_DEBUG", "1")
    again = call("check", "digits-cnn")
    assert (again.code, again.err.startswith("Traceback")) == (70, True)


def test_debug_changes_nothing_else(call):
    assert call("zoo", "--debug") == call("zoo")
    assert call("--debug", "report", "none") == call("report", "none")
    assert "--debug" in call("--help").out


# --- as a process ----------------------------------------------------------------------------------------------------


def process(*arguments, **more):
    command = [sys.executable, "-m", "lilliput.cli.main", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, **more)


def test_a_process_ends_with_the_exit_code_and_keeps_the_streams_apart(own, tmp_path):
    done = process("check", own(code="torch.relu(self.fc(x)).cumsum(1)"), "--json")
    assert done.returncode == 3
    assert json.loads(done.stdout)["supported"] is False
    assert done.stderr == ""
    failed = process("evaluate", tmp_path / "none.lil", "--into", "digits-cnn")
    assert (failed.returncode, failed.stdout) == (2, "")
    assert failed.stderr == f"error: read {tmp_path / 'none.lil'}: no such file; check the path\n"


def test_a_reader_that_leaves_early_is_no_error():
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w") as pipe:
        command = [sys.executable, "-m", "lilliput.cli.main", "zoo"]
        done = subprocess.run(command, stdout=pipe, stderr=subprocess.PIPE, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_what_was_compressed_loads_in_python(finished):
    from lilliput.zoo.registry import entry

    net = load(finished / "net.lil", into=entry("digits-cnn").model())
    with torch.no_grad():
        assert net(torch.zeros(2, 1, 8, 8)).shape == (2, 10)
