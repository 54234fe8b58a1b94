"""`replay` finds every target, says why it skips one, sees each difference, and runs nothing but the network."""

import os
import shutil

import pytest

from lilliput.core.errors import ArtifactError
from lilliput.export.c import project
from lilliput.export.c.replay import replay
from lilliput.graph.lower import lower
from lilliput.methods.quantization.post_training import Quantization
from lowered import quantized_tiny

pytestmark = pytest.mark.skipif(shutil.which("gcc") is None, reason="gcc is not installed")
HOST = ["host C, -O2", "host C, sanitizers"]
REFUSE = 'case "$*" in *fsanitize*) echo "ld: cannot find -lasan" >&2; exit 1;; esac'
EMULATED = ["emulated Cortex-M4", "emulated Cortex-M4, plain"]
ARM = all(shutil.which(tool) for tool in ("arm-none-eabi-gcc", "qemu-system-arm"))


@pytest.fixture(scope="module")
def program():
    return lower(quantized_tiny("conv", Quantization(signed=True)))


@pytest.fixture(scope="module")
def written(program, tmp_path_factory):
    folder = tmp_path_factory.mktemp("written")
    project.write(program, folder)
    return folder


@pytest.fixture
def folder(written, tmp_path):
    return shutil.copytree(written, tmp_path / "fw")


@pytest.fixture
def only(tmp_path, monkeypatch):
    """only("gcc"): a PATH with these tools and no others; a tool may be given as a script."""

    def limit(*names, **scripts):
        place = tmp_path / "bin"
        place.mkdir()
        for name in ("as", "ld", "collect2", *names):
            if (path := shutil.which(name)) is not None:
                (place / name).symlink_to(path)
        for name, text in scripts.items():
            path = place / name.replace("_", "-")
            path.write_text(f"#!/bin/sh\n{text}\n")
            path.chmod(0o755)
        monkeypatch.setenv("PATH", str(place))

    return limit


def without_sanitizers():
    """A compiler: half of the work where one target is enough."""
    return f'{REFUSE}; PATH={os.environ["PATH"]} exec {shutil.which("gcc")} "$@"'


def statuses(results):
    return {r.target: r.status for r in results}


def edit(folder, change, file="net.c"):
    text = (folder / file).read_text()
    changed = change(text)
    assert changed != text
    (folder / file).write_text(changed)


def at_the_start(line):
    """Into `net_run`."""

    def change(text):
        head, mark, body = text.rpartition("net_out_t *out) {\n")
        return head + mark + line + "\n" + body

    return change


def test_all_that_this_machine_can_run_is_run(folder):
    golden, results = replay(folder)
    assert [r.target for r in results] == HOST + EMULATED
    assert all(r.status == "equal" for r in results if ARM or r.target in HOST)
    assert all((r.vectors, r.differences) == (len(golden.inputs), 0) for r in results if r.status == "equal")
    if ARM:
        fast, plain = results[2:]
        assert fast.instructions
        assert plain.instructions
        assert fast.instructions < plain.instructions
        assert fast.stack


def test_what_is_not_installed_is_skipped_with_the_reason(folder, only):
    only("gcc")
    results = replay(folder)[1]
    assert statuses(results) == {**dict.fromkeys(HOST, "equal"), **dict.fromkeys(EMULATED, "skipped")}
    assert results[2].reason == "arm-none-eabi-gcc and qemu-system-arm not installed"


def test_without_any_tool_all_is_skipped(folder, only):
    only()
    results = replay(folder)[1]
    assert set(statuses(results).values()) == {"skipped"}
    assert results[0].reason == "no C compiler is installed (cc, gcc or clang)"


def test_a_compiler_without_sanitizers_skips_these(folder, only):
    only(cc=without_sanitizers())
    results = replay(folder)[1]
    assert statuses(results)["host C, -O2"] == "equal"
    assert (results[1].status, results[1].reason) == ("skipped", "no sanitizers: ld: cannot find -lasan")


def test_a_difference_is_seen_on_every_target(folder):
    edit(folder, lambda text: text.replace("void net_run(", "static void run(") + (
        "\nvoid net_run(const net_in_t *in, net_out_t *out) {\n  run(in, out);\n  out[1] ^= 1;\n}\n"
    ))  # fmt: skip
    results = replay(folder)[1]
    assert {r.status for r in results} <= {"differ", "skipped"}
    assert all(r.differences == 11 for r in results if r.status == "differ")


def test_only_the_sanitizers_see_a_read_out_of_bounds(folder):
    edit(folder, at_the_start("  static volatile int8_t room[4]; volatile int at = 5; (void)room[at];"))
    results = replay(folder)[1]
    assert results[0].status == "equal"
    assert results[1].status == "failed"
    assert "out of bounds" in results[1].reason


def test_code_that_does_not_build_is_named_with_the_first_lines_of_the_compiler(folder):
    edit(folder, at_the_start("  nonsense;"))
    results = replay(folder)[1]
    assert {r.status for r in results} <= {"failed", "skipped"}
    assert "error: 'nonsense' undeclared" in results[0].reason
    assert len(results[0].reason) < 800


@pytest.mark.parametrize(
    ("line", "reason"),
    [('  for (;;) __asm__ volatile("");', "not done after 6 s"), ("  *(volatile char *)8 = 1;", "exit code -11")],
)
def test_code_that_hangs_or_crashes_ends(folder, only, line, reason):
    only(cc=without_sanitizers())
    edit(folder, at_the_start(line))
    results = replay(folder, deadline=6)[1]  # the compiler has it too, on a busy machine
    assert (results[0].status, results[0].reason) == ("failed", f"the test: {reason}")


def test_a_test_that_did_not_run_all_vectors_has_failed(folder, only):
    only(cc=without_sanitizers())
    declared = "extern int printf(const char *, ...); extern void exit(int);"
    edit(folder, at_the_start(f'  {declared} printf("1 vectors, 0 outputs differ\\n"); exit(0);'))
    results = replay(folder)[1]
    assert (results[0].status, results[0].reason) == ("failed", "1 vectors in place of 11")


def test_nothing_of_the_folder_runs_but_the_network(folder, tmp_path):
    mark = tmp_path / "ran"
    for file in ("Makefile", "net_test.c", "net_io.c", "emulate/main.c", "emulate/start.c", "bench/bench.c"):
        (folder / file).write_text(f"all:\n\ttouch {mark}\n#error no\n")
    (folder / "stdint.h").write_text("#error no\n")
    (folder / "cc").write_text(f"#!/bin/sh\ntouch {mark}\n")
    (folder / "cc").chmod(0o755)
    before = sorted(folder.iterdir())
    results = replay(folder)[1]
    assert {r.status for r in results} <= {"equal", "skipped"}
    assert not mark.exists()
    assert sorted(folder.iterdir()) == before


@pytest.mark.skipif(not ARM, reason="needs arm-none-eabi-gcc and qemu-system-arm")
def test_the_flash_and_ram_of_the_folder_hold(program, tmp_path):
    project.write(program, tmp_path, flash=1000, ram=8000)
    results = replay(tmp_path)[1]
    assert results[0].status == "equal"
    assert results[2].status == "failed"
    assert "FLASH" in results[2].reason


@pytest.mark.parametrize("kind", ["gone", "folder", "pipe"])
def test_a_file_that_is_none_is_refused(folder, kind):
    (folder / "net.c").unlink()
    if kind == "folder":
        (folder / "net.c").mkdir()
    if kind == "pipe":
        os.mkfifo(folder / "net.c")
    with pytest.raises(ArtifactError, match=r"net\.c: no such file; export the network again"):
        replay(folder)
