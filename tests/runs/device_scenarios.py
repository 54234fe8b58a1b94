"""Everything that takes a device, on a fake one and on the CPU: the results must be the same bits.

Prints {scenario: ""} or {scenario: traceback} as JSON. In a process of its own, for the device cannot be taken back.
"""

import contextlib
import dataclasses
import io
import json
import sys
import tempfile
import time
import traceback
from functools import partial
from pathlib import Path

import fake_device
import pytest
import torch

import lilliput.graph.trace
from contract.test_methods import SETTINGS
from lilliput.auto.check import check
from lilliput.auto.compress import compress
from lilliput.auto.load import load, load_artifact
from lilliput.cli.main import run as command
from lilliput.core import container, guard
from lilliput.core.artifact import Artifact
from lilliput.core.encoding import Encoding, Grid
from lilliput.core.errors import RecipeError, UsageError
from lilliput.core.guard import FullForward, MaxDrop
from lilliput.core.method import Context, apply_checked_
from lilliput.core.progress import Progress
from lilliput.export import onnx
from lilliput.graph.integer import IntegerNet, runnable
from lilliput.graph.trace import trace
from lilliput.measure.macs import count_macs
from lilliput.measure.memory import plan_memory
from lilliput.measure.peak import peak_tensor_bytes
from lilliput.methods.normalization import batchnorm
from lilliput.pipeline.folder import RunFolder
from lilliput.pipeline.recipe import Recipe, from_data
from lilliput.pipeline.run import run
from lilliput.report.difference import difference
from lilliput.testing import tiny_model, tiny_task
from lilliput.training import calibrate
from lilliput.training import fit as fit_module
from lilliput.training.fit import fit
from lilliput.training.hooks import Hook
from lilliput.training.settings import FitSettings
from traced_once import TracedOnce

TUNE = {"fine_tune": {"epochs": 2, "batch_size": 16}}
RECIPES = {
    "everything": [
        "fold_batchnorm",
        [{"magnitude_pruning": {"sparsity": 0.4}}, TUNE],
        [{"weight_clustering": {"n_clusters": 4}}, TUNE],
        "quantization",
    ],
    "weights only": [{"quantization": {"activation_bits": 0, "weight_bits": 4}}, TUNE],
}


def recipe(passes):
    built = from_data({"lilliput": 1, "seed": 1, "threads": 1, "passes": passes})
    return dataclasses.replace(
        built, steps=tuple(dataclasses.replace(s, guard=MaxDrop(max_drop="100pt")) for s in built.steps)
    )


def same(a, b):
    assert a.device.type == b.device.type == "cpu", (a.device, b.device)
    assert torch.equal(a, b), (a - b).abs().max()


def ran(model, passes, device, task=None, **more):
    return container.dumps(
        run(tiny_model(model), task or tiny_task(48), recipe(passes), device=device, **more).artifact
    )


def runs(model, passes):
    def scenario():
        assert ran(model, passes, "fake") == ran(model, passes, "cpu")

    return scenario


def integers_move():
    """A quantized network is moved like any other module, and back."""
    for name in ("conv1d", "residual", "shared", "grouped"):
        net = run(tiny_model(name), tiny_task(48), recipe(["fold_batchnorm", "quantization"])).artifact
        x = net.input.example(5)
        wanted = runnable(net)(x)
        moved = runnable(net).to("fake")
        found = moved(x.to("fake"))
        assert found.device.type == "fake"
        same(found.cpu(), wanted)
        same(moved.cpu()(x), wanted)


def evaluators_take_a_device():
    """A network on the device; data and results stay on the CPU."""
    task, found = tiny_task(48), {}
    for device in ("cpu", "fake"):
        model = tiny_model("residual").to(device)
        evaluator = FullForward(task, model, device=device, batch_size=20)
        found[device] = evaluator(model, "validation")
    for name in ("rows", "ok", "outputs"):
        same(getattr(found["fake"], name), getattr(found["cpu"], name))


def a_forward_may_use_the_targets():
    """`task.forward(model, batch)` gets the whole batch: inputs and targets are on one device."""
    task = dataclasses.replace(
        tiny_task(48), forward=lambda model, batch: model(batch[0] + 0 * batch[1].reshape(-1, 1, 1, 1))
    )
    assert ran("linear", RECIPES["everything"], "fake", task) == ran("linear", RECIPES["everything"], "cpu", task)


def contexts_take_a_device():
    """Each method by itself, on a network that is on the device."""
    task, found = tiny_task(48), {}
    for method in (m for methods in SETTINGS.values() for m in methods):
        for device in ("cpu", "fake"):
            net = Artifact.of(tiny_model("batch_norm"), task.spec).to_(device)
            context = Context.of(task, tiny_model("batch_norm").to(device), seed=1, device=device)
            try:
                apply_checked_(method, net, context)
            except RecipeError as error:
                found[device] = str(error)
                continue
            assert {t.device.type for t in net.module.state_dict().values()} == {device}
            net.check()
            found[device] = container.dumps(net)
        assert found["cpu"] == found["fake"], method


def fit_takes_a_device():
    """Distillation, augmentation, hooks and checkpoints; interrupted on one device, gone on with on the other."""
    task = dataclasses.replace(tiny_task(48), augment=lambda x, g: x + 0.1 * torch.rand(x.shape, generator=g))
    settings = FitSettings(epochs=3, batch_size=16, distillation=0.5, gradient_clip=1.0)
    results = []
    with tempfile.TemporaryDirectory() as folder:
        for i, devices in enumerate((("cpu",), ("fake",), ("cpu", "fake"), ("fake", "cpu"))):
            checkpoint = Path(folder) / f"{i}.checkpoint"
            for part, device in enumerate(devices):
                net = Artifact.of(tiny_model("batch_norm"), task.spec)
                net.encode_("4.weight", net.encoding("4.weight").with_mask(torch.arange(48).reshape(3, 16) % 3 > 0))
                try:
                    fit(
                        net,
                        task,
                        settings,
                        generator=torch.Generator().manual_seed(3),
                        device=device,
                        checkpoint=checkpoint,
                        teacher=tiny_model("batch_norm", 1),
                        penalties=[lambda module: 0.01 * module.get_parameter("0.weight").abs().sum()],
                        hooks=[Stop(2 if part + 1 < len(devices) else None)],
                    )
                except InterruptedError:
                    assert {p.device.type for p in net.module.parameters()} == {"cpu"}
            net.check()
            results.append(container.dumps(net))
    assert len(set(results)) == 1


class Stop(Hook):
    def __init__(self, epoch):
        self.epoch = epoch

    def on_epoch(self, moment):
        if moment.epoch == self.epoch:
            raise InterruptedError


def runs_change_the_device():
    """Interrupted on one device, gone on with on the other."""

    class Impatient(Progress):
        def say(self, text):
            if text.startswith("weight_clustering"):
                raise InterruptedError

    wanted = ran("batch_norm", RECIPES["everything"], "cpu")
    for devices in (("cpu", "fake"), ("fake", "cpu")):
        with tempfile.TemporaryDirectory() as folder:
            where = RunFolder(Path(folder))
            with contextlib.suppress(InterruptedError):
                ran("batch_norm", RECIPES["everything"], devices[0], folder=where, progress=Impatient())
            assert ran("batch_norm", RECIPES["everything"], devices[1], folder=where) == wanted


def compress_takes_a_device():
    """The front door, measurements and exports included; the model may be on the device or not."""
    task = tiny_task(48)
    task = dataclasses.replace(task, test=task.validation)
    texts = []
    for place, device in (("cpu", "cpu"), ("cpu", "fake"), ("fake", "fake"), ("fake", "cpu")):
        model = tiny_model("residual").to(place)
        result = compress(model, task, recipe=recipe(["fold_batchnorm", "quantization"]), device=device)
        assert {p.device.type for p in model.parameters()} == {place}
        assert {t.device.type for t in result.artifact.module.state_dict().values()} == {"cpu"}
        columns = [c.measurements for c in result.columns]
        volatile = ("latency", "latency ratio", "peak memory")
        measured = [{n: m.value for n, m in c.items() if n not in volatile} for c in columns]
        texts.append((container.dumps(result.artifact), repr(measured), result.columns[-1].notes))
        assert all("latency" in c for c in columns)
        assert "no ONNX" not in repr(result.columns)
    assert all(text == texts[0] for text in texts), [t[1] for t in texts]


def load_goes_where_the_module_is():
    """`into` on the device, or moved there afterwards."""
    net = run(tiny_model("batch_norm"), tiny_task(48), recipe(RECIPES["everything"])).artifact
    x = net.input.example(5)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "net.lil"
        container.save(net, path)
        wanted = load(path, tiny_model("batch_norm"))(x)
        for loaded in (
            load(path, tiny_model("batch_norm").to("fake")),
            load(path, tiny_model("batch_norm")).to("fake"),
        ):
            found = loaded(x.to("fake"))
            assert found.device.type == "fake"
            same(found.cpu(), wanted)
        artifact = load_artifact(path, tiny_model("batch_norm").to("fake"))
        artifact.check()
        assert container.dumps(artifact) == path.read_bytes()
        there = difference(artifact, tiny_model("batch_norm").to("fake"), tiny_task(48))
        here = difference(load_artifact(path, tiny_model("batch_norm")), tiny_model("batch_norm"), tiny_task(48))
        assert str(there) == str(here)
        onnx.export(artifact, Path(folder) / "there.onnx", target="onnx-x86")
        onnx.export(load_artifact(path, tiny_model("batch_norm")), Path(folder) / "here.onnx", target="onnx-x86")
        assert (Path(folder) / "there.onnx").read_bytes() == (Path(folder) / "here.onnx").read_bytes()


def measuring_takes_any_device():
    """Traces, operations and memory plans of a network on the device."""
    for name in ("batch_norm", "conv1d", "grouped"):
        nets = [run(tiny_model(name), tiny_task(48), recipe(["quantization"])).artifact.to_(d) for d in ("cpu", "fake")]
        counts = []
        for net in nets:
            graph = trace(net.module, net.input.example(2))
            table = count_macs(graph, net)
            counts.append((plan_memory(graph, net), {n: table.total(n).value for n in table.names()}))
            assert peak_tensor_bytes(net.module, net.input.example(1)).value > 0
        assert counts[0] == counts[1]
        report = [str(check(tiny_model(name).to(d), tiny_task(48))) for d in ("cpu", "fake")]
        assert report[0] == report[1]


def the_command_takes_a_device():
    """--device, wherever there is one."""
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        Path("net.py").write_text(MODEL)
        Path("r.yaml").write_text(
            "lilliput: 1\nthreads: 1\npasses: [magnitude_pruning, fine_tune: {epochs: 1}, quantization]"
        )
        for device in ("cpu", "fake"):
            common = ["--device", device, "-q"]
            assert command(["compress", "net.py:make", "--recipe", "r.yaml", "--out", device, *common]) in (0, 1)
            assert command(["train", "net.py:make", "--epochs", "2", "--out", f"{device}.lil", *common]) == 0
        assert Path("cpu.lil").read_bytes() == Path("fake.lil").read_bytes()
        assert Path("cpu/latest/net.lil").read_bytes() == Path("fake/latest/net.lil").read_bytes()


def names_of_devices_are_checked():
    """One clear line, before anything is done."""
    task, model = tiny_task(48), tiny_model("linear")
    net, generator = Artifact.of(model, task.spec), torch.Generator()
    takers = (
        partial(run, model, task, Recipe()),
        partial(compress, model, task),
        partial(Context.of, task, model),
        partial(FullForward, task, model),
        partial(fit, net, task, FitSettings(epochs=1), generator=generator),
        partial(calibrate.observe_ranges, net, task, []),
    )
    for name in ("cuda", "nonsense", "cuda:99", "meta", "mps", ""):
        for take in takers:
            with pytest.raises(UsageError) as error:
                take(device=name)
            assert str(error.value).startswith(f"device {name!r}: "), str(error.value)
            assert "\n" not in str(error.value)


def mixing_is_noticed():
    """The fake device is worth nothing if it forgives."""
    x, y = torch.ones(3, device="fake"), torch.ones(3)
    for mix in (lambda: x + y, lambda: torch.cat([x, y]), lambda: x @ y, lambda: torch.where(y > 0, x, x), x.numpy):
        try:
            mix()
        except (RuntimeError, TypeError):
            continue
        raise AssertionError("tensors of two devices were mixed")


def a_move_that_is_forgotten_is_noticed():
    """Each line of the code that moves something is left out in turn: some scenario must fail."""
    stay = {
        (guard, "moved"): evaluators_take_a_device,
        (fit_module, "moved"): runs("batch_norm", RECIPES["everything"]),
        (calibrate, "moved"): runs("batch_norm", RECIPES["everything"]),
        (batchnorm, "moved"): contexts_take_a_device,
        (Artifact, "to_"): runs("batch_norm", RECIPES["everything"]),
        (Encoding, "to"): load_goes_where_the_module_is,
        (Grid, "to"): runs("batch_norm", RECIPES["everything"]),
        (IntegerNet, "_build"): integers_move,
    }
    for (owner, name), scenario in stay.items():
        kept = getattr(owner, name)
        setattr(owner, name, lambda value, *device: value)
        try:
            with contextlib.redirect_stderr(io.StringIO()):
                scenario()
        except Exception as error:  # noqa: BLE001 - whatever notices it
            if isinstance(error, AssertionError) and not str(error):
                continue
        else:
            raise AssertionError(f"nothing fails without {owner.__name__}.{name}")
        finally:
            setattr(owner, name, kept)


MODELS = ("batch_norm", "conv1d", "residual", "shared", "grouped")
MODEL = """
from lilliput.testing import tiny_model, tiny_task

def make():
    return tiny_model("batch_norm"), tiny_task(48)
"""
SCENARIOS = {f"{name} on {model}": runs(model, passes) for name, passes in RECIPES.items() for model in MODELS}
SCENARIOS |= {
    f.__name__: f
    for f in (
        mixing_is_noticed,
        integers_move,
        evaluators_take_a_device,
        a_forward_may_use_the_targets,
        contexts_take_a_device,
        fit_takes_a_device,
        runs_change_the_device,
        compress_takes_a_device,
        load_goes_where_the_module_is,
        measuring_takes_any_device,
        the_command_takes_a_device,
        names_of_devices_are_checked,
        a_move_that_is_forgotten_is_noticed,
    )
}


def main():
    torch.set_num_threads(1)
    fake_device.install()
    pytest.MonkeyPatch().setattr(lilliput.graph.trace, "trace", TracedOnce())
    answers = {}
    for name, scenario in SCENARIOS.items():
        started = time.monotonic()
        try:
            with contextlib.redirect_stdout(sys.stderr):
                scenario()
            answers[name] = ""
        except Exception:  # noqa: BLE001 - it is reported
            answers[name] = traceback.format_exc(limit=-6)
        sys.stderr.write(f"{name}: {time.monotonic() - started:.1f} s\n")
    json.dump(answers, sys.stdout)


if __name__ == "__main__":
    main()
