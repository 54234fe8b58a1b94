"""Small real `.lil` files of every kind, hostile copies of them, and a judge: `ArtifactError`, or an exact network.

`python hostile_files.py COUNT SEED` judges COUNT copies in a process with little memory and prints what it found as
JSON. A copy follows from its seed and number alone: `judge(*mutant(seed, number))` repeats it. `python hostile_files.py
FILE ...` reads files with the memory that a small file may take.
"""

import faulthandler
import json
import math
import re
import resource
import signal
import sys
import traceback
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import lil_files
from lil_files import deflated, file_of, opened, sealed, varint
from lilliput.core import container, wire
from lilliput.core.artifact import Artifact, InputSpec
from lilliput.core.bank import Bank
from lilliput.core.coding import Writer
from lilliput.core.encoding import Encoding, Grid, Sharing
from lilliput.core.errors import ArtifactError, LilliputError
from lilliput.core.streams import write_encoding
from lilliput.graph import stored
from lilliput.graph.integer import runnable
from lilliput.graph.trace import graph_of, run
from lilliput.ops import entropy
from lilliput.ops.netlist import Gate, Netlist

SECONDS = 2.0
"""Of the processor, for one copy."""
MEMORY = 256 << 20
"""What a process may take beyond what it has after reading every good file."""
SMALL = 96 << 20
"""The same for a file of 200 bytes."""
GRAPH = 8
LARGEST_RUN = 1 << 20
"""Entries of all values of a network that is run."""
LARGEST_REREAD = 5000
"""Entries of a file that the slow second reader reads too."""
FORMAT = Path(__file__).parents[1] / "docs" / "format.md"
FORBIDDEN = re.compile(
    r"exec$|compile$|import$|open$|os\.(system|exec|posix_spawn|fork|spawn|remove|rename|mkdir|chmod|putenv)|subprocess|"
    r"socket|ctypes|pickle|marshal|shutil|tempfile|webbrowser|urllib|ftplib|glob|code\.__new__|sys\.(settrace|setprofile)"
)
"""Audit events that reading a file never causes."""


# --- real files ------------------------------------------------------------------------------------------------------


def wide() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return nn.Sequential(
            nn.Conv2d(1, 6, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(6, 8, 3, padding=1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(128, 3),
        )


def smooth(shape: tuple[int, ...]) -> torch.Tensor:
    """Neighbours are alike."""
    generator = torch.Generator().manual_seed(5)
    ends = (1,) * (len(shape) - 1)
    return torch.randn(shape[0], *ends, generator=generator) + 0.5 * torch.randn(shape, generator=generator)


def wide_net() -> Artifact:
    return Artifact.of(wide(), InputSpec(shape=(1, 4, 4), layout="CHW"))


def fives() -> Artifact:
    """4-bit weights of which neighbours are alike."""
    net = wide_net()
    for name in ("0.weight", "2.weight", "5.weight"):
        e = Encoding.of(smooth(tuple(net.parameter(name).shape)))
        net.encode_(name, e.with_grid(Grid.per_tensor(0.35, 0, 4, signed=True)))
    return net


def widths() -> Artifact:
    """A grid for each channel: 0 to 8 bits, with zero points; another on the second axis; a mask over it."""
    net = wide_net()
    for name, axis in (("0.weight", 0), ("2.weight", 1), ("5.weight", 0)):
        e = Encoding.of(smooth(tuple(net.parameter(name).shape)))
        n = e.shape[axis]
        bits = torch.tensor([5, 0, 8, 3, 6, 1, 7, 4])[:n]
        zero = torch.tensor([1, -9, 5, 0, -3, 0, 2, 0])[:n]
        grid = Grid(scale=0.03 + 0.01 * torch.arange(n), zero_point=zero, bit_width=bits, axis=axis)
        net.encode_(name, (e if axis == 0 else e.with_mask(e.values > 0)).with_grid(grid))
    return net


def tables() -> Artifact:
    """Tables of different lengths for each channel, of floats and of integers, under masks."""
    net = wide_net()
    generator = torch.Generator().manual_seed(7)
    for name in ("0.weight", "2.weight", "5.weight"):
        e = Encoding.of(smooth(tuple(net.parameter(name).shape)))
        sizes = torch.arange(e.shape[0]) % 5 + 1
        limit = sizes.reshape(-1, *[1] * (len(e.shape) - 1))
        indices = (torch.rand(e.shape, generator=generator) * limit).long()
        e = e.with_mask(torch.rand(e.shape, generator=generator) < 0.8)
        e = e.with_sharing(
            Sharing(indices=indices, sizes=sizes, axis=0), torch.randn(int(sizes.sum()), generator=generator)
        )
        net.encode_(name, e if name == "2.weight" else e.with_grid(Grid.per_tensor(0.02, 3, 7, signed=True)))
    return net


def circuits() -> Artifact:
    """Weights of circuits: two layers of one, with inputs and a mask, and one of its own for a part of its channels."""
    net = wide_net()
    adds = Netlist(bits=8, inputs=2, gates=(Gate(1, 0, 1), Gate(3, 2, 0), Gate(15, 3)), outputs=(0, 1, 2, 3, 4))
    shared, own = (
        Bank(netlist=adds, inputs=(3, -5)),
        Netlist(bits=6, inputs=0, gates=(Gate(22), Gate(18, 0)), outputs=(0, 1)),
    )
    for name, axis in (("0.weight", 0), ("2.weight", None), ("5.weight", 0)):
        e = Encoding.of(smooth(tuple(net.parameter(name).shape)))
        n = 1 if axis is None else e.shape[axis]
        bits = torch.tensor([6, 0, 7, 5, 6, 6])[:n] if name == "0.weight" else torch.full((n,), 7)
        e = e if name == "5.weight" else e.with_mask(e.values > -1)
        grid = Grid(
            scale=0.1 + 0.03 * torch.arange(n), zero_point=torch.zeros(n, dtype=torch.int64), bit_width=bits, axis=axis
        )
        net.encode_(name, e.with_grid(grid).with_bank(Bank(netlist=own) if name == "5.weight" else shared))
    return net


class Forced(Writer):
    """Every stream that can has this coding, whatever it takes."""

    def __init__(self, coding: int) -> None:
        super().__init__()
        self.coding = coding

    def _put(self, slot: Any, raw: bytes, layouts: Any, coded: Any, raw_bits: int) -> None:
        plain = {1: raw, **layouts}
        codings = dict(coded)
        for i, data in plain.items():
            codings |= {i: entropy.encode(data, "zlib"), i + 1: entropy.encode(data, "lzma")}
        super()._put(slot, raw, {}, [], raw_bits)
        if self.coding in codings and raw:
            self.streams[-1] = type(self.streams[-1])(slot, codings[self.coding], raw_bits, self.coding)


def coded(net: Artifact, coding: int) -> bytes:
    header = wire.loads(opened(container.dumps(net))[0])
    writer, entries = Forced(coding), []
    for name, e in net.stored().items():
        first = len(writer.streams)
        slots = write_encoding(writer, e)
        codes = writer.codes(first)
        entries.append([name, slots, list(e.shape), *([codes] if codes else [])])
    header[2] = entries
    return file_of(wire.dumps(header), writer.data)


def with_history() -> Artifact:
    net = fives()
    net.recipe = [{"weight_clustering": {"n_clusters": 8, "overrides": {"0": {"n_clusters": 4}}}}, {"seed": 1}]
    return net


def integers() -> Artifact:
    """With grids of its own values only, so that it runs."""
    net = lil_files.artifact("integer")
    del net.activations["signed"]
    return net


FILES: dict[str, bytes] = {
    "float": container.dumps(lil_files.artifact("float")),
    "masks, tables and grids": container.dumps(lil_files.artifact("slots")),
    "activations and derived scales": container.dumps(lil_files.artifact("integer")),
    "edits": container.dumps(lil_files.artifact("edited")),
    "tied": container.dumps(lil_files.artifact("tied")),
    "contexts": container.dumps(with_history(), trail=[{"step": 1, "why": None, "took": 0.5}]),
    "contexts of different widths": coded(widths(), 5),
    "contexts of tables": coded(tables(), 5),
    "contexts of floats": coded(lil_files.artifact("residual"), 5),
    "deflate": coded(widths(), 1),
    "LZMA": coded(tables(), 2),
    "LZMA of bytes": coded(fives(), 4),
    "deflate of bytes": coded(tables(), 3),
    "LZMA of floats": coded(lil_files.artifact("float"), 2),
    "circuits": container.dumps(circuits()),
    "coded circuits": coded(circuits(), 3),
    "graph": stored.dumps(lil_files.artifact("residual")),
    "graph of integers": stored.dumps(integers()),
    "graph of a cut network": stored.dumps(lil_files.artifact("edited")),
    "graph with tied weights": stored.dumps(lil_files.artifact("tied")),
}
GRAPHS = [kind for kind in FILES if kind.startswith("graph")]
TINY = {
    "float": "float",
    "masks, tables and grids": "slots",
    "activations and derived scales": "integer",
    "edits": "edited",
    "tied": "tied",
    "contexts of floats": "residual",
    "LZMA of floats": "float",
    "graph": "residual",
    "graph of integers": "integer",
    "graph of a cut network": "edited",
    "graph with tied weights": "tied",
}


def fresh(kind: str) -> nn.Module:
    return lil_files.fresh(TINY[kind]) if kind in TINY else wide()


# --- hostile copies --------------------------------------------------------------------------------------------------

EXTREMES = [0, 1, 2, 7, 8, 23, 24, 63, 64, 255, 256, 65535, 65536, 1 << 20, (1 << 20) + 1, 1 << 31, 1 << 32, 1 << 40]
EXTREMES += [(1 << 63) - 1, -1, -2, -(1 << 31), -(1 << 63)]
ODD: list[Any] = [
    None,
    True,
    0.0,
    -1.5,
    math.nan,
    math.inf,
    "",
    "bias",
    "0.weight",
    "x" * 1001,
    b"",
    b"\xff" * 9,
    [],
    {},
]
ODD += [
    "__class__",
    "\x1b[31m",
    "forward",
    "0.__dict__",
    [[]],
    [1] * 9,
    [1 << 40] * 8,
    {"a": b"1"},
    {"inplace": 1},
    "é" * 9,
]


def bytes_changed(data: bytes, rng: np.random.Generator) -> bytes:
    """One to four changes: bits, bytes, lengths, order."""
    out = bytearray(data)
    for _ in range(int(rng.integers(1, 5))):
        if not out:
            break
        a, b = sorted(int(x) for x in rng.integers(0, len(out) + 1, 2))
        at = min(a, len(out) - 1)
        how = int(rng.integers(9))
        if how == 0:
            out[at] ^= 1 << int(rng.integers(8))
        elif how == 1:
            out[at] = int(rng.integers(256))
        elif how == 2:
            out[at] = [0, 1, 127, 128, 254, 255][int(rng.integers(6))]
        elif how == 3:
            del out[b if rng.integers(2) else len(out) - min(len(out), 1 + b - a) :]
        elif how == 4:
            out[at:at] = rng.bytes(int(rng.integers(1, 9)))
        elif how == 5:
            out[b:b] = out[a : min(b, a + 64)]
        elif how == 6:
            c = int(rng.integers(0, len(out) + 1))
            n = min(b - a, abs(c - a), len(out) - max(a, c))
            out[a : a + n], out[c : c + n] = out[c : c + n], out[a : a + n]
        elif how == 7:
            del out[a : min(b, a + 32)]
        else:
            fill = [0, 255][int(rng.integers(2))]
            out[a : min(b, a + 16)] = bytes([fill]) * (min(b, a + 16) - a)
    return bytes(out)


def paths(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    found = [path] if path else []
    if isinstance(value, (list, dict)):
        for key, item in enumerate(value) if isinstance(value, list) else value.items():
            found += paths(item, (*path, key))
    return found


def field_changed(header: Any, rng: np.random.Generator) -> None:
    """One value of the header: another number, another type, gone, twice, or in another's place."""
    known = paths(header)
    if not known:
        return
    path = known[int(rng.integers(len(known)))]
    parent = header
    for key in path[:-1]:
        parent = parent[key]
    key, old = path[-1], parent[path[-1]]
    how = int(rng.integers(8))
    if how == 0 and isinstance(parent, list):
        del parent[key]
    elif how == 1 and isinstance(parent, list):
        parent.insert(int(rng.integers(len(parent) + 1)), old)
    elif how == 2 and isinstance(parent, list):
        other = int(rng.integers(len(parent)))
        parent[key], parent[other] = parent[other], old
    elif how == 3 and type(old) is int:
        parent[key] = min(max(old + int(rng.integers(-9, 10)), -(1 << 63)), (1 << 63) - 1)
    elif how == 4 and type(old) is int:
        parent[key] = old * 2 % (1 << 63)
    elif how == 5 and isinstance(old, str):
        parent[key] = (old + ".x", old[:-1], old * 2, "weight", old.upper())[int(rng.integers(5))]
    elif how == 6:
        parent[key] = ODD[int(rng.integers(len(ODD)))]
    else:
        parent[key] = EXTREMES[int(rng.integers(len(EXTREMES)))]


def graph_changed(graph: Any, rng: np.random.Generator) -> None:
    """Another operation, operand, place or attribute; a node gone, twice, or in another place."""
    nodes = graph[0] if isinstance(graph, list) and graph and isinstance(graph[0], list) else []
    how = int(rng.integers(6))
    if not nodes or how == 0:
        field_changed(graph, rng)
        return
    at = int(rng.integers(len(nodes)))
    if how == 1:
        nodes.insert(int(rng.integers(len(nodes) + 1)), nodes[at])
    elif how == 2:
        del nodes[at]
    elif how == 3 and isinstance(nodes[at], int):
        nodes[at] = int(rng.integers(60))
    else:
        node = nodes[at] = list(nodes[at]) if isinstance(nodes[at], list) else [nodes[at]]
        node += [None] * int(rng.integers(1, 6))
        values = [0, 1, 2, 3, 4, 7, -1, -2, 65536, True, 0.5, "x", [1, 1], [2, 1], [1, 2, 3], [0, "a", True], 1 << 31]
        node[int(rng.integers(1, len(node)))] = values[int(rng.integers(len(values)))]
        node[0] = node[0] if rng.integers(3) else int(rng.integers(60))
        while len(node) > 1 and node[-1] is None:
            node.pop()
        if len(node) == 1:
            nodes[at] = node[0]


def mutant(seed: int, number: int) -> tuple[str, bytes, bool]:
    """(kind, bytes of the copy, whether its checksum belongs to it)."""
    rng = np.random.default_rng([seed, number])
    kind = list(FILES)[number % len(FILES)]
    data = FILES[kind]
    raw, payload = opened(data)
    how = int(rng.integers(12))
    if kind in GRAPHS and rng.integers(2):  # the graph, and nothing else
        header = wire.loads(raw)
        for _ in range(int(rng.integers(1, 4))):
            graph_changed(header[GRAPH], rng)
        return kind, file_of(wire.dumps(header), payload), True
    if how == 0:
        return kind, bytes_changed(data, rng), False
    if how == 1:
        return kind, sealed(bytes_changed(data[:-4], rng)), True
    if how == 2:  # magic and version stay
        return kind, sealed(data[:4] + bytes_changed(data[4:-4], rng)), True
    if how == 3:
        return kind, file_of(bytes_changed(raw, rng), payload), True
    if how in (4, 5):
        return kind, file_of(raw, bytes_changed(payload, rng)), True
    if how == 6:  # lengths of the header
        n = deflated(raw)
        claims = [len(raw), len(n), *EXTREMES[:18], (1 << 35) - 1]
        a, b = (claims[int(rng.integers(len(claims)))] for _ in range(2))
        return kind, sealed(b"LIL\x01" + varint(a) + varint(b) + n + payload), True
    if how == 7:  # the header of one file, the payload of another
        other = FILES[list(FILES)[int(rng.integers(len(FILES)))]]
        return kind, file_of(raw, opened(other)[1]), True
    header = wire.loads(raw)
    if how == 8:  # a coded stream of another length or coding, with as many bytes
        tensors = [t for t in header[2] if len(t) > 3]
        if tensors:
            codes = tensors[int(rng.integers(len(tensors)))][3]
            at = int(rng.integers(len(codes)))
            codes[at] = [codes[at] // 8 * 8 + int(rng.integers(8)), codes[at] + 8 * int(rng.integers(-9, 10))][at % 2]
            codes[at] = max(codes[at], 1)
    else:
        for _ in range(how - 8):
            field_changed(header, rng)
    if rng.integers(4) == 0:
        payload = bytes_changed(payload, rng)
    return kind, file_of(wire.dumps(header), payload), True


# --- the judge -------------------------------------------------------------------------------------------------------


class FaultError(Exception):
    """What no file may cause."""


def second_reader() -> Any:
    """`read_lil` of docs/format.md."""
    blocks = re.findall(r"```python\n(.*?)```", FORMAT.read_text(encoding="utf-8"), re.DOTALL)
    names: dict[str, Any] = {}
    exec(next(b for b in blocks if "def read_lil" in b), names)
    return names["read_lil"]


def judge(kind: str, data: bytes, right_sum: bool, reader: Any = None) -> str:
    """What became of the copy; raises `FaultError`."""
    try:
        contents = container.loads(data, source="copy.lil")
    except ArtifactError as error:
        check_error(error, r"read copy\.lil")
        return "refused"
    if not right_sum and data != FILES[kind]:
        raise FaultError("a wrong checksum was taken for right")
    known = contents.wiring is not None and runs(contents, reader is not None)
    try:
        net = contents.replay(fresh(kind))
    except ArtifactError as error:
        check_error(error, r"load|replay")
        return "a graph" if known else "refused for this module"
    net.check()
    written = container.dumps(net, trail=contents.trail)
    again = container.loads(written)
    if not all(again.tensors[name].same(e) for name, e in net.stored().items()):
        raise FaultError("what is written again is another network")
    if reader is not None and sum(math.prod(e.shape) for e in contents.tensors.values()) <= LARGEST_REREAD:
        agrees(contents, reader(data)[1])
    return "a graph" if known else "a network"


def runs(contents: container.Contents, slowly: bool) -> bool:
    """Is it a network by its own graph? Then it runs, as it says, and is written again as it is."""
    try:
        net = stored.stored_artifact(contents, "copy.lil")
    except ArtifactError as error:
        check_error(error, r"load copy\.lil")
        return False
    graph = graph_of(net)
    net.check()
    again = container.loads(container.dumps(net, trail=contents.trail, wiring=contents.wiring))
    if again.wiring != contents.wiring or not all(again.tensors[n].same(e) for n, e in net.stored().items()):
        raise FaultError("what is written again is another network")
    if slowly and sum(math.prod(node.shape) for node in graph.nodes) <= LARGEST_RUN:
        seen: dict[str, tuple[int, ...]] = {}
        with torch.no_grad():
            run(
                graph,
                net.module.state_dict(),
                net.input.example(1),
                visit=lambda n, v: seen.update({n.name: v.shape}) or v,
            )
        if any(tuple(seen[node.name]) != node.shape for node in graph.nodes if node.name in seen):
            raise FaultError("a value has another shape than was said")
        with suppress(LilliputError, ValueError):  # grids of values that are not there; NaN, which has no integer
            runnable(net)(net.input.example(2))
    return True


def agrees(contents: container.Contents, others: Any) -> None:
    for name, e in contents.tensors.items():
        shape, values = others[name]
        if shape != e.shape or not np.array_equal(
            np.array(values, np.float32), e.decode().reshape(-1).numpy(), equal_nan=True
        ):
            raise FaultError(f"the second reader finds another {name!r}")


def check_error(error: ArtifactError, asked: str) -> None:
    text = str(error)
    if re.match(asked, text) is None or text != f"{error.asked}: {error.found}; {error.do}" or not error.do:
        raise FaultError(f"an error of another form: {text!r}")
    if not text.isprintable() or len(text) > 1500:
        raise FaultError(f"an error that is not one short line: {text!r}")


class Late(BaseException):
    """Not an Exception: nothing catches it on the way."""


def _late(number: int, frame: Any) -> None:
    raise Late


def limit_memory(spare: int) -> None:
    """So much more than now."""
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + spare, resource.RLIM_INFINITY))


def read_all(names: list[str]) -> dict[str, Any]:
    torch.set_num_threads(1)
    for data in FILES.values():
        container.loads(data)
    limit_memory(SMALL)
    found: dict[str, Any] = {}
    for name in names:
        try:
            found[name] = sum(math.prod(e.shape) for e in container.read(name).tensors.values())
        except ArtifactError as error:
            found[name] = str(error)
    return found


def process_of(count: int, seed: int) -> dict[str, Any]:
    torch.set_num_threads(1)
    reader = second_reader()
    for kind, data in FILES.items():
        judge(kind, data, True, reader)
    for number in range(200):  # whatever is imported or compiled at its first use
        with suppress(FaultError):
            judge(*mutant(seed + 1, number))
    armed = [False]
    events: Counter[str] = Counter()

    def audit(event: str, arguments: Any) -> None:
        if armed[0] and FORBIDDEN.match(event):
            events[f"{event} {str(arguments)[:80]}"] += 1

    sys.addaudithook(audit)
    limit_memory(MEMORY)
    signal.signal(signal.SIGPROF, _late)
    results: Counter[str] = Counter()
    faults: list[str] = []
    for number in range(count):
        kind, data, right_sum = mutant(seed, number)
        sys.stderr.write(f"{number}\n")  # the last one, should the process die
        sys.stderr.flush()
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
        armed[0] = True
        try:
            result = judge(kind, data, right_sum, None)
        except (Exception, Late) as error:  # noqa: BLE001 - any other end is a fault
            armed[0] = False
            last = traceback.extract_tb(error.__traceback__)[-1]
            faults.append(f"{seed} {number} {kind}: {error!r:.300} at {Path(last.filename).name}:{last.lineno}")
            continue
        finally:
            armed[0] = False
            signal.setitimer(signal.ITIMER_PROF, 0)
        results[result] += 1
        if result in ("a network", "a graph"):
            try:
                judge(kind, data, right_sum, reader)
            except Exception as error:  # noqa: BLE001 - see above
                faults.append(f"{seed} {number} {kind}: {error!r:.300} (second reader)")
    return {"results": results, "faults": faults, "events": events}


if __name__ == "__main__":
    faulthandler.enable(sys.stdout)
    numbers = all(word.isdigit() for word in sys.argv[1:])
    sys.stdout.write(json.dumps(process_of(*map(int, sys.argv[1:3])) if numbers else read_all(sys.argv[1:])))
