"""From a board to its log and back: what `bench/` writes is read, and every log that is not whole is refused."""

import re
import shutil
import subprocess
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lilliput.core.errors import ArtifactError, LilliputError, UsageError, VerificationError
from lilliput.export.c import board_log, project
from lilliput.export.c.board_log import check_log, read_log
from lilliput.export.c.golden import Golden, read
from lilliput.graph.lower import lower
from lilliput.methods.quantization.post_training import Quantization
from lowered import quantized_tiny

TOOLS = ("arm-none-eabi-gcc", "qemu-system-arm", "make")
HOST = """
#include <stdio.h>
#include "bench/bench.h"
static uint32_t now;
void bench_putc(char c) { putchar(c); }
uint32_t bench_cycles(void) { now += 1000; return now * 1000; }
int main(void) { return net_bench() != 0; }
"""
VECTORS = Golden(
    name="net", inputs=np.arange(12, dtype="<i1").reshape(3, 4), outputs=np.arange(6, dtype="<i4").reshape(3, 2)
)


def line(body):
    return f"{body} *{zlib.crc32(body.encode()):08x}"


def lines(golden=VECTORS, name="net", cycles=(30, 10, 20)):
    """A whole run, as `bench.c` writes it."""
    head = f"{name} {golden.fingerprint:08x}"
    rows = [f"lilliput vector {head} {i} {s:08x} {c}" for i, (s, c) in enumerate(zip(golden.sums, cycles, strict=True))]
    return [line(b) for b in (f"lilliput start {head} {len(rows)}", *rows, f"lilliput end {head} 0 480 1024")]


def vector(index):
    return line(f"lilliput vector net {VECTORS.fingerprint:08x} {index} 00000000 10")


def log(folder, text):
    path = folder / "log.txt"
    path.write_bytes(text if isinstance(text, bytes) else ("\r\n".join(text) + "\r\n").encode())
    return path


def test_a_whole_run_is_read(tmp_path):
    run = check_log(log(tmp_path, lines()), VECTORS)
    assert (run.cycles, run.stack, run.painted) == ((30, 10, 20), 480, 1024)
    assert run.text() == "3 vectors equal; cycles 10 / 20 / 30 (min / median / max); stack 480 bytes"
    run = check_log(log(tmp_path, lines(cycles=(0, 0, 0))), VECTORS)
    assert "no cycle counter" in run.text()


def test_all_of_the_painted_stack_is_at_least_so_much(tmp_path):
    rows = lines()
    rows[-1] = line(f"lilliput end net {VECTORS.fingerprint:08x} 0 1024 1024")
    assert check_log(log(tmp_path, rows), VECTORS).text().endswith("stack at least 1,024 bytes")


@pytest.mark.parametrize(
    "noise",
    [
        lambda rows: ["put vector net 12", "", "boot v1.2", *rows, "bye"],
        lambda rows: [rows[1][20:], *rows],  # joined in the middle of a line
        lambda rows: [rows[2], rows[4], *rows],  # joined in the middle of a run
        lambda rows: [f"[00:00:0{i}] {row}" for i, row in enumerate(rows)],  # times of a terminal
        lambda rows: [part for row in rows for part in (row, "other text")],
        lambda rows: [*rows[:2], *rows],  # a reset
        lambda rows: [*lines(name="other"), *rows, *lines(name="third")],  # several networks in one firmware
        lambda rows: [rows[0], *lines(name="other"), *rows[1:]],
        lambda rows: [*rows, *rows[:3]],  # the next run has begun
        lambda rows: [*rows, rows[1][:-1]],
        lambda rows: [*rows[:2], rows[2][:-2], *rows],  # a damaged run before
        lambda rows: [row + "   " for row in rows],
    ],
)
def test_what_stands_around_a_run_does_no_harm(tmp_path, noise):
    assert check_log(log(tmp_path, noise(lines())), VECTORS).cycles == (30, 10, 20)


def test_line_ends_and_bytes_of_noise_do_no_harm(tmp_path):
    for end in (b"\n", b"\r\n", b"\r"):
        data = b"\xff\x00\xfe\n" + end.join(row.encode() for row in lines()) + end
        assert check_log(log(tmp_path, data), VECTORS).stack == 480


def other_vectors():
    return Golden(name="net", inputs=VECTORS.inputs + np.int8(1), outputs=VECTORS.outputs)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda rows: [], "no whole run of a bench in it; record it again, from the reset on"),
        (lambda rows: ["hello"], "no whole run of a bench in it"),
        (lambda rows: rows[1:], "no whole run of a bench in it"),
        (lambda rows: rows[:-1], "its last run ends after 3 of 3 vectors"),
        (lambda rows: rows[:2], "its last run ends after 1 of 3 vectors"),
        (
            lambda rows: [*rows[:-1], rows[-1][:-3]],
            r"its last run ends after 3 of 3 vectors \(line 5 is damaged: its che",
        ),
        (lambda rows: [*rows[:2], *rows[3:]], "vector 1 of 3 is missing; record it again"),
        (
            lambda rows: [*rows[:2], rows[2].replace(" 10 ", " 11 "), *rows[3:]],
            "line 3 is damaged: its checksum does not",
        ),
        (lambda rows: [*rows[:2], rows[2].replace("put", "p\xfft"), *rows[3:]], "vector 1 of 3 is missing"),
        (lambda rows: [*rows[:2], rows[2][:-12], *rows[3:]], "line 3 is damaged"),
        (lambda rows: [*rows[:3], *rows[2:]], "line 4 has vector 1 again"),
        (lambda rows: [*rows[:4], vector(3), rows[4]], "line 5 has vector 3 again, or one of more than 3"),
        (lambda rows: [*rows[:2], line("lilliput vector net x"), *rows[2:]], "line 3 is damaged: it is not as a bench"),
        (lambda rows: [*rows[:2], *lines(other_vectors())[2:]], "line 3 is of another firmware"),
        (lambda rows: lines(name="other"), "it is of 'other', not of 'net'"),
    ],
)
def test_a_log_that_is_not_whole_is_refused(tmp_path, change, text):
    with pytest.raises(ArtifactError, match=text) as raised:
        check_log(log(tmp_path, change(lines())), VECTORS)
    assert str(raised.value).startswith(f"verify {tmp_path / 'log.txt'}: ")


def test_a_log_of_another_firmware_is_refused(tmp_path):
    text = f"its golden vectors are {other_vectors().fingerprint:08x}, those of the folder {VECTORS.fingerprint:08x}"
    with pytest.raises(ArtifactError, match=text):
        check_log(log(tmp_path, lines(other_vectors())), VECTORS)


def test_other_outputs_are_a_difference(tmp_path):
    rows = lines()
    rows[3] = line(f"lilliput vector net {VECTORS.fingerprint:08x} 2 12345678 20")
    with pytest.raises(VerificationError, match="the outputs of 1 of 3 vectors differ, first of vector 2"):
        check_log(log(tmp_path, rows), VECTORS)


def test_a_count_that_no_log_can_hold_is_refused_at_once(tmp_path):
    head = f"net {VECTORS.fingerprint:08x}"
    rows = [line(f"lilliput start {head} 9999999999"), line(f"lilliput end {head} 0 1 1")]
    with pytest.raises(ArtifactError, match="vector 0 of 9999999999 is missing"):
        check_log(log(tmp_path, rows), VECTORS)
    rows[0] = line(f"lilliput start {head} 0")
    with pytest.raises(ArtifactError, match="its golden vectors are"):
        check_log(log(tmp_path, rows), VECTORS)


def test_a_log_that_is_not_there_or_enormous(tmp_path, monkeypatch):
    with pytest.raises(UsageError, match="no such file; store what the board sends in a file"):
        check_log(tmp_path / "none", VECTORS)
    monkeypatch.setattr(board_log, "LARGEST_LOG", 10)
    with pytest.raises(ArtifactError, match="more than 10 bytes"):
        check_log(log(tmp_path, lines()), VECTORS)


@given(place=st.integers(0, 10**4), byte=st.integers(0, 255))
def test_one_wrong_byte_is_never_taken_for_another_result(tmp_path_factory, place, byte):
    data = bytearray(("\n".join(lines()) + "\n").encode())
    data[place % len(data)] = byte
    try:
        run = check_log(log(tmp_path_factory.mktemp("log"), bytes(data)), VECTORS)
    except LilliputError as error:
        assert isinstance(error, ArtifactError)  # noqa: PT017 - damaged, and not "the outputs differ"
    else:
        assert (run.cycles, run.stack, run.painted) == ((30, 10, 20), 480, 1024)


# --- from the C ------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    project.write(lower(quantized_tiny("residual", Quantization(signed=True))), tmp_path)
    return tmp_path


@pytest.mark.skipif(shutil.which("gcc") is None, reason="gcc is not installed")
def test_the_bench_built_for_a_host_writes_a_log_that_agrees(folder):
    (folder / "host.c").write_text(HOST)
    command = [
        "gcc",
        "-std=c99",
        "-O2",
        "-Wall",
        "-Wextra",
        "-Werror",
        "net.c",
        "bench/bench.c",
        "host.c",
        "-o",
        "host",
    ]
    subprocess.run(command, cwd=folder, check=True)
    done = subprocess.run([folder / "host"], capture_output=True, check=True)
    run = check_log(log(folder, done.stdout), read(folder))
    assert set(run.cycles) == {1_000_000}
    assert 0 < run.stack < run.painted == 1024


@pytest.mark.skipif(any(shutil.which(t) is None for t in TOOLS), reason=f"needs {', '.join(TOOLS)}: apt install them")
def test_from_an_emulated_board_through_its_uart_to_verify(folder):
    done = subprocess.run(["make", "bench"], cwd=folder, capture_output=True, text=True, check=False, timeout=100)
    assert done.returncode == 0, done.stdout + done.stderr
    path = folder / "bench" / "uart.log"
    run = check_log(path, read(folder))
    assert len(run.sums) == 11
    assert not run.counted  # the emulator has no counter of cycles
    assert 0 < run.stack < 1024
    text = (folder / "net.c").read_text()
    start = text.index("net_run(const")
    (folder / "net.c").write_text(text[:start] + text[start:].replace("}", "  out[0]++;\n}", 1))
    done = subprocess.run(["make", "bench"], cwd=folder, capture_output=True, text=True, check=False, timeout=100)
    assert done.returncode != 0
    with pytest.raises(VerificationError, match="the outputs of 11 of 11 vectors differ, first of vector 0"):
        check_log(path, read(folder))


def test_lines_name_the_network_and_the_fingerprint(folder):
    text = (folder / "bench" / "bench.c").read_text()
    assert re.search(r'text\(" net "\);\s+hex\(fingerprint\);', text)
    assert read_log(log(folder, lines()), "net").fingerprint == VECTORS.fingerprint
