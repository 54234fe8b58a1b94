"""Compilation of kernels."""

from collections.abc import Callable
from typing import Any

import numba
import pytest

from lilliput.ops import jit


def double(x: Any) -> Any:
    return x + x


def test_a_kernel_computes_what_the_function_does() -> None:
    assert jit.kernel(double)(21) == 42


def test_without_a_folder_for_the_cache_kernels_are_compiled_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = numba.njit

    def njit(*, cache: bool = False, **settings: Any) -> Callable[..., Any]:
        if cache:
            raise RuntimeError("cannot cache function 'double': no locator available for file")
        return compiled(**settings)

    monkeypatch.setattr(numba, "njit", njit)
    assert jit.kernel(double)(21) == 42
