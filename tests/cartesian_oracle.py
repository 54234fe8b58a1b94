"""Cartesian circuits once more, in plain Python: one number at a time, every node, no numpy and no short cuts."""

from collections.abc import Callable


def wrapped(x: int, bits: int) -> int:
    x %= 1 << bits
    return x - (1 << bits) if x >= 1 << (bits - 1) else x


def functions(bits: int) -> list[Callable[[int, int, int], int]]:
    """By number: (a, b, row of data) to a number that is not wrapped."""
    half = 1 << (bits - 1)

    def floor(n):
        return lambda a, b, row: a // 2**n

    def times(n):
        return lambda a, b, row: a * 2**n

    def digits(pick):
        def joined(a, b, row):
            pairs = zip(f"{a % 2**bits:0{bits}b}", f"{b % 2**bits:0{bits}b}", strict=True)
            return int("".join(pick(p, q) for p, q in pairs), 2)

        return joined

    return [
        lambda a, b, row: half - 1 - a,
        lambda a, b, row: a + b,
        lambda a, b, row: a - b,
        lambda a, b, row: a * b,
        lambda a, b, row: -a,
        lambda a, b, row: -half + a,
        floor(2),
        floor(1),
        digits(lambda p, q: "1" if p == q == "1" else "0"),
        digits(lambda p, q: "0" if p == q == "0" else "1"),
        digits(lambda p, q: "1" if p != q else "0"),
        lambda a, b, row: -1 - a,
        times(1),
        lambda a, b, row: a + 1,
        lambda a, b, row: a - 1,
        floor(3),
        floor(4),
        floor(5),
        times(2),
        times(3),
        times(4),
        times(5),
        lambda a, b, row: 1,
        lambda a, b, row: -1,
        lambda a, b, row: 0,
        lambda a, b, row: -half,
        lambda a, b, row: half - 1,
        lambda a, b, row: [a, b][row % 2],
        lambda a, b, row: a,
    ]


SOURCES = [1, 2, 2, 2, 1, 1, 1, 1, 2, 2, 2, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0, 2, 1]


def interpreted(circuit, inputs) -> list[list[int]]:
    """Outputs of each row of data."""
    made = functions(circuit.shape.bits)
    found = []
    for row, given in enumerate(inputs):
        values = [int(v) for v in given]
        for a, b, function in circuit.nodes.tolist():
            values.append(wrapped(made[function](values[a], values[b], row), circuit.shape.bits))
        found.append([values[pin] for pin in circuit.outputs.tolist()])
    return found


def judged(circuit, goal) -> dict[str, int]:
    """Error, energy, delay and gates by recursion from the outputs."""
    inputs = circuit.shape.inputs
    nodes, seen = circuit.nodes.tolist(), {}

    def arrival(pin: int) -> int:
        if pin < inputs:
            return 0
        if pin not in seen:
            function = nodes[pin - inputs][2]
            earlier = [arrival(source) for source in nodes[pin - inputs][: SOURCES[function]]]
            seen[pin] = max(earlier, default=0) + int(goal.delay[function])
        return seen[pin]

    delay = max(arrival(pin) for pin in circuit.outputs.tolist())
    used = [nodes[pin - inputs][2] for pin in seen]
    error = 0
    weights = goal.output_weights.tolist()
    by_row = weights if goal.output_weights.ndim == 2 else [weights] * len(goal.targets)
    for made, wanted, each in zip(interpreted(circuit, goal.inputs), goal.targets.tolist(), by_row, strict=True):
        for got, want, weight in zip(made, wanted, each, strict=True):
            error += weight * (abs(got - want) if goal.error == "absolute" else (got - want) ** 2)
    energy = sum(int(goal.energy[f]) for f in used)
    return {"error": error, "energy": energy, "delay": delay, "gates": sum(f != 28 for f in used)}
