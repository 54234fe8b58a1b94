"""Compiling loops with numba, kept on disk where the installation or the user's cache folder allows it.

Both decorators load numba: import files that use them inside the function that needs them. The copy on disk is renewed
when the file of the kernel changes, not when only a file of its parts does: remove `__pycache__` then.
"""

from collections.abc import Callable
from typing import Any


def kernel(function: Callable[..., Any]) -> Any:
    """`function`, compiled at its first call; it lets go of the interpreter lock.

    No fast-math: floats are added in the order that is written, so results do not depend on the processor.
    """
    from numba import njit

    try:
        return njit(cache=True, nogil=True)(function)
    except RuntimeError:  # numba found no folder that it can write to
        return njit(nogil=True)(function)


def part(function: Callable[..., Any]) -> Any:
    """A function that only kernels call: without a copy for Python and on disk, it compiles in half the time."""
    from numba import njit

    settings: dict[str, Any] = {"nogil": True, "no_cpython_wrapper": True, "no_cfunc_wrapper": True}
    return njit(**settings)(function)
