"""Acceptance sets hold what the network gets right, balanced and hard where that is asked for."""

from itertools import pairwise

import pytest
import torch
from torch import nn

from lilliput.core.errors import DataError
from lilliput.core.guard import FullForward
from lilliput.core.task import Task
from lilliput.data.select import acceptance_set, choose, margins, runs_of


class Same(nn.Module):
    def forward(self, x):
        return x


def scores(samples=200, classes=4):
    """Outputs that are the inputs, so margins are known; the right class is the target's in most samples."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn((samples, classes), generator=generator)
    y = torch.arange(samples) % classes
    return x + torch.nn.functional.one_hot(y, classes) * 1.5, y


def task():
    x, y = scores()
    return Task.classification(train=(x, y), validation=scores(60))


@pytest.mark.parametrize("source", ["train", "validation", "val", "train+validation", "train+val"])
def test_a_whole_set_is_all_that_is_right_in_order_and_says_where_from(source):
    given = task()
    found = acceptance_set(given, FullForward(given, Same()), source=source)
    expected = []
    for role in ("train", "validation"):
        if role in source or (role == "validation" and "val" in source):
            x, y = given.data(role).batch(torch.arange(len(given.data(role))))
            expected += [(role, int(i)) for i in torch.nonzero(x.argmax(1) == y).reshape(-1)]
    assert list(found.where) == expected
    assert bool((found.margins > 0).all())
    assert len(found) == len(expected)


def test_the_first_samples_are_taken_where_a_size_is_given():
    given = task()
    whole, part = (acceptance_set(given, FullForward(given, Same()), size=size) for size in (None, 17))
    assert part.where == whole.where[:17]
    assert torch.equal(part.inputs, whole.inputs[:17])


def test_a_filtered_set_is_balanced_and_has_the_hardest():
    given = task()
    whole = acceptance_set(given, FullForward(given, Same()))
    found = acceptance_set(given, FullForward(given, Same()), size=40, filtered=True)
    assert len(found) == 40
    counts = torch.bincount(found.targets, minlength=4)
    assert int(counts.min()) >= 5
    hardest = torch.argsort(whole.margins)[:20]
    taken = set(found.where)
    assert sum(whole.where[int(i)] in taken for i in hardest) == 20


def test_margins_are_the_right_output_less_the_largest_other():
    outputs = torch.tensor([[3.0, 1.0, 2.5], [0.0, 4.0, 5.0]])
    assert margins(outputs, torch.tensor([0, 1])).tolist() == [0.5, -1.0]
    assert bool(margins(outputs, torch.zeros(2, 3)).isnan().all())


def test_a_task_without_classes_is_spread_over_its_outputs():
    x = torch.linspace(-1, 1, 100)[:, None]
    given = Task.regression(train=(x, x[:, 0]), validation=(x, x[:, 0]))
    found = acceptance_set(given, FullForward(given, Same()), size=20, filtered=True)
    tenths = [n // 10 for _, n in found.where]
    assert len(found) == 20
    assert set(tenths) == set(range(10))


def test_a_network_that_gets_nothing_right_is_refused():
    x = torch.eye(4)
    given = Task.classification(train=(x, (torch.arange(4) + 1) % 4), validation=(x, torch.arange(4)))
    with pytest.raises(DataError, match="gets no sample right"):
        acceptance_set(given, FullForward(given, Same()))


def test_choosing_more_than_there_is_gives_all():
    assert choose(torch.arange(5.0), torch.zeros(5, dtype=torch.long), 9).tolist() == [0, 1, 2, 3, 4]


def test_only_as_many_samples_are_looked_at_as_the_set_needs():
    x, y = torch.randn(500, 3, generator=torch.Generator().manual_seed(0)), torch.arange(500) % 3
    seen = []

    class Counting(torch.nn.Module):
        def forward(self, x):
            seen.append(len(x))
            return x

    task = Task.classification(train=(x, y), validation=(x[:30], y[:30]))
    few = acceptance_set(task, FullForward(task, Counting(), batch_size=50), size=40)
    looked = sum(seen)
    whole = acceptance_set(task, FullForward(task, Counting()))
    assert looked < 500
    assert few.seen == looked
    assert few.where == whole.where[:40]
    assert torch.equal(few.inputs, whole.inputs[:40])
    assert torch.equal(few.margins, whole.margins[:40])


def test_runs_name_every_sample_once():
    x, y = scores()
    task = Task.classification(train=(x, y), validation=(x[:30], y[:30]))
    found = acceptance_set(task, FullForward(task, Same()), source="train+validation")
    runs = runs_of(found)
    assert [(role, n) for role, own in runs.items() for a, b in own for n in range(a, b + 1)] == list(found.where)
    assert all(later[0] > earlier[1] + 1 for own in runs.values() for earlier, later in pairwise(own))
