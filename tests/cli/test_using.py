"""Commands that use files: they compute what Python computes, and name what is wrong with a file."""

import json
import shutil
import subprocess

import numpy as np
import pytest
import torch

from lilliput.auto.load import load
from lilliput.cli.using import read_inputs
from lilliput.core import container
from lilliput.core.artifact import Artifact, InputSpec
from lilliput.core.errors import DataError
from lilliput.zoo.registry import open_model

SHAPE = (1, 8, 8)


@pytest.fixture(scope="session")
def digits():
    return open_model("digits-cnn")


@pytest.fixture(scope="session")
def net(finished):
    return finished / "net.lil"


@pytest.fixture
def samples(tmp_path, digits):
    x = digits[1].data("test").batch(torch.arange(5))[0].numpy()
    np.save(tmp_path / "x.npy", x)
    return tmp_path / "x.npy"


# --- evaluate --------------------------------------------------------------------------------------------------------


def test_every_form_of_a_network_is_evaluated_alike(call, net, finished, digits):
    model, task = digits
    x, y = task.data("test").batch(torch.arange(len(task.data("test"))))
    with torch.no_grad():
        wanted = {
            "model": task.score.value(task.score.statistics(model(x), y)),
            ".lil": task.score.value(task.score.statistics(load(net, into=model_of(digits))(x), y)),
        }
    answers = {
        "model": call("evaluate", "digits-cnn", "--json", "-q"),
        ".lil": call("evaluate", net, "--into", "digits-cnn", "--json", "-q"),
        ".onnx": call("evaluate", finished / "ours.onnx", "--into", "digits-cnn", "--json", "-q"),
    }
    assert [a.code for a in answers.values()] == [0, 0, 0]
    found = {name: json.loads(a.out) for name, a in answers.items()}
    assert found["model"]["value"] == pytest.approx(wanted["model"])
    assert found[".lil"]["value"] == pytest.approx(wanted[".lil"])
    assert abs(found[".onnx"]["value"] - wanted[".lil"]) <= 100 / len(y)
    assert found[".onnx"]["runtime"] == "ONNX Runtime"
    assert found["model"]["samples"] == len(y)
    low, high = found["model"]["interval"]
    assert low < found["model"]["value"] < high


def model_of(digits):
    return type(digits[0])()


def test_evaluate_prints_score_interval_role_and_runtime(call, net):
    answer = call("evaluate", net, "--into", "digits-cnn", "--role", "validation")
    assert answer.code == 0
    assert answer.out.startswith("accuracy 9")
    assert "(validation, 360 samples, torch " in answer.out
    assert answer.out.rstrip().endswith(", .lil)")


# --- predict ---------------------------------------------------------------------------------------------------------


def test_predictions_are_the_networks_outputs(call, net, finished, digits, samples):
    with torch.no_grad():
        wanted = load(net, into=model_of(digits))(torch.from_numpy(np.load(samples)))
    for arguments in ((net, samples, "--into", "digits-cnn"), (finished / "ours.onnx", samples)):
        answer = call("predict", *arguments, "--json")
        rows = json.loads(answer.out)
        assert answer.code == 0
        assert [r["class"] for r in rows] == wanted.argmax(1).tolist()
        assert torch.allclose(torch.tensor([r["outputs"] for r in rows]), wanted, atol=1e-3 * float(wanted.std()))
        assert [r["label"] for r in rows] == [str(c) for c in wanted.argmax(1).tolist()]
    text = call("predict", net, samples, "--into", "digits-cnn").out.splitlines()
    assert [line.split(":")[0] for line in text] == list("01234")


@pytest.mark.parametrize("name", ["net.lil", "ours.onnx"])
def test_one_sample_needs_no_batch(call, finished, tmp_path, name):
    np.save(tmp_path / "one.npy", np.zeros(SHAPE, dtype=np.uint8))
    into = ("--into", "digits-cnn") if name.endswith(".lil") else ()
    answer = call("predict", finished / name, tmp_path / "one.npy", *into, "--json")
    assert answer.code == 0
    assert len(json.loads(answer.out)) == 1


ARRAYS = {
    "wrong shape": (np.zeros((3, 8, 8)), "shape (3, 8, 8); give one sample of shape (1, 8, 8), or a batch of them"),
    "nan": (np.full((2, 1, 8, 8), np.nan), "NaN or infinity; clean the inputs"),
    "inf": (np.full((2, 1, 8, 8), np.inf), "NaN or infinity; clean the inputs"),
    "empty": (np.zeros((0, 1, 8, 8)), "no samples in it; give at least one"),
    "a number": (np.array(1.0), "no samples in it; give at least one"),
    "text": (np.array(["a"]), "an array of <U1; save one array of numbers with numpy.save"),
    "complex": (np.zeros(SHAPE, dtype=complex), "an array of complex128; save one array of numbers with numpy.save"),
}


@pytest.mark.parametrize("file", ["net.lil", "ours.onnx"])
@pytest.mark.parametrize("name", ARRAYS)
def test_inputs_that_do_not_fit_are_one_line(call, finished, tmp_path, name, file):
    array, text = ARRAYS[name]
    np.save(tmp_path / "x.npy", array)
    into = ("--into", "digits-cnn") if file.endswith(".lil") else ()
    answer = call("predict", finished / file, tmp_path / "x.npy", *into)
    assert (answer.code, answer.out) == (2, "")
    assert answer.err == f"error: inputs {tmp_path / 'x.npy'}: {text}\n"


def test_pickled_torn_and_missing_inputs_are_refused(call, net, tmp_path):
    np.save(tmp_path / "pickled.npy", np.array([{}], dtype=object), allow_pickle=True)
    np.save(tmp_path / "torn.npy", np.zeros((9, *SHAPE)))
    torn = (tmp_path / "torn.npy").read_bytes()[:-9]
    (tmp_path / "torn.npy").write_bytes(torn)
    (tmp_path / "text.npy").write_text("hello")
    with (tmp_path / "several.npy").open("wb") as file:
        np.savez(file, a=np.zeros(SHAPE), b=np.zeros(SHAPE))
    (tmp_path / "text.png").write_text("hello")
    for name, text in {
        "pickled.npy": "not a .npy file of numbers",
        "torn.npy": "not a .npy file of numbers",
        "text.npy": "not a .npy file of numbers",
        "several.npy": "several arrays; save one array of numbers with numpy.save",
        "none.npy": "no such file; check the path",
        "text.png": "it is not an image that can be read",
    }.items():
        answer = call("predict", net, tmp_path / name, "--into", "digits-cnn")
        assert answer.code == 2
        assert text in answer.err
        assert len(answer.err.splitlines()) == 1


def test_an_image_is_scaled_and_normalized_as_the_network_expects(tmp_path):
    image = pytest.importorskip("PIL.Image")
    pixels = np.arange(48, dtype=np.uint8).reshape(4, 4, 3) * 5
    image.fromarray(pixels).save(tmp_path / "x.png")
    plain = read_inputs(tmp_path / "x.png", InputSpec(shape=(3, 4, 4)))
    assert torch.allclose(plain[0], torch.from_numpy(pixels).permute(2, 0, 1) / 255)
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.6, 0.7)
    normal = read_inputs(tmp_path / "x.png", InputSpec(shape=(3, 4, 4), mean=mean, std=std))
    assert torch.allclose(normal[0, 1], (plain[0, 1] - 0.2) / 0.6)
    grey = read_inputs(tmp_path / "x.png", InputSpec(shape=(1, 4, 4)))
    assert grey.shape == (1, 1, 4, 4)
    with pytest.raises(DataError, match=r"give one sample of shape \(3, 5, 5\)"):
        read_inputs(tmp_path / "x.png", InputSpec(shape=(3, 5, 5)))


# --- inspect, diff, export, verify -----------------------------------------------------------------------------------


def test_inspect_accounts_for_every_byte(call, net):
    answer = call("inspect", net, "--json")
    data = json.loads(answer.out)
    assert data["bytes"] == net.stat().st_size
    assert data["overhead"] + sum(t["bytes"] for t in data["tensors"]) == data["bytes"]
    assert data["edits"][0].startswith("Fold(layer='stem.0'")
    assert data["recipe"][0]["recipe"]["seed"] == 2
    text = call("inspect", net).out
    assert f"{data['bytes']:,} bytes" in text
    assert all(t["name"] in text for t in data["tensors"])
    assert "activation input: 8 bits unsigned, scale " in text


def test_diff_names_layers_and_flips_as_plain_json(call, net, tmp_path):
    answer = call("diff", net, "--against", "digits-cnn", "--json")
    data = json.loads(answer.out, parse_constant=pytest.fail)
    assert answer.code == 0
    assert {"stem.0", "residual.0", "add", "widen.0", "linear"} == set(data["sqnr"])
    assert data["samples"] == 360
    assert "SQNR dB" in call("diff", net, "--against", "digits-cnn").out
    model, task = open_model("digits-cnn")
    container.save(container_of(model, task), tmp_path / "same.lil")
    same = call("diff", tmp_path / "same.lil", "--against", "digits-cnn", "--json")
    assert set(json.loads(same.out, parse_constant=pytest.fail)["sqnr"].values()) == {None}


def container_of(model, task):
    from lilliput.core.artifact import Artifact

    return Artifact.of(model, task.spec)


def test_export_makes_its_folder_and_verify_agrees(call, net, tmp_path):
    answer = call("export", net, "--into", "digits-cnn", "--out", tmp_path / "a" / "b", "--json")
    data = json.loads(answer.out)
    assert answer.code == 0
    assert data["bytes"] == (tmp_path / "a" / "b" / "net.onnx").stat().st_size
    assert data["in_float"] == {}
    answer = call("verify", net, "--onnx", data["file"], "--into", "digits-cnn", "--samples", 50)
    assert answer.code == 0
    assert f"{data['file']} computes what {net} computes: " in answer.out
    arm = call("export", net, "--into", "digits-cnn", "--out", tmp_path / "arm", "--target", "onnx-arm")
    assert arm.code == 0
    assert call("verify", net, "--onnx", tmp_path / "arm" / "net.onnx", "--into", "digits-cnn").code == 0


def test_a_fixed_batch_is_in_the_file(call, net, tmp_path):
    import onnxruntime

    answer = call("export", net, "--into", "digits-cnn", "--out", tmp_path, "--static-batch", 1)
    assert answer.code == 0
    session = onnxruntime.InferenceSession(str(tmp_path / "net.onnx"), providers=["CPUExecutionProvider"])
    assert session.get_inputs()[0].shape == [1, *SHAPE]
    assert call("verify", net, "--onnx", tmp_path / "net.onnx", "--into", "digits-cnn", "--samples", 20).code == 0


def test_verify_of_another_file_is_exit_code_four(call, net, finished):
    answer = call("verify", net, "--onnx", finished / "float.onnx", "--into", "digits-masks")
    assert answer.code == 2
    other = finished / "float.onnx"
    pruned = finished.parent / "other.lil"
    shutil.copy(net, pruned)
    answer = call("verify", net, "--onnx", other, "--into", "digits-cnn")
    if answer.code == 0:  # so close are they: then make them differ for certain
        pytest.fail("float.onnx passed for the compressed network")
    assert answer.code == 4
    assert "outputs differ by" in answer.err


def test_targets_without_an_onnx_preset_are_refused(call, net, tmp_path):
    answer = call("export", net, "--into", "digits-cnn", "--out", tmp_path, "--target", "cortex-m4")
    assert answer.code == 2
    assert "it names no ONNX preset; use onnx-x86 or onnx-arm" in answer.err


# --- files that are not what they should be --------------------------------------------------------------------------


def commands(lil, onnx, samples):
    return {
        "evaluate": ("evaluate", lil, "--into", "digits-cnn", "-q"),
        "predict": ("predict", lil, samples, "--into", "digits-cnn"),
        "inspect": ("inspect", lil),
        "diff": ("diff", lil, "--against", "digits-cnn"),
        "export": ("export", lil, "--into", "digits-cnn", "--out", lil.parent / "fw"),
        "verify": ("verify", lil, "--onnx", onnx, "--into", "digits-cnn"),
    }


@pytest.mark.parametrize("command", ["evaluate", "predict", "inspect", "diff", "export", "verify"])
def test_a_damaged_or_missing_file_is_one_line(call, net, finished, samples, tmp_path, command):
    whole = net.read_bytes()
    for content, text in {
        whole[:-5]: "the checksum does not match: truncated or damaged; copy or make the file again",
        whole[:3] + b"\x07" + whole[4:]: "format version 7; this Lilliput reads version 1; update it",
        b"": "it is empty; give a .lil file",
        None: "no such file; check the path",
    }.items():
        path = tmp_path / "bad.lil"
        path.unlink(missing_ok=True)
        if content is not None:
            path.write_bytes(content)
        answer = call(*commands(path, finished / "ours.onnx", samples)[command])
        assert (answer.code, answer.out) == (2, "")
        assert answer.err == f"error: read {path}: {text}\n"


@pytest.mark.parametrize("command", ["evaluate", "predict", "export", "verify", "diff"])
def test_a_file_of_another_network_is_refused(call, net, finished, samples, command):
    arguments = [
        "diabetes" if a == "digits-cnn" else a for a in commands(net, finished / "ours.onnx", samples)[command]
    ]
    answer = call(*arguments)
    assert answer.code == 2
    assert "diabetes" in answer.err or "load into TinyRegressor: its fingerprint is" in answer.err


def test_files_run_from_their_own_graph(call, net, samples, finished, tmp_path):
    """As they do in the module that they were made from."""
    for command in (
        ("predict", net, samples, "--json"),
        ("export", net, "--out", tmp_path / "onnx", "--json"),
        ("export", net, "--out", tmp_path / "c", "--to", "c", "--json"),
        ("verify", net, "--onnx", finished / "ours.onnx", "--data", "digits", "--samples", 50),
        ("evaluate", net, "--data", "digits", "--json", "-q"),
    ):
        plain, named = (
            call(*command),
            call(*(a for a in command if a not in ("--data", "digits")), "--into", "digits-cnn"),
        )
        assert (plain.code, plain.out) == (named.code, named.out) == (0, plain.out)
    answer = call("verify", net, "--onnx", finished / "ours.onnx", "--samples", 50)
    assert answer.code == 0
    assert f"{finished / 'ours.onnx'} computes what {net} computes, on 50 random samples: " in answer.out
    assert call("evaluate", finished / "ours.onnx", "--data", "digits", "-q").code == 0


def test_evaluating_a_file_needs_data(call, net, finished):
    for file in (net, finished / "ours.onnx"):
        answer = call("evaluate", file)
        assert answer.code == 2
        text = "no data; name them, or the model with this task: --data digits or --into digits-cnn"
        assert answer.err == f"error: evaluate {file}: {text}\n"
    answer = call("evaluate", net, "--data", "none")
    assert answer.code == 2
    assert answer.err.startswith("error: --data none: not a data set; use one of digits, ")


def test_a_file_without_graph_needs_its_model(call, samples, tmp_path):
    model, task = open_model("digits-cnn")
    path = tmp_path / "plain.lil"
    container.save(Artifact.of(model, task.spec), path)
    for command in (
        ("predict", path, samples),
        ("export", path, "--out", tmp_path),
        ("verify", path, "--onnx", path),
        ("evaluate", path, "--data", "digits"),
    ):
        answer = call(*command)
        assert answer.code == 2
        text = "no graph in the file; give the module: ll.load(path, into=...) or --into"
        assert answer.err == f"error: load {path}: {text}\n"
    assert call("predict", path, samples, "--into", "digits-cnn").code == 0
    assert "no graph: it runs with the code of its model (--into)" in call("inspect", path).out


def test_inspect_names_the_bytes_of_the_graph(call, net):
    data = json.loads(call("inspect", net, "--json").out)
    assert 0 < data["graph"] < 50
    wiring = container.read(net).wiring
    assert wiring is not None
    text = f"graph of {len(wiring.nodes)} operations in {data['graph']} bytes: it runs as it is"
    assert text in call("inspect", net).out


@pytest.mark.parametrize("content", [None, b"", b"hello"])
def test_what_is_no_onnx_file_is_named(call, samples, tmp_path, content):
    path = tmp_path / "bad.onnx"
    if content is not None:
        path.write_bytes(content)
    for command in (("predict", path, samples), ("evaluate", path, "--into", "digits-cnn", "-q")):
        answer = call(*command)
        assert answer.code == 2
        text = "no such file; check the path" if content is None else "ONNX Runtime refuses it: "
        assert answer.err.startswith(f"error: open {path}: {text}")
        assert len(answer.err.splitlines()) == 1


# --- export --to c ---------------------------------------------------------------------------------------------------


def test_export_to_c_writes_a_folder_that_builds(call, net, tmp_path):
    folder = tmp_path / "fw"
    answer = call("export", net, "--into", "digits-cnn", "--to", "c", "--name", "digits", "--out", folder, "--json")
    assert answer.code == 0
    files = json.loads(answer.out)["files"]
    names = ["digits.h", "digits.c", "digits_io.c", "digits_golden.h", "digits_test.c", "Makefile"]
    emulated, bench = ("start.c", "link.ld", "main.c"), ("bench.h", "bench.c", "mps2.c", "README.md")
    names += ["digits_example.c", "README.md", *(f"emulate/{n}" for n in emulated), *(f"bench/{n}" for n in bench)]
    assert sorted(files) == sorted(f"{folder}/{name}" for name in names)
    if shutil.which("make") and shutil.which("cc"):
        done = subprocess.run(["make", "-C", folder, "test"], capture_output=True, text=True, check=False)
        assert "0 outputs differ" in done.stdout, done.stderr


def test_export_to_what_is_no_format_is_refused(call, net):
    answer = call("export", net, "--into", "digits-cnn", "--to", "tflite")
    assert (answer.code, answer.err) == (2, "error: export --to 'tflite': not a format; use onnx, c, hls or circuit\n")


@pytest.mark.parametrize(
    "options", [("--to", "c", "--target", "onnx-arm"), ("--to", "c", "--static-batch", 1), ("--name", "a")]
)
def test_an_option_of_the_other_format_is_refused(call, net, tmp_path, options):
    answer = call("export", net, "--into", "digits-cnn", "--out", tmp_path / "new", *options)
    assert answer.code == 2
    assert "leave" in answer.err
    assert not (tmp_path / "new").exists()


def test_a_network_in_float_has_no_c(call, tmp_path, digits):
    container.save(Artifact.of(digits[0], digits[1].spec), tmp_path / "float.lil")
    answer = call("export", tmp_path / "float.lil", "--into", "digits-cnn", "--to", "c", "--out", tmp_path / "new")
    text = "error: lower to integers: activations have no grids; quantize with activation_bits: 8 first\n"
    assert (answer.code, answer.err) == (3, text)
    assert not (tmp_path / "new").exists()
