"""Files that lie about networks: loading them into a module, and what commands say and show of them."""

import json
import math
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import lilliput as ll
from lil_files import MAKE, artifact, forged, fresh, opened
from lilliput.cli.main import run
from lilliput.core import container, wire
from lilliput.core.errors import ArtifactError, LilliputError, UsageError
from lilliput.core.method import apply_checked_
from lilliput.zoo.registry import open_model

ORIGIN, INPUT, TENSORS, COUNTERS, ACTIVATIONS, EDITS, RECIPE, TRAIL = range(8)
FILES = {name: container.dumps(artifact(name)) for name in MAKE}
GIVE = "give the module that the file was made from"


def with_edits(*edits: list[Any]) -> Callable[[list[Any]], None]:
    def change(header: list[Any]) -> None:
        header[EDITS] = list(edits)

    return change


def nothing(path: str) -> str:
    return f"replay of an edit at {path!r}: the module has nothing there; {GIVE}"


HOSTILE: dict[str, tuple[list[list[Any]], str]] = {
    "slice beyond": (
        [["slice", "0.weight", 0, [1 << 40]]],
        f"replay of slice of '0.weight': shape (4, 1, 3, 3); {GIVE}",
    ),
    "slice of a function": (
        [["slice", "0.forward", 0, [0]]],
        f"replay of slice of '0.forward': no such tensor; {GIVE}",
    ),
    "slice of a class": (
        [["slice", "0.__class__", 0, [0]]],
        f"replay of slice of '0.__class__': no such tensor; {GIVE}",
    ),
    "slice of all": ([["slice", "", 0, [0]]], f"replay of slice of '': no such tensor; {GIVE}"),
    "slice of a number": (
        [["slice", "1.num_batches_tracked", 0, [0]]],
        f"replay of slice of '1.num_batches_tracked': shape (); {GIVE}",
    ),
    "replace a class": ([["replace", "__class__", "ReLU", {}]], nothing("__class__")),
    "replace a function": ([["replace", "forward", "ReLU", {}]], nothing("forward")),
    "replace a dictionary": ([["replace", "0.__dict__", "ReLU", {}]], nothing("0.__dict__")),
    "replace the parameters": ([["replace", "0._parameters.weight", "ReLU", {}]], nothing("0._parameters.weight")),
    "replace by index": ([["replace", "-1", "ReLU", {}]], nothing("-1")),
    "empty steps": ([["replace", "..", "ReLU", {}]], nothing("..")),
    "long path": ([["replace", "0." * 499, "ReLU", {}]], nothing("0." * 499)),
    "replace the root": (
        [["replace", "", "ReLU", {}]],
        "replay of an edit: it replaces the whole network; make the file again",
    ),
    "fold of the root into itself": ([["fold", "", ""]], f"replay of fold into '': '' is Sequential; {GIVE}"),
    "fold of a norm into itself": (
        [["fold", "1", "1"]],
        f"replay of fold into '1': '1' is BatchNorm2d; {GIVE}",
    ),
    "fold twice": ([["fold", "0", "1"], ["fold", "0", "1"]], f"replay of fold into '0': '1' is Identity; {GIVE}"),
    "replace what was replaced": (
        [["replace", "2", "Identity", {}], ["slice", "2.weight", 0, [0]]],
        f"replay of slice of '2.weight': no such tensor; {GIVE}",
    ),
    "layers that no longer fit": (
        [["slice", "0.weight", 0, [0, 2]], ["slice", "0.bias", 0, [0, 2]]],
        "load into Sequential: after the file's edits it does not run; make the file again",
    ),
    "a flatten that is gone": (
        [["replace", "3", "Identity", {}]],
        "load into Sequential: after the file's edits it does not run; make the file again",
    ),
    "setting of another class": (
        [["replace", "2", "ReLU6", {"min_val": 1}]],
        (
            "replay of replace at '2': settings {'min_val': 1} for ReLU6 "
            "(ReLU6.__init__() got an unexpected keyword argument 'min_val'); make the file again"
        ),
    ),
    "a range that is empty": (
        [["replace", "2", "Hardtanh", {"min_val": 2, "max_val": 1}]],
        (
            "replay of replace at '2': settings {'max_val': 1, 'min_val': 2} for Hardtanh "
            "(max_val (1) must be greater than min_val (2)); make the file again"
        ),
    ),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_edits_are_refused(case: str) -> None:
    edits, text = HOSTILE[case]
    contents = container.loads(forged(FILES["float"], with_edits(*edits)))
    with pytest.raises(ArtifactError) as error:
        contents.replay(fresh("float"))
    assert str(error.value) == text


def test_an_edit_reaches_no_attribute_that_is_not_a_layer() -> None:
    """Every path of two steps from what a module has, layer or not: nothing else is touched."""
    module = fresh("float")
    layers = {path for path, _ in module.named_modules()}
    known = {*dir(module), *dir(module[0])}
    for name in sorted(known - layers):
        for path in (name, f"0.{name}"):
            contents = container.loads(forged(FILES["float"], with_edits(["replace", path, "Identity", {}])))
            with pytest.raises(ArtifactError, match="the module has nothing there"):
                contents.replay(module)
    assert {path for path, _ in module.named_modules()} == layers
    assert [type(m).__name__ for m in module] == ["Conv2d", "BatchNorm2d", "ReLU", "Flatten", "Linear"]


@pytest.mark.parametrize(
    ("module", "text"),
    [
        (
            nn.Linear,
            "load a .lil file: the class Linear; give a module: an object of the class that the file was made from",
        ),
        (None, "load a .lil file: a NoneType; give a module: an object of the class that the file was made from"),
        ({}, "load a .lil file: a dict; give a module: an object of the class that the file was made from"),
        (nn.LazyLinear(3), "load into LazyLinear: 'weight' has no shape yet; run the module once on an example"),
        (
            nn.Linear(2, 2, device="meta"),
            "load into Linear: 'weight' is on the meta device; make the module on the CPU",
        ),
    ],
)
def test_what_cannot_take_weights_is_named(module: Any, text: str) -> None:
    with pytest.raises(UsageError) as error:
        container.loads(FILES["float"]).replay(module)
    assert str(error.value) == text


def test_a_module_of_another_precision_is_another_architecture() -> None:
    with pytest.raises(
        ArtifactError, match=r"^load into Sequential: its fingerprint is \w{16}, the file's is \w{16}; make the"
    ):
        container.loads(FILES["float"]).replay(fresh("float").half())


# --- commands --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def digits() -> dict[str, bytes]:
    """A float file of the digits network, and an integer one."""
    model, task = open_model("digits-cnn")
    net = ll.Artifact.of(model, task.spec)
    plain = container.dumps(net)
    context = ll.Context.of(task, model)
    for method in (ll.FoldBatchNorm(), ll.Quantization()):
        apply_checked_(method, net, context)
    return {"float": plain, "integer": container.dumps(net)}


@pytest.fixture
def commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """commands(bytes of net.lil) -> {command: (exit code, standard output, standard error)}."""
    monkeypatch.chdir(tmp_path)
    np.save("x.npy", np.zeros((2, 1, 8, 8), np.float32))

    def answers(data: bytes) -> dict[str, tuple[int, str, str]]:
        Path("net.lil").write_bytes(data)
        found: dict[str, tuple[int, str, str]] = {}
        for line in (
            "inspect net.lil",
            "inspect net.lil --json",
            "predict net.lil x.npy --into digits-cnn",
            "evaluate net.lil --into digits-cnn -q",
            "diff net.lil --against digits-cnn",
            "export net.lil --into digits-cnn",
        ):
            capsys.readouterr()
            code = run([str(word) for word in line.split()])
            out, err = capsys.readouterr()
            found[line.partition(" --into")[0]] = (code, out, err)
        return found

    return answers


def set_(*path: int, to: Any) -> Callable[[list[Any]], None]:
    def change(header: Any) -> None:
        for key in path[:-1]:
            header = header[key]
        header[path[-1]] = to

    return change


ESCAPE = "\x1b[2J\x1b]0;owned\x07"
UNREADABLE = {
    "name of a tensor": ("float", set_(TENSORS, 0, 0, to=ESCAPE)),
    "label": ("float", set_(INPUT, 4, to=[ESCAPE] * 10)),
    "layout": ("float", set_(INPUT, 1, to="\x9b31m")),
    "activation": ("integer", set_(ACTIVATIONS, 0, 0, to=ESCAPE)),
    "counter": ("float", set_(COUNTERS, 0, 0, to="\r\n")),
    "layer of an edit": ("integer", set_(EDITS, 0, 1, to=ESCAPE)),
    "bytes in the recipe": ("float", set_(RECIPE, to=[{"a": b"\x1b"}])),
    "bytes in the trail": ("float", set_(TRAIL, to=[{"a": [b"\x1b"]}])),
    "class of an edit": ("integer", set_(EDITS, 0, to=["replace", "stem", "subprocess.Popen", {}])),
    "huge input": ("integer", set_(INPUT, 0, to=[1, 1 << 13, 1 << 13])),
}


@pytest.mark.parametrize("case", UNREADABLE)
def test_no_command_takes_or_shows_what_is_hostile(case: str, digits: Any, commands: Any) -> None:
    kind, change = UNREADABLE[case]
    for code, out, err in commands(forged(digits[kind], change)).values():
        assert (code, out) == (2, "")
        assert re.fullmatch(
            r"error: read net\.lil: the contents are not well formed \(.+\); make the file again\n", err
        )
        assert err[:-1].isprintable()


FOREIGN = {
    "slice beyond": ("float", set_(EDITS, to=[["slice", "linear.weight", 0, [10]]])),
    "replace a class": ("float", set_(EDITS, to=[["replace", "__class__", "Identity", {}]])),
    "layers that no longer fit": ("float", set_(EDITS, to=[["replace", "stem", "Identity", {}]])),
    "fold of nothing": ("integer", set_(EDITS, 0, to=["fold", "stem.0", "stem.9"])),
    "origin": ("float", set_(ORIGIN, to=bytes(8))),
    "shape of a tensor": ("float", set_(TENSORS, 2, 2, to=[6, 4])),
    "name of a tensor": ("float", set_(TENSORS, 0, 0, to="stem.0.bias")),
    "no edits": ("integer", set_(EDITS, to=[])),
}


@pytest.mark.parametrize("case", FOREIGN)
def test_what_does_not_fit_the_network_is_one_line_and_exit_code_2(case: str, digits: Any, commands: Any) -> None:
    kind, change = FOREIGN[case]
    for line, (code, out, err) in commands(forged(digits[kind], change)).items():
        if line.startswith("inspect"):
            assert (code, err) == (0, "")
        else:
            assert (code, out) == (2, "")
            assert re.fullmatch(r"error: (load|replay).*: .+; (give|make) the .+\n", err)


def test_an_input_that_the_network_does_not_take_is_one_line(digits: Any, commands: Any) -> None:
    for line, (code, out, err) in commands(forged(digits["integer"], set_(INPUT, 0, to=[3]))).items():
        if not line.startswith("inspect"):
            assert code in (2, 3)
            assert (out, len(err.splitlines())) == ("", 1)
            assert err.startswith(("error: trace of DigitsCNN: ", "error: inputs x.npy: "))


def test_recipes_and_trails_of_any_plain_values_are_shown_as_json(digits: Any, commands: Any) -> None:
    deep: Any = ESCAPE
    for _ in range(10):
        deep = [deep]
    recipe = [{ESCAPE: math.nan, "n": (1 << 63) - 1, "least": -(1 << 63), "": None, "\u202e": [deep, math.inf, -0.0]}]

    def change(header: Any) -> None:
        header[RECIPE] = header[TRAIL] = recipe

    found = commands(forged(digits["float"], change))
    assert [(code, err) for code, _, err in found.values()] == [(0, "")] * 6
    for _, out, _ in found.values():
        assert all(line.isprintable() for line in out.splitlines())
        assert "\x1b" not in out
    shown = json.loads(found["inspect net.lil --json"][1])["recipe"][0]
    assert shown["n"] == (1 << 63) - 1
    assert shown[ESCAPE] is None
    assert shown["\u202e"][1:] == [None, -0.0]


def test_headers_that_name_code_run_none(digits: Any) -> None:
    """Words that an unpickler, a YAML loader or an import would obey are words."""
    words = ["!!python/object/apply:os.system ['touch owned']", "c__builtin__\nexec", "__import__('os')", "os:system"]
    data = forged(digits["float"], set_(RECIPE, to=[{word: word} for word in words]))
    contents = container.loads(data)
    assert [next(iter(step)) for step in contents.recipe] == words
    assert contents.replay(open_model("digits-cnn")[0]).recipe == contents.recipe


def test_warnings_are_not_how_a_file_speaks(digits: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for name, data in FILES.items():
            header = wire.loads(opened(data)[0])
            assert len(header) == 8
            try:
                container.loads(forged(data, set_(INPUT, 1, to=""))).replay(fresh(name))
            except LilliputError as error:
                raise AssertionError(name) from error


def test_a_folded_network_is_not_run_when_it_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nn.Conv2d, "forward", lambda self, x: pytest.fail("run"))
    net = artifact("float")
    assert container.loads(container.dumps(net)).replay(fresh("float")).edits == []
    assert torch.equal(net.parameter("0.weight"), artifact("float").parameter("0.weight"))
