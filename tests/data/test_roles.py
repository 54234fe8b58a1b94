import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lilliput.core.errors import DataError, UsageError
from lilliput.data.dataset import RawData
from lilliput.data.roles import (
    by_role,
    group_split,
    hold_out_last,
    last_of_each_class,
    last_rows,
    stratified_split,
    take,
)

labels = st.lists(st.integers(0, 4), min_size=1, max_size=80).map(torch.tensor)
fractions = st.lists(st.integers(1, 9), min_size=1, max_size=4).map(lambda parts: [p / sum(parts) for p in parts])


def seeded(seed):
    return torch.Generator().manual_seed(seed)


@given(labels, fractions, st.integers(0, 99))
@settings(max_examples=150, deadline=None)
def test_stratified_parts_are_a_partition_and_cut_every_class_to_within_one_sample(labels, fractions, seed):
    parts = stratified_split(labels, fractions, seeded(seed))
    assert torch.cat(parts).sort().values.tolist() == list(range(len(labels)))
    for label in labels.unique():
        n = int((labels == label).sum())
        for part, fraction in zip(parts, fractions, strict=True):
            assert abs(int((labels[part] == label).sum()) - fraction * n) < 1
    for part, fraction in zip(parts, fractions, strict=True):
        assert abs(len(part) - fraction * len(labels)) < len(fractions)


def test_odd_samples_of_many_classes_do_not_all_go_to_one_part():
    parts = stratified_split(torch.arange(10).repeat(3), [0.5, 0.5], seeded(0))
    assert [len(part) for part in parts] == [15, 15]


@given(st.lists(st.integers(0, 12), min_size=1, max_size=80).map(torch.tensor), fractions, st.integers(0, 99))
@settings(max_examples=150, deadline=None)
def test_group_parts_are_a_partition_and_share_no_group(groups, fractions, seed):
    n_groups = len(groups.unique())
    if n_groups < len(fractions):
        with pytest.raises(DataError, match=f"only {n_groups} groups"):
            group_split(groups, fractions, seeded(seed))
        return
    parts = group_split(groups, fractions, seeded(seed))
    assert torch.cat(parts).sort().values.tolist() == list(range(len(groups)))
    seen = [set(groups[part].tolist()) for part in parts]
    assert sum(map(len, seen)) == n_groups
    assert all(seen)


def test_groups_of_one_size_are_shared_out_by_the_fractions():
    parts = group_split(torch.arange(10).repeat_interleave(7), [0.7, 0.2, 0.1], seeded(0))
    assert [len(part) for part in parts] == [49, 14, 7]


def test_splits_repeat_with_the_seed_and_differ_without():
    groups = torch.arange(40)
    for split in (stratified_split, group_split):
        first, again, other = (split(groups % 20, [0.5, 0.5], seeded(seed)) for seed in (1, 1, 2))
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
        assert not torch.equal(first[0], other[0])


@pytest.mark.parametrize("fractions", [[], [0.5], [0.5, 0.6], [1.5, -0.5], [1.0, 0.0], [float("nan"), 1.0]])
def test_fractions_that_are_no_shares_are_refused(fractions):
    for split in (stratified_split, group_split):
        with pytest.raises(UsageError, match="add up to 1"):
            split(torch.arange(9), fractions, seeded(0))


def test_held_out_samples_are_the_last_in_file_order():
    split = (torch.arange(10.0), torch.arange(10))
    (rest, _), (held, held_labels) = hold_out_last(split, 3)
    assert rest.tolist() == list(range(7))
    assert held.tolist() == held_labels.tolist() == [7, 8, 9]


@pytest.mark.parametrize("n", [0, -1, 10, 11])
def test_holding_out_none_or_all_is_refused(n):
    with pytest.raises(DataError, match="there are 10"):
        hold_out_last((torch.arange(10), torch.arange(10)), n)


def test_validation_is_the_last_tenth_but_no_more_than_5000():
    assert last_rows(60_000).tolist() == list(range(55_000, 60_000))
    assert last_rows(50_000).tolist() == list(range(45_000, 50_000))
    assert last_rows(25).tolist() == [23, 24]
    assert last_rows(3).tolist() == []


def test_each_class_gives_its_last_samples():
    assert last_of_each_class(torch.tensor([1, 0, 1, 0, 1, 2]), 2).tolist() == [1, 2, 3, 4, 5]


def test_roles_share_no_sample():
    train, test = (torch.arange(6), torch.zeros(6, dtype=torch.int64)), (torch.arange(2), torch.zeros(2).long())
    data = RawData(
        name="tiny", train=train, test=test, labels=("a",), validation_rows=torch.tensor([4, 1]), source="a test"
    )
    roles = by_role(data)
    assert {role: split[0].tolist() for role, split in roles.items()} == {
        "train": [0, 2, 3, 5],
        "validation": [1, 4],
        "test": [0, 1],
    }
    assert take(train, torch.tensor([5, 0]))[0].tolist() == [5, 0]
