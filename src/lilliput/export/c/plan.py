"""What generated C takes on a Cortex-M4, without a compiler: tables and arena exactly, code and stack from `KERNELS`.

Code sizes are those of arm-none-eabi-gcc 12 with -O2, by `benchmarks/kernel_sizes.py`, for signed bytes; other types
differ by a few bytes. Not counted: start-up code and the floats of `net_io.c`. Input and output lie in the arena.
"""

import math
from dataclasses import dataclass

from lilliput.core.artifact import Artifact
from lilliput.core.cost import Measurement
from lilliput.core.errors import ExportError
from lilliput.core.program import Program
from lilliput.core.target import Target
from lilliput.export.c.kernel_sizes import KERNELS, RUN
from lilliput.export.c.writer import Writer
from lilliput.graph.lower import lower
from lilliput.graph.operators import POINTWISE
from lilliput.graph.trace import Graph
from lilliput.measure.memory import plan_memory

CALLERS = ("conv ", "linear ")


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Bytes. `inputs` and `outputs` are part of `arena`, `functions` (tables of functions of one value) of `tables`."""

    tables: int
    functions: int
    code: int
    arena: int
    stack: int
    inputs: int
    outputs: int

    @property
    def flash(self) -> int:
        return self.tables + self.code

    @property
    def ram(self) -> int:
        return self.arena + self.stack


def plan(program: Program) -> Plan:
    """Raises `ExportError` for what C cannot hold."""
    writer = Writer(program)
    used = writer.keys.values()
    calls = [call.count(",") + 1 for call in writer.calls if "/*" not in call]
    entry, each, word = RUN
    run = entry + sum(each + word * max(0, arguments - 4) for arguments in calls)
    leaves = max((KERNELS[key][1] for key in used if not key.startswith(CALLERS)), default=0)
    callers = max((KERNELS[key][1] for key in used if key.startswith(CALLERS)), default=0)
    frame = 32 + 4 * max((max(0, arguments - 4) for arguments in calls), default=0)
    ends = [program.values[name] for name in (program.input, program.outputs[0])]
    inputs, outputs = (math.prod(v.shape) * v.bits // 8 for v in ends)
    return Plan(
        tables=writer.tables.bytes,
        functions=writer.tables.function_bytes,
        code=run + sum(KERNELS[key][0] for key in used),
        arena=writer.arena,
        stack=frame + callers + leaves,
        inputs=inputs,
        outputs=outputs,
    )


def planned(artifact: Artifact, graph: Graph, target: Target) -> tuple[Measurement, Measurement, Measurement]:
    """RAM and flash on a microcontroller: of the generated C where C is the target, else of the network's buffers.

    The third is what functions of one value take of the flash: their tables, or in float their numbers.
    """
    note = ""
    if target.preset.file == "flash" and artifact.activations:
        try:
            c = plan(lower(artifact, graph))
        except ExportError as error:
            note = f"; no C: {error.found}"
        else:
            inside = f"input {c.inputs} and output {c.outputs} inside"
            return (
                Measurement("planned RAM", c.ram, "B", "planned", note=f"arena {c.arena}, {inside}, stack {c.stack}"),
                Measurement("planned flash", c.flash, "B", "planned", note=f"tables {c.tables}, code {c.code}"),
                Measurement("flash of functions", c.functions, "B", "planned", note="tables, equal ones once"),
            )
    rough = plan_memory(graph, artifact)
    ram = "static arena of activations; kernel scratch not included" + note
    functions = [row["flash"].value for name, row in rough.constants.rows.items() if graph[name].op in POINTWISE]
    return (
        Measurement("planned RAM", rough.ram_bytes, "B", "planned", note=ram),
        Measurement("planned flash", rough.flash_bytes, "B", "planned", note="constants; code not included" + note),
        Measurement("flash of functions", sum(functions), "B", "planned"),
    )
