"""What tests of HLS headers share: a stand-in for `ap_int.h`, and a reader of constants."""

import re
import subprocess

import numpy as np

AP_INT = r"""
#pragma once
#include <cstdlib>
template <int W> struct ap_int {
  long long v;
  constexpr ap_int(long long x) : v(x) { if (x < -(1LL << (W - 1)) || x >= (1LL << (W - 1))) std::abort(); }
  constexpr operator long long() const { return v; }
};
template <int W> struct ap_uint {
  long long v;
  constexpr ap_uint(long long x) : v(x) { if (x < 0 || x >= (1LL << W)) std::abort(); }
  constexpr operator long long() const { return v; }
};
"""
"""Numbers that do not fit are an end with a signal, not a wrap."""


def constants(text):
    """{name: (type, array)} of a header."""
    found = {}
    for kind, name, dims, body in re.findall(r"^const (\S+) (\w+)((?:\[\d+\])*) = ([^;]*);", text, re.MULTILINE):
        shape = [int(n) for n in re.findall(r"\d+", dims)]
        assert name not in found
        found[name] = kind, np.array(re.findall(r"-?\d+", body), dtype=np.int64).reshape(shape)
    return found


def replayed(folder, code):
    """What a program prints that includes the two headers and nothing else of ours."""
    (folder / "ap_int.h").write_text(AP_INT)
    (folder / "replay.cpp").write_text(code)
    flags = ["-std=c++17", "-O1", "-Wall", "-Wextra", "-Werror"]
    done = subprocess.run(
        ["g++", *flags, "replay.cpp", "-o", "replay"], cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[:4000]
    done = subprocess.run(["./replay"], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.split()
