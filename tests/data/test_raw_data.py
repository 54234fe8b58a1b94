import pytest
import torch

from lilliput.core.errors import DataError
from lilliput.data.dataset import RawData


def split(n=4, labels=(0, 1, 0, 1), dtype=torch.uint8, side=8):
    return torch.zeros(n, 1, side, side, dtype=dtype), torch.tensor(labels, dtype=torch.int64)


def raw(train, test):
    return RawData(
        name="tiny", train=train, test=test, labels=("a", "b"), validation_rows=torch.arange(0), source="a test"
    )


def test_whole_data_is_kept_as_it_is():
    train, test = split(), split()
    assert raw(train, test).train[0] is train[0]


@pytest.mark.parametrize(
    ("train", "message"),
    [
        (split(n=3), "3 samples"),
        (split(n=0, labels=()), "no samples"),
        (split(labels=(0, 1, 2, 0)), r"labels 0\.\.2, expected 0\.\.1"),
        (split(labels=(0, 1, -1, 0)), r"labels -1\.\.1"),
        (split(dtype=torch.float32), "train samples are float32"),
        (split(side=9), r"\[1, 9, 9\]"),
        ((split()[0], split()[1].to(torch.int32)), "int32"),
    ],
)
def test_data_that_does_not_fit_together_is_refused(train, message):
    with pytest.raises(DataError, match=message):
        raw(train, split())
