"""Weight generation: integers of weights come from a circuit, and each weight keeps only which of its values it is.

Circuits that make weights: cnn-cgp-compressor, by Cartesian genetic programming as in Vasicek and Bidlo (2011); weight
sharing: Han et al. (2016), section 3. Here the circuit is built gate by gate in place of a search, serves all layers
without multiplexers, and is stored in the file.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from lilliput.core.artifact import Artifact
from lilliput.core.bank import Bank
from lilliput.core.encoding import Encoding
from lilliput.core.errors import RecipeError, UsageError
from lilliput.core.grid import Grid
from lilliput.core.method import Context, Pass, PassResult, check_choice, check_range
from lilliput.graph.layers import output_axis
from lilliput.measure.energy import EYERISS, PUBLISHED, GateTable, read_gates
from lilliput.methods.weight_generation.codebook import clustered, exact, free
from lilliput.methods.weight_generation.evolved import evolved
from lilliput.methods.weight_generation.importance import fisher, mean_loss
from lilliput.methods.weight_generation.problem import Problem, live, problem_of
from lilliput.methods.weight_generation.selection import choose, of_layer
from lilliput.methods.weight_generation.sizing import Sizes
from lilliput.methods.weight_generation.solution import Solution
from lilliput.ops import affine

MOST_BITS = 12
SOLVERS = ("clusters", "free", "exact")


@dataclass(frozen=True, kw_only=True)
class WeightGeneration(Pass):
    """A circuit makes at most `values` integers, and each weight becomes the nearest of them.

    `solver`: "clusters" chooses the values of the least error, "free" those among what costs no gate energy, "exact"
    keeps every value (`values` does not count). `share`: one circuit for the "network", or one for each "layer".
    `given`: weights that stay as they are and are inputs of the circuit, in the language of `selection`, and constants
    ("= -128, 127"). `wanted`: the weights to make; by default all of the chosen layers that are not given. Layers
    without a grid get one of `weight_bits` (2..12) for each channel or `weight_per` "tensor". `importance` "fisher"
    weighs errors by the slopes of the loss on `samples` of the calibration set; with `max_loss`, as few values are made
    as keep the loss on these from growing by more, for all layers or for each by what its errors cost. `gates` is a CSV
    file of prices, see `energy.read_gates`. `generations` of Cartesian genetic programming look for a circuit of less
    energy for the same values; a circuit that takes more bytes is not taken.

    Training afterwards moves weights among the values (straight-through). Every circuit's account is in the statistics.
    """

    name: ClassVar[str] = "weight_generation"
    summary: ClassVar[str] = "let a circuit make the few values of the weights"
    citations: ClassVar[tuple[str, ...]] = (
        "https://doi.org/10.1109/CEC.2011.5949628",
        "https://arxiv.org/abs/1510.00149",
    )

    values: int = 16
    solver: str = "clusters"
    share: str = "network"
    given: str | tuple[str, ...] = ()
    wanted: str | tuple[str, ...] = ()
    weight_bits: int = 8
    weight_per: str = "channel"
    importance: str = "fisher"
    samples: int = 128
    max_loss: float | None = None
    gates: str | None = None
    generations: int = 0

    def __post_init__(self) -> None:
        name = self.name
        check_range(f"{name} values", self.values, 1, 1 << MOST_BITS)
        check_choice(f"{name} solver", self.solver, SOLVERS)
        check_choice(f"{name} share", self.share, ("network", "layer"))
        check_range(f"{name} weight_bits", self.weight_bits, 2, MOST_BITS)
        check_choice(f"{name} weight_per", self.weight_per, ("channel", "tensor"))
        check_choice(f"{name} importance", self.importance, ("fisher", "none"))
        check_range(f"{name} samples", self.samples, 1, 1 << 20)
        check_range(f"{name} generations", self.generations, 0, 1 << 40)
        for field in ("given", "wanted"):
            value = getattr(self, field)
            object.__setattr__(self, field, (value,) if isinstance(value, str) else tuple(value))
        if "given" in self.wanted:
            do = "leave both out, and use solver: exact: a circuit then makes the values that the layers have"
            raise RecipeError(f"{name} wanted", "'given': a file cannot keep weights and make them", do)
        if self.max_loss is not None:
            check_range(f"{name} max_loss", self.max_loss, 0.0, 1e9)
            if self.importance == "none":
                raise RecipeError(f"{name} max_loss", "importance 'none'", "use importance: fisher")
            if self.solver == "exact":
                raise RecipeError(f"{name} max_loss", "solver 'exact'", "use clusters or free")
        free_keys = {"weight_bits", "weight_per"} | ({"values", "solver"} if self.share == "layer" else set[str]())
        for settings in self.overrides.values():
            if set(settings) - free_keys:
                found = f"{min(set(settings) - free_keys)!r} for a part of the layers, with share {self.share!r}"
                raise RecipeError(f"{name} overrides", found, f"override {', '.join(sorted(free_keys))} alone")
        super().__post_init__()

    def apply_(self, net: Artifact, context: Context) -> PassResult:
        chosen, skipped = self.pick(net)
        table = PUBLISHED if self.gates is None else read_gates(self.gates)
        chosen = self._on_grids_(net, chosen, skipped)
        if not chosen:
            return PassResult(skipped=skipped)
        names = list(chosen.values())
        weights = fisher(net, context.task, names, samples=self.samples) if self.importance == "fisher" else None
        groups = [list(chosen)] if self.share == "network" else [[path] for path in chosen]
        problems = [self._problem(net, group, weights, table) for group in groups]
        owners = [self if self.share == "network" else self.for_layer(group[0]) for group in groups]
        if self.max_loss is None:
            solutions = self._solutions(problems, owners, context)
        else:
            solutions = self._keeping(net, context, groups, chosen, (problems, owners), self.max_loss)
        if self.generations:
            seed = int(torch.randint(1 << 30, (), generator=context.generator))
            with context.progress.task("evolve circuits", len(solutions)) as advance:
                for i, solution in enumerate(solutions):
                    solutions[i] = evolved(solution, self.generations, seed=seed + i)
                    advance(1)
        changed, rows = dict[str, str](), list[dict[str, Any]]()
        for group, solution in zip(groups, solutions, strict=True):
            self._store_(net, group, chosen, solution)
            changed |= {path: net.encoding(chosen[path]).describe() for path in group}
            rows.append(account(solution, group))
        notes = [note(rows)]
        return PassResult(changed=changed, skipped=skipped, notes=tuple(notes), statistics={"circuits": rows})

    def _on_grids_(self, net: Artifact, chosen: Mapping[str, str], skipped: dict[str, str]) -> dict[str, str]:
        """Integers for layers that have none; those that a circuit can make. The others join `skipped`."""
        given = {place.name: len(place.positions) for place in choose(net, self.given).places}
        wanted = {place.name for place in choose(net, self.wanted).places}
        found: dict[str, str] = {}
        for path, weight in chosen.items():
            own, encoding = self.for_layer(path), net.encoding(weight)
            partly = weight in given and weight in wanted
            if not bool(live(encoding).any()):
                skipped[path] = "all its weights are pruned"
            elif wanted and weight not in wanted and weight not in given:
                skipped[path] = "not wanted"
            elif encoding.grid is not None and not _makeable(encoding.grid):
                skipped[path] = f"its integers are unsigned, or of more than {MOST_BITS} bits"
            else:
                if encoding.grid is None:
                    axis = output_axis(net.module.get_submodule(path)) if own.weight_per == "channel" else None
                    axis = axis if encoding.sharing is None or encoding.sharing.axis == axis else None
                    encoding = encoding.with_grid(_grid(encoding, own.weight_bits, axis))
                    net.encode_(weight, encoding)
                if weight in given and not partly:
                    whole = given[weight] == math.prod(encoding.shape)
                    skipped[path] = "its weights are given" if whole else "partly given, and none of the rest wanted"
                else:
                    found[path] = weight
        return found

    def _problem(
        self, net: Artifact, group: Sequence[str], weights: Mapping[str, Tensor] | None, table: GateTable
    ) -> Problem:
        wanted = self.wanted
        if not wanted:
            wanted = group
        elif self.share == "layer":
            wanted = [part for path in group for text in wanted if (part := of_layer(text, path)) is not None]
        try:
            return problem_of(net, given=self.given, wanted=list(wanted), importance=weights, gates=table)
        except UsageError as error:
            do = "give each weight once" if "both" in error.found else "select the layers that are given, too"
            raise RecipeError(f"{self.name}, {error.asked}", error.found, do) from error

    def _solutions(
        self, problems: Sequence[Problem], owners: Sequence["WeightGeneration"], context: Context
    ) -> list[Solution]:
        """`owners` are the settings of each problem."""
        solutions: list[Solution] = []
        with context.progress.task("make circuits", len(problems)) as advance:
            for problem, own in zip(problems, owners, strict=True):
                solutions.append(own.solve(problem, own.values))
                advance(1)
        return solutions

    def _keeping(
        self,
        net: Artifact,
        context: Context,
        groups: Sequence[Sequence[str]],
        chosen: Mapping[str, str],
        subjects: tuple[Sequence[Problem], Sequence["WeightGeneration"]],
        max_loss: float,
    ) -> list[Solution]:
        """The fewest bits with which the loss on the calibration set grows by at most `max_loss`."""
        problems, owners = subjects
        before = mean_loss(net, context.task, samples=self.samples)

        def grows(solutions: Sequence[Solution]) -> float:
            trial = net.copy()
            for group, solution in zip(groups, solutions, strict=True):
                self._store_(trial, group, chosen, solution)
            return mean_loss(trial, context.task, samples=self.samples) - before

        with context.progress.task("size circuits", len(problems)) as advance:
            sizes = Sizes.of(
                problems, [own.solve for own in owners], most=[own.values for own in owners], advance=advance
            )
        found = sizes.keeping(grows, max_loss)
        if found is None:
            most = max(own.values for own in owners)
            asked = f"{self.name} max_loss {max_loss:g}"
            raise RecipeError(asked, f"{most} values lose more", "allow more values, or a larger loss")
        return found

    def _store_(self, net: Artifact, group: Sequence[str], chosen: Mapping[str, str], solution: Solution) -> None:
        bank = self._bank(net, group, chosen, solution)
        for path in group:
            try:
                net.encode_(chosen[path], net.encoding(chosen[path]).with_bank(bank))
            except UsageError as error:
                do = "give it a circuit of its own"
                raise RecipeError(f"{self.name} of {path!r}", error.found, do) from error

    def solve(self, problem: Problem, count: int) -> Solution:
        """By the solver of these settings, with at most `count` values."""
        if self.solver == "exact":
            return exact(problem)
        return clustered(problem, count) if self.solver == "clusters" else free(problem, count)

    def _bank(self, net: Artifact, group: Sequence[str], chosen: Mapping[str, str], solution: Solution) -> Bank:
        """The circuit; with given weights of the same layers among its outputs, so that these stay as they are."""
        problem, netlist = solution.problem, solution.netlist
        if self.wanted:
            kept = {
                place.name: torch.zeros(net.encoding(place.name).shape, dtype=torch.bool).reshape(-1)
                for place in problem.places
            }
            for place in problem.places:
                kept[place.name][place.positions] = True
            rest = set[int]()
            for path in group:
                encoding = net.encoding(chosen[path])
                others = ~kept[chosen[path]] & live(encoding)
                rest |= set(encoding.integers().reshape(-1).cpu()[others].tolist())
            made = set(solution.made.tolist())
            known = {int(value): pin for pin, value in enumerate(problem.given)}
            lacking = sorted(rest - made - set(known))
            if lacking:
                asked = f"{self.name} wanted {', '.join(self.wanted)}"
                found = f"other weights of these layers, {lacking[0]} for one, are neither given nor wanted"
                raise RecipeError(asked, found, "a layer is made whole: give the rest of it in given or wanted")
            more = sorted(known[value] for value in rest - made)
            netlist = replace(netlist, outputs=(*more, *netlist.outputs))
        return Bank.of(netlist, problem.given.tolist())


def account(solution: Solution, layers: Sequence[str]) -> dict[str, Any]:
    """Plain data: what the circuit is, holds and costs, beside other ways to keep the same weights."""
    problem = solution.problem
    cost = solution.cost(others={"plain 4-bit weights": 4 * (problem.wanted_count + problem.given_count)})
    return {
        "layers": list(layers),
        "weights": problem.wanted_count,
        "values": len(set(solution.made.tolist())),
        "estimated_loss": problem.error(solution.made) / 2,
        "gates": cost.circuit.gates,
        "depth": cost.circuit.depth,
        "gate_energy_pj": cost.circuit.energy_pj,
        "delay_ns": cost.circuit.delay_ns,
        "area": cost.circuit.area,
        "given_bits": cost.stored.given,
        "stored_bits": cost.stored.total,
        "index_bits": cost.stored.indices,
        "plain_bits": cost.plain_bits,
        "table_bits": cost.table_bits,
        "energy_pj": cost.energy_pj,
        "plain_energy_pj": cost.plain_energy_pj,
        "table_energy_pj": cost.table_energy_pj,
        "memory": cost.level,
        "warnings": list(cost.warnings()),
    }


def note(rows: Sequence[Mapping[str, Any]]) -> str:
    """One line: what is stored and read, before and after, and the first warning."""
    again = sum(row["given_bits"] for row in rows[1:])  # every circuit reads the same ones
    read = EYERISS.read_pj(again, rows[0]["memory"])
    sums = (sum(row[name] for row in rows) - again for name in ("stored_bits", "plain_bits", "table_bits"))
    size, plain, table = (f"{-(-bits // 8):,}" for bits in sums)
    energy, before = (sum(row[name] for row in rows) - read for name in ("energy_pj", "plain_energy_pj"))
    gates = sum(row["gates"] for row in rows)
    text = f"{gates} gates; {size} bytes of indices and circuits before coding ({plain} plain, {table} with tables)"
    text += f"; modelled reads {energy / 1e6:.3g} uJ ({before / 1e6:.3g} plain)"
    warnings = [warning for row in rows for warning in row["warnings"]]
    more = f", and {len(warnings) - 1} more" if len(warnings) > 1 else ""
    return f"{text}; {warnings[0]}{more}" if warnings else text


def _makeable(grid: Grid) -> bool:
    return grid.signed and int(grid.bit_width.max()) <= MOST_BITS


def _grid(encoding: Encoding, bits: int, axis: int | None) -> Grid:
    """Symmetric, to the largest weight, with scales that take a byte each in a file."""
    values = encoding.decode()
    rows = values.reshape(1, -1) if axis is None else values.movedim(axis, 0).flatten(1)
    reach = rows.abs().amax(1).double() / (2 ** (bits - 1) - 1)
    exact = torch.where(reach > 0, reach, 1.0).clamp(min=1e-14).float()
    scale = affine.short(exact)
    scale = torch.where(scale < exact, affine.short(exact * 1.125), scale)
    whole = torch.zeros(len(scale), dtype=torch.int64, device=scale.device)
    return Grid(scale=scale, zero_point=whole, bit_width=whole + bits, signed=True, narrow=True, axis=axis)
