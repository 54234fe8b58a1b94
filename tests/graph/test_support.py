"""The table of support says what the lowering, the ONNX writer and the document do."""

from collections import Counter
from pathlib import Path

import pytest
from torch import nn

from lilliput.core.errors import ExportError
from lilliput.export import onnx_operators
from lilliput.export.onnx import build
from lilliput.graph.lower import RULES
from lilliput.graph.operators import MOVES, POINTWISE
from lilliput.graph.support import NO, OTHERWISE, TABLE, page, remedy, row_of
from lilliput.graph.trace import Node, graph_of
from lowered import quantized, task_of
from program_networks import FUNCTIONS, Code

PAGE = Path(__file__).parents[2] / "docs" / "support.md"
WORDS = [word for row in TABLE for word in row.words]


def test_each_word_has_one_row():
    assert set(Counter(WORDS).values()) == {1}
    assert {*WORDS} >= {*POINTWISE, *MOVES, *RULES, *onnx_operators.VALUES, *onnx_operators.MOVES}


@pytest.mark.parametrize("row", TABLE, ids=lambda row: row.what)
def test_rows_say_what_the_code_can(row):
    for word in row.words:
        assert (row.program != NO) == (word in RULES), word
        writable = word in onnx_operators.VALUES or word in onnx_operators.MOVES or word == "slice"
        assert (row.onnx != NO) == writable, word
    assert row.program != NO or row.remedy
    assert row.onnx != NO or row.remedy or row.onnx_remedy


def test_the_document_is_made_from_the_table():
    assert PAGE.read_text() == page(), "write it anew: python -m lilliput.graph.support > docs/support.md"


def test_what_the_table_refuses_for_onnx_is_refused_by_name():
    words = next(row.words for row in TABLE if "softplus" in row.words)
    for word in ("abs", "exp", "neg"):
        assert word in words
        function, layers = FUNCTIONS[word], {"a": nn.Linear(4, 4), "b": nn.Linear(4, 3)}
        net = quantized(Code(lambda m, x, f=function: m.b(f(m.a(x))), **layers).eval(), task_of((4,)))
        assert word in {n.op for n in graph_of(net).nodes}
        with pytest.raises(ExportError, match=rf"ONNX export of '{word}': aten.{word}.default"):
            build(net, target="onnx-x86")


def node(target, op="other"):
    return Node(name="n", op=op, inputs=(), shape=(1,), module="", target=target, source="")


def test_a_call_without_word_is_found_by_its_name():
    row = row_of(node("aten.gru.input"))
    assert row is not None
    assert "GRU" in row.what
    assert row_of(node("aten.frobnicate.default")) is None
    assert remedy(node("aten.frobnicate.default")) == OTHERWISE
    assert row_of(node("aten.matmul.default")) is row_of(node("aten.bmm.default"))
