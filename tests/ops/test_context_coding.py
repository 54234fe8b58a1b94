"""The context coder. That the rules of docs/format.md give the same symbols is tested there, by a second decoder."""

import hashlib
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lilliput.ops.context_coding import STATE, Layout, decode, encode

SHAPES = [
    (1,),
    (7,),
    (300,),
    (1, 40),
    (40, 1),
    (23, 31),
    (9, 30, 1, 1),
    (5, 4, 3, 3),
    (2, 3, 1, 2),
    (6, 5, 7),
    (2, 2, 2, 3, 2),
]


def uniform(shape: tuple[int, ...], bits: int) -> np.ndarray:
    return np.full(math.prod(shape), bits, np.uint8)


def bell(shape: tuple[int, ...], bits: int, seed: int = 0, spread: float = 0.15) -> np.ndarray:
    """Symbols with a maximum in the middle."""
    x = np.random.default_rng(seed).normal(0.5, spread, math.prod(shape)) * (1 << bits)
    return np.clip(np.floor(x), 0, (1 << bits) - 1).astype(np.int64)


def entropy_bytes(symbols: np.ndarray) -> float:
    share = np.bincount(symbols) / len(symbols)
    share = share[share > 0]
    return float(-(share * np.log2(share)).sum() * len(symbols) / 8)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("bits", range(1, 9))
def test_every_symbol_comes_back(shape: tuple[int, ...], bits: int) -> None:
    symbols = bell(shape, bits, bits)
    widths = uniform(shape, bits)
    assert np.array_equal(decode(encode(symbols, widths, shape), widths, shape), symbols)


@given(data=st.data(), shape=st.sampled_from(SHAPES), seed=st.integers(0, 2**32 - 1))
@settings(max_examples=150, deadline=None)
def test_symbols_of_any_widths_come_back(data: st.DataObject, shape: tuple[int, ...], seed: int) -> None:
    random = np.random.default_rng(seed)
    kinds = data.draw(st.lists(st.integers(0, 8), min_size=1, max_size=4))
    widths = random.choice(np.array(kinds, np.uint8), math.prod(shape))
    sharpness = data.draw(st.sampled_from([0.2, 1.0, 6.0]))
    symbols = np.floor(random.random(len(widths)) ** sharpness * (1 << widths.astype(np.int64))).astype(np.int64)
    assert np.array_equal(decode(encode(symbols, widths, shape), widths, shape), symbols)


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("which", ["lowest", "highest", "ends"])
def test_extreme_symbols_come_back(bits: int, which: str) -> None:
    shape = (40, 50)
    symbols = np.zeros(2000, np.int64)
    symbols[0 if which == "highest" else slice(0, 2000, 3)] = (1 << bits) - 1
    if which == "lowest":
        symbols[:] = 0
    widths = uniform(shape, bits)
    coded = encode(symbols, widths, shape)
    assert np.array_equal(decode(coded, widths, shape), symbols)
    if which == "lowest":
        assert len(coded) < 2000 * bits / 8 / 4 + 30  # nearly free, but for the learning


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 5, 6, 7, 8])
def test_independent_symbols_cost_their_entropy(bits: int) -> None:
    shape = (300, 400)
    symbols = bell(shape, bits)
    coded = encode(symbols, uniform(shape, bits), shape)
    assert len(coded) < 1.006 * entropy_bytes(symbols) + 150  # the rest: 42 tables that learn


def test_symbols_like_their_neighbours_cost_less_than_their_entropy() -> None:
    random = np.random.default_rng(0)
    shape = (64, 32, 3, 3)
    smooth = random.normal(size=(64, 32, 1, 1)) + 0.5 * random.normal(size=shape)
    symbols = np.clip(np.floor(4 * smooth + 8), 0, 15).astype(np.int64).reshape(-1)
    coded = encode(symbols, uniform(shape, 4), shape)
    assert len(coded) < 0.9 * entropy_bytes(symbols)


def test_channels_of_different_size_cost_less_than_their_entropy() -> None:
    random = np.random.default_rng(0)
    shape = (64, 32, 3, 3)
    loud = random.normal(size=shape) * np.exp(random.normal(size=(64, 1, 1, 1)))
    symbols = np.clip(np.floor(2 * loud + 8), 0, 15).astype(np.int64).reshape(-1)
    assert len(encode(symbols, uniform(shape, 4), shape)) < 0.93 * entropy_bytes(symbols)


def test_bytes_never_change() -> None:
    """Files of today must decode for ever: a change of these bytes is a new coding."""
    shape = (12, 8, 3, 3)
    digest = hashlib.blake2b(digest_size=8)
    for bits in range(1, 9):
        symbols = (np.arange(864) ** 2 * 40503 % 65521 * (np.arange(864) % 9) >> 8) % (1 << bits)
        digest.update(encode(symbols, uniform(shape, bits), shape))
    assert digest.hexdigest() == "663a1df00a7dfc75"


def test_kernels_are_images_and_all_else_is_a_matrix() -> None:
    assert Layout.of((8, 4, 3, 5)).grid == (8, 4, 3, 5)
    assert Layout.of((8, 4, 5)).grid == (8, 4, 1, 5)
    assert Layout.of((8, 4, 2, 3, 5)).grid == (8, 4, 6, 5)
    assert Layout.of((8, 4)).grid == Layout.of((8, 4, 1, 1)).grid == (8, 1, 1, 4)
    assert Layout.of((8,)).grid == (1, 1, 1, 8)
    assert Layout.of((8, 4, 3, 1)).grid == (8, 4, 3, 1)


SYMBOLS, WIDTHS, SHAPE = bell((20, 30), 6), uniform((20, 30), 6), (20, 30)
CODED = encode(SYMBOLS, WIDTHS, SHAPE)


@pytest.mark.parametrize("length", range(0, len(CODED), 7))
def test_a_stream_that_is_cut_off_is_refused(length: int) -> None:
    with pytest.raises(ValueError, match="context stream"):
        decode(CODED[:length], WIDTHS, SHAPE)


def test_bytes_after_the_stream_are_refused() -> None:
    with pytest.raises(ValueError, match="does not end where its symbols do"):
        decode(CODED + b"\0\0", WIDTHS, SHAPE)


@pytest.mark.parametrize(
    ("at", "value", "reason"),
    [
        (0, b"\xff\xff", "centre 65535"),
        (2, b"\0\0", "unit 0"),
        (2, b"\xff\xff", "unit 65535"),
        (4, b"\0", "tokens that do not ascend"),
        (18, b"\0", "tokens that do not ascend"),
        (19, b"\0\0\0\0\0", "starts in state 0"),
    ],
)
def test_wrong_settings_are_refused(at: int, value: bytes, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        decode(CODED[:at] + value + CODED[at + len(value) :], WIDTHS, SHAPE)


def refused_or_in_range(coded: bytes, widths: np.ndarray) -> None:
    try:
        found = decode(coded, widths, SHAPE)
    except ValueError:
        return
    assert len(found) == len(widths)
    assert ((found >= 0) & (found < 1 << widths.astype(np.int64))).all()


@given(seed=st.integers(0, 2**32 - 1))
@settings(max_examples=300, deadline=None)
def test_changed_bytes_are_refused_or_decode_to_symbols_of_their_width(seed: int) -> None:
    random = np.random.default_rng(seed)
    bits = int(random.integers(1, 9))
    symbols, widths = bell(SHAPE, bits, seed), uniform(SHAPE, bits)
    coded = bytearray(encode(symbols, widths, SHAPE))
    for _ in range(random.integers(1, 4)):
        coded[random.integers(len(coded))] ^= 1 << random.integers(8)
    refused_or_in_range(bytes(coded), widths)


@given(seed=st.integers(0, 2**32 - 1))
@settings(max_examples=200, deadline=None)
def test_noise_is_refused_or_decodes_to_symbols_of_their_width(seed: int) -> None:
    random = np.random.default_rng(seed)
    widths = random.integers(0, 9, 600).astype(np.uint8) if seed % 2 else WIDTHS
    noise = random.bytes(int(random.integers(0, 900)))
    refused_or_in_range(noise, widths)


def test_a_state_is_never_below_its_least() -> None:
    assert int.from_bytes(CODED[19:24], "little") >= STATE
