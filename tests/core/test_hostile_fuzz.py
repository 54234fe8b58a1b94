"""Thousands of damaged copies of real files: each is refused with `ArtifactError` or is an exact network.

They are read in processes of their own, with little memory and two seconds of the processor for each copy; whatever a
file makes Python import, compile, open or run is counted. `LILLIPUT_HOSTILE=300000` reads so many copies instead.
"""

import json
import os
import subprocess
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import hostile_files
import lilliput
from hostile_files import FILES, GRAPHS, fresh, judge, mutant
from lil_files import file_of
from lilliput.core import container, wire
from lilliput.ops import context_coding, entropy
from lilliput.ops.cartesian_functions import LEFT_1, NOT, ONE
from lilliput.ops.context_coding import Layout
from lilliput.ops.netlist import Gate, Netlist

COPIES = int(os.environ.get("LILLIPUT_HOSTILE", "4000"))
PROCESSES = 1 if COPIES < 10_000 else 2  # each takes seconds to start


def in_a_process(*words: object) -> dict[str, Any]:
    paths = [str(Path(lilliput.__file__).parents[1]), str(Path(hostile_files.__file__).parent)]
    done = subprocess.run(
        [sys.executable, "-W", "error::RuntimeWarning", hostile_files.__file__, *map(str, words)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    last = done.stderr.strip().splitlines()[-1:]
    assert done.returncode == 0, f"{words} {last} ended the process with {done.returncode}: {done.stdout[-2000:]}"
    return json.loads(done.stdout)


def test_hostile_copies_are_refused_or_exact_networks_and_nothing_runs() -> None:
    with ThreadPoolExecutor(PROCESSES) as pool:
        found = list(pool.map(lambda seed: in_a_process(COPIES // PROCESSES, seed), range(PROCESSES)))
    assert [fault for each in found for fault in each["faults"]] == []
    assert [each["events"] for each in found] == [{}] * PROCESSES
    results: Counter[str] = sum((Counter(each["results"]) for each in found), Counter())
    assert results.total() == COPIES // PROCESSES * PROCESSES
    assert results["a network"] > COPIES // 50  # the copies are not all so broken that nothing deep is reached
    assert results["refused for this module"] > COPIES // 1000
    assert results["a graph"] > COPIES // 1000


def test_two_hundred_bytes_take_little_memory(tmp_path: Path) -> None:
    """A million entries that cost nothing: masks in contexts in narrow planes, and integers without bits."""
    most = container.ENTRIES_FLOOR
    names: list[str] = []
    for shape in ([most], [1, most], [most, 1], [1, most // 2, 2, 1], [1, most // 2, 1, 2], [most // 2, 1, 2, 1]):
        mask = context_coding.encode(np.zeros(most, np.int64), np.ones(most, np.uint8), shape)
        for entry, payload in ((["w", [1], shape, [5 + 8 * len(mask)]], mask), (["w", [4, 0, 9, 0], shape], b"\x80")):
            data = file_of(wire.dumps([bytes(8), [[1], "", [], [], []], [entry], [], [], [], [], []]), payload)
            assert len(data) < 200
            names.append(str(tmp_path / f"{len(names)}.lil"))
            Path(names[-1]).write_bytes(data)
    assert in_a_process(*names) == dict.fromkeys(names, most)


@pytest.mark.parametrize("kind", FILES)
def test_good_files_are_networks_by_both_readers(kind: str) -> None:
    expected = "a graph" if kind in GRAPHS else "a network"
    assert judge(kind, FILES[kind], True, hostile_files.second_reader()) == expected
    assert len(FILES[kind]) < 2000
    assert container.loads(FILES[kind]).replay(fresh(kind)).origin == container.loads(FILES[kind]).origin


def test_files_have_every_coding_and_every_slot() -> None:
    streams = [s for data in FILES.values() for of in container.loads(data).streams.values() for s in of]
    coded = {(s.coding, s.slot == "values") for s in streams}
    assert {coding for coding, _ in coded} == set(range(6))
    context = {s.slot for s in streams if s.coding == 5}
    assert context == {"mask", "indices", "scale", "values"}
    assert {s.slot for s in streams} == context | {"sharing", "bit_width", "zero_point", "circuit", "inputs"}


def test_circuits_that_cost_a_file_little_take_little_memory(tmp_path: Path) -> None:
    """The most gates that a file may have, each of which reads the one before it: nearly all of its bytes are alike."""
    gates = [Gate(ONE)] + [Gate(LEFT_1, k) for k in range(20_000)] + [Gate(NOT, 0)] * 12_000
    packed = Netlist(bits=16, inputs=0, gates=tuple(gates), outputs=(len(gates) - 1,)).pack()
    made = entropy.encode(packed, "lzma")
    slots = [12, 0, 9, 16, 0, len(packed)]
    header = [bytes(8), [[1], "", [], [], []], [["w", slots, [1 << 20], [0, 2 + 8 * len(made)]]], [], [], [], [], []]
    path = tmp_path / "circuit.lil"
    path.write_bytes(file_of(wire.dumps(header), b"\x80" + made))
    assert in_a_process(str(path)) == {str(path): 1 << 20}


def test_a_copy_follows_from_its_seed_and_number() -> None:
    assert mutant(3, 17) == mutant(3, 17)
    assert len({mutant(3, number)[1] for number in range(100)}) > 90


SHAPES = [
    (),
    (1,),
    (9,),
    (1, 1),
    (5, 7),
    (7, 1),
    (3, 4, 1),
    (6, 1, 9),
    (1, 6, 2),
    (4, 3, 1, 1),
    (4, 3, 3, 3),
    (1, 7, 2, 1),
]
SHAPES += [
    (1, 7, 1, 2),
    (2, 1, 1, 5),
    (3, 2, 2, 3, 2),
    (2, 2, 5, 1, 1),
    (1, 1, 1, 1, 1, 1, 1, 2),
    (2, 3, 2, 1, 1, 2, 1, 2),
]


@pytest.mark.parametrize("shape", SHAPES)
def test_no_neighbour_of_any_entry_lies_outside_of_the_memory(shape: tuple[int, ...]) -> None:
    """The kernel reads neighbours by address; here are its formulas, for every entry."""
    layout = Layout.of(shape)
    slices, planes, rows, columns = layout.grid
    above, over, before, after = layout.pads
    row = columns + before + after
    plane = (rows + over) * row
    size = (planes + above) * plane
    ring = int(layout.back.max()) + 1
    for o in range(slices):
        starts = [((o + ring - int(b)) % ring) * size - int(s) for b, s in zip(layout.back, layout.step, strict=True)]
        for i in range(planes):
            for h in range(rows):
                for d in range(columns):
                    base = (i + above) * plane + (h + over) * row + before + d
                    assert base < size
                    for b, start in zip(layout.back, starts, strict=True):
                        slice_of = ((o + ring - int(b)) % ring) * size
                        assert slice_of <= start + base < slice_of + size
