"""A circuit of integers as a picture: text for Graphviz (`dot -Tsvg`)."""

from collections.abc import Sequence

from lilliput.core.errors import UsageError
from lilliput.ops import cartesian_functions as f
from lilliput.ops.netlist import Netlist, sources


def dot(net: Netlist, given: Sequence[int] | None = None, *, name: str = "circuit") -> str:
    """Inputs are boxes, gates ellipses with their function, outputs boxes with two borders; values too with `given`.

    Gates that no output needs are left out. Arrows into functions of two numbers say which is a and which is b.
    """
    net = net.pruned()
    if given is not None and len(given) != net.inputs:
        raise UsageError("a picture of a circuit", f"{len(given)} values for {net.inputs} inputs", "give one for each")
    values = None if given is None else net.values(list(given)).tolist()
    lines = [f'digraph "{_quoted(name)}" {{', "  rankdir=LR;", '  node [fontname="sans-serif"];']
    for pin in range(net.inputs):
        text = f"in {pin}" if values is None else f"in {pin}\\n{values[pin]}"
        lines.append(f'  v{pin} [shape=box, label="{text}"];')
    for k, gate in enumerate(net.gates, start=net.inputs):
        text = f.NAMES[gate.function] if values is None else f"{f.NAMES[gate.function]}\\n{values[k]}"
        lines.append(f'  v{k} [shape=ellipse, label="{text}"];')
        read = sources(gate)
        for which, pin in zip("ab", read, strict=False):
            label = f' [label="{which}"]' if len(read) > 1 else ""
            lines.append(f"  v{pin} -> v{k}{label};")
    for i, pin in enumerate(net.outputs):
        lines.append(f'  out{i} [shape=box, peripheries=2, label="out {i}"];')
        lines.append(f"  v{pin} -> out{i};")
    return "\n".join([*lines, "}", ""])


def _quoted(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"')
