"""Radix sort of float32."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from lilliput.ops.radix_kernels import ascending


@given(st.lists(st.floats(width=32, allow_nan=False)))
@settings(max_examples=200, deadline=None)
def test_sorts_like_numpy(values: list[float]) -> None:
    array = np.array(values, dtype=np.float32)
    found = ascending(array.view(np.uint32))
    assert found.dtype == np.float64
    assert found.tolist() == np.sort(array).tolist()


def test_nan_goes_to_an_end() -> None:
    array = np.array([1.0, np.nan, -np.inf, -np.nan, np.inf], dtype=np.float32)
    found = ascending(np.copysign(array, [1, 1, -1, -1, 1], dtype=np.float32).view(np.uint32))
    assert np.isnan(found[[0, -1]]).all()
    assert found[1:-1].tolist() == [-np.inf, 1.0, np.inf]
