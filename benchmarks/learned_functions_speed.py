"""What a learned function costs beside GELU and ReLU: forward, and forward with backward, on one thread.

    python benchmarks/learned_functions_speed.py

In one process, in turn, a number of times: CPU time of the process, median and quartiles in nanoseconds for each value.
Rows: ReLU and GELU of torch; a table of 33 points for each channel as one would write it first (a row of the table for
each value, by index), as `piecewise_linear_torch`, and as our loops; PSA from 26 numbers a channel over 33 and 65
points, and without a grid. Shapes: [16384, 96] (an MLP), [256, 64, 96] (tokens), [64, 96, 16, 16] (images). The floor
is what the bytes take: read x and write y forward, read x and a gradient and write another one backward. Writes
results/learned_functions_speed.json and .txt.
"""

import json
import statistics
import time
from pathlib import Path

import torch
from torch import Tensor

from lilliput.core.learned_activation import LearnedActivation
from lilliput.ops.learned_function import piecewise_linear, piecewise_linear_torch
from lilliput.report.result import environment

RESULTS = Path(__file__).parent / "results"
SHAPES = {"mlp": ((16384, 96), 1), "tokens": ((256, 64, 96), 2), "images": ((64, 96, 16, 16), 1)}
TURNS, SLOW_TURNS, POINTS = 31, 3, 33
SLOW = ("naive indexing", "torch path", "psa without a grid")


def naive(x: Tensor, table: Tensor, limit: Tensor, dim: int) -> Tensor:
    """As one would write it first: a row of the table for each value, by index."""
    points = table.shape[1]
    u = (x + limit) * (points - 1) / (2 * limit)
    index = u.detach().floor().clamp(0, points - 2).long()
    shape = [-1 if d == dim else 1 for d in range(x.dim())]
    row = torch.arange(len(table)).reshape(shape).expand_as(index)
    return table[row, index] + (u - index) * (table[row, index + 1] - table[row, index])


def candidates(channels: int, dim: int):
    """{name: (function of x, what learns)}."""
    limit = torch.tensor([4.0])
    tables = {rows: torch.randn(rows, POINTS).requires_grad_() for rows in (1, channels)}
    found = {"relu": (torch.relu, []), "gelu": (torch.nn.functional.gelu, [])}
    for name, function in (
        ("naive indexing", naive),
        ("torch path", piecewise_linear_torch),
        ("ours", piecewise_linear),
    ):
        found[name] = (lambda x, f=function: f(x, tables[channels], limit, dim), [tables[channels]])
    found["ours, one table"] = (lambda x: piecewise_linear(x, tables[1], limit, dim), [tables[1]])
    for name, kind, points in (
        ("lerp_psa, 33 points", "lerp_psa", 33),
        ("lerp_psa, 65 points", "lerp_psa", 65),
        ("psa without a grid", "psa", 33),
    ):
        module = LearnedActivation(channels, kind=kind, points=points, dim=dim)
        found[name] = (module, [module.weight])
    return found


def cpu(run) -> float:
    start = time.process_time()
    run()
    return time.process_time() - start


def measured(shape: tuple[int, ...], dim: int) -> dict[str, dict[str, list[float]]]:
    """ns for each value: [lower quartile, median, upper quartile] of forward, and of forward and backward."""
    x, g = 2 * torch.randn(shape), torch.randn(shape)
    x.requires_grad_()
    seconds: dict[str, dict[str, list[float]]] = {}

    def forward(function):
        with torch.no_grad():
            function(x)

    def both(function, learned):
        torch.autograd.grad(function(x), [x, *learned], g)

    for turn in range(TURNS + 1):
        for name, (function, learned) in candidates(shape[dim], dim).items():
            if name in SLOW and turn > SLOW_TURNS:
                continue
            took = {
                "forward": cpu(lambda f=function: forward(f)),
                "both": cpu(lambda f=function, p=learned: both(f, p)),
            }
            for what, value in took.items() if turn else ():  # the first turn compiles
                seconds.setdefault(name, {"forward": [], "both": []})[what].append(value)
        copy = {"forward": cpu(lambda: torch.empty_like(x).copy_(x.detach()))}
        copy["both"] = copy["forward"] + cpu(lambda: torch.add(x.detach(), g))
        for what, value in copy.items() if turn else ():
            seconds.setdefault("floor: bytes alone", {"forward": [], "both": []})[what].append(value)
    return {
        name: {what: [1e9 * q / x.numel() for q in statistics.quantiles(v, n=4)] for what, v in row.items()}
        for name, row in seconds.items()
    }


def table(found) -> str:
    lines = []
    for layout, rows in found.items():
        lines += [
            f"{layout} {list(SHAPES[layout][0])}, ns a value: forward [quartiles], forward and backward [quartiles]"
        ]
        relu, gelu = (rows[name]["both"][1] for name in ("relu", "gelu"))
        for name, row in rows.items():
            cells = [f"{v[1]:8.2f} [{v[0]:.2f}, {v[2]:.2f}]".ljust(26) for v in row.values()]
            median = row["both"][1]
            lines.append(f"  {name:20s} {' '.join(cells)} {median / gelu:6.2f} x GELU {median / relu:6.2f} x ReLU")
    return "\n".join(lines)


def main() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    found = {layout: measured(*how) for layout, how in SHAPES.items()}
    text = table(found)
    print(text)
    (RESULTS / "learned_functions_speed.txt").write_text(text + "\n")
    data = {"environment": environment(), "ns_by_value": found}
    (RESULTS / "learned_functions_speed.json").write_text(json.dumps(data, indent=1) + "\n")


if __name__ == "__main__":
    main()
