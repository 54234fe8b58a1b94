"""Golden vectors of a generated folder, on every machine that there is: this one, and an emulated Cortex-M4.

Of the folder only `net.h`, `net.c` and `net_golden.h` are compiled, with tests that are written anew, in a folder of
their own; its Makefile is not run. What it computes does run: verify folders that you would build.
"""

import re
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from lilliput.core.errors import ArtifactError, LilliputError, UsageError, VerificationError
from lilliput.core.progress import SILENT, Progress
from lilliput.export.c import emulate
from lilliput.export.c.golden import END, Golden, bytes_of, read, text_of
from lilliput.export.c.project import TEST
from lilliput.export.c.text import filled
from lilliput.export.c.tools import Ended, call, found

DEADLINE = 600.0
WARNINGS = ("-Wall", "-Wextra")
HOST = ("-std=c99", "-O2", *WARNINGS)
SANITIZED = ("-std=c99", "-O1", "-g", *WARNINGS, "-fsanitize=address,undefined", "-fno-sanitize-recover=all")
NO_SANITIZERS = re.compile(r"lib(asan|ubsan)|fsanitize|-l(asan|ubsan)")


@dataclass(frozen=True, kw_only=True)
class Replay:
    """What happened on one target. `status`: equal, differ, failed (it does not build, or crashes), or skipped."""

    target: str
    status: str
    reason: str = ""
    vectors: int | None = None
    differences: int | None = None
    seconds: float | None = None
    instructions: int | None = None
    stack: int | None = None


def replay(folder: Path, *, deadline: float = DEADLINE, progress: Progress = SILENT) -> tuple[Golden, list[Replay]]:
    """Build and run every target, each tool for `deadline` seconds at most.

    Raises `UsageError` and `ArtifactError` for a folder that is not as it was exported.
    """
    golden = read(folder)
    switch = f"{golden.name.upper()}_PLAIN"
    targets: dict[str, Callable[[Path], Replay]] = {
        "host C, -O2": partial(_host, golden, "host C, -O2", HOST, deadline),
        "host C, sanitizers": partial(_host, golden, "host C, sanitizers", SANITIZED, deadline),
        "emulated Cortex-M4": partial(_emulated, folder, golden, "emulated Cortex-M4", (), deadline),
    }
    if switch in text_of(folder / f"{golden.name}.c"):
        name = "emulated Cortex-M4, plain"
        targets[name] = partial(_emulated, folder, golden, name, (f"-D{switch}",), deadline)
    results: list[Replay] = []
    for name, target in targets.items():
        progress.say(f"{name} ...")
        with tempfile.TemporaryDirectory(prefix="lilliput-") as scratch:
            _copy(folder, golden.name, Path(scratch))
            results.append(target(Path(scratch)))
    return golden, results


def _copy(folder: Path, name: str, scratch: Path) -> None:
    for file in (f"{name}.h", f"{name}.c", f"{name}{END}"):
        (scratch / file).write_bytes(bytes_of(folder / file))


def _host(golden: Golden, target: str, flags: tuple[str, ...], deadline: float, scratch: Path) -> Replay:
    compiler = found("cc", "gcc", "clang")
    if compiler is None:
        return Replay(target=target, status="skipped", reason="no C compiler is installed (cc, gcc or clang)")
    name = golden.name
    marks = {"@U": name.upper(), "@N": name}
    (scratch / "test.c").write_text(filled(TEST, marks))
    built = call([compiler, *flags, f"{name}.c", "test.c", "-o", "test"], scratch, deadline=deadline)
    if built.code != 0:
        if flags is SANITIZED and NO_SANITIZERS.search(built.text):
            return Replay(target=target, status="skipped", reason=f"no sanitizers: {built.first_lines}")
        return _failed(target, Path(compiler).name, built)
    ran = call([scratch / "test"], scratch, deadline=deadline)
    said = re.search(r"^(\d{1,9}) vectors, (\d{1,9}) outputs differ$", ran.text, re.MULTILINE)
    if ran.code not in (0, 1) or said is None:
        return _failed(target, "the test", ran)
    return _judged(golden, target, int(said[1]), int(said[2]), ran.seconds)


def _emulated(
    folder: Path, golden: Golden, target: str, flags: tuple[str, ...], deadline: float, scratch: Path
) -> Replay:
    compiler, emulator = found("arm-none-eabi-gcc"), found("qemu-system-arm")
    if compiler is None or emulator is None:
        missing = " and ".join(
            name for name, path in (("arm-none-eabi-gcc", compiler), ("qemu-system-arm", emulator)) if path is None
        )
        return Replay(target=target, status="skipped", reason=f"{missing} not installed")
    name = golden.name
    for path, text in emulate.files(name, **_limits(folder)).items():
        (scratch / path).parent.mkdir(exist_ok=True)
        (scratch / path).write_text(text)
    sources = [f"{name}.c", "emulate/start.c", "emulate/main.c"]
    linked = [*emulate.LINKED.split(), "-T", "emulate/link.ld", "-lgcc", "-o", "test.elf"]
    built = call([compiler, *emulate.FLAGS.split(), *flags, *sources, *linked], scratch, deadline=deadline)
    if built.code != 0:
        return _failed(target, "arm-none-eabi-gcc", built)
    machine = [*emulate.MACHINE.split(), "-serial", "null", "-icount", "shift=0", "-kernel", "test.elf"]
    ran = call([emulator, *machine], scratch, deadline=deadline)
    said = dict(re.findall(r"^(vectors|differ|instructions|stack) (\d{1,10})$", ran.text, re.MULTILINE))
    if ran.code not in (0, 1) or len(said) != len(("vectors", "differ", "instructions", "stack")):
        return _failed(target, "the test", ran)
    return _judged(
        golden,
        target,
        int(said["vectors"]),
        int(said["differ"]),
        ran.seconds,
        instructions=int(said["instructions"]),
        stack=int(said["stack"]),
    )


def _limits(folder: Path) -> dict[str, int]:
    """Flash and RAM that the folder is linked for, if its linker script is as it was written."""
    path = folder / "emulate" / "link.ld"
    if not path.is_file():
        return {}
    sizes = re.findall(
        r"^  (FLASH|RAM) \(r[wx]+\) : ORIGIN = 0x[02]0000000, LENGTH = (\d{1,9})$", text_of(path), re.MULTILINE
    )
    return {name.lower(): int(size) for name, size in sizes}


def _failed(target: str, tool: str, ended: Ended) -> Replay:
    return Replay(target=target, status="failed", reason=f"{tool}: {ended.first_lines}", seconds=ended.seconds)


def _judged(
    golden: Golden,
    target: str,
    vectors: int,
    differences: int,
    seconds: float,
    instructions: int | None = None,
    stack: int | None = None,
) -> Replay:
    if vectors != len(golden.inputs):
        reason = f"{vectors} vectors in place of {len(golden.inputs)}"
        return Replay(target=target, status="failed", reason=reason, seconds=seconds)
    return Replay(
        target=target,
        status="differ" if differences else "equal",
        vectors=vectors,
        differences=differences,
        seconds=seconds,
        instructions=instructions,
        stack=stack,
    )


def trouble(folder: Path, results: list[Replay]) -> LilliputError | None:
    """What is wrong with a folder, if anything is."""
    asked = f"verify {folder}"
    by_status = {status: [r for r in results if r.status == status] for status in ("differ", "failed", "skipped")}
    if by_status["differ"]:
        names = ", ".join(f"{r.target} ({r.differences} outputs)" for r in by_status["differ"])
        return VerificationError(asked, f"it differs on {names}", "export the network again, or report this model")
    if by_status["failed"]:
        first = by_status["failed"][0]
        return ArtifactError(asked, f"{first.target}: {first.reason}", "mend the tool, or export the network again")
    if len(by_status["skipped"]) == len(results):
        reasons = "; ".join(dict.fromkeys(r.reason for r in results))
        return UsageError(asked, f"nothing that this machine can run: {reasons}", "install a C compiler")
    return None
