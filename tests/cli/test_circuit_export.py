"""`export --to circuit` and `verify` of its folder."""

import json
import shutil

import pytest
import torch
from torch import nn

import lilliput as ll
from lilliput.core.method import Context, apply_checked_
from lilliput.graph import stored
from lilliput.testing import tiny_task

needs_compiler = pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3)).eval()
    task = tiny_task()
    net = ll.Artifact.of(model, task.spec)
    apply_checked_(ll.WeightGeneration(values=6), net, Context.of(task, model))
    path = tmp_path_factory.mktemp("circuit") / "net.lil"
    path.write_bytes(stored.dumps(net))
    return path


@needs_compiler
def test_the_folder_is_written_and_verified(call, file, tmp_path):
    answer = call("export", file, "--to", "circuit", "--name", "bank", "--out", tmp_path, "--json")
    assert answer.code == 0
    files = json.loads(answer.out)["files"]
    assert str(tmp_path / "bank_0.c") in files
    assert f"lilliput verify {tmp_path}" in json.loads(answer.out)["text"]
    answer = call("verify", tmp_path)
    assert answer.code == 0
    assert answer.out == "bank_0: equal on 1 row, all combinations of inputs\n"
    answer = call("verify", tmp_path, "--json")
    assert json.loads(answer.out)["circuits"] == [{"name": "bank_0", "rows": 1, "all_of_them": True}]
    path = tmp_path / "bank_0.c"
    path.write_text(path.read_text().replace("out[0] = (int8_t)", "out[0] = (int8_t)~"))
    answer = call("verify", tmp_path)
    assert answer.code == 4
    assert f"verify {tmp_path}/bank_0.c: output 0 is " in answer.err


def test_wrong_use_is_one_line(call, file, tmp_path, finished):
    answer = call("export", finished / "net.lil", "--into", "digits-cnn", "--to", "circuit", "--out", tmp_path)
    assert answer.code == 3
    assert "no tensor is made by one; apply weight_generation first" in answer.err
    answer = call("export", file, "--to", "circuit", "--threshold", "1", "--out", tmp_path)
    assert "--threshold; leave it out: it counts for C" in answer.err
    answer = call("export", file, "--to", "circuits", "--out", tmp_path)
    assert "use onnx, c, hls or circuit" in answer.err
    call("export", file, "--to", "circuit", "--out", tmp_path)
    answer = call("verify", tmp_path, "--uart", "log.txt")
    assert "--uart; leave it out" in answer.err
