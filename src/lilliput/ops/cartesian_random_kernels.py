"""Random numbers for kernels: xoshiro256**, seeded by SplitMix64; whole numbers below a bound without bias.

Blackman and Vigna (2021), "Scrambled linear pseudorandom number generators"; Steele, Lea and Flood (2014), "Fast
splittable pseudorandom number generators"; Lemire (2019), "Fast random integer generation in an interval". The state is
an array of four uint64, which every call changes.

Imports numba: import this file inside the function that needs a kernel.
"""

import math
from typing import Any

import numpy as np

from lilliput.ops.jit import kernel, part

HALF = np.uint64(32)
LOWER = np.uint64(0xFFFFFFFF)


@part
def rotated(x: Any, by: Any) -> Any:
    return (x << np.uint64(by)) | (x >> np.uint64(64 - by))


@part
def word_(state: Any) -> Any:
    """64 random bits."""
    result = rotated(state[1] * np.uint64(5), 7) * np.uint64(9)
    shifted = state[1] << np.uint64(17)
    state[2] ^= state[0]
    state[3] ^= state[1]
    state[1] ^= state[2]
    state[0] ^= state[3]
    state[2] ^= shifted
    state[3] = rotated(state[3], 45)
    return result


@part
def bounded_(state: Any, half: Any, bound: Any) -> Any:
    """0..bound - 1 from 32 random bits, `half`; takes more from the state where these would not be fair."""
    bound = np.uint64(bound)
    product = half * bound
    if product & LOWER < bound:
        least = (np.uint64(1 << 32) - bound) % bound
        while product & LOWER < least:
            product = (word_(state) >> HALF) * bound
    return np.int64(product >> HALF)


@part
def below_(state: Any, bound: Any) -> Any:
    """0..bound - 1, bound in 1..2^32 - 1."""
    return bounded_(state, word_(state) >> HALF, bound)


@part
def skipped_(state: Any, scale: Any) -> Any:
    """How many trials fail before one succeeds; scale = 1 / log(chance of failure), which is in (0, 1)."""
    uniform = (np.float64(word_(state) >> np.uint64(11)) + 0.5) * 2.0**-53
    return np.int64(min(math.log(uniform) * scale, 2.0**40))


@kernel
def seed_(state: Any, seed: Any) -> None:
    x = np.uint64(seed)
    for i in range(4):
        x += np.uint64(0x9E3779B97F4A7C15)
        z = x
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        state[i] = z ^ (z >> np.uint64(31))


@kernel
def fill_words_(state: Any, out: Any) -> None:
    for i in range(len(out)):
        out[i] = word_(state)


@kernel
def fill_below_(state: Any, bound: Any, out: Any) -> None:
    for i in range(len(out)):
        out[i] = below_(state, bound)


@kernel
def fill_skipped_(state: Any, scale: Any, out: Any) -> None:
    for i in range(len(out)):
        out[i] = skipped_(state, scale)
