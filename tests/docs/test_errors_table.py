"""The table of docs/errors.md: each row is provoked, and what is raised has this class and this text, to the letter."""

import ast
import re
import sys
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import nn

import lilliput as ll
from lil_files import of, sealed
from lilliput.cli import using
from lilliput.core import container, errors
from lilliput.core.errors import LilliputError
from lilliput.core.guard import FullForward
from lilliput.core.method import Context, apply_checked_
from lilliput.core.program import Program
from lilliput.core.score import parse_drop
from lilliput.core.target import parse_bytes
from lilliput.export import circuit_folder, onnx, onnx_check
from lilliput.export.c import board_log, golden, project
from lilliput.export.c.interface import Interface
from lilliput.graph import answers
from lilliput.graph.lower import lower
from lilliput.pipeline.folder import RunFolder
from lilliput.pipeline.recipe import from_data
from lilliput.pipeline.recipe import load as load_recipe
from lilliput.pipeline.run import run
from lilliput.testing import tiny_model, tiny_task
from lilliput.training.checkpoint import read_checkpoint, write_checkpoint
from lilliput.zoo.registry import open_model

SOURCE = Path(ll.__file__).parent
DOCUMENT = Path(__file__).parents[2] / "docs" / "errors.md"
ROW = re.compile(r"\| `(\w+Error)` \| (.+?) \| (`+)(.+)\3 \|")
TABLE = [(cls, when, text) for cls, when, _, text in ROW.findall(DOCUMENT.read_text(encoding="utf-8"))]


def lil(name: str = "net.lil", change: Callable[[bytes], bytes] = lambda data: data) -> Path:
    Path(name).write_bytes(change(container.dumps(of(tiny_model("batch_norm")))))
    return Path(name)


def recipe(text: str, model: str = "linear") -> Any:
    Path("recipe.yaml").write_text(text)
    return run(tiny_model(model), tiny_task(), load_recipe("recipe.yaml"))


def own(code: str) -> Any:
    """`code` as mine.py, opened as a model."""
    Path("mine.py").write_text(code)
    try:
        return open_model("mine.py:make")
    finally:
        sys.modules.pop("mine", None)


def given(name: str, thing: Any) -> None:
    np.save(name, thing)


def without(package: str, use: Callable[[], Any]) -> Any:
    """As if the package were not installed."""
    with pytest.MonkeyPatch.context() as patch:
        for name in [n for n in sys.modules if n == package or n.startswith(f"{package}.")]:
            patch.delitem(sys.modules, name)
        patch.setitem(sys.modules, package, None)
        return use()


def exported() -> tuple[ll.Artifact, Path]:
    net = ll.Artifact.of(tiny_model("linear"), tiny_task().spec)
    onnx.export(net, "net.onnx", target="onnx-x86")
    return net, Path("net.onnx")


def hooked() -> nn.Module:
    model = tiny_model("linear")
    model.register_forward_hook(lambda module, x, y: y)
    return model


def broken() -> nn.Module:
    model = tiny_model("linear")
    with torch.no_grad():
        next(model.parameters()).fill_(torch.nan)
    return model


class Branching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(16, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.sum() > 0:
            return self.layer(x.flatten(1))
        return -self.layer(x.flatten(1))


class Sorting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(16, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.erfinv(self.layer(x.flatten(1)))


@dataclass(frozen=True, kw_only=True)
class Forgetful(ll.Pass):
    """Changes weights behind the encodings' back, or nothing, and says nothing."""

    name: ClassVar[str] = "forgetful"
    summary: ClassVar[str] = "forgets"

    writes: bool = False

    def apply_(self, net: ll.Artifact, context: Context) -> ll.PassResult:
        path, weight = next(iter(self.pick(net)[0].items()))
        if self.writes:
            net.encode_(weight, net.encoding(weight).with_mask(torch.ones(net.encoding(weight).shape)))
            with torch.no_grad():
                net.parameter(weight).add_(1)
        return ll.PassResult(changed={p: "x" for p in self.pick(net)[0] if self.writes or p != path}, skipped={})


def applied(method: ll.Pass, model: nn.Module) -> None:
    task = tiny_task()
    apply_checked_(method, ll.Artifact.of(model, task.spec), Context.of(task, model))


def verified() -> None:
    net, path = exported()
    with torch.no_grad():
        net.parameter("1.weight").mul_(2)
    onnx_check.check_with_runtime(
        path, net, torch.randn(8, *net.input.shape, generator=torch.Generator().manual_seed(0))
    )


def changed_run() -> None:
    folder = RunFolder.create("runs", "net").path
    for sparsity in (0.25, 0.75):
        plan = from_data([{"magnitude_pruning": {"sparsity": sparsity}}])
        run(tiny_model("linear"), tiny_task(), plan, folder=RunFolder(folder))


def damaged_run() -> None:
    folder = RunFolder.create("runs", "net")
    folder.write("run.json", "{")
    folder.read_json("run.json")


def damaged_checkpoint() -> None:
    Path("fit.ckpt").write_bytes(b"LILFIT1\n" + bytes(99))
    read_checkpoint(Path("fit.ckpt"), "a")


def other_checkpoint() -> None:
    write_checkpoint(Path("fit.ckpt"), "a", {})
    read_checkpoint(Path("fit.ckpt"), "b")


def inputs(thing: Any) -> None:
    given("x.npy", thing)
    using.read_inputs(Path("x.npy"), tiny_task().spec)


def features(network: str, name: str, x: Any) -> None:
    """The same arrays for every role, the second sample of label 1."""
    for role in ("train", "validation", "test"):
        np.savez(made(name) / f"{role}.npz", x=x, y=np.arange(2))
    open_model(network, data_root=".", trained=False)


def forged_file() -> None:
    data = container.dumps(of(tiny_model("batch_norm")))
    container.loads(sealed(data[:-4] + b"\x00"), source="net.lil")


def weights_of_another() -> None:
    torch.save(nn.Linear(3, 2).state_dict(), "other.pt")
    open_model("digits-cnn", weights="other.pt")


def integers() -> Program:
    net = of(tiny_model("linear"))
    apply_checked_(ll.Quantization(signed=True), net, Context.of(tiny_task(), net.module))
    return lower(net)


def firmware(interface: Interface | None = None, **files: bytes) -> golden.Golden:
    """A folder of C, fw, beside what was in it before."""
    for name, data in files.items():
        written(str(made("fw") / name), data)
    project.write(integers(), made("fw"), interface=interface)
    return golden.read(Path("fw"))


def edited_vectors() -> None:
    firmware()
    path = Path("fw/net_golden.h")
    path.write_text(path.read_text().replace("{-128", "{999", 1))
    golden.read(Path("fw"))


def sent(damage: Callable[[list[str]], list[str]], *, fingerprint: int | None = None, change: int = 0) -> None:
    """The log of a board; `change` is in the outputs of the last vector."""
    vectors = firmware()
    head = f"net {vectors.fingerprint if fingerprint is None else fingerprint:08x}"
    sums = [*vectors.sums[:-1], vectors.sums[-1] ^ change]
    rows = [f"lilliput vector {head} {i} {s:08x} 0" for i, s in enumerate(sums)]
    rows = [f"lilliput start {head} {len(rows)}", *rows, f"lilliput end {head} 0 400 1024"]
    lines = damage([f"{row} *{zlib.crc32(row.encode()):08x}" for row in rows])
    board_log.check_log(written("log.txt", "\n".join(lines).encode()), vectors)


X, Y = torch.zeros(40, 1, 4, 4), torch.arange(40) % 3

PROVOKE: dict[str, Callable[[], Any]] = {
    # UsageError
    "a target that is not known": lambda: ll.check(tiny_model("linear"), (1, 4, 4), target="cortex-m7"),
    "another data set for a network of your own": lambda: open_model("mine.py:make", data="digits"),
    "a network that is not in the zoo": lambda: open_model("digit-cnn"),
    "a network without weights": lambda: open_model("lenet5", data="digits"),
    "a file of a model that is not there": lambda: open_model("mine.py:make"),
    "a file of a model without that function": lambda: own("def build(): pass"),
    "a file of a model that Python cannot import": lambda: own("import nothing_of_this_name"),
    "a function that does not make a model": lambda: own("def make(): return 1"),
    "a size without a unit": lambda: parse_bytes("60k"),
    "a drop without a unit": lambda: parse_drop("0.5p", tiny_task().score, 0.0),
    "a class in place of a model": lambda: ll.compress(nn.Linear, tiny_task()),  # pyright: ignore[reportArgumentType]
    "a class in place of the module to load into": lambda: ll.load(lil(), into=nn.Linear),  # pyright: ignore[reportArgumentType]
    "a model with a hook": lambda: of(hooked()),
    "a model with broken weights": lambda: of(broken()),
    "a model in half precision": lambda: of(tiny_model("linear").half()),
    "a parameter that is not there": lambda: of(tiny_model("linear")).parameter("bla"),
    "a role that does not exist": lambda: using.role_of("valid"),
    "a `.lil` without graph to predict with, and no network": lambda: using.predict_file(lil(), Path("x.npy"), None),
    "a folder that is not one of a run": lambda: RunFolder.open(made("runs/x/y").parent),
    "weights that are not there": lambda: open_model("digits-cnn", weights="none.pt"),
    "weights of another network": weights_of_another,
    "a place where no file can be": lambda: container.save(of(tiny_model("linear")), lil() / "x.lil"),
    "a folder of C where a file of yours has a name of ours": lambda: firmware(Makefile=b"mine"),
    "a folder of C where a file has the place of a folder": lambda: firmware(emulate=b""),
    "a folder to verify that has no generated C": lambda: golden.read(made("fw")),
    "a log of a board that is not there": lambda: board_log.check_log(Path("log.txt"), firmware()),
    # DataError
    "a folder of data that is not there": lambda: open_model("lenet5", data_root="data"),
    "a DataLoader": lambda: ll.Task.classification(train=torch.utils.data.DataLoader([(X[0], 1)]), test=(X, Y)),  # pyright: ignore[reportArgumentType]
    "inputs and targets of different numbers": lambda: ll.Task.classification(train=(X, Y[:9]), test=(X, Y)),
    "inputs that are not floats": lambda: batch_of(X.byte()),
    "inputs with NaN": lambda: batch_of(X * torch.nan),
    "a network that answers with NaN": lambda: FullForward(tiny_task(), broken())(broken(), "validation"),
    "samples of another shape": lambda: inputs(np.zeros((2, 3, 3))),
    "samples that are no numbers": lambda: inputs(np.array(["a"])),
    "an empty batch": lambda: inputs(np.zeros((0, 1, 4, 4))),
    "a file of samples that is not there": lambda: using.read_inputs(Path("none.npy"), None),
    "a threshold for anomalies without normal samples": lambda: answers.anomaly_threshold(
        integers(), ll.Task.anomaly(validation=(X, torch.ones(40)))
    ),
    "features that the user has to make": lambda: open_model("ds-cnn", data_root=".", trained=False),
    "images with channels last": lambda: features("mobilenet-025", "visual-wake-words", np.zeros((2, 96, 96, 3))),
    "an anomaly among the samples to train on": lambda: features("autoencoder-ad", "toyadmos", np.zeros((2, 640))),
    # RecipeError
    "a recipe that is not there": lambda: load_recipe("none.yaml"),
    "a recipe that is not YAML": lambda: recipe("passes: ["),
    "a recipe of a later version": lambda: recipe("{lilliput: 2, passes: [quantization]}"),
    "a key that is not known": lambda: recipe("{pases: [quantization]}"),
    "a method that is not known": lambda: recipe("[quantisation]"),
    "a setting that is not known": lambda: recipe("[magnitude_pruning: {sparcity: 0.5}]"),
    "a setting out of range": lambda: recipe("[magnitude_pruning: {sparsity: 1.5}]"),
    "a setting of another type": lambda: recipe("[weight_clustering: {n_clusters: many}]"),
    "a guard that looks at the test data": lambda: recipe(
        "{guard: {max_drop: 1pt, role: test}, passes: [quantization]}"
    ),
    "a pattern that matches nothing": lambda: recipe('[magnitude_pruning: {sparsity: 0.5, skip: ["fc*"]}]'),
    "an order that cannot work": lambda: recipe("[quantization, fine_tune: {epochs: 1}]"),
    # ArtifactError
    "a `.lil` that is not there": lambda: container.read("net.lil"),
    "a `.lil` without bytes": lambda: container.read(lil(change=lambda data: b"")),
    "another kind of file": lambda: container.read(lil(change=lambda data: b"PK" + data)),
    "a `.lil` of a later version": lambda: container.read(lil(change=lambda data: data[:3] + b"\x02" + data[4:])),
    "a `.lil` that is cut off or changed": lambda: container.read(lil(change=lambda data: data[:-1])),
    "a `.lil` made to deceive": forged_file,
    "a `.lil` of another network": lambda: ll.load(lil(), into=tiny_model("linear")),
    "a checkpoint that is damaged": damaged_checkpoint,
    "a checkpoint of another training": other_checkpoint,
    "a run folder that is damaged": damaged_run,
    "a run that is resumed with another recipe": changed_run,
    "an ONNX file that ONNX Runtime refuses": lambda: using.OnnxModule(written("net.onnx", b"no")),
    "golden vectors that somebody has edited": edited_vectors,
    "a log of a board that is cut off": lambda: sent(lambda rows: rows[:3]),
    "a log of a board with a damaged line": lambda: sent(lambda rows: [rows[0], rows[1][:-1], *rows[2:]]),
    "a log of a board with another firmware": lambda: sent(lambda rows: rows, fingerprint=0),
    # MissingExtraError
    "ONNX is asked for, and not installed": lambda: without("onnx", exported),
    "ONNX Runtime is needed, and not installed": lambda: without(
        "onnxruntime", lambda: using.OnnxModule(written("net.onnx", b"no"))
    ),
    "an image is given, and Pillow is not installed": lambda: without(
        "PIL", lambda: using.read_inputs(written("x.png", b"no"), None)
    ),
    # MethodError
    "a method that forgets a layer": lambda: applied(Forgetful(), tiny_model("linear")),
    "a method that writes weights behind an encoding": lambda: applied(Forgetful(writes=True), tiny_model("linear")),
    # UnsupportedError, ExportError, VerificationError
    "a network whose way depends on data": lambda: applied(ll.Quantization(), Branching()),
    "an operation without a form in ONNX": lambda: onnx.export(of(Sorting()), "net.onnx", target="onnx-x86"),
    "a threshold for a network that is not for anomalies": lambda: firmware(interface=Interface(threshold=1.0)),
    "circuits of a network that has none": lambda: circuit_folder.write(of(tiny_model("linear")), made("circuits")),
    "an ONNX file that computes something else": verified,
    "a board that computes something else": lambda: sent(lambda rows: rows, change=1),
}


def made(path: str) -> Path:
    Path(path).mkdir(parents=True, exist_ok=True)
    return Path(path)


def written(name: str, data: bytes) -> Path:
    Path(name).write_bytes(data)
    return Path(name)


def batch_of(x: torch.Tensor) -> Any:
    return ll.Task.classification(train=(x, Y), validation=(x, Y), test=(x, Y)).data("train").batch(torch.arange(4))


@pytest.mark.parametrize(("cls", "when", "text"), TABLE, ids=[when for _, when, _ in TABLE])
def test_error_is_of_the_class_and_has_the_text_of_the_table(
    cls: str, when: str, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(LilliputError) as raised:
        PROVOKE[when]()
    error = raised.value
    pattern = ".+".join(re.escape(part) for part in text.split("..."))  # "...": what another package says
    assert type(error).__name__ == cls
    assert re.fullmatch(pattern, str(error)), str(error)
    assert str(error) == errors.one_line(f"{error.asked}: {error.found}; {error.do}")
    assert str(error).isprintable()


def test_every_row_is_provoked_and_every_class_that_is_raised_has_a_row() -> None:
    assert [when for _, when, _ in TABLE] == list(PROVOKE)
    family = {name for name, e in vars(errors).items() if isinstance(e, type) and issubclass(e, LilliputError)}
    used = set()
    for path in SOURCE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in family:
                used.add(node.func.id)
    assert {cls for cls, _, _ in TABLE} == used


def test_every_error_that_the_source_raises_has_three_parts() -> None:
    family = {name for name, e in vars(errors).items() if isinstance(e, type) and issubclass(e, LilliputError)}
    calls = [
        node
        for path in SOURCE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in family
    ]
    assert len(calls) > 200
    for call in calls:
        assert len(call.args) == 3 or any(isinstance(a, ast.Starred) for a in call.args), ast.unparse(call)
        last = call.args[-1]
        assert not (isinstance(last, ast.Constant) and not last.value), ast.unparse(call)
