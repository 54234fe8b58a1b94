"""Compiling loops with numba, kept on disk where the installation or the user's cache folder allows it.

Imports numba: import this file, and files of kernels, inside the function that needs them.
"""

from collections.abc import Callable
from typing import Any

from numba import njit


def kernel(function: Callable[..., Any]) -> Any:
    """`function`, compiled at its first call; it lets go of the interpreter lock.

    No fast-math: floats are added in the order that is written, so results do not depend on the processor.
    """
    try:
        return njit(cache=True, nogil=True)(function)
    except RuntimeError:  # numba found no folder that it can write to
        return njit(nogil=True)(function)


def part(function: Callable[..., Any]) -> Any:
    """A function that only kernels call: without a copy for Python and on disk, it compiles in half the time."""
    return njit(nogil=True, no_cpython_wrapper=True, no_cfunc_wrapper=True)(function)
