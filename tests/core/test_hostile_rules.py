"""Every rule of docs/format.md: a file that breaks it alone, and what is then said. The checksum is always right."""

import math
import re
import struct
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from hostile_files import FORMAT
from lil_files import deflated, file_of, sealed, varint
from lilliput.core import container, wire
from lilliput.core.errors import ArtifactError
from lilliput.core.header import MAX_HEADER
from lilliput.ops import context_coding, entropy
from lilliput.ops.netlist import Gate, Netlist

Make = Callable[[], bytes]
ORIGIN, INPUT, TENSORS, COUNTERS, ACTIVATIONS, EDITS, RECIPE, TRAIL, GRAPH = range(9)
HALF = np.float32(0.5).tobytes()
HUGE = np.float32(3e38).tobytes()


def blank() -> list[Any]:
    return [bytes(8), [[2], "C", [], [], []], [], [], [], [], [], []]


def lil(*tensors: list[Any], payload: bytes = b"", at: dict[int, Any] | None = None) -> bytes:
    """A file with these tensors, and other fields of the header."""
    header = blank()
    header[TENSORS] = list(tensors)
    for place, value in (at or {}).items():
        header[place : place + 1] = [value]
    return file_of(wire.dumps(header), payload)


def raw_header(*parts: tuple[int, bytes]) -> bytes:
    """A file whose header has these bytes in place of fields; nothing checks them."""
    fields = [wire.dumps(field) for field in blank()]
    for place, form in parts:
        fields[place] = form
    return file_of(b"\x88" + b"".join(fields))


def lengths(raw: bytes, coded: bytes, header: bytes) -> bytes:
    return sealed(b"LIL\x01" + raw + coded + header)


def grid(kind: int, bits: int, payload: bytes, *more: int, axis: int = 0, shape: tuple[int, ...] = (2,)) -> bytes:
    return lil(["w", [4, axis, kind, bits, *more], list(shape)], payload=payload)


def coded_floats(coding: int, data: bytes, count: int = 2) -> bytes:
    return lil(["w", [], [count], [coding + 8 * len(data)]], payload=data)


def coded_mask(coding: int, data: bytes, count: int = 64) -> bytes:
    floats = bytes(2 * count)  # of every second entry
    return lil(["w", [1], [count], [coding + 8 * len(data)]], payload=data + floats)


def context(data: bytes, bits: int = 8, count: int = 30) -> bytes:
    """Integers of a grid in a context-coded stream."""
    return lil(["w", [4, 0, 0, bits], [count], [0, 5 + 8 * len(data)]], payload=HALF + data)


SYMBOLS = (np.arange(30) ** 2 % 251).astype(np.int64)
CONTEXT = context_coding.encode(SYMBOLS, np.full(30, 8, np.uint8), (30,))
TOKENS, STATE = 4, 19
"""Where the tokens of an 8-bit stream begin, and its state."""


def patched(at: int, new: bytes) -> bytes:
    return CONTEXT[:at] + new + CONTEXT[at + len(new) :]


def impossible() -> bytes:
    """A stream whose first symbols are one token of 241 symbols, in 16 pieces of 16, of which some do not exist."""
    head = struct.pack("<HH", 100, 100) + bytes(range(1, 16))
    for seed in range(1000):
        data = head + b"\x01" * 5 + np.random.default_rng(seed).bytes(60)
        try:
            context_coding.decode(data, np.full(30, 8, np.uint8), (30,))
        except ValueError as error:
            if "not there" in str(error):
                return context(data)
    raise AssertionError("no such stream was found")


def half_of(data: bytes) -> bytes:
    return data[: len(data) // 2]


def bits(*fields: tuple[int, int]) -> bytes:
    """(number, width) each, from the lowest bit on."""
    number = at = 0
    for value, width in fields:
        number, at = number | value << at, at + width
    return number.to_bytes((at + 7) // 8, "little")


def circuit(
    counts: tuple[int, int, int] = (2, 1, 3), gates: Any = ((1, 5), (0, 1), (1, 1)), end: Any = ((1, 1), (7, 3))
) -> bytes:
    """Of 8 bits, which adds its two inputs, with both of them and the sum as outputs: -5, -2 and 3."""
    return bits((6, 4), *((count, 8) for count in counts), *gates, *end)


def made(
    packed: bytes,
    inputs: bytes = b"\x83\x7b",
    values: bytes = b"\x08",
    grid: tuple[int, ...] = (0, 9, 8),
    *,
    flags: int = 12,
    shape: tuple[int, ...] = (2,),
) -> bytes:
    """Weights that a circuit makes, of scale 1."""
    header = ["w", [flags, *grid, 0, len(packed)], list(shape)]
    return lil(header, payload=b"\x81" + packed + inputs + values)


def two(second: list[int], first: list[int] | None = None, payload: bytes = b"") -> bytes:
    """Two tensors, the circuit of the second one is that of another."""
    own = [12, 0, 9, 8, 0, len(circuit())]
    data = b"\x81" + circuit() + b"\x83\x7b\x08" if first is None else payload
    return lil(["a", first or own, [2]], ["b", second, [2]], payload=data + b"\x81\x08")


def large_circuits(count: int) -> bytes:
    """So many circuits of 2^15 gates in a few bytes each."""
    packed = Netlist(bits=8, inputs=0, gates=(Gate(22), *[Gate(4, 0)] * 32767), outputs=(0,)).pack()
    coded = entropy.encode(packed, "zlib")
    entries = [[f"{i}", [12, 0, 9, 8, 0, len(packed)], [2], [0, 1 + 8 * len(coded)]] for i in range(count)]
    return lil(*entries, payload=(b"\x81" + coded) * count)


CONV, LINEAR, RELU, ADD, MAX_POOL, CLAMP, CONCAT, SLICE, PAD, MEAN, GELU = 0, 1, 2, 3, 4, 8, 9, 10, 11, 13, 23


def graph(*nodes: Any, then: list[Any] | None = None) -> bytes:
    """A file with two layers of one linear weight each, a number and this graph."""
    names = ["a.fc.weight", "a.fc.bias", "b.weight"]
    at: dict[int, Any] = {COUNTERS: [["steps", 4, [1], b"\x00"]], GRAPH: [list(nodes), *(then or [])]}
    return lil(*([name, [], [1]] for name in names), payload=bytes(12), at=at)


ZEROS = bytes(64)
MASK = b"\xaa" * 8
DEFLATED, LZMA = entropy.encode(MASK, "zlib"), entropy.encode(MASK, "lzma")
SIZES = (3).to_bytes(2, "little")
QUANTIZED: list[Any] = ["0.weight", [4, 0, 9, 8], [2]]
"""A weight with one scale that is a power of two: three bytes."""
BIAS: list[Any] = ["0.bias", [4, 0, 17, 8, 0], [2]]
ONE_ACTIVATION = {ACTIVATIONS: [["x", 8, 0, 0]]}

WRITER = "A writer MUST use the fewest bytes."
REFUSE = (
    "A reader MUST refuse a file whose magic, version or checksum is not right, and one with bytes that no part of it "
    "accounts for."
)
DEFLATE = (
    "The deflate stream of the header MUST end exactly at its length, and unpack to exactly `raw` bytes: at most 2^24, "
    "and at most 2^16 + 100 x `coded`."
)
SUBSET = "maps with text keys"
SHORTEST = "Integers and lengths MUST be in their shortest form."
SIMPLE = "Tags, other simple values, and bytes after the value MUST be refused."
EIGHT = "The value is an array of eight, or of nine where the file holds its graph:"
SHAPE = "A *shape* is an array of at most 8 integers, each from 1 to 2^40."
TWICE = "No name may stand twice in `tensors` and `counters`, nor in `activations`."
TEXT = "A text of these has at most 1000 characters, and none of U+0000 to U+001F, U+007F to U+009F"
STATISTICS = "Numbers of `mean` and `std` are finite; there are as many of both, and none of `std` is 0."
MANY = "None of `tensors`, `counters`, `activations`, `edits` has more than 2^14 items."
PLAIN = "The maps of `recipe`, `trail` and edits MUST NOT hold byte strings."
COUNTER = "The type of a counter is a position in int64, int32, int16, int8, uint8, bool, counted from 0"
ENTRIES = (
    "The numbers of entries of all tensors together MUST NOT exceed 2^20 + 1024 x (bytes of the payload), and one "
    "input has at most 2^25."
)
TENSOR = "`[name, slots, shape]`, or `[name, slots, shape, codes]`"
FLAGS = "Otherwise it starts with flags: 1 mask, 2 sharing, 4 grid, 8 circuit, at least one of them."
AXIS = "`axis` is a dimension of the tensor."
DERIVED_KIND = "scales have 3 bits; neither 8 nor 16 counts then"
WIDTHS = "bit widths differ and are stored; `bit_width` in the header is then 0"
WIDEST = "A bit width is at most 23; a narrow grid has no 1."
ROWS = "rows of each table, from 1 to the entries of its slice"
FLOATS = "Stored floats MUST be finite."
SCALES = "Scales MUST be positive and finite, and so MUST be the largest value of each slice as float32."
INTEGERS = (
    "A zero point MUST be in `low` to `high`, and so MUST every stored integer; one of a table, of each slice with "
    "bits that uses it."
)
NO_BITS = "With 0 bits a zero point is less than 2^23 from 0."
INDEX = "An index MUST be less than the rows of its table."
WEIGHT = "It MUST stand before the bias and have a grid with as many scales."
CODES = "Streams after the last number are raw; where all are, `codes` is left out."
CODINGS = "`codes` has one number for each stream of the tensor, up to the last coded one: 0 for a raw stream"
EXACTLY = "A coded stream MUST unpack to exactly its length and MUST end where its bytes end."
LEFT_OVER = "Bits that are left over MUST be 0."
BYTES = "Only for streams whose widths are all at most 8; a byte MUST NOT be 2^w or more."
FLOAT_CODINGS = "Codings 3 and 4 MUST NOT be used."
ENTRIES_CODING = "In the order of the entries, whatever their widths; only for streams whose widths are all at most 8."
SETUP = "less than 2^(b + 1); `unit`, two bytes, from 1 to 2^(b + 5)"
ASCEND = "the 15 bytes T[1] to T[15], with 0 = T[0] < T[1] < ... < T[15] < T[16] = 2^b"
STATE_RULE = "Then the state x, five bytes, at least 2^24"
WORDS = (
    "A reader MUST refuse a stream whose words run out, that names a remainder or symbol that is not there, or after "
    "whose last symbol x is not 2^24 or words are left."
)
CIRCUIT_FLAG = "A circuit MUST have a grid, and no sharing."
CIRCUIT_OF = (
    "circuit: 0 and the bytes of the circuit, at most 2^17; or 1 + the position in `tensors` of an earlier tensor with "
    "a circuit: it is the same."
)
CIRCUIT_INDEX = "It MUST be less than n."
COUNTS = "at most 2^12, of gates, at most 2^15, and of outputs, from 1 to 2^16, each in groups of 8 bits"
PIN = "A pin is `bit_length(m - 1)` wide where m pins may be named: those before the gate, all for an output."
OUTPUT_PINS = (
    "A writer MUST choose the 1 where the pins of outputs are ascending and distinct, and fewer than the bits of their "
    "numbers; bits that are left over are 0, fewer than 8."
)
ALL_CIRCUITS = (
    "The bytes of all circuits of a file together, before coding, MUST NOT exceed 2^17 + 16 x (bytes of the payload)."
)
FUNCTION = (
    "Numbers are of b bits in two's complement, and results are taken modulo 2^b: with H = 2^(b-1) - 1 the functions 0 "
    "to 26 are H - a, a + b, a - b, a x b, -a, a - H - 1, a >> 2, a >> 1, a and b, a or b, a xor b, not a, a << 1, "
    "a + 1, a - 1, a >> 3, 4, 5, a << 2, 3, 4, 5, 1, -1, 0, -H - 1, H, and 28 is a; 27 MUST NOT be used here. "
    "`>>` keeps the sign."
)
EDIT = "A reader MUST refuse any other edit, and MUST NOT import or run anything that a file names."
CLASS = (
    "The class MUST be one of `Identity`, `ReLU`, `ReLU6`, `Hardswish`, `Hardsigmoid`, `Hardtanh` of `torch.nn`, or "
    "`LearnedActivation` of Lilliput; "
    "settings are numbers, booleans or words."
)

GRAPHS = "It is `[nodes]`, `[nodes, outputs]` or `[nodes, outputs, form]`, and MUST NOT end with null:"
NODES = "in the order in which they run, at most 2^14."
OUTPUTS = "for each, how many nodes before the last it is; null is the last one. At most 2^10."
FORM = "null where the network gives its only output, 1 for a tuple of all outputs, 2 for a list."
NODE = "The array MUST have at least two fields, and MUST NOT end with null."
WORD = "The number MUST be one of these; later versions of Lilliput append."
EXTENTS = "Numbers are from 1, of pads and output_padding from 0, up to 2^16."
BOUND = "A bound of `clamp` is false where there is none. `approximate` is 1 for tanh."
OTHERS = "Other numbers are integers or floats, at most 3.4e38 from 0."
FIELDS = "Attributes stand in the order of the table."
OPERAND = "An operand MUST be there, and there MUST be as many as the operation takes."
ROLES = "The tensors MUST be there."
FIRST_OF_LAYER = "The tensor there is the first of its layer: a name that ends in the word of a role"
PLACES = "| k > 0 | that before with its last part, a number, raised by k | yes |"
UP = "| `[u, text]`, `[u, text, code]` | the scope without its last u parts, then the text | unless `code` is true |"
NAMES = "Names MUST differ from each other and from those of tensors and counters."
NAME_TEXTS = "They are texts as in section 2."

RULES: dict[str, tuple[str, Make, str]] = {
    # 1. The file
    "no bytes": (REFUSE, lambda: b"", "read net.lil: it is empty; give a .lil file"),
    "magic": (
        REFUSE,
        lambda: sealed(b"LIZ\x01" + lil()[4:-4]),
        "read net.lil: it does not start with LIL; give a .lil file",
    ),
    "version": (
        REFUSE,
        lambda: sealed(b"LIL\x02" + lil()[4:-4]),
        "read net.lil: format version 2; this Lilliput reads version 1; update it",
    ),
    "checksum": (
        REFUSE,
        lambda: lil()[:-1] + bytes([lil()[-1] ^ 1]),
        "read net.lil: the checksum does not match: truncated or damaged; copy or make the file again",
    ),
    "bytes behind the payload": (REFUSE, lambda: lil(payload=b"\x00"), "1 bytes of payload left over"),
    "length in more bytes than it needs": (
        WRITER,
        lambda: lengths(b"\x81\x00", b"\x01", b"\x00"),
        "a length is not in its shortest form",
    ),
    "length of six bytes": (WRITER, lambda: lengths(b"\x80" * 5 + b"\x01", b"", b""), "a length of more than 35 bits"),
    "length without an end": (WRITER, lambda: lengths(b"\x80\x80", b"", b""), "a length of more than 35 bits"),
    "header beyond the file": (DEFLATE, lambda: lengths(b"\x05", b"\x09", b"\x00"), "a header of 9 bytes, 1 left"),
    "header that is not deflate": (
        DEFLATE,
        lambda: lengths(b"\x05", b"\x02", b"\xff\xff"),
        "damaged header: Error -3 while decompressing data: invalid block type",
    ),
    "header without an end": (
        DEFLATE,
        lambda: lengths(b"\x01", b"\x07", b"\x00\x01\x00\xfe\xff\x80\x00"),
        "the header does not unpack to its length",
    ),
    "header longer than raw": (
        DEFLATE,
        lambda: file_of(wire.dumps(blank()), raw_length=len(wire.dumps(blank())) - 1),
        "the header does not unpack to its length",
    ),
    "header shorter than raw": (
        DEFLATE,
        lambda: file_of(wire.dumps(blank()), raw_length=len(wire.dumps(blank())) + 1),
        "the header does not unpack to its length",
    ),
    "bytes behind the deflate stream": (
        DEFLATE,
        lambda: lengths(
            varint(len(wire.dumps(blank()))),
            varint(len(deflated(wire.dumps(blank()))) + 1),
            deflated(wire.dumps(blank())) + b"\x00",
        ),
        "the header does not unpack to its length",
    ),
    "header of more than 2^24 bytes": (
        DEFLATE,
        lambda: lengths(varint(MAX_HEADER + 1), varint(1 << 18), bytes(1 << 18)),
        "a header of 16777217 bytes packed in 262144",
    ),
    "header that unpacks to more than its share": (
        DEFLATE,
        lambda: lengths(varint((1 << 16) + 201), b"\x02", b"\x00\x00"),
        "a header of 65737 bytes packed in 2",
    ),
    # 2. The header
    "number in more bytes than it needs": (
        SHORTEST,
        lambda: raw_header((RECIPE, b"\x81\xa1\x61a\x18\x17")),
        "a number is not in its shortest form",
    ),
    "length of a text in more bytes than it needs": (
        SHORTEST,
        lambda: raw_header((RECIPE, b"\x81\xa1\x78\x01a\x00")),
        "a number is not in its shortest form",
    ),
    "float of 16 bits": (
        "Floats MUST be the 64-bit form (`FB`).",
        lambda: raw_header((RECIPE, b"\x81\xf9\x00\x00")),
        "byte 0xf9 is not in the subset",
    ),
    "float of 32 bits": (
        "Floats MUST be the 64-bit form (`FB`).",
        lambda: raw_header((RECIPE, b"\x81\xfa" + bytes(4))),
        "byte 0xfa is not in the subset",
    ),
    "array of any length": (
        "Lengths MUST be definite.",
        lambda: raw_header((RECIPE, b"\x9f\xff")),
        "length code 31 is not in the subset",
    ),
    "text of any length": (
        "Lengths MUST be definite.",
        lambda: raw_header((RECIPE, b"\x7f\x61a\xff")),
        "length code 31 is not in the subset",
    ),
    "key twice": (
        "No key of a map may stand twice.",
        lambda: raw_header((RECIPE, b"\x81\xa2\x61a\x00\x61a\x01")),
        "a map key appears twice",
    ),
    "seventeen levels": (
        "Nesting MUST NOT be deeper than 16.",
        lambda: raw_header((RECIPE, b"\x81" * 16 + b"\x80")),
        "nested deeper than 16",
    ),
    "2^20 + 1 values": (
        "There MUST NOT be more than 2^20 values, those inside of others counted too.",
        lambda: raw_header(
            (
                RECIPE,
                b"\x9a"
                + (1 << 20).to_bytes(4, "big")
                + np.random.default_rng(0).bytes(1 << 20).translate(bytes(b % 24 for b in range(256))),
            )
        ),
        "more than 1048576 values",
    ),
    "tag": (SIMPLE, lambda: raw_header((RECIPE, b"\x81\xc0\x00")), "byte 0xc0 is not in the subset"),
    "undefined": (SIMPLE, lambda: raw_header((RECIPE, b"\x81\xf7")), "byte 0xf7 is not in the subset"),
    "bytes behind the value": (
        SIMPLE,
        lambda: file_of(wire.dumps(blank()) + b"\x00"),
        "1 bytes after the end of the header",
    ),
    "integer of 64 bits": (
        "integers from -2^63 to 2^63 - 1",
        lambda: raw_header((RECIPE, b"\x81\x1b\x80" + bytes(7))),
        "an integer of more than 63 bits",
    ),
    "key that is a number": (SUBSET, lambda: raw_header((RECIPE, b"\x81\xa1\x00\x00")), "a map key is not text"),
    "text that is not UTF-8": (
        SUBSET,
        lambda: raw_header((RECIPE, b"\x81\xa1\x61\xff\x00")),
        "'utf-8' codec can't decode byte 0xff in position 0: invalid start byte",
    ),
    "header that ends early": (
        SUBSET,
        lambda: file_of(b"\x88\x48" + bytes(7)),
        "the header ends early: 8 bytes wanted, 7 left",
    ),
    "array longer than the header": (
        SUBSET,
        lambda: file_of(b"\x9b\x7f" + b"\xff" * 7),
        "9223372036854775807 items announced, 0 bytes left",
    ),
    "seven fields": (
        EIGHT,
        lambda: file_of(wire.dumps([[]] * 7)),
        "[[], [], [], [], [], [], ...] where 8 fields should be",
    ),
    "a number": (EIGHT, lambda: file_of(b"\x00"), "0 where 8 fields should be"),
    "origin of 7 bytes": (
        "fingerprint of the module before any edit, 8 bytes; or none",
        lambda: lil(at={ORIGIN: bytes(7)}),
        "a fingerprint that is not 8 bytes",
    ),
    "a tensor that no node uses": (
        "Each tensor and counter MUST be used.",
        lambda: file_of(wire.dumps([[[2], "C", [], [], []], [[RELU]], [[[], [2]]]]), bytes(8)),
        "0 tensors of a graph, 1 in the file",
    ),
    "input of four fields": (
        "`[shape, layout, mean, std, labels]` of one sample",
        lambda: lil(at={INPUT: [[2], "C", [], []]}),
        "[[2], 'C', [], []] where 5 fields should be",
    ),
    "counter of three fields": (
        "`[name, type, shape, bytes]` for each other tensor",
        lambda: lil(at={COUNTERS: [["n", 0, []]]}),
        "['n', 0, []] where 4 fields should be",
    ),
    "activation of five fields": (
        "`[name, bit_width, flags, zero_point]` for each grid of an activation",
        lambda: lil(at={ACTIVATIONS: [["x", 8, 0, 0, 0]]}),
        "['x', 8, 0, 0, 0] where 4 fields should be",
    ),
    "flags of an activation": (
        "flags: 1 signed, 2 narrow",
        lambda: lil(at={ACTIVATIONS: [["x", 8, 4, 0]]}),
        "4 where a whole number up to 3 should be",
    ),
    "recipe of texts": (
        "array of maps: how the file was made; MAY be empty",
        lambda: lil(at={RECIPE: ["a"]}),
        "'a' where a map should be",
    ),
    "trail that is a map": (
        "array of maps: what each step did; MAY be empty",
        lambda: lil(at={TRAIL: {}}),
        "{} where a list should be",
    ),
    "nine dimensions": (SHAPE, lambda: lil(["w", [], [1] * 9], payload=bytes(4)), "shape [1, 1, 1, 1, 1, 1, ...]"),
    "dimension of 0": (SHAPE, lambda: lil(["w", [], [2, 0]]), "shape [2, 0]"),
    "dimension of more than 2^40": (
        SHAPE,
        lambda: lil(["w", [], [(1 << 40) + 1]]),
        "1099511627777 where a whole number up to 1099511627776 should be",
    ),
    "dimension below 0": (SHAPE, lambda: lil(["w", [], [-1]]), "-1 where a whole number up to 1099511627776 should be"),
    "dimension that is true": (
        SHAPE,
        lambda: lil(["w", [], [True]]),
        "True where a whole number up to 1099511627776 should be",
    ),
    "two tensors of one name": (
        TWICE,
        lambda: lil(["w", [], [1]], ["w", [], [1]], payload=bytes(8)),
        "the name 'w' appears twice",
    ),
    "tensor and counter of one name": (
        TWICE,
        lambda: lil(["w", [], [1]], payload=bytes(4), at={COUNTERS: [["w", 4, [], b"\x00"]]}),
        "the name 'w' appears twice",
    ),
    "two counters of one name": (
        TWICE,
        lambda: lil(at={COUNTERS: [["w", 4, [], b"\x00"]] * 2}),
        "the name 'w' appears twice",
    ),
    "two activations of one name": (
        TWICE,
        lambda: lil(payload=HALF * 2, at={ACTIVATIONS: [["x", 8, 0, 0]] * 2}),
        "the name 'x' appears twice",
    ),
    "name of 1001 characters": (
        TEXT,
        lambda: lil(["w" * 1001, [], [1]], payload=bytes(4)),
        "'wwwwwwwwwwww...wwwwwwwwwwwww' where a name should be",
    ),
    "escape sequence in a label": (
        TEXT,
        lambda: lil(at={INPUT: [[2], "C", [], [], ["\x1b[2J"]]}),
        "'\\x1b[2J' where a name should be",
    ),
    "line end in an activation": (
        TEXT,
        lambda: lil(at={ACTIVATIONS: [["a\nb", 8, 0, 0]]}, payload=HALF),
        "'a\\nb' where a name should be",
    ),
    "change of direction in a tensor": (
        TEXT,
        lambda: lil(["a\u202eb", [], [1]], payload=bytes(4)),
        "'a\\u202eb' where a name should be",
    ),
    "C1 control in a layout": (
        TEXT,
        lambda: lil(at={INPUT: [[2], "\x9b", [], [], []]}),
        "'\\x9b' where a name should be",
    ),
    "mean that is NaN": (
        STATISTICS,
        lambda: lil(at={INPUT: [[2], "", [math.nan], [1.0], []]}),
        "[nan] where finite numbers should be",
    ),
    "std that is infinite": (
        STATISTICS,
        lambda: lil(at={INPUT: [[2], "", [0.0], [math.inf], []]}),
        "[inf] where finite numbers should be",
    ),
    "std of 0": (STATISTICS, lambda: lil(at={INPUT: [[2], "", [0.0], [0.0], []]}), "mean [0.0] with std [0.0]"),
    "mean without std": (STATISTICS, lambda: lil(at={INPUT: [[2], "", [0.5], [], []]}), "mean [0.5] with std []"),
    "2^14 + 1 tensors": (
        MANY,
        lambda: lil(*([f"{i:x}", [4, 0, 9, 0], []] for i in range((1 << 14) + 1))),
        "16385 tensors, activations or edits",
    ),
    "2^14 + 1 counters": (
        MANY,
        lambda: lil(at={COUNTERS: [[f"{i:x}", 4, [], b"\x00"] for i in range((1 << 14) + 1)]}),
        "16385 tensors, activations or edits",
    ),
    "2^14 + 1 activations": (
        MANY,
        lambda: lil(at={ACTIVATIONS: [[f"{i:x}", 8, 0, 0] for i in range((1 << 14) + 1)]}),
        "16385 tensors, activations or edits",
    ),
    "2^14 + 1 edits": (
        MANY,
        lambda: lil(at={EDITS: [["fold", f"{i:x}", "b"] for i in range((1 << 14) + 1)]}),
        "16385 tensors, activations or edits",
    ),
    "bytes in the recipe": (PLAIN, lambda: lil(at={RECIPE: [{"a": [{"b": b"\x00"}]}]}), "b'\\x00' in a map"),
    "bytes in the trail": (PLAIN, lambda: lil(at={TRAIL: [{"a": b"\x00"}]}), "b'\\x00' in a map"),
    "bytes in an edit": (
        PLAIN,
        lambda: lil(at={EDITS: [["replace", "a", "ReLU", {"inplace": b"\x00"}]]}),
        "b'\\x00' in a map",
    ),
    "counter of float64": (
        COUNTER,
        lambda: lil(at={COUNTERS: [["n", 6, [], bytes(8)]]}),
        "6 where a whole number up to 5 should be",
    ),
    "counter of too few bytes": (
        COUNTER,
        lambda: lil(at={COUNTERS: [["n", 2, [2], b"abc"]]}),
        "a counter of shape (2,) in b'abc'",
    ),
    "boolean of 2": (COUNTER, lambda: lil(at={COUNTERS: [["n", 5, [], b"\x02"]]}), "a boolean that is not 0 or 1"),
    "entries without bytes": (
        ENTRIES,
        lambda: lil(["w", [4, 0, 9, 0], [(1 << 20) + 1025]], payload=b"\x80"),
        "1049601 entries announced in 1 bytes of payload",
    ),
    "input of more than 2^25 entries": (
        ENTRIES,
        lambda: lil(at={INPUT: [[1 << 13, (1 << 12) + 1], "", [], [], []]}),
        "an input of 33562624 entries",
    ),
    # 3. A tensor
    "tensor of two fields": (TENSOR, lambda: lil(["w", []]), "a tensor of 2 fields"),
    "tensor of five fields": (TENSOR, lambda: lil(["w", [], [1], [1], []]), "a tensor of 5 fields"),
    "no slot": (FLAGS, lambda: lil(["w", [0], [1]], payload=bytes(4)), "slot flags 0"),
    "fourth slot": (FLAGS, lambda: lil(["w", [8], [1]], payload=bytes(4)), "slot flags 8"),
    "slots that end early": (
        "Then follow the numbers of the slots that are there:",
        lambda: lil(["w", [4, 0, 1], [1]]),
        "fewer numbers than the slots need",
    ),
    "slots that go on": (
        "Then follow the numbers of the slots that are there:",
        lambda: lil(["w", [1, 0], [1]], payload=b"\x01" + bytes(4)),
        "more numbers than the slots need",
    ),
    "axis of a grid": (AXIS, lambda: grid(1, 8, b"", axis=2), "axis 1 of a tensor of 1 dimensions"),
    "axis of tables": (AXIS, lambda: lil(["w", [2, 3], [2, 2]]), "axis 2 of a tensor of 2 dimensions"),
    "kind": ("`kind` is a sum:", lambda: grid(64, 8, b""), "grid kind 64, width 8"),
    "a source of scales of 3 bits": (
        DERIVED_KIND,
        lambda: grid(24, 8, bytes(64), 0),
        "more numbers than the slots need",
    ),
    "width beside stored widths": (WIDTHS, lambda: grid(33, 8, b""), "grid kind 33, width 8"),
    "width of 24": (WIDEST, lambda: grid(1, 24, b""), "grid kind 1, width 24"),
    "stored width of 24": (WIDEST, lambda: grid(32, 0, HALF + b"\x18" + b"\x00" * 6), "bit widths from 24 to 24"),
    "activation of 24 bits": (
        WIDEST,
        lambda: lil(payload=HALF, at={ACTIVATIONS: [["x", 24, 0, 0]]}),
        "bit widths from 24 to 24",
    ),
    "narrow grid of 1 bit": (
        WIDEST,
        lambda: grid(2, 1, HALF + b"\x00"),
        "a narrow range of 1 bit, which is a single integer",
    ),
    "table without rows": (
        ROWS,
        lambda: lil(["w", [2, 0], [4]], payload=b"\x00\x00"),
        "tables of 0 to 0 values for 4 entries",
    ),
    "table of more rows than entries": (
        ROWS,
        lambda: lil(["w", [2, 1], [2, 2]], payload=b"\x01\x00\x03\x00"),
        "tables of 1 to 3 values for 2 entries",
    ),
    "value that is NaN": (
        FLOATS,
        lambda: lil(["w", [], [2]], payload=HALF + np.float32(np.nan).tobytes()),
        "NaN or infinity in 'w'",
    ),
    "row that is infinite": (
        FLOATS,
        lambda: lil(["w", [2, 0], [2]], payload=b"\x01\x00" + np.float32(-np.inf).tobytes()),
        "NaN or infinity in 'w'",
    ),
    "scale of 0": (SCALES, lambda: grid(1, 8, bytes(6)), "a scale that is not a positive finite float32"),
    "scale below 0": (
        SCALES,
        lambda: grid(1, 8, np.float32(-1).tobytes() + bytes(2)),
        "a scale that is not a positive finite float32",
    ),
    "scale that is NaN": (
        SCALES,
        lambda: grid(1, 8, np.float32(np.nan).tobytes() + bytes(2)),
        "a scale that is not a positive finite float32",
    ),
    "scale of an activation": (
        SCALES,
        lambda: lil(payload=bytes(4), at=ONE_ACTIVATION),
        "a scale that is not a positive finite float32",
    ),
    "largest value": (SCALES, lambda: grid(1, 8, HUGE + bytes(2)), "values up to 3.84e+40"),
    "largest power of two": (SCALES, lambda: grid(9, 8, b"\xff" + bytes(2)), "values up to 2.18e+40"),
    "zero point": (
        INTEGERS,
        lambda: grid(5, 8, HALF + b"\x80\x00\x80" + bytes(2)),
        "zero point 128 outside of its range",
    ),
    "zero point of an activation": (
        INTEGERS,
        lambda: lil(payload=HALF, at={ACTIVATIONS: [["x", 8, 1, 128]]}),
        "zero point 128 outside of its range",
    ),
    "huge zero point of an activation": (
        INTEGERS,
        lambda: lil(payload=HALF, at={ACTIVATIONS: [["x", 8, 1, -(1 << 62)]]}),
        "zero point -4611686018427387904",
    ),
    "integer": (INTEGERS, lambda: grid(3, 8, HALF + b"\x00\xff"), "an integer beyond its grid"),
    "integer of a table": (
        INTEGERS,
        lambda: lil(
            ["w", [6, 0, 1, 33, 0], [2]], payload=b"\x01\x00" + HALF * 2 + (8 | 2 << 5).to_bytes(2, "little") + b"\xe4"
        ),
        "an integer of a table beyond a slice that uses it",
    ),
    "zero point of no bits": (NO_BITS, lambda: grid(5, 0, HALF + bytes(3)), "zero point -8388608 outside of its range"),
    "index": (INDEX, lambda: lil(["w", [2, 0], [4]], payload=SIZES + b"\xff" + bytes(12)), "an index beyond its table"),
    "circuit without a grid": (CIRCUIT_FLAG, lambda: lil(["w", [8, 0, 5], [2]]), "slot flags 8"),
    "circuit of masked floats": (CIRCUIT_FLAG, lambda: lil(["w", [9, 0, 5], [2]]), "slot flags 9"),
    "circuit of shared values": (CIRCUIT_FLAG, lambda: made(circuit(), flags=14), "slot flags 14"),
    "circuit of shared values and a mask": (CIRCUIT_FLAG, lambda: made(circuit(), flags=15), "slot flags 15"),
    "flag 16": (FLAGS, lambda: lil(["w", [28, 0, 9, 8], [2]]), "slot flags 28"),
    "circuit of more than 2^17 bytes": (
        CIRCUIT_OF,
        lambda: lil(["w", [12, 0, 9, 8, 0, (1 << 17) + 1], [2]], payload=b"\x81"),
        "a circuit of 131073 bytes",
    ),
    "circuit beyond the payload": (
        CIRCUIT_OF,
        lambda: lil(["w", [12, 0, 9, 8, 0, 1 << 17], [2]], payload=b"\x81"),
        "a stream of 131072 bytes, 0 left",
    ),
    "circuit of a tensor without one": (
        CIRCUIT_OF,
        lambda: two([12, 0, 9, 8, 1], [4, 0, 9, 8], b"\x81\x80\x80"),
        "the circuit of tensor 0, which has none",
    ),
    "circuit of a plain tensor": (
        CIRCUIT_OF,
        lambda: lil(["a", [], [1]], ["b", [12, 0, 9, 8, 1], [2]], payload=bytes(4) + b"\x81\x08"),
        "the circuit of tensor 0, which has none",
    ),
    "circuit of the tensor itself": (
        CIRCUIT_OF,
        lambda: two([12, 0, 9, 8, 2]),
        "the circuit of tensor 1, which has none",
    ),
    "circuit of a later tensor": (
        CIRCUIT_OF,
        lambda: lil(
            ["a", [12, 0, 9, 8, 2], [2]],
            ["b", [12, 0, 9, 8, 0, len(circuit())], [2]],
            payload=b"\x81\x08\x81" + circuit() + b"\x83\x7b\x08",
        ),
        "the circuit of tensor 1, which has none",
    ),
    "circuit without a source": (
        CIRCUIT_OF,
        lambda: lil(["w", [12, 0, 9, 8], [2]], payload=b"\x81"),
        "fewer numbers than the slots need",
    ),
    "circuit without a size": (
        CIRCUIT_OF,
        lambda: lil(["w", [12, 0, 9, 8, 0], [2]], payload=b"\x81"),
        "fewer numbers than the slots need",
    ),
    "place beyond the values of the circuit": (
        CIRCUIT_INDEX,
        lambda: made(circuit(), values=b"\x0c"),
        "an index beyond the values of its circuit",
    ),
    "value of a circuit beyond its grid": (
        INTEGERS,
        lambda: made(circuit(), grid=(0, 9, 2)),
        "an integer beyond its grid",
    ),
    "value of a circuit beyond a narrow grid": (
        INTEGERS,
        lambda: made(circuit(), grid=(0, 11, 3), inputs=b"\x84\x78"),
        "an integer beyond its grid",
    ),
    "value of a circuit in a slice of few bits": (
        INTEGERS,
        lambda: lil(
            ["w", [12, 1, 41, 0, 0, len(circuit())], [2]],
            payload=b"\x81\x81" + bits((8, 5), (2, 5)) + circuit() + b"\x83\x7b" + b"\x08",
        ),
        "an integer beyond its grid",
    ),
    "circuit of no bytes": (COUNTS, lambda: made(b""), "the bytes of a circuit end too early"),
    "circuit that ends early": (COUNTS, lambda: made(circuit()[:-1]), "the bytes of a circuit end too early"),
    "circuit of 2^12 + 1 inputs": (
        COUNTS,
        lambda: made(circuit(gates=(), end=((1, 8), (32, 8)), counts=(0x81, 0x20, 0))),
        "a circuit of 4097 inputs, 0 gates, 1 outputs",
    ),
    "circuit of 2^15 + 1 gates": (
        COUNTS,
        lambda: made(bits((6, 4), (0, 8), (0x81, 8), (0x80, 8), (2, 8), (1, 8))),
        "a circuit of 0 inputs, 32769 gates, 1 outputs",
    ),
    "circuit of 2^16 + 1 outputs of one pin": (
        COUNTS,
        lambda: made(bits((6, 4), (1, 8), (0, 8), (0x81, 8), (0x80, 8), (4, 8), (0, 1))),
        "a circuit of 1 inputs, 0 gates, 65537 outputs",
    ),
    "count of four groups": (
        COUNTS,
        lambda: made(bits((6, 4), (1, 8), (0, 8), (0x81, 8), (0x80, 8), (0x80, 8), (1, 8))),
        "a count of more than 21 bits",
    ),
    "count in more groups than it needs": (
        COUNTS,
        lambda: made(bits((6, 4), (0x82, 8), (0, 8), (1, 8), (3, 8), (1, 5), (0, 1), (1, 1), (1, 1), (7, 3))),
        "bytes are left over after the circuit",
    ),
    "circuit without outputs": (
        COUNTS,
        lambda: made(circuit((2, 1, 0), end=((0, 1),))),
        "no outputs, or multiplexers",
    ),
    "gate that reads itself": (
        PIN,
        lambda: made(circuit((3, 1, 3), ((1, 5), (0, 2), (3, 2)), ((1, 1), (7, 4)))),
        "gate 0 reads pin 3, which is not before it",
    ),
    "gate that reads where nothing is": (
        PIN,
        lambda: made(circuit((0, 1, 1), ((13, 5),), ((0, 1),))),
        "gate 0 reads pin 0, which is not before it",
    ),
    "output of no pin": (
        PIN,
        lambda: made(circuit(end=((0, 1), (2, 2), (1, 2), (3, 2)))),
        "an output reads pin 3 of 3",
    ),
    "outputs by number that are ascending": (
        OUTPUT_PINS,
        lambda: made(circuit(end=((0, 1), (0, 2), (1, 2), (2, 2)))),
        "bytes are left over after the circuit",
    ),
    "marked output that takes more than its number": (
        OUTPUT_PINS,
        lambda: made(circuit((2, 1, 1), end=((1, 1), (4, 3)))),
        "bytes are left over after the circuit",
    ),
    "more outputs than marks": (
        OUTPUT_PINS,
        lambda: made(circuit(end=((1, 1), (5, 3)))),
        "bytes are left over after the circuit",
    ),
    "bit left over in a circuit": (
        OUTPUT_PINS,
        lambda: made(circuit(end=((1, 1), (7, 3), (1, 1)))),
        "bytes are left over after the circuit",
    ),
    "byte left over after a circuit": (
        OUTPUT_PINS,
        lambda: made(circuit() + b"\x00"),
        "bytes are left over after the circuit",
    ),
    "circuits that are nearly all zeros": (
        ALL_CIRCUITS,
        lambda: large_circuits(2),
        "155660 bytes of circuits for so small a payload",
    ),
    "function 27": (
        FUNCTION,
        lambda: made(circuit(gates=((27, 5), (0, 1), (1, 1)))),
        "no outputs, or multiplexers",
    ),
    "function 29": (FUNCTION, lambda: made(circuit(gates=((29, 5),))), "gate 0: functions are 0 to 28, not 29"),
    "function 31": (FUNCTION, lambda: made(circuit(gates=((31, 5),))), "gate 0: functions are 0 to 28, not 31"),
    # 4. Derived scales
    "no such activation": (
        WEIGHT,
        lambda: lil(QUANTIZED, BIAS, payload=b"\x80\x00\x00" + bytes(2)),
        "the scale of '0.bias' derives from something that is not there",
    ),
    "no weight": (
        WEIGHT,
        lambda: lil(BIAS, payload=HALF + bytes(2), at=ONE_ACTIVATION),
        "the scale of '0.bias' derives from something that is not there",
    ),
    "weight behind the bias": (
        WEIGHT,
        lambda: lil(BIAS, QUANTIZED, payload=HALF + bytes(2) + b"\x80\x00\x00", at=ONE_ACTIVATION),
        "the scale of '0.bias' derives from something that is not there",
    ),
    "weight without a grid": (
        WEIGHT,
        lambda: lil(["0.weight", [], [2]], BIAS, payload=HALF + bytes(10), at=ONE_ACTIVATION),
        "the scale of '0.bias' derives from something that is not there",
    ),
    "weight with other scales": (
        WEIGHT,
        lambda: lil(
            ["0.weight", [4, 1, 9, 8], [2]], BIAS, payload=HALF + b"\x80\x80\x00\x00" + bytes(2), at=ONE_ACTIVATION
        ),
        "2 derived scales for 1",
    ),
    "derived scale that is 0": (
        SCALES,
        lambda: lil(
            QUANTIZED, BIAS, payload=np.float32(1e-30).tobytes() + b"\x00\x00\x00" + bytes(2), at=ONE_ACTIVATION
        ),
        "a scale that is not a positive finite float32",
    ),
    # 5. Streams and codings
    "codes of raw streams": (
        CODES,
        lambda: lil(["w", [], [1], [0]], payload=bytes(4)),
        "codes that end with a raw stream",
    ),
    "no codes": (CODES, lambda: lil(["w", [], [1], []], payload=bytes(4)), "codes that end with a raw stream"),
    "codes of no stream": (CODES, lambda: lil(["w", [], [1], [0, 9]], payload=bytes(4)), "2 codes for 1 streams"),
    "coding 0 with a length": (CODINGS, lambda: coded_floats(0, bytes(8)), "unknown coding 0"),
    "coding 6": (CODINGS, lambda: coded_floats(6, bytes(8)), "unknown coding 6"),
    "coding 7": (CODINGS, lambda: coded_floats(7, bytes(8)), "unknown coding 7"),
    "raw stream beyond the payload": (
        CODINGS,
        lambda: lil(["w", [], [2]], payload=bytes(7)),
        "a stream of 8 bytes, 7 left",
    ),
    "coded stream beyond the payload": (
        CODINGS,
        lambda: lil(["w", [], [2], [1 + 8 * 99]], payload=bytes(7)),
        "a stream of 99 bytes, 7 left",
    ),
    "deflate of too few bytes": (
        EXACTLY,
        lambda: coded_mask(1, entropy.encode(MASK[1:], "zlib")),
        "the zlib stream should hold 8 bytes, but holds 7 bytes",
    ),
    "deflate of too many bytes": (
        EXACTLY,
        lambda: coded_mask(1, entropy.encode(ZEROS, "zlib")),
        "the zlib stream should hold 8 bytes, but holds more",
    ),
    "bytes behind deflate": (
        EXACTLY,
        lambda: coded_mask(1, DEFLATED + b"\x00\x00"),
        "the zlib stream of 8 bytes is followed by 2 bytes that do not belong to it",
    ),
    "deflate without an end": (
        EXACTLY,
        lambda: coded_mask(1, b"\x00\x08\x00\xf7\xff" + MASK),
        "the zlib stream of 8 bytes is cut off before its end mark",
    ),
    "damaged deflate": (
        EXACTLY,
        lambda: coded_mask(1, b"\xff" * 8),
        "damaged zlib stream: Error -3 while decompressing data: invalid block type",
    ),
    "LZMA of too few bytes": (
        EXACTLY,
        lambda: coded_mask(2, entropy.encode(MASK[1:], "lzma")),
        "the lzma stream should hold 8 bytes, but holds 7 bytes",
    ),
    "LZMA of too many bytes": (
        EXACTLY,
        lambda: coded_mask(2, entropy.encode(ZEROS, "lzma")),
        "the lzma stream should hold 8 bytes, but holds more",
    ),
    "bytes behind LZMA": (
        EXACTLY,
        lambda: coded_mask(2, LZMA + b"\x00\x00"),
        "the lzma stream of 8 bytes is followed by 2 bytes that do not belong to it",
    ),
    "LZMA without an end": (
        EXACTLY,
        lambda: coded_mask(2, LZMA[:-1]),
        "the lzma stream of 8 bytes is cut off before its end mark",
    ),
    "damaged LZMA": (EXACTLY, lambda: coded_mask(2, b"\x03" * 8), "damaged lzma stream: Corrupt input data"),
    "deflated bytes that are too few": (
        EXACTLY,
        lambda: coded_mask(3, entropy.encode(bytes(63), "zlib")),
        "the zlib stream should hold 64 bytes, but holds 63 bytes",
    ),
    "left-over bits of raw symbols": (
        LEFT_OVER,
        lambda: lil(["w", [1], [6]], payload=b"\xff" + bytes(24)),
        "the last 2 bits of the packed values are padding and must be zero",
    ),
    "left-over bits of coded symbols": (
        LEFT_OVER,
        lambda: coded_mask(1, entropy.encode(MASK, "zlib"), 63),
        "the last 1 bits of the packed values are padding and must be zero",
    ),
    "byte that is no symbol": (
        BYTES,
        lambda: coded_mask(3, entropy.encode(b"\x02" + bytes(63), "zlib")),
        "a symbol of more than 1 bits",
    ),
    "symbols of 9 bits in bytes": (
        BYTES,
        lambda: lil(["w", [4, 0, 1, 9], [2], [0, 3 + 8 * 4]], payload=HALF + bytes(4)),
        "coding 3 for symbols of more than 8 bits",
    ),
    "deflated bytes of floats": (FLOAT_CODINGS, lambda: coded_floats(3, bytes(8)), "coding 3 for floats"),
    "LZMA bytes of floats": (FLOAT_CODINGS, lambda: coded_floats(4, bytes(8)), "coding 4 for floats"),
    "context coder without fractions": (
        "Under coding 5 each float gives three bytes",
        lambda: coded_floats(5, bytes(5)),
        "5 bytes for the fractions of 2 floats",
    ),
    "symbols of 9 bits in contexts": (
        ENTRIES_CODING,
        lambda: lil(["w", [4, 0, 1, 9], [2], [0, 5 + 8 * 4]], payload=HALF + bytes(4)),
        "coding 5 for symbols of more than 8 bits",
    ),
    # 6. The context coder
    "centre": (
        SETUP,
        lambda: context(patched(0, b"\x00\x02")),
        "the context stream has centre 512 and unit 2037 for 8 bits",
    ),
    "unit of 0": (
        SETUP,
        lambda: context(patched(2, b"\x00\x00")),
        "the context stream has centre 185 and unit 0 for 8 bits",
    ),
    "largest unit": (
        SETUP,
        lambda: context(patched(2, b"\x01\x20")),
        "the context stream has centre 185 and unit 8193 for 8 bits",
    ),
    "setup that ends early": (SETUP, lambda: context(CONTEXT[:3]), "the context stream is cut off"),
    "first token of no symbols": (
        ASCEND,
        lambda: context(patched(TOKENS, b"\x00")),
        "the context stream has tokens that do not ascend",
    ),
    "tokens that turn back": (
        ASCEND,
        lambda: context(patched(TOKENS + 5, b"\x01")),
        "the context stream has tokens that do not ascend",
    ),
    "last token beyond": (
        ASCEND,
        lambda: context(struct.pack("<HH", 20, 20) + bytes([*range(1, 15), 32]) + CONTEXT[STATE:], 5),
        "the context stream has tokens that do not ascend",
    ),
    "tokens that end early": (
        ASCEND,
        lambda: context(CONTEXT[:12]),
        "the context stream has tokens that do not ascend",
    ),
    "state": (
        STATE_RULE,
        lambda: context(patched(STATE, b"\xff\xff\xff\x00\x00")),
        "the context stream starts in state 16777215",
    ),
    "state that ends early": (STATE_RULE, lambda: context(CONTEXT[: STATE + 4]), "the context stream is cut off"),
    "half a word": (WORDS, lambda: context(CONTEXT[:-1]), "the context stream is cut off"),
    "words that run out": (WORDS, lambda: context(CONTEXT[:-2]), "the context stream is cut off"),
    "words that are left": (
        WORDS,
        lambda: context(CONTEXT + b"\x00\x00"),
        "the context stream does not end where its symbols do",
    ),
    "last state": (
        WORDS,
        lambda: context(patched(STATE, bytes([CONTEXT[STATE] ^ 1]))),
        "the context stream does not end where its symbols do",
    ),
    "symbol that is not there": (WORDS, impossible, "the context stream names a symbol that is not there"),
    "contexts of nothing": (
        WORDS,
        lambda: lil(
            ["w", [4, 0, 9, 0], [30], [0, 5 + 8 * 7]], payload=b"\x80" + (1 << 24).to_bytes(5, "little") + b"\x00\x00"
        ),
        "the context stream does not end where its symbols do",
    ),
    # 7. Edits
    "unknown edit": (EDIT, lambda: lil(at={EDITS: [["exec", "import os"]]}), "unknown edit 'exec'"),
    "edit without a kind": (EDIT, lambda: lil(at={EDITS: [[]]}), "unknown edit None"),
    "fold of one name": (EDIT, lambda: lil(at={EDITS: [["fold", "a"]]}), "['a'] where 2 fields should be"),
    "slice below 0": (
        EDIT,
        lambda: lil(at={EDITS: [["slice", "a", 0, [-1]]]}),
        "-1 where a whole number up to 1099511627776 should be",
    ),
    "slice of dimension 9": (
        EDIT,
        lambda: lil(at={EDITS: [["slice", "a", 9, [0]]]}),
        "9 where a whole number up to 8 should be",
    ),
    "class": (
        CLASS,
        lambda: lil(at={EDITS: [["replace", "a", "os.system", {}]]}),
        (
            "unknown class 'os.system'; known are "
            "Identity, ReLU, ReLU6, Hardswish, Hardsigmoid, Hardtanh, LearnedActivation"
        ),
    ),
    "class that is a list": (
        CLASS,
        lambda: lil(at={EDITS: [["replace", "a", [], {}]]}),
        "unknown class []; known are Identity, ReLU, ReLU6, Hardswish, Hardsigmoid, Hardtanh, LearnedActivation",
    ),
    "setting that is a list": (
        CLASS,
        lambda: lil(at={EDITS: [["replace", "a", "Hardtanh", {"min_val": [0]}]]}),
        "settings {'min_val': [0]} that are not numbers or words",
    ),
    "call without a number": (
        EDIT,
        lambda: lil(at={EDITS: [["call", "a", "LearnedActivation", {"channels": 2}]]}),
        "['a', 'LearnedActivation', {'channels': 2}] where 4 fields should be",
    ),
    "call before the first": (
        EDIT,
        lambda: lil(at={EDITS: [["call", "a", "LearnedActivation", {"channels": 2}, -1]]}),
        "-1 where a whole number up to 1099511627776 should be",
    ),
    # 8. The graph
    "ten fields": (
        EIGHT,
        lambda: file_of(wire.dumps([*blank(), [[]], 0])),
        "[b'\\x00\\x00\\x0...0\\x00\\x00\\x00', [[2], 'C', [], [], []], ... where 8 fields should be",
    ),
    "graph that is null": (GRAPHS, lambda: lil(at={GRAPH: None}), "None where a list should be"),
    "graph without fields": (GRAPHS, lambda: lil(at={GRAPH: []}), "a graph of [] behind its nodes"),
    "graph of four fields": (
        GRAPHS,
        lambda: graph(RELU, then=[None, 1, 1]),
        "a graph of [None, 1, 1] behind its nodes",
    ),
    "graph that ends with null": (GRAPHS, lambda: graph(RELU, then=[None]), "a graph of [None] behind its nodes"),
    "nodes that are a number": (GRAPHS, lambda: lil(at={GRAPH: [1]}), "1 where a list should be"),
    "2^14 + 1 nodes": (NODES, lambda: graph(*[RELU] * ((1 << 14) + 1)), "a graph of 16385 nodes"),
    "output before the input": (OUTPUTS, lambda: graph(RELU, then=[[2]]), "2 where a whole number up to 1 should be"),
    "no outputs": (OUTPUTS, lambda: graph(RELU, then=[[]]), "a graph of 0 outputs"),
    "2^10 + 1 outputs": (OUTPUTS, lambda: graph(RELU, then=[[0] * 1025]), "a graph of 1025 outputs"),
    "outputs that are a number": (OUTPUTS, lambda: graph(RELU, then=[0]), "0 where a list should be"),
    "form 0": (FORM, lambda: graph(RELU, then=[None, 0]), "0 where a whole number from 1 to 2 should be"),
    "form 3": (FORM, lambda: graph(RELU, then=[None, 3]), "3 where a whole number from 1 to 2 should be"),
    "node of no field": (NODE, lambda: graph([]), "[] where a node should be"),
    "node of one field": (NODE, lambda: graph([RELU]), "[2] where a node should be"),
    "node that ends with null": (NODE, lambda: graph([RELU, 0, None]), "[2, 0, None] where a node should be"),
    "node that is a text": (NODE, lambda: graph("relu"), "'relu' where a list should be"),
    "node that is true": (NODE, lambda: graph(True), "True where a list should be"),
    "operation 61": (WORD, lambda: graph(61), "61 where a whole number up to 60 should be"),
    "operation -1": (WORD, lambda: graph(-1), "-1 where a whole number up to 60 should be"),
    "operation that is a text": (WORD, lambda: graph(["relu", 0]), "'relu' where a whole number up to 60 should be"),
    "attribute of none": (FIELDS, lambda: graph([RELU, 0, 1, 1]), "3 fields of a node of relu"),
    "attribute too many": (FIELDS, lambda: graph([CLAMP, 0, 1, 1, 2, 3]), "5 fields of a node of clamp"),
    "kernel of 0": (EXTENTS, lambda: graph([MAX_POOL, 0, 1, 0]), "0 where a whole number from 1 to 65536 should be"),
    "kernel of 2^16 + 1": (
        EXTENTS,
        lambda: graph([MAX_POOL, 0, 1, 65537]),
        "65537 where a whole number from 1 to 65536 should be",
    ),
    "kernel of a part": (
        EXTENTS,
        lambda: graph([MAX_POOL, 0, 1, [2, 0.5]]),
        "0.5 where a whole number from 1 to 65536 should be",
    ),
    "kernel of 17 dimensions": (
        EXTENTS,
        lambda: graph([MAX_POOL, 0, 1, [1] * 17]),
        "[1, 1, 1, 1, 1, 1, ...] as kernel",
    ),
    "pads below 0": (EXTENTS, lambda: graph([PAD, 0, 1, [0, -1]]), "-1 where a whole number up to 65536 should be"),
    "start of 2^31 + 1": (
        FIELDS,
        lambda: graph([SLICE, 0, 1, 1, 1, (1 << 31) + 1]),
        "2147483649 where a whole number up to 2147483648 should be",
    ),
    "dimension 9 of the mean": (
        FIELDS,
        lambda: graph([MEAN, 0, 1, [9]]),
        "9 where a whole number from 1 to 8 should be",
    ),
    "the batch of the mean": (FIELDS, lambda: graph([MEAN, 0, 1, [0]]), "0 where a whole number from 1 to 8 should be"),
    "ceil that is a number": (
        FIELDS,
        lambda: graph([MAX_POOL, 0, 1, None, None, None, None, 1]),
        "1 where ceil is yes or no",
    ),
    "bound that is true": (BOUND, lambda: graph([CLAMP, 0, 1, True]), "True where low is a number"),
    "bound that is NaN": (OTHERS, lambda: graph([CLAMP, 0, 1, math.nan]), "nan where low is a number"),
    "bound that is infinite": (OTHERS, lambda: graph([CLAMP, 0, 1, -math.inf]), "-inf where low is a number"),
    "form of gelu": (BOUND, lambda: graph([GELU, 0, 1, 2]), "2 where a whole number up to 1 should be"),
    "form of gelu that is a text": (
        BOUND,
        lambda: graph([GELU, 0, 1, "tanh"]),
        "'tanh' where a whole number up to 1 should be",
    ),
    "operand before the input": (OPERAND, lambda: graph([RELU, 0, 2]), "2 where a whole number from -4 to 1 should be"),
    "operand that is the node": (OPERAND, lambda: graph([RELU, 0, 0]), "an operand that is the node itself"),
    "operand that is no tensor": (
        OPERAND,
        lambda: graph([RELU, 0, -5]),
        "-5 where a whole number from -4 to 1 should be",
    ),
    "operand that is a text": (
        OPERAND,
        lambda: graph([RELU, 0, "input"]),
        "'input' where a whole number from -4 to 1 should be",
    ),
    "sum of one": (OPERAND, lambda: graph([ADD, 0, [1]]), "1 operands for add"),
    "sum by default": (OPERAND, lambda: graph(ADD), "1 operands for add"),
    "relu of two": (OPERAND, lambda: graph([RELU, 0, [1, 1]]), "2 operands for relu"),
    "concat of none": (OPERAND, lambda: graph([CONCAT, 0, []]), "0 operands for concat"),
    "concat of 2^10 + 1": (OPERAND, lambda: graph([CONCAT, 0, [1] * 1025]), "1025 operands for concat"),
    "layer without a next tensor": (ROLES, lambda: graph(LINEAR, LINEAR, LINEAR), "linear with tensor 3 of 3"),
    "layer of a counter": (ROLES, lambda: graph([LINEAR, 0, 1, 3]), "linear with tensor 3 of 3"),
    "layer below 0": (
        ROLES,
        lambda: graph([LINEAR, 0, 1, -1]),
        "-1 where a whole number up to 1099511627776 should be",
    ),
    "role of a counter": (ROLES, lambda: graph([LINEAR, 0, 1, [4]]), "4 where a whole number up to 3 should be"),
    "roles that are too many": (ROLES, lambda: graph([LINEAR, 0, 1, [1, 2, 3]]), "3 tensors for linear"),
    "layer of a tensor without a role": (
        FIRST_OF_LAYER,
        lambda: lil(["a.mean", [], [1]], payload=bytes(4), at={GRAPH: [[LINEAR]]}),
        "'a.mean' as a tensor of linear",
    ),
    "number after no number": (PLACES, lambda: graph([RELU, 2]), "a node 2 numbers after ''"),
    "number that is too far": (
        PLACES,
        lambda: graph([RELU, "1"], [RELU, 1 << 17]),
        "131072 where a whole number up to 65536 should be",
    ),
    "place above the network": (UP, lambda: graph([RELU, -1]), "a node above the network"),
    "place of one field": (UP, lambda: graph([RELU, [0]]), "[0] where a place should be"),
    "place of five fields": (
        UP,
        lambda: graph([RELU, [0, "a", True, "b", 0]]),
        "[0, 'a', True, 'b', 0] where a place should be",
    ),
    "place that is true": (UP, lambda: graph([RELU, True]), "True where a list should be"),
    "code that is a number": (UP, lambda: graph([RELU, [0, "a", 1]]), "[0, 'a', 1] where a place should be"),
    "leaf without a path": (UP, lambda: graph([RELU, ""]), "a leaf module without a path"),
    "name of another node": (
        NAMES,
        lambda: graph([RELU, [0, "", True, "x"]], [RELU, [0, "", True, "x"]]),
        "the name 'x' appears twice",
    ),
    "name of the input": (NAMES, lambda: graph([RELU, "input"]), "the name 'input' appears twice"),
    "name of a tensor": (NAMES, lambda: graph([RELU, "b.weight"]), "'b.weight' is a node and a tensor"),
    "name of a counter": (NAMES, lambda: graph([RELU, "steps"]), "'steps' is a node and a tensor"),
    "escape sequence in a place": (NAME_TEXTS, lambda: graph([RELU, "\x1b[2J"]), "'\\x1b[2J' where a name should be"),
    "escape sequence in a name": (
        NAME_TEXTS,
        lambda: graph([RELU, [0, "", True, "a\nb"]]),
        "'a\\nb' where a name should be",
    ),
    "place of 1001 characters": (
        NAME_TEXTS,
        lambda: graph([RELU, "x" * 1001]),
        "'xxxxxxxxxxxx...xxxxxxxxxxxxx' where a name should be",
    ),
    "path of 1001 characters": (
        NAME_TEXTS,
        lambda: graph([RELU, [0, "x" * 999, True]], [RELU, "y"]),
        "'xxxxxxxxxxxx...xxxxxxxx/relu' where a name should be",
    ),
}
REPLAY = (
    "A reader that puts the tensors into a module MUST compare `origin` with the fingerprint of that module before the "
    "edits."
)
ELSEWHERE = {
    "MUST, MUST NOT, SHOULD and MAY are meant as in": "what the words mean",
    "A reader MUST NOT unpack more than that length.": "test_bombs_are_refused_before_they_unfold",
    "After the last symbol of the file x MUST be 2^24, and the words read MUST begin where the other streams end.": (
        "test_a_chain_ends_with_its_symbols_at_the_other_streams"
    ),
    REPLAY: "test_another_architecture_is_refused_and_stays_as_it_was",
    (
        "A reader that runs the graph MUST compute the shape of every value itself, and refuse operations that do not "
        "fit theirs, before it allocates."
    ): "tests/graph/test_hostile_graphs.py",
    "Tensors of roles MUST have the shapes that the operation needs.": "tests/graph/test_hostile_graphs.py",
}


def test_the_smallest_file_has_no_fault() -> None:
    contents = container.loads(lil(QUANTIZED, BIAS, payload=HALF + b"\x80\x05\x06" + b"\x82\x83", at=ONE_ACTIVATION))
    assert contents.tensors["0.bias"].decode().tolist() == [1.0, 1.5]
    assert container.loads(context(CONTEXT)).tensors["w"].integers().tolist() == SYMBOLS.tolist()
    assert container.loads(coded_mask(2, LZMA)).size == container.loads(coded_mask(1, DEFLATED)).size + len(LZMA) - len(
        DEFLATED
    )
    assert container.loads(raw_header()).edits == []
    assert container.loads(made(circuit())).tensors["w"].integers().tolist() == [-5, 3]
    assert container.loads(large_circuits(1)).tensors["0"].integers().tolist() == [1, 1]


def test_the_circuit_of_a_tensor_that_has_that_of_another() -> None:
    own = [12, 0, 9, 8, 0, len(circuit())]
    payload = b"\x81" + circuit() + b"\x83\x7b\x08" + b"\x81\x08" * 2
    contents = container.loads(
        lil(*([n, own if n == "a" else [12, 0, 9, 8, k], [2]] for k, n in enumerate("abc")), payload=payload)
    )
    assert [contents.tensors[name].integers().tolist() for name in "abc"] == [[-5, 3]] * 3
    assert contents.tensors["c"].bank is contents.tensors["a"].bank


@pytest.mark.parametrize("case", RULES)
def test_a_file_that_breaks_one_rule_is_refused_with_its_fault(case: str) -> None:
    _, make, text = RULES[case]
    with pytest.raises(ArtifactError) as error:
        container.loads(make(), source="net.lil")
    whole = (
        text
        if text.startswith("read ")
        else f"read net.lil: the contents are not well formed ({text}); make the file again"
    )
    assert str(error.value) == whole


def plain(text: str) -> str:
    """Without line breaks and the bars of tables."""
    return re.sub(r"[\s|]+", " ", text)


def prose() -> str:
    text = FORMAT.read_text(encoding="utf-8").partition("## 9. The dictionary")[0]
    return re.sub(r"```.*?```", "", text, flags=re.DOTALL)


@pytest.mark.parametrize("rule", sorted({rule for rule, _, _ in RULES.values()} | set(ELSEWHERE)))
def test_every_rule_stands_in_the_format(rule: str) -> None:
    assert plain(rule) in plain(prose())


def test_every_must_of_the_format_is_tested() -> None:
    known = plain(" ".join([*(rule for rule, _, _ in RULES.values()), *ELSEWHERE]))
    sentences = [
        plain(sentence).strip(" -")
        for part in re.split(r"\n\s*\n|\n- ", prose())
        for sentence in re.split(r"(?<=[.;])\s+(?=[A-Z])", part)
        if "MUST" in sentence
    ]
    assert len(sentences) > 20
    missing = [s for s in sentences if s not in known and not any(s.startswith(e) for e in ELSEWHERE)]
    assert missing == []
