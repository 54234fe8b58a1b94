"""`export --to c` and `verify` of a folder: what is written builds, what differs is exit code 4."""

import json
import re
import shutil
import subprocess
import zlib

import numpy as np
import pytest
import torch

from lilliput.core import container
from lilliput.core.artifact import Artifact
from lilliput.graph import stored
from lilliput.methods.clustering.weight_clustering import WeightClustering
from lilliput.methods.quantization.post_training import Quantization
from lilliput.nn.models.digits import TinyAutoencoder
from lilliput.testing import tiny_model, tiny_task
from lilliput.zoo.tasks import one_class_digits
from lowered import quantized

needs_gcc = pytest.mark.skipif(shutil.which("gcc") is None, reason="gcc is not installed")


@pytest.fixture(scope="module")
def firmware(finished, tmp_path_factory):
    from lilliput.cli.main import run

    folder = tmp_path_factory.mktemp("c") / "fw"
    assert run(["export", str(finished / "net.lil"), "--into", "digits-cnn", "--to", "c", "--out", str(folder)]) == 0
    return folder


@pytest.fixture
def fw(firmware, tmp_path):
    return shutil.copytree(firmware, tmp_path / "fw")


@pytest.fixture(scope="module")
def autoencoder(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("anomaly") / "net.lil"
    net = quantized(TinyAutoencoder().eval(), one_class_digits(), Quantization(signed=True))
    path.write_bytes(container.dumps(net))
    return path


def sent(folder, *, change=0):
    """The log of a board, as `bench.c` would have written it."""
    from lilliput.export.c.golden import read

    golden = read(folder)
    head = f"net {golden.fingerprint:08x}"
    rows = [f"lilliput vector {head} {i} {s ^ change:08x} {1000 + i}" for i, s in enumerate(golden.sums)]
    rows = [f"lilliput start {head} {len(rows)}", *rows, f"lilliput end {head} 0 400 1024"]
    path = folder.parent / "log.txt"
    path.write_text("".join(f"{row} *{zlib.crc32(row.encode()):08x}\r\n" for row in rows))
    return path


def test_export_names_its_files_and_the_next_step(call, finished, tmp_path):
    answer = call("export", finished / "net.lil", "--into", "digits-cnn", "--to", "c", "--out", tmp_path, "--json")
    data = json.loads(answer.out)
    assert answer.code == 0
    assert data["threshold"] is None
    assert {str(tmp_path / name) for name in ("net.h", "net.c", "net_io.c", "README.md", "bench/bench.c")} <= set(
        data["files"]
    )
    assert f"lilliput verify {tmp_path}" in data["text"]


@needs_gcc
def test_verify_lists_every_target(call, fw):
    answer = call("verify", fw)
    assert answer.code == 0
    assert "host C" in answer.err  # progress
    assert "11 golden vectors" in answer.out
    rows = [line.split("  ")[0] for line in answer.out.splitlines()[3:]]
    assert rows == ["host C, -O2", "host C, sanitizers", "emulated Cortex-M4", "emulated Cortex-M4, plain"]
    answer = call("verify", fw, "--json", "-q")
    data = json.loads(answer.out, parse_constant=pytest.fail)
    assert [t["target"] for t in data["targets"]] == rows
    assert all(t["differences"] == 0 for t in data["targets"] if t["status"] == "equal")


@needs_gcc
def test_a_difference_is_exit_code_4_in_both_forms(call, fw):
    text = (fw / "net_golden.h").read_text()
    start = text.index("_outputs[")
    more = re.sub(r"  \{(-?\d+)", lambda first: f"  {{{int(first[1]) + 1}", text[start:], count=1)
    (fw / "net_golden.h").write_text(text[:start] + more)
    answer = call("verify", fw, "-q")
    assert answer.code == 4
    assert "host C, -O2" in answer.out
    assert answer.err.startswith(f"error: verify {fw}: it differs on host C, -O2 (1 outputs), ")
    answer = call("verify", fw, "-q", "--json")
    assert answer.code == 4
    assert json.loads(answer.out)["targets"][0]["status"] == "differ"


@needs_gcc
def test_code_that_does_not_build_is_one_line(call, fw):
    (fw / "net.c").write_text("nonsense\n")
    answer = call("verify", fw, "-q")
    assert answer.code == 2
    assert answer.err.startswith(f"error: verify {fw}: host C, -O2: ")
    assert len(answer.err.splitlines()) == 1


def test_without_any_tool_nothing_is_verified(call, fw, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    answer = call("verify", fw, "-q")
    assert answer.code == 2
    assert "nothing that this machine can run: no C compiler is installed (cc, gcc or clang); " in answer.err
    assert answer.out.count("skipped: ") == 4


def test_the_log_of_a_board(call, fw):
    path = sent(fw)
    answer = call("verify", fw, "--uart", path)
    assert answer.code == 0
    assert "11 vectors equal; cycles 1,000 / 1,005 / 1,010 (min / median / max); stack 400 bytes" in answer.out
    data = json.loads(call("verify", fw, "--uart", path, "--json").out)
    assert (data["stack"], len(data["cycles"]), data["name"]) == (400, 11, "net")
    path = sent(fw, change=1)
    answer = call("verify", fw, "--uart", path)
    assert (answer.code, answer.out) == (4, "")
    assert "the outputs of 11 of 11 vectors differ" in answer.err
    path.write_bytes(path.read_bytes()[:-100])
    answer = call("verify", fw, "--uart", path)
    assert answer.code == 2
    assert "its last run ends after 10 of 11 vectors" in answer.err


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["none"], "verify none: neither a folder nor --onnx; give a folder that lilliput export --to c has written"),
        (["."], "read .: no golden vectors in it; give a folder"),
        ([".", "--uart", "log.txt"], "read .: no golden vectors in it"),
        ([".", "--into", "digits-cnn"], "--into or --data; leave them out"),
        (["net.lil", "--onnx", "net.onnx", "--uart", "x"], "verify --onnx: --uart; leave it out"),
    ],
)
def test_what_verify_cannot_use_is_refused(call, tmp_path, monkeypatch, arguments, text):
    monkeypatch.chdir(tmp_path)
    answer = call("verify", *arguments)
    assert (answer.code, answer.out) == (2, "")
    assert text in answer.err


def test_options_of_c_are_refused_for_onnx(call, finished, tmp_path):
    for option in (("--threshold", 1.0), ("--name", "x"), ("--product-of-sums",)):
        answer = call("export", finished / "net.lil", "--into", "digits-cnn", "--out", tmp_path, *option)
        assert answer.code == 2
        assert f"export --to onnx: {option[0]}; leave it out: it counts for C" in answer.err


def test_products_of_sums_are_written_where_weights_are_shared(call, tmp_path):
    shared, plain = WeightClustering(n_clusters=8), Quantization(signed=True)
    for name, passes in (("shared", (shared, plain)), ("plain", (plain,))):
        (tmp_path / f"{name}.lil").write_bytes(stored.dumps(quantized(tiny_model("conv"), tiny_task(), *passes)))
    for name, option in (("dense", ()), ("sums", ("--product-of-sums",))):
        command = ("export", tmp_path / "shared.lil", "--to", "c", "--out", tmp_path / name)
        answer = call(*command, *option)
        assert answer.code == 0
        assert ("product of sums: " in answer.out) == bool(option)
        assert ("_paired(" in (tmp_path / name / "net.c").read_text()) == bool(option)
    headers = [(tmp_path / name / "net_golden.h").read_text() for name in ("dense", "sums")]
    assert headers[0] == headers[1]
    answer = call("export", tmp_path / "plain.lil", "--to", "c", "--out", tmp_path / "fw", "--product-of-sums")
    assert answer.code == 3
    assert "no linear layer or convolution shares values; put sic or weight_clustering into the recipe" in answer.err


# --- anomalies -------------------------------------------------------------------------------------------------------


def test_the_threshold_comes_from_validation_or_from_the_user(call, autoencoder, tmp_path):
    command = ("export", autoencoder, "--into", "digits-anomaly", "--to", "c", "--json")
    chosen = json.loads(call(*command, "--out", tmp_path / "a").out)
    assert "95% of the normal validation samples score no more" in chosen["text"]
    assert f"net_threshold = {chosen['threshold']!r}f;" in (tmp_path / "a" / "net_io.c").read_text()
    given = json.loads(call(*command, "--out", tmp_path / "b", "--threshold", 0.25).out)
    assert given["threshold"] == 0.25
    assert "net_threshold = 0.25f;" in (tmp_path / "b" / "net_io.c").read_text()
    assert "net_is_anomaly" in (tmp_path / "b" / "net.h").read_text()


def test_a_threshold_for_another_network_is_refused(call, finished, tmp_path):
    answer = call(
        "export", finished / "net.lil", "--into", "digits-cnn", "--to", "c", "--out", tmp_path, "--threshold", 1
    )
    assert answer.code == 3
    assert "a threshold, and a network of 64 inputs and 10 outputs; leave the threshold out" in answer.err
    assert list(tmp_path.iterdir()) == []


def test_without_its_data_a_network_is_exported_and_the_missing_threshold_named(
    call, autoencoder, tmp_path, monkeypatch
):
    from lilliput.cli import generated
    from lilliput.core.errors import DataError

    def missing(*_arguments, **_options):
        raise DataError("data set 'x'", "not there", "get it")

    monkeypatch.setattr(generated, "open_model", missing)
    answer = call("export", autoencoder, "--into", "digits-anomaly", "--to", "c", "--out", tmp_path)
    assert answer.code == 0
    assert "no threshold for anomalies: data set 'x': not there; give --threshold" in answer.out
    assert "threshold" not in (tmp_path / "net.h").read_text()


@needs_gcc
def test_make_builds_what_the_command_has_written(fw):
    for goal in ("test", "example", "clean"):
        done = subprocess.run(["make", goal], cwd=fw, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr


def test_export_to_hls_says_what_multiplies(call, finished, tmp_path):
    answer = call("export", finished / "net.lil", "--into", "digits-cnn", "--to", "hls", "--out", tmp_path, "--json")
    data = json.loads(answer.out)
    assert answer.code == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["net_parameters.h", "net_samples.h"]
    assert data["files"] == [str(tmp_path / "net_parameters.h"), str(tmp_path / "net_samples.h")]
    assert len(data["multiplies"]) > 3
    assert "requantization: power_of_two gives right shifts alone" in data["text"]


def test_export_to_hls_of_shifts_takes_real_samples(call, tmp_path):
    net = quantized(tiny_model("residual"), tiny_task(), Quantization(requantization="power_of_two"))
    (tmp_path / "net.lil").write_bytes(stored.dumps(net))
    np.save(tmp_path / "x.npy", net.input.example(3).numpy())
    where = ["export", tmp_path / "net.lil", "--to", "hls", "--out", tmp_path / "h", "--name", "motor"]
    answer = call(*where, "--inputs", tmp_path / "x.npy")
    assert answer.code == 0
    assert "every rescaling is a right shift" in answer.out
    text = (tmp_path / "h" / "motor_samples.h").read_text()
    assert "#ifndef MOTOR_SAMPLES_H" in text
    assert "samples_input[3][1][4][4]" in text
    np.save(tmp_path / "x.npy", np.zeros((2, 5)))
    answer = call(*where, "--inputs", tmp_path / "x.npy")
    assert (answer.code, answer.err.count("\n")) == (2, 1)


@pytest.mark.parametrize("options", [["--to", "c", "--inputs", "x.npy"], ["--to", "hls", "--threshold", "1"]])
def test_options_of_other_formats_are_refused(call, options):
    answer = call("export", "net.lil", *options)
    assert answer.code == 2
    assert f"export --to {options[1]}: {options[2]}; leave it out: it counts for" in answer.err


def test_export_to_hls_of_a_float_network_is_one_error(call, tmp_path):
    model = tiny_model("linear")
    (tmp_path / "net.lil").write_bytes(stored.dumps(Artifact.of(model, tiny_task().spec)))
    answer = call("export", tmp_path / "net.lil", "--to", "hls", "--out", tmp_path / "h")
    assert answer.code != 0
    assert "activations have no grids; quantize with activation_bits: 8 first" in answer.err
    assert answer.err.count("\n") == 1
    assert not (tmp_path / "h").exists()
