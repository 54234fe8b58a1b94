"""Targets and budgets: units are read exactly, and what is ambiguous is refused."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lilliput.core.errors import UsageError
from lilliput.core.target import PRESETS, Target, parse_bytes, parse_seconds
from strategies import law

BYTES = {"B": 1, "kB": 1000, "KiB": 1024, "MB": 10**6, "MiB": 2**20, "GB": 10**9, "GiB": 2**30}


@given(st.integers(0, 10**6), st.sampled_from(list(BYTES)))
@law(100)
def test_whole_sizes_are_exact(n, unit):
    assert parse_bytes(f"{n}{unit}") == parse_bytes(f" {n}  {unit} ") == n * BYTES[unit]
    assert parse_bytes(n) == n


@given(st.integers(0, 10**5))
@law(200)
def test_sizes_with_a_point_are_exact_to_the_byte(n):
    assert parse_bytes(f"{n // 1000}.{n % 1000:03d}kB") == n


@pytest.mark.parametrize(
    ("text", "size"), [("2.3kB", 2300), ("0.5KiB", 512), ("4.35MB", 4_350_000), ("1.1GB", 1_100_000_000)]
)
def test_known_sizes(text, size):
    assert parse_bytes(text) == size


@pytest.mark.parametrize(
    "text",
    [
        "60k",
        "60",
        "kB",
        "60 kb",
        "60K",
        "-5kB",
        "5.kB",
        ".5kB",
        "1e3B",
        "1_000B",
        "60kB 5",
        "",
        "nan",
        "٣kB",
        6.5,
        True,
        None,
    ],
)
def test_sizes_without_a_known_unit_are_refused(text):
    with pytest.raises(UsageError) as error:
        parse_bytes(text)
    assert str(error.value) == (
        f"size {text!r}: not a number with a known unit; write one of B, kB, KiB, MB, MiB, GB, GiB, such as 60kB"
    )


def test_negative_size_is_refused():
    with pytest.raises(UsageError, match="size -1: a negative number; give bytes from 0 up"):
        parse_bytes(-1)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("20min", 1200), ("2h", 7200), ("1.5 s", 1.5), ("2ms", 0.002), ("7us", 7e-6), (90, 90), (0.5, 0.5), (0, 0)],
)
def test_times_are_seconds(text, seconds):
    assert parse_seconds(text) == pytest.approx(seconds)
    assert isinstance(parse_seconds(text), float)


@pytest.mark.parametrize("text", ["20", "20m", "min", "-1s", "", "1e3s", "20 MIN", True, None])
def test_times_without_a_known_unit_are_refused(text):
    with pytest.raises(UsageError) as error:
        parse_seconds(text)
    assert str(error.value) == (
        f"time {text!r}: not a number with a known unit; write one of s, min, h, ms, us, such as 20min"
    )


@pytest.mark.parametrize("number", [-1, -0.5, float("nan"), float("inf")])
def test_impossible_times_are_refused(number):
    with pytest.raises(
        UsageError, match=re.escape(f"time {number}: not a number from 0 up; give seconds, or a text such as")
    ):
        parse_seconds(number)


def test_target_reads_its_budgets():
    target = Target("cortex-m4", flash="256KiB", ram=64_000)
    assert (target.flash, target.ram) == (262_144, 64_000)
    assert target.preset.file == "flash"
    assert Target() == Target("onnx-x86", None, None)
    assert not Target().preset.activations_signed


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_is_a_target(name):
    assert Target(name).preset is PRESETS[name]


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("onnx-x68", "did you mean 'onnx-x86'?"),
        ("cortex-m7", "did you mean 'cortex-m4'?"),
        ("tpu", "known are onnx-x86, onnx-arm, c-host, cortex-m4"),
        ("", "known are onnx-x86, onnx-arm, c-host, cortex-m4"),
    ],
)
def test_unknown_target_is_refused_with_the_nearest(name, hint):
    with pytest.raises(UsageError) as error:
        Target(name)
    assert str(error.value) == f"target {name!r}: not a known target; {hint}"


def test_wrong_budget_is_refused():
    with pytest.raises(UsageError, match="size '256k': not a number with a known unit"):
        Target("cortex-m4", flash="256k")
