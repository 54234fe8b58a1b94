"""The zoo: what a name promises is what it gives; users' files and weights load safely or say why not."""

import builtins
import pickle
import re
import sys
from importlib import resources

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from lilliput.core import container
from lilliput.core.artifact import Artifact, InputSpec
from lilliput.core.errors import LilliputError, UsageError
from lilliput.core.method import Context, apply_checked_
from lilliput.core.task import Task
from lilliput.methods.quantization.post_training import Quantization
from lilliput.testing import tiny_model, tiny_task
from lilliput.zoo.registry import ZOO, entry, load_weights, open_model
from lilliput.zoo.tasks import INK, NORMAL_DIGIT

OFFLINE = {"digits-cnn", "digits-anomaly", "digits-masks", "diabetes"}


@pytest.mark.parametrize("name", ZOO)
def test_a_network_takes_its_shape_and_has_the_size_that_is_said(name):
    found = ZOO[name]
    model = found.model().eval()
    with torch.no_grad():
        outputs = model(torch.zeros(2, *found.shape))
    assert len(outputs) == 2
    assert torch.isfinite(outputs).all()
    said = re.search(r"\(([\d.]+)(k|M)( parameters)?\)", found.summary)
    assert said is not None
    thousands = sum(p.numel() for p in model.parameters()) / 1000
    assert float(said[1]) * {"k": 1, "M": 1000}[said[2]] == pytest.approx(thousands, rel=0.006, abs=0.06)


@pytest.mark.parametrize("name", sorted(OFFLINE))
def test_a_task_needs_no_download_and_fits_its_network(name):
    model, task = open_model(name, trained=False, fresh=True)
    assert task.spec.shape == ZOO[name].shape
    for role in ("train", "validation", "test"):
        batch = task.data(role).batch(torch.arange(4))
        with torch.no_grad():
            outputs = task.forward(model.eval(), batch)
        assert torch.isfinite(task.loss(outputs, task.target(batch)))


def test_weights_that_ship_are_small_and_good():
    model, task = open_model("digits-cnn")
    data = task.data("test")
    x, y = data.batch(torch.arange(len(data)))
    with torch.no_grad():
        assert task.score.value(task.score.statistics(model(x), y)) > 97
    weights = resources.files("lilliput.zoo") / "weights"
    assert all(len(p.read_bytes()) < 100_000 for p in weights.iterdir() if p.name.endswith(".lil"))


def test_fresh_means_without_the_weights_that_ship():
    torch.manual_seed(0)
    shipped, fresh = (open_model("digits-cnn", fresh=f, trained=not f)[0] for f in (False, True))
    assert not torch.equal(next(shipped.parameters()), next(fresh.parameters()))


def test_a_network_without_weights_says_how_to_get_some():
    with pytest.raises(UsageError) as error:
        open_model("digits-masks")
    assert str(error.value) == (
        "network 'digits-masks': the package has no weights for it; "
        "run: lilliput train digits-masks, then give --weights digits-masks.lil, or other weights"
    )


def test_names_that_are_not_there_are_answered_with_the_nearest():
    with pytest.raises(UsageError, match=r"did you mean 'resnet20'\? For your own: file.py:make"):
        entry("resnet-20")
    with pytest.raises(UsageError, match=r"known are digits-cnn, .*\. For your own: file.py:make"):
        entry("zzz")
    with pytest.raises(UsageError, match="--data imagenet: not a data set for networks of the zoo; use one of digits"):
        open_model("digits-cnn", data="imagenet")


def test_the_anomaly_task_trains_on_one_digit_and_is_judged_on_all():
    _, task = open_model("digits-anomaly", trained=False)
    train, test = task.data("train"), task.data("test")
    assert NORMAL_DIGIT == 3
    assert set(train.batch(torch.arange(len(train)))[1].tolist()) == {0}
    share = test.batch(torch.arange(len(test)))[1].double().mean()
    assert 0.85 < float(share) < 0.95


def test_the_noise_of_the_masks_is_the_same_at_every_call():
    a, b = (open_model("digits-masks", trained=False)[1].data("train") for _ in range(2))
    assert torch.equal(a.inputs, b.inputs)
    share = a.batch(torch.arange(len(a)))[1].double().mean()
    assert INK == 8
    assert 0.2 < float(share) < 0.5


def test_the_targets_of_diabetes_are_standardized_by_the_training_samples():
    _, task = open_model("diabetes", trained=False)
    data = task.data("train")
    y = data.batch(torch.arange(len(data)))[1]
    assert (float(y.mean()), float(y.std())) == (pytest.approx(0, abs=1e-5), pytest.approx(1, abs=1e-5))
    assert task.score.unit == "std"


# --- weights ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def source():
    return tiny_model("batch_norm", seed=1)


def same(a, b):
    return all(torch.equal(t, b.state_dict()[n]) for n, t in a.state_dict().items() if "tracked" not in n)


STATES = {
    "plain": lambda s: s,
    "data parallel": lambda s: {f"module.{n}": t for n, t in s.items()},
    "lightning": lambda s: {"state_dict": {f"model.{n}": t for n, t in s.items()}, "epoch": 3, "global_step": 5},
    "lightning net": lambda s: {"state_dict": {f"net.{n}": t for n, t in s.items()} | {"loss.weight": torch.ones(3)}},
    "checkpoint": lambda s: {"model_state_dict": s, "epoch": 3},
    "both prefixes": lambda s: {f"module.model.{n}": t for n, t in s.items()},
    "half": lambda s: {n: t.half().float() for n, t in s.items()},
    "old norms": lambda s: {n: t for n, t in s.items() if "num_batches_tracked" not in n},
}


@pytest.mark.parametrize("name", STATES)
def test_state_dicts_load_whatever_wraps_them(name, source, tmp_path):
    state = STATES[name](source.state_dict())
    torch.save(state, tmp_path / "w.pt")
    loaded = load_weights(tiny_model("batch_norm"), tmp_path / "w.pt")
    if name == "half":
        source.load_state_dict(state)
    assert same(source, loaded)


def test_a_prefix_is_kept_where_the_model_has_it_too(tmp_path):
    own = nn.Module()
    own.add_module("model", nn.Linear(2, 2))
    torch.save(own.state_dict(), tmp_path / "w.pt")
    assert same(own, load_weights(own, tmp_path / "w.pt"))


def test_safetensors_and_our_own_files_load(source, tmp_path):
    save_file({n: t.contiguous() for n, t in source.state_dict().items()}, tmp_path / "w.safetensors")
    assert same(source, load_weights(tiny_model("batch_norm"), tmp_path / "w.safetensors"))
    container.save(Artifact.of(source, InputSpec(shape=(1, 4, 4))), tmp_path / "w.lil")
    assert same(source, load_weights(tiny_model("batch_norm"), tmp_path / "w.lil"))


def test_a_compressed_file_is_not_taken_for_float_weights(tmp_path):
    model, task = tiny_model("linear"), tiny_task(16)
    net = Artifact.of(model, task.spec)
    apply_checked_(Quantization(), net, Context.of(task, model))
    container.save(net, tmp_path / "w.lil")
    with pytest.raises(UsageError, match="it is a compressed network; give float weights"):
        load_weights(tiny_model("linear"), tmp_path / "w.lil")


class Bomb:
    """Runs code when it is unpickled."""

    def __reduce__(self):
        return exec, ("import builtins; builtins.bombed = True",)


def test_pickled_code_is_never_run(tmp_path):
    torch.save({"w": torch.ones(1), "bomb": Bomb()}, tmp_path / "w.pt")
    (tmp_path / "x.pt").write_bytes(pickle.dumps(Bomb(), protocol=2))
    torch.save(tiny_model("linear"), tmp_path / "model.pt")
    for name in ("w.pt", "x.pt", "model.pt"):
        with pytest.raises(UsageError, match=r"it cannot be read safely \(.*\); save a plain state dict") as error:
            load_weights(tiny_model("linear"), tmp_path / name)
        assert "\n" not in str(error.value)
    assert "bombed" not in vars(builtins)


WRONG = {
    "shape": (
        lambda s: s | {"0.weight": torch.ones(4, 1, 5, 5)},
        r"0.weight has shape \(4, 1, 5, 5\), the model's is \(4, 1, 3, 3\); give weights of a Sequential",
    ),
    "missing": (
        lambda s: {n: t for n, t in s.items() if n != "4.bias"},
        r"no '4.bias' in it; .* \(1 missing, 0 extra\)",
    ),
    "extra": (
        lambda s: s | {"more": torch.ones(1)},
        r"'more' is not in the model; .* \(0 missing, 1 extra\)",
    ),
    "other names": (lambda s: {"a": torch.ones(1)}, r"no '0.bias' in it; .* \(7|8 missing, 1 extra\)"),
    "no tensors": (lambda s: {"a": 1}, "it does not hold a state dict; save one"),
    "a list": (lambda s: [torch.ones(1)], "it does not hold a state dict"),
    "a tensor": (lambda s: torch.ones(1), "it does not hold a state dict"),
    "empty": (lambda s: {}, "it does not hold a state dict"),
}


@pytest.mark.parametrize("name", WRONG)
def test_weights_of_something_else_are_refused_and_load_nothing(name, source, tmp_path):
    make, text = WRONG[name]
    torch.save(make(source.state_dict()), tmp_path / "w.pt")
    model = tiny_model("batch_norm")
    with pytest.raises(UsageError, match=text):
        load_weights(model, tmp_path / "w.pt")
    assert same(model, tiny_model("batch_norm"))


@pytest.mark.parametrize("suffix", [".pt", ".safetensors", ".lil"])
@pytest.mark.parametrize("content", [b"", b"hello", b"PK\x03\x04 torn"])
def test_files_that_are_no_weights_are_refused(tmp_path, suffix, content):
    path = tmp_path / f"w{suffix}"
    path.write_bytes(content)
    with pytest.raises(LilliputError, match=r"w\.") as error:
        load_weights(tiny_model("linear"), path)
    assert "\n" not in str(error.value)


def test_torn_weights_are_refused(source, tmp_path):
    torch.save(source.state_dict(), tmp_path / "w.pt")
    (tmp_path / "torn.pt").write_bytes((tmp_path / "w.pt").read_bytes()[:-300])
    with pytest.raises(UsageError, match="it cannot be read safely"):
        load_weights(tiny_model("batch_norm"), tmp_path / "torn.pt")


def test_a_path_that_is_not_there_is_named(tmp_path):
    with pytest.raises(UsageError, match=r"weights .*w.pt: no such file; check the path"):
        load_weights(tiny_model("linear"), tmp_path / "w.pt")


# --- files of users --------------------------------------------------------------------------------------------------

OWN = """
import torch
from torch import nn
import lilliput as ll
{top}

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4, 2)

    def forward(self, x):
        return self.fc(x)

def make():
    {inside}
    x, y = torch.randn(20, 4), torch.arange(20) % 2
    return Net(), ll.Task.classification(train=(x, y))

def wrong():
    return Net()

number = 3
"""


@pytest.fixture
def own(tmp_path):
    """Writes a user's file beside a module `helper_of_test`; forgets what was imported afterwards."""
    known, paths = set(sys.modules), list(sys.path)
    (tmp_path / "helper_of_test.py").write_text("VALUE = 1\n")

    def write(name="net_of_test.py", top="", inside="pass"):
        (tmp_path / name).write_text(OWN.format(top=top, inside=inside))
        return f"{tmp_path / name}:make"

    yield write
    assert sys.path == paths
    for name in set(sys.modules) - known:
        if "of_test" in name or "lilliput_user" in name:
            del sys.modules[name]


def test_a_function_of_a_users_file_gives_model_and_task(own):
    model, task = open_model(own())
    assert type(model).__name__ == "Net"
    assert isinstance(task, Task)


@pytest.mark.parametrize("where", ["top", "inside"])
def test_modules_beside_the_file_can_be_imported_as_in_a_script(own, where):
    model, _ = open_model(own(**{where: "import helper_of_test"}))
    assert type(model).__name__ == "Net"


def test_a_file_named_like_a_library_hurts_nobody(own):
    import json

    model, _ = open_model(own(name="json.py"))
    assert sys.modules["json"] is json
    assert type(model).__module__ == "lilliput_user_json"


def test_a_file_may_be_opened_again(own):
    source = own()
    open_model(source)
    assert open_model(source)[0] is not None


def test_weights_load_into_a_users_model(own, tmp_path):
    source = own()
    state = {"fc.weight": torch.ones(2, 4), "fc.bias": torch.zeros(2)}
    torch.save(state, tmp_path / "w.pt")
    model, _ = open_model(source, weights=tmp_path / "w.pt")
    assert torch.equal(model.get_parameter("fc.weight"), torch.ones(2, 4))


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda s: s.replace("make", "build"), "has no function 'build'; define it: it returns (model, task)"),
        (lambda s: s.replace("make", "number"), "has no function 'number'"),
        (lambda s: s.replace("make", ""), "has no function ''"),
        (
            lambda s: s.replace("make", "wrong"),
            "wrong() returned Net; return (model, task): an nn.Module and a lilliput",
        ),
        (lambda s: s.replace("net_of_test", "none"), "no such file; check the path"),
        (lambda s: "no.such_package:make", "it cannot be imported (No module named 'no')"),
        (lambda s: ":make", "not a model; give a name of the zoo, file.py:make or package.module:make"),
        (lambda s: "a b:make", "not a model"),
        (lambda s: "..x:make", "not a model"),
    ],
)
def test_a_file_that_does_not_give_them_says_what_is_wrong(own, change, text):
    with pytest.raises(UsageError) as error:
        open_model(change(own()))
    assert text in str(error.value)


def test_another_data_set_than_that_of_a_users_function_is_refused(own):
    with pytest.raises(UsageError, match="that function gives the task, with its data; leave it out"):
        open_model(own(), data="digits")


def test_what_a_users_file_cannot_import_is_named(own):
    with pytest.raises(UsageError, match=r"it cannot be imported \(No module named 'not_there'\)"):
        open_model(own(top="import not_there"))
    with pytest.raises(UsageError, match=r"it cannot be imported \(No module named 'not_there'\)"):
        open_model(own(inside="import not_there"))


def test_a_function_of_an_installed_package_will_do(own, tmp_path, monkeypatch):
    own()
    monkeypatch.syspath_prepend(tmp_path)
    model, _ = open_model("net_of_test:make")
    assert type(model).__name__ == "Net"
    monkeypatch.undo()
