"""Graphs as data: what is packed comes back, in the fewest bytes, and nothing else is read."""

import re

from hypothesis import given
from hypothesis import strategies as st

from hostile_files import FORMAT
from lilliput.core import wire
from lilliput.core.wiring import (
    CODES,
    OPERATIONS,
    SUFFIXES,
    Wire,
    Wiring,
    pack_wiring,
    unpack_wiring,
)
from strategies import law

LAYERS = ["stem.0", "stem.1", "block.1.conv", "block.1.norm", "block.2.conv", "fc", "0", "1"]
TENSORS = [
    f"{layer}.{end}" for layer in LAYERS for end in ("weight", "bias", *(["running_mean"] if "norm" in layer else []))
] + ["scale"]
COUNTERS = ["block.1.norm.num_batches_tracked", "steps"]
PATHS = [
    "",
    *LAYERS,
    "stem",
    "stem.2",
    "stem.10",
    "block",
    "block.1",
    "block.1.relu",
    "block.2.relu",
    "a.b.c",
    "2",
    "é",
]

VALUES = {
    "sizes": st.integers(1, 99) | st.lists(st.integers(1, 1 << 16), min_size=1, max_size=3).map(tuple),
    "pads": st.integers(0, 99) | st.lists(st.integers(0, 9), min_size=2, max_size=6).map(tuple),
    "count": st.integers(1, 1 << 31),
    "index": st.integers(0, 1 << 31),
    "dims": st.lists(st.integers(1, 8), max_size=4).map(tuple),
    "shape": st.lists(st.integers(1, 1 << 28), max_size=4).map(tuple),
    "flag": st.booleans(),
    "number": st.integers(-(1 << 40), 1 << 40) | st.floats(-1e38, 1e38),
    "bound": st.just(value=False) | st.floats(-1e38, 1e38),
    "none|tanh": st.sampled_from(["none", "tanh"]),
    "table|lerp_psa|psa|cubic": st.sampled_from(["table", "lerp_psa", "psa", "cubic"]),
}


@st.composite
def wirings(draw: st.DrawFn) -> Wiring:
    nodes: list[Wire] = []
    taken = {"input", *TENSORS, *COUNTERS}
    for at in range(1, draw(st.integers(1, 8)) + 1):
        operation = draw(st.sampled_from(OPERATIONS))
        module = draw(st.sampled_from(PATHS))
        base = module if module and draw(st.booleans()) else f"{module}/{operation.word}" if module else operation.word
        endings = (f"{base}{ending}" for ending in ("", *(f"{'#' if base == module else '_'}{i}" for i in range(1, 9))))
        name = draw(st.text("ab./#_1", min_size=1, max_size=9)) if draw(st.integers(0, 5)) == 0 else ""
        name = name if name and name not in taken else next(n for n in endings if n not in taken)
        taken.add(name)
        earlier = st.integers(0, at - 1) | st.just(at - 1) | st.sampled_from(TENSORS + COUNTERS)
        least, most = operation.operands[0], min(operation.operands[1], 4)
        layer = draw(st.sampled_from(LAYERS))
        own = {r: f"{layer}.{SUFFIXES[r]}" for r in operation.roles if f"{layer}.{SUFFIXES[r]}" in TENSORS}
        odd = {r: draw(st.sampled_from(TENSORS)) for r in operation.roles if draw(st.booleans())}
        given_ = [key for key in operation.attributes if draw(st.booleans())]
        nodes.append(
            Wire(
                name=name,
                module=module,
                op=operation.word,
                operands=tuple(draw(st.lists(earlier, min_size=least, max_size=most))),
                tensors=own if draw(st.booleans()) else odd,
                attributes={key: draw(VALUES[operation.attributes[key]]) for key in given_},
            )
        )
    outputs = draw(st.lists(st.integers(0, len(nodes)), min_size=1, max_size=3))
    return Wiring(nodes=tuple(nodes), outputs=tuple(outputs), form=draw(st.sampled_from(["tensor", "tuple", "list"])))


@law(300)
@given(wirings())
def test_unpack_inverts_pack(wiring: Wiring) -> None:
    packed = pack_wiring(wiring, TENSORS, COUNTERS)
    assert wire.loads(wire.dumps(packed)) == packed
    again = unpack_wiring(packed, TENSORS, COUNTERS)
    assert again == wiring
    assert pack_wiring(again, TENSORS, COUNTERS) == packed


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers(-99, 99) | st.floats() | st.text(max_size=3) | st.binary(max_size=2),
    lambda inner: st.lists(inner, max_size=5),
    max_leaves=30,
)


@law(500)
@given(JUNK | st.lists(st.lists(JUNK, max_size=6), max_size=2))
def test_junk_is_a_graph_or_a_value_error(junk: object) -> None:
    try:
        wiring = unpack_wiring(junk, TENSORS, COUNTERS)
    except ValueError:
        return
    assert unpack_wiring(pack_wiring(wiring, TENSORS, COUNTERS), TENSORS, COUNTERS) == wiring


def read(*nodes: object, tensors: list[str] | None = None) -> list[tuple[str, str]]:
    wiring = unpack_wiring([list(nodes)], TENSORS if tensors is None else tensors, COUNTERS)
    return [(wire.name, wire.module) for wire in wiring.nodes]


CONV, LINEAR, RELU, ADD = (CODES[word] for word in ("conv", "linear", "relu", "add"))


def test_names_follow_from_places() -> None:
    sequential = ["0.weight", "0.bias", "2.weight", "4.weight"]
    assert read(CONV, RELU, CONV, RELU, LINEAR, tensors=sequential) == [(n, n) for n in "01234"]
    blocks = ["a.0.conv.weight", "a.1.conv.weight", "fc.weight"]
    assert read(CONV, RELU, [RELU, "act"], CONV, [ADD, None, [1, 2]], RELU, [RELU, -1], tensors=blocks) == [
        ("a.0.conv", "a.0.conv"),
        ("a.0/relu", "a.0"),
        ("a.0.act", "a.0.act"),
        ("a.1.conv", "a.1.conv"),
        ("a.1/add", "a.1"),
        ("a.1/relu", "a.1"),
        ("a/relu", "a"),
    ]
    again = [[LINEAR, None, None, 2], [LINEAR, None, None, 2], RELU, RELU, [RELU, [0, "x", True, "mine"]], RELU]
    assert [name for name, _ in read(*again, tensors=blocks)] == ["fc", "fc#1", "relu", "relu_1", "mine", "x/relu_1"]


def test_a_plain_chain_takes_a_byte_for_each_operation() -> None:
    tensors = ["0.weight", "0.bias", "2.weight", "2.bias"]
    chain = Wiring(
        nodes=(
            Wire(name="0", module="0", op="linear", operands=(0,), tensors={"weight": "0.weight", "bias": "0.bias"}),
            Wire(name="1", module="1", op="relu", operands=(1,)),
            Wire(name="2", module="2", op="linear", operands=(2,), tensors={"weight": "2.weight", "bias": "2.bias"}),
        ),
        outputs=(3,),
    )
    packed = pack_wiring(chain, tensors, [])
    assert packed == [[LINEAR, RELU, LINEAR]]
    assert len(wire.dumps(packed)) == 5


def test_the_table_of_the_format_is_that_of_the_code() -> None:
    rows = re.findall(r"^\| (\d+) \| (\w+) \| ([\w ]+) \| ([\w, ]*)\| ([^|]*)\|$", FORMAT.read_text(), re.MULTILINE)
    assert [int(row[0]) for row in rows] == list(range(len(OPERATIONS)))
    for row, operation in zip(rows, OPERATIONS, strict=True):
        least, most = operation.operands
        assert row[1:3] == (operation.word, str(least) if least == most else f"{least} to {most}")
        assert tuple(re.findall(r"\w+", row[3])) == operation.roles
        assert [entry.split()[0] for entry in row[4].split(", ") if entry.strip()] == list(operation.attributes)
