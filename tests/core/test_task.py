"""Tasks: data by role, derived always in the same way, and clear words for data that cannot be used."""

import re
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from lilliput.core.artifact import InputSpec
from lilliput.core.errors import DataError
from lilliput.core.score import accuracy
from lilliput.core.task import CALIBRATION_SAMPLES, Data, Task
from strategies import generator_of, law, seeds


def xy(n=10, classes=3, shape=(4,)):
    return torch.arange(float(n * int(np.prod(shape)))).reshape(n, *shape), torch.arange(n) % classes


class Pairs(Dataset):
    def __init__(self, items):
        self.items = items

    def __len__(self):
        return len(self.items)

    def __getitem__(self, i):
        return self.items[i]


def firsts(data):
    """What tells samples of `xy` apart."""
    return [int(x[0]) // 4 for x, _ in (data.batch(torch.tensor([i])) for i in range(len(data))) for x in x]


# Data


SOURCES = {
    "tensors": xy,
    "list": lambda: list(xy()),
    "arrays": lambda: tuple(t.numpy() for t in xy()),
    "float64 arrays": lambda: (xy()[0].double().numpy(), xy()[1].numpy()),
    "read-only array": lambda: tuple(np.lib.stride_tricks.as_strided(t.numpy(), writeable=False) for t in xy()),
    "reversed array": lambda: tuple(t.flip(0).numpy()[::-1] for t in xy()),
    "tensors with gradients": lambda: (xy()[0].requires_grad_(), xy()[1]),
    "TensorDataset": lambda: TensorDataset(*xy()),
    "data set of tensors": lambda: Pairs(list(zip(*xy(), strict=True))),
    "data set of numbers": lambda: Pairs([(x.double().numpy(), int(y)) for x, y in zip(*xy(), strict=True)]),
    "data set of triples": lambda: Pairs([(x, y, "extra") for x, y in zip(*xy(), strict=True)]),
    "Data": lambda: Data.of(xy()),
}


@pytest.mark.parametrize("name", SOURCES)
def test_every_kind_of_source_gives_the_same_batches(name):
    data = Data.of(SOURCES[name]())
    x, y = data.batch(torch.tensor([7, 2, 2]))
    wanted = xy()
    assert len(data) == 10
    assert torch.equal(x, wanted[0][[7, 2, 2]])
    assert torch.equal(y, wanted[1][[7, 2, 2]])
    assert (x.dtype, y.dtype) == (torch.float32, torch.int64)
    part = data.subset(torch.tensor([9, 0]))
    assert torch.equal(part.batch(torch.tensor([0]))[0], wanted[0][[9]])
    assert [len(x) for x, _ in data.batches(4)] == [4, 4, 2]
    assert torch.equal(next(iter(data.batches(3, torch.tensor([5, 1]))))[0], wanted[0][[5, 1]])
    assert data.fingerprint() == Data.of(wanted).fingerprint()


def test_fingerprint_tells_data_apart():
    x, y = xy(200)
    base = Data.of((x, y)).fingerprint()
    assert re.fullmatch("[0-9a-f]{16}", base)
    assert Data.of((x + 1, y)).fingerprint() != base
    assert Data.of((x, y.flip(0))).fingerprint() != base
    assert Data.of((x[:199], y[:199])).fingerprint() != base


def test_transform_makes_floats_of_raw_inputs():
    raw = torch.tensor([[0], [255]], dtype=torch.uint8)
    data = Data(raw, torch.tensor([0, 1]), lambda x: x / 255)
    assert data.batch(torch.tensor([1, 0]))[0].tolist() == [[1.0], [0.0]]
    assert data.subset(torch.tensor([1])).batch(torch.tensor([0]))[0].tolist() == [[1.0]]


def first_batch(source):
    return lambda: Data.of(source, role="train").batch(torch.tensor([0, 1]))


class Stream(IterableDataset):
    def __iter__(self):
        yield from zip(*xy(), strict=True)


ONE = torch.ones(2, 1)
BAD = {
    "no samples": (
        first_batch((torch.zeros(0, 3), torch.zeros(0))),
        "a data set: no samples in it; give at least one sample",
    ),
    "empty data set": (first_batch(Pairs([])), "a data set: no samples in it; give at least one sample"),
    "wrong lengths": (
        first_batch((ONE, torch.zeros(3))),
        "a data set: 2 inputs and 3 targets; give one target for each input",
    ),
    "DataLoader": (
        first_batch(DataLoader(TensorDataset(*xy()))),
        "train: a DataLoader; give its dataset: Lilliput makes the batches",
    ),
    "stream": (first_batch(Stream()), "train: a Stream; give (inputs, targets) or a map-style data set of pairs"),
    "number": (first_batch(3), "train: a int; give (inputs, targets) or a map-style data set of pairs"),
    "None": (first_batch(None), "train: a NoneType; give (inputs, targets) or a map-style data set of pairs"),
    "NaN": (first_batch((ONE * float("nan"), ONE)), "a batch: NaN or infinity in the inputs; clean the data first"),
    "infinity": (first_batch((ONE / 0, ONE)), "a batch: NaN or infinity in the inputs; clean the data first"),
    "integers": (
        first_batch((ONE.byte(), ONE)),
        "a batch: inputs of torch.uint8; give float inputs (for uint8 images: a transform)",
    ),
    "texts": (first_batch((np.array(["a", "b"]), ONE)), "train: an array of <U1; give an array of numbers"),
    "objects": (first_batch((np.array([{}, {}]), ONE)), "train: an array of object; give an array of numbers"),
    "single number": (first_batch((ONE, torch.tensor(1.0))), "train: a single number; give one row for each sample"),
    "no pairs": (
        first_batch(Pairs([ONE, ONE])),
        "a batch: items of type Tensor; let the data set give (input, target)",
    ),
    "inputs only": (
        first_batch(Pairs([(ONE,), (ONE,)])),
        "a batch: items of type tuple; let the data set give (input, target)",
    ),
    "lists": (
        first_batch(([[1.0], [2.0]], [[3.0], [4.0]])),
        "a batch: inputs of type list; let the data set give tensors or arrays",
    ),
    "inputs in lists": (
        first_batch(Pairs([([1.0], 0), ([2.0], 1)])),
        "a batch: inputs of type list; let the data set give tensors or arrays",
    ),
    "other shapes": (
        first_batch(Pairs([(torch.ones(2), 0), (torch.ones(3), 0)])),
        "a batch: samples that do not stack (stack expects",
    ),
    "no arrays": (
        first_batch(Pairs([(object(), 0), (object(), 0)])),
        "a batch: samples that do not stack (default_collate: batch must",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_data_that_cannot_be_used_are_named(name):
    call, text = BAD[name]
    with pytest.raises(DataError) as error:
        call()
    assert str(error.value).startswith(text)
    assert "\n" not in str(error.value)


# Factories


def test_classification_counts_right_classes():
    task = Task.classification(train=xy(), labels=["a", "b", "c"])
    outputs = torch.tensor([[0.0, 1], [1, 0]])
    assert task.ok(outputs, torch.tensor([1, 1]), outputs).tolist() == [True, False]
    assert float(task.loss(outputs, torch.tensor([1, 1], dtype=torch.int32))) == pytest.approx(
        float(torch.nn.functional.cross_entropy(outputs, torch.tensor([1, 1])))
    )
    assert (task.kind, task.score.name, task.spec) == (
        "classification",
        "accuracy",
        InputSpec(shape=(4,), layout="C", labels=("a", "b", "c")),
    )


def test_regression_allows_a_tenth_of_the_spread_of_the_targets():
    x, y = torch.zeros(5, 1), torch.tensor([0.0, 1, 2, 3, 4])
    task = Task.regression(train=(x, y), unit="mg")
    limit = 0.1 * float(y.std())
    assert task.settings == {"tolerance": pytest.approx(limit)}
    original = y + 0.5
    now = y + torch.tensor([0.5 + limit * 0.99, 0.5 + limit * 1.01, 0.0, -0.5, -1.0])
    assert task.ok(now, y, original).tolist() == [True, False, True, True, False]
    assert task.ok(now[:, None], y, original[:, None]).tolist() == [True, False, True, True, False]
    assert float(task.loss(now[:, None], y)) == pytest.approx(float((now - y).square().mean()))
    assert task.score.format(1.0) == "1 mg"
    assert Task.regression(validation=(x, y)).settings == task.settings
    assert Task.regression(train=(x, y), tolerance=0.3).settings == {"tolerance": 0.3}
    assert Task.regression(train=(x[:1], y[:1])).settings == {"tolerance": 0.0}


def test_anomaly_allows_errors_to_move_the_right_way():
    x = torch.ones(4, 2)
    task = Task.anomaly(train=(x, torch.zeros(4)), validation=(x, torch.tensor([0, 0, 1, 1])), tolerance=0.1)
    batch = task.data("validation").batch(torch.arange(4))
    inputs, labels = targets = task.target(batch)
    assert inputs is batch[0]
    assert labels.tolist() == [0, 0, 1, 1]
    original = x + 1.0
    now = x + torch.tensor([1.09, 1.099, 0.96, 0.901]).sqrt()[:, None]
    assert task.ok(now, targets, original).tolist() == [True, True, True, True]
    now = x + torch.tensor([1.11, 0.2, 0.89, 5.0]).sqrt()[:, None]
    assert task.ok(now, targets, original).tolist() == [False, True, False, True]
    assert float(task.loss(original, targets)) == 1.0
    assert task.score.name == "AUC"


def test_segmentation_allows_a_few_pixels_less():
    x, y = torch.zeros(3, 1, 5, 10), torch.zeros(3, 5, 10, dtype=torch.int64)
    task = Task.segmentation(train=(x, y), n_classes=2, tolerance=0.02)
    original = torch.nn.functional.one_hot(y, 2).permute(0, 3, 1, 2).float()
    now = original.clone()
    now[1, :, 0, :1], now[2, :, 0, :2] = torch.tensor([0.0, 1])[:, None], torch.tensor([0.0, 1])[:, None]
    assert task.ok(now, y, original).tolist() == [True, True, False]
    assert task.settings == {"n_classes": 2, "tolerance": 0.02}
    assert task.spec == InputSpec(shape=(1, 5, 10), layout="CHW")
    assert float(task.loss(original, y)) > 0


def test_factories_can_be_overridden_part_by_part():
    def own(outputs, targets):
        return outputs.sum()

    task = Task.classification(train=xy(), loss=own, kind="mine")
    assert task.loss is own
    assert task.kind == "mine"


@pytest.mark.parametrize(
    ("shape", "layout"), [((), ""), ((4,), "C"), ((2, 4), "CL"), ((1, 2, 4), "CHW"), ((1, 1, 2, 4), "")]
)
def test_layout_follows_from_the_shape_unless_given(shape, layout):
    data = (torch.zeros(4, *shape), torch.zeros(4))
    assert Task.classification(train=data).spec == InputSpec(shape=shape, layout=layout)
    given_ = InputSpec(shape=shape, layout="XY")
    assert Task.classification(validation=data, input=given_).spec is given_


def test_task_without_data_is_refused():
    for make in (Task.classification, Task.regression, Task.anomaly):
        with pytest.raises(DataError) as error:
            make(test=xy())
        assert str(error.value) == ("a task: neither training nor validation data; give train=, validation= or both")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_targets_of_a_regression_must_be_numbers(value):
    with pytest.raises(DataError, match="targets: NaN or infinity; clean the data first"):
        Task.regression(train=(torch.zeros(2, 1), torch.tensor([1.0, value])))
    with pytest.raises(DataError, match=re.escape("targets: a list; give numbers, or tolerance=")):
        Task.regression(train=Pairs([(torch.zeros(1), (1.0, 2.0))] * 3))


# Roles


@given(st.integers(2, 200))
@law(60)
def test_a_fifth_of_train_is_held_out_for_validation_always_the_same(n):
    tasks = [Task.classification(train=xy(n)) for _ in range(2)]
    torch.rand(3)
    parts = [(firsts(t.data("train")), firsts(t.data("validation"))) for t in tasks]
    assert parts[0] == parts[1]
    train, validation = parts[0]
    assert sorted(train + validation) == list(range(n))
    assert len(validation) == max(1, round(0.2 * n))
    assert train == sorted(train)


@given(seeds, st.integers(2, 12))
@law(60)
def test_groups_stay_on_one_side(seed, names):
    groups = torch.cat([torch.arange(names), torch.randint(names, (40,), generator=generator_of(seed))])
    for kind in (groups, groups.tolist(), groups.numpy(), groups + 10**12):
        task = Task.classification(train=xy(len(groups)), groups=kind)
        train, validation = ({int(groups[i]) for i in firsts(task.data(r))} for r in ("train", "validation"))
        assert not train & validation
        assert len(train) + len(validation) == names
        assert len(validation) == max(1, round(0.2 * names))


def test_given_validation_is_taken_and_train_stays_whole():
    task = Task.classification(train=xy(10), validation=xy(4), groups=[0] * 10)
    assert (len(task.data("train")), len(task.data("validation"))) == (10, 4)


def test_calibration_is_a_fixed_sample_of_train_or_of_validation():
    task = Task.classification(train=xy(2000), validation=xy(3))
    picked = firsts(task.data("calibration"))
    assert len(picked) == CALIBRATION_SAMPLES == len(set(picked))
    assert picked == sorted(picked) == firsts(task.data("calibration"))
    split = Task.classification(train=xy(100))
    assert not set(firsts(split.data("calibration"))) & set(firsts(split.data("validation")))
    assert firsts(Task.classification(validation=xy(5)).data("calibration")) == [0, 1, 2, 3, 4]


def test_roles_are_told_in_words():
    assert Task.classification(train=xy(100)).roles() == [
        "train: 80 samples",
        "validation: 20 samples split off train (seed 0)",
        "test: not given",
        "calibration: 80 samples of train (seed 0)",
    ]
    assert Task.classification(validation=xy(7), test=xy(9)).roles() == [
        "train: not given",
        "validation: 7 samples",
        "test: 9 samples",
        "calibration: 7 samples of validation (no training data given) (seed 0)",
    ]


def test_has_tells_what_was_given():
    task = Task.classification(train=xy(10))
    assert [task.has(r) for r in ("train", "validation", "test", "calibration")] == [True, False, False, True]


def test_roles_are_taken_away_with_their_groups():
    task: Any = Task.classification(train=xy(10), validation=xy(4), test=xy(5), groups=range(10))
    assert not task.without("test").has("test")
    bare = task.without("train", "test")
    assert not bare.has("train")
    assert bare.groups is None
    assert torch.equal(task.without("test").groups, torch.arange(10))
    with pytest.raises(DataError, match="neither training nor validation data"):
        task.without("train", "validation")


@pytest.mark.parametrize(
    ("task", "role", "text"),
    [
        (
            Task.classification(train=xy()),
            "test",
            "role 'test': the task has no such data; give test= when you make the task",
        ),
        (
            Task.classification(validation=xy()),
            "train",
            "role 'train': the task has no such data; give train= when you make the task",
        ),
        (
            Task.classification(train=xy()),
            "loss",
            "role 'loss': there is no such role; use train, validation, test or calibration",
        ),
        (
            Task.classification(train=xy(1)),
            "validation",
            "validation: it is not given, and train has one sample or group; give validation=",
        ),
        (
            Task.classification(train=xy(), groups=[3] * 10),
            "train",
            "validation: it is not given, and train has one sample or group; give validation=",
        ),
    ],
)
def test_missing_roles_are_named(task, role, text):
    with pytest.raises(DataError) as error:
        task.data(role)
    assert str(error.value) == text


@pytest.mark.parametrize(
    ("groups", "text"),
    [
        ([1, 2], "groups: 2 numbers; give one for each training sample"),
        (torch.zeros(10, 2), "groups: 10 numbers; give one for each training sample"),
        (torch.tensor(3), "groups: 1 numbers; give one for each training sample"),
        (["anna"] * 10, "groups: a list of other things than numbers; number them"),
    ],
)
def test_groups_must_be_a_number_for_each_sample(groups, text):
    with pytest.raises(DataError) as error:
        Task.classification(train=xy(), groups=groups)
    assert str(error.value) == text
    with pytest.raises(DataError, match="groups: 10 numbers; give one for each training sample"):
        Task.classification(validation=xy(), groups=range(10))


def test_own_tasks_say_how_a_batch_meets_the_model():
    task = Task(
        validation=xy(),
        loss=lambda outputs, targets: outputs.sum(),
        score=accuracy(),
        ok=lambda outputs, targets, original: outputs.argmax(1) == targets,
        forward=lambda model, batch: model(batch[0] * 2),
        target=lambda batch: batch[1] + 1,
    )
    batch = task.data("validation").batch(torch.tensor([1]))
    assert task.kind == "custom"
    assert torch.equal(task.forward(torch.nn.Identity(), batch), batch[0] * 2)
    assert task.target(batch).tolist() == [2]
