"""What is kept of each sample."""

import json

import torch
from hypothesis import given
from hypothesis import strategies as st

from lilliput.bench.samples import pack, unpack


@given(st.lists(st.booleans(), min_size=1, max_size=70), st.sampled_from([1.0, 100.0]))
def test_right_and_wrong_come_back_from_bits(right, one):
    values = torch.tensor(right).double() * one
    packed = json.loads(json.dumps(pack(values, binary=True)))
    assert torch.equal(unpack(packed), values)
    assert len(packed["data"]) <= 4 * (len(right) // 24 + 1)


@given(st.lists(st.floats(allow_nan=False), min_size=1, max_size=20))
def test_other_numbers_come_back_exactly(values):
    wanted = torch.tensor(values, dtype=torch.float64)
    assert torch.equal(unpack(json.loads(json.dumps(pack(wanted, binary=False)))), wanted)
