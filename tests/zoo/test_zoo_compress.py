"""Networks of the zoo go the whole way: data in their published format, passes, a `.lil` file, ONNX."""

import numpy as np
import pytest
import torch
from scipy.io import savemat

from lilliput.auto.compress import compress
from lilliput.core import container
from lilliput.core.artifact import Artifact
from lilliput.core.method import Context, apply_checked_
from lilliput.core.task import Task
from lilliput.data.cifar10 import TEST, TRAIN
from lilliput.data.svhn import EXTRA
from lilliput.data.svhn import TEST as SVHN_TEST
from lilliput.data.svhn import TRAIN as SVHN_TRAIN
from lilliput.export import onnx
from lilliput.export.onnx_check import check_with_runtime
from lilliput.graph.integer import runnable
from lilliput.methods.normalization.batchnorm import FoldBatchNorm
from lilliput.methods.quantization.post_training import Quantization
from lilliput.nn.models.lenet import LeNet5Seed
from lilliput.pipeline.recipe import Recipe, Step
from lilliput.zoo.registry import ZOO, open_model
from lilliput.zoo.tasks import crop

RECIPE = (FoldBatchNorm(), Quantization())


def write_svhn(root, *names):
    rng = np.random.default_rng(0)
    for name in names:
        images, labels = rng.integers(0, 256, (32, 32, 3, 20), dtype=np.uint8), np.arange(20)[:, None] % 10 + 1
        savemat(root / name, {"X": images, "y": labels.astype(np.uint8)}, do_compression=True)


def write_cifar10(root):
    rng = np.random.default_rng(0)
    (root / "cifar-10-batches-bin").mkdir()
    for name in TRAIN + TEST:
        records = rng.integers(0, 256, (4, 3073), dtype=np.uint8)
        records[:, 0] %= 10
        (root / "cifar-10-batches-bin" / f"{name}.bin").write_bytes(records.tobytes())


def noise(name, n=4):
    shape = ZOO[name].shape
    x, y = torch.rand(3 * n, *shape, generator=torch.Generator().manual_seed(0)), torch.arange(3 * n) % 10
    labels = tuple("0123456789")
    return Task.classification((x[:n], y[:n]), (x[n : 2 * n], y[n : 2 * n]), (x[2 * n :], y[2 * n :]), labels=labels)


def check_whole(model, task, folder):
    """Compressed, written, and the ONNX file run: the table would not be there if they did not agree."""
    result = compress(model, task, recipe=Recipe(steps=(Step(passes=RECIPE),)), folder=folder)
    assert result.mismatches == []
    assert all(column.onnx is not None and column.onnx.is_file() for column in result.columns)
    assert result.folder is not None
    read = container.read(result.folder / "net.lil").replay(model)
    x, _ = task.data("test").batch(torch.arange(2))
    assert torch.equal(runnable(read)(x), runnable(result.artifact)(x))


@pytest.mark.parametrize("name", ["seed-cnn", "lenet5-seed", "mnist-cnn"])
def test_a_network_of_the_zoo_becomes_a_lil_and_an_onnx_file(name, tmp_path):
    torch.manual_seed(0)
    check_whole(ZOO[name].model(), noise(name), tmp_path / "run")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet16-svhn", "mojo-cifar", "vgg"])
def test_so_do_the_large_ones(name, tmp_path):
    torch.manual_seed(0)
    check_whole(ZOO[name].model(), noise(name), tmp_path / "run")


def test_features_without_classes_compress_as_a_regression(tmp_path):
    torch.manual_seed(0)
    model = LeNet5Seed().eval()
    x = torch.rand(12, 1, 28, 28)
    with torch.no_grad():
        wanted = model(x)
    check_whole(model, Task.regression((x[:4], wanted[:4]), (x[4:8], wanted[4:8]), (x[8:], wanted[8:])), tmp_path / "a")


@pytest.mark.parametrize("name", ["resnet16-svhn", "mojo-cifar", "vgg"])
def test_the_large_networks_compute_the_same_in_onnx(name, tmp_path):
    torch.manual_seed(0)
    model, task = ZOO[name].model(), noise(name, 1)
    net = Artifact.of(model, task.spec)
    context = Context.of(task, model)
    for method in RECIPE:
        apply_checked_(method, net, context)
    onnx.export(net, tmp_path / "net.onnx", target="onnx-x86")
    x, _ = task.data("test").batch(torch.arange(1))
    assert check_with_runtime(tmp_path / "net.onnx", net, x).samples == 1
    if name != "vgg":  # whose nine million weights take long to code
        read = container.loads(container.dumps(net), source=name).replay(model)
        assert torch.equal(runnable(read)(x), runnable(net)(x))


@pytest.mark.parametrize("data", [None, "svhn-extra"])
def test_house_numbers_reach_resnet16_as_published(data, tmp_path):
    write_svhn(tmp_path, SVHN_TRAIN, SVHN_TEST, EXTRA)
    torch.manual_seed(0)
    model, task = open_model("resnet16-svhn", data=data, data_root=tmp_path, trained=False)
    assert [len(task.data(role)) for role in ("train", "validation", "test")] == [18 if data is None else 38, 2, 20]
    assert task.labels == tuple("0123456789")
    x, y = task.data("test").batch(torch.arange(20))
    assert y.tolist() == [*range(1, 10), 0] * 2
    assert x.shape == (20, 3, 32, 32)
    assert abs(float(x.mean())) < 1
    with torch.no_grad():
        assert torch.isfinite(task.loss(task.forward(model.eval(), (x, y)), y))


@pytest.mark.parametrize("name", ["resnet16", "vgg", "mojo-cifar"])
def test_cifar_networks_take_the_published_files(name, tmp_path):
    write_cifar10(tmp_path)
    model, task = open_model(name, data_root=tmp_path, trained=False)
    x, y = task.data("test").batch(torch.arange(4))
    assert (float(x.min()) >= 0) == (name != "resnet16")  # pixels in [0, 1], or normalized
    with torch.no_grad():
        assert torch.isfinite(task.loss(task.forward(model.eval(), (x, y)), y))


def test_house_numbers_are_never_mirrored():
    x = torch.zeros(50, 1, 9, 9)
    x[:, :, :, 4] = 1
    x[:, :, 4, 5] = 1  # a bar with a nose to the right
    moved = crop(x, generator=torch.Generator().manual_seed(0))
    bars = moved.sum(2).argmax(-1)[:, 0]
    whole = [i for i in range(50) if int(bars[i]) < 8 and int(moved[i].sum(1).max()) > 5 and int(moved[i].sum()) > 5]
    assert len(whole) > 10
    assert all(not moved[i, 0, :, : int(bars[i])].any() for i in whole)
