"""The circuits that make weights, as a folder: C, Graphviz, SVG, and which tensor takes what; and their check."""

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lilliput.core.artifact import Artifact
from lilliput.core.bank import Bank
from lilliput.core.encoding import Encoding
from lilliput.core.errors import ArtifactError, ExportError, LilliputError, UsageError, VerificationError
from lilliput.core.files import write_atomically
from lilliput.export.c.project import check_free
from lilliput.export.c.text import NOTE
from lilliput.export.netlist_c import MOST_BITS, Ints, c_function, number_type, verify_c
from lilliput.export.netlist_dot import dot
from lilliput.export.netlist_svg import MOST_DRAWN, svg
from lilliput.ops import cartesian_functions as f
from lilliput.ops.netlist import Netlist

INDEX = "circuits.json"
ROWS = 1000
"""Random inputs, where there are too many to try all."""
PER_LINE = 16
ABOUT = (
    "Each function makes its integers from the inputs in its header. Output i is what a weight with index i is, on the",
    "grid of its tensor. `lilliput verify` with this folder compiles the functions and compares them.",
)


@dataclass(frozen=True, kw_only=True)
class Checked:
    """`rows` of inputs on which the compiled function gave what the circuit gives; `all_of_them`: every combination."""

    name: str
    rows: int
    all_of_them: bool

    def text(self) -> str:
        how = "all combinations of inputs" if self.all_of_them else "the stored inputs and random ones, a part of all"
        return f"{self.name}: equal on {self.rows:,} row{'s' * (self.rows != 1)}, {how}"


def circuits_of(artifact: Artifact) -> list[tuple[Bank, dict[str, Encoding]]]:
    """Each circuit of a network once, with the tensors that it makes."""
    found: list[tuple[Bank, dict[str, Encoding]]] = []
    for name, encoding in artifact.stored().items():
        bank = encoding.bank
        if bank is None:
            continue
        known = next((tensors for other, tensors in found if bank.same(other)), None)
        if known is None:
            found.append((bank, {name: encoding}))
        else:
            known[name] = encoding
    return found


def weights_of(tensors: Mapping[str, Encoding]) -> Counter[int]:
    """How many weights have each integer; those that are pruned or of channels without bits do not count."""
    counts: Counter[int] = Counter()
    for encoding in tensors.values():
        grid = encoding.grid
        if grid is not None:
            live = (grid.spread(grid.bit_width, len(encoding.shape)) > 0).expand(encoding.shape)
            live = live if encoding.mask is None else live & encoding.mask
            values, each = torch.unique(encoding.values[live], return_counts=True)
            counts.update(dict(zip(values.tolist(), each.tolist(), strict=True)))
    return counts


def write(artifact: Artifact, folder: Path, *, name: str = "circuit") -> list[Path]:
    """Files `name_k` of each circuit, a README and an index; outputs are its values in ascending order, each once.

    Raises `ExportError` where no tensor has a circuit.
    """
    found = circuits_of(artifact)
    if not found:
        raise ExportError("export of circuits", "no tensor is made by one", "apply weight_generation first")
    files, entries = dict[str, str](), list[dict[str, Any]]()
    for k, (bank, tensors) in enumerate(found):
        own, net = f"{name}_{k}", ascending(bank)
        counts = weights_of(tensors)
        files[f"{own}.h"] = _header(own, bank, net)
        files[f"{own}.c"] = f'/* {NOTE} */\n#include "{own}.h"\n{c_function(net, name=own)}'
        files[f"{own}.dot"] = f"// {NOTE}\n{dot(net, bank.inputs, name=own)}"
        if len(net.gates) <= MOST_DRAWN:
            picture = svg(net, bank.inputs, ident=own, title=own, weights=counts)
            files[f"{own}.svg"] = f"<!-- {NOTE} -->\n{picture}\n"
        entries.append(_entry(own, bank, net, tensors))
    files["README.md"] = _readme(entries)
    files[INDEX] = json.dumps({"note": NOTE, "circuits": entries}, indent=1) + "\n"
    for file in files:
        check_free(folder, file)
    for file, text in files.items():
        write_atomically(folder / file, text.encode())
    return [folder / file for file in files]


def ascending(bank: Bank) -> Netlist:
    """Its circuit with an output for each value, ascending: output i is what index i of a file means."""
    net = bank.netlist
    pins = net.values(list(bank.inputs)).tolist()
    first = {pins[pin]: pin for pin in reversed(net.outputs)}
    return replace(net, outputs=tuple(first[value] for value in sorted(first))).pruned()


def verify(folder: Path) -> list[Checked]:
    """Compile each function of an exported folder and compare it with its circuit.

    All combinations of inputs, up to 20 bits of inputs together; else the stored ones and random ones. Raises
    `VerificationError` at the first difference.
    """
    results: list[Checked] = []
    for own, net, inputs in _read(folder):
        everything = net.inputs * net.bits <= MOST_BITS
        rows = None if everything else _rows(net, inputs)
        try:
            source = (folder / f"{own}.c").read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            raise UsageError(f"verify {folder}", f"{own}.c cannot be read", "export it again") from error
        try:
            count = verify_c(net, rows, source=source, name=own, include=folder)
        except VerificationError as error:
            raise VerificationError(f"verify {folder / own}.c", error.found, error.do) from error
        results.append(Checked(name=own, rows=count, all_of_them=everything))
    return results


def _rows(net: Netlist, inputs: list[int]) -> Ints:
    low, high = f.limits(net.bits)
    drawn = np.random.default_rng(0).integers(low, high, (ROWS, net.inputs), endpoint=True)
    ends = np.array([[low] * net.inputs, [high] * net.inputs, [0] * net.inputs])
    return np.concatenate([np.array([inputs]), ends, drawn])


def _entry(own: str, bank: Bank, net: Netlist, tensors: Mapping[str, Encoding]) -> dict[str, Any]:
    values = bank.values.tolist()
    taken = {name: weights_of({name: encoding}) for name, encoding in tensors.items()}
    return {
        "name": own,
        "circuit": net.pack().hex(),
        "inputs": list(bank.inputs),
        "values": values,
        "tensors": [
            {
                "name": name,
                "shape": list(encoding.shape),
                "weights": taken[name].total(),
                "outputs": [i for i, value in enumerate(values) if taken[name][value]],
            }
            for name, encoding in tensors.items()
        ],
    }


def _read(folder: Path) -> list[tuple[str, Netlist, list[int]]]:
    asked, path = f"read {folder / INDEX}", folder / INDEX
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        found: list[tuple[str, Netlist, list[int]]] = []
        for entry in data["circuits"]:
            own, inputs = str(entry["name"]), tuple(int(value) for value in entry["inputs"])
            bank = Bank(netlist=Netlist.unpack(bytes.fromhex(entry["circuit"])), inputs=inputs)
            found.append((own, bank.netlist, list(inputs)))
    except OSError as error:
        raise UsageError(
            asked, error.strerror or str(error), "give a folder of lilliput export --to circuit"
        ) from error
    except (ValueError, KeyError, TypeError, AttributeError, LilliputError) as error:
        raise ArtifactError(asked, "it is not as an export writes it", "export it again") from error
    if not all(own.isidentifier() for own, _, _ in found):
        raise ArtifactError(asked, "a name that is none of C", "export it again")
    return found


def _header(own: str, bank: Bank, net: Netlist) -> str:
    number, guard, inputs = number_type(net), f"{own.upper()}_H", ", ".join(map(str, bank.inputs))
    given = f"#define {guard[:-2]}_INPUTS {{ {inputs} }}\n" if bank.inputs else ""
    return f"""/* {NOTE} */
#ifndef {guard}
#define {guard}
#include <stdint.h>

/* out[i], one of {len(net.outputs)}, is the value of weights with index i; in: {net.inputs} stored integers. */
void {own}(const {number} *in, {number} *out);
#define {guard[:-2]}_INPUT_COUNT {net.inputs}
#define {guard[:-2]}_OUTPUT_COUNT {len(net.outputs)}
{given}
#endif
"""


def _readme(entries: list[dict[str, Any]]) -> str:
    lines = ["# Circuits that make weights", "", NOTE, "", *ABOUT]
    for entry in entries:
        values = entry["values"]
        rows = [", ".join(map(str, values[i : i + PER_LINE])) for i in range(0, len(values), PER_LINE)]
        lines += [
            "",
            f"## {entry['name']}",
            "",
            f"Values, from output 0 to {len(values) - 1}:",
            "",
            "```text",
            *rows,
            "```",
        ]
        lines += ["", "| tensor | shape | weights | outputs |", "|---|---|---|---|"]
        for tensor in entry["tensors"]:
            shape = "x".join(map(str, tensor["shape"]))
            name = tensor["name"].replace("|", "\\|")
            lines.append(f"| `{name}` | {shape} | {tensor['weights']:,} | {_ranges(tensor['outputs'])} |")
    return "\n".join([*lines, ""])


def _ranges(numbers: list[int]) -> str:
    """0-3, 5, 7-9"""
    groups: list[list[int]] = []
    for number in numbers:
        if groups and number == groups[-1][-1] + 1:
            groups[-1].append(number)
        else:
            groups.append([number])
    return ", ".join(str(g[0]) if len(g) == 1 else f"{g[0]}-{g[-1]}" for g in groups) or "none"
