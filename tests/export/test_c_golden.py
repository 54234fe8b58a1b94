"""Golden vectors read back are those that were written; a header that somebody has edited is one clear line."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lilliput.core.errors import ArtifactError, LilliputError, UsageError
from lilliput.export.c import golden as golden_module
from lilliput.export.c.golden import Golden, read
from lilliput.export.c.interface import Interface, files
from lilliput.graph.lower import lower
from lilliput.methods.quantization.post_training import Quantization
from lowered import quantized_tiny


@pytest.fixture(scope="module")
def texts():
    """{file: text} of a tiny network, and its vectors."""
    program = lower(quantized_tiny("linear", Quantization(signed=True)))
    vectors = Golden.of(program, "net")
    return {**files(program, "net", 0, Interface()), "net_golden.h": vectors.header()}, vectors


def put(folder, texts, **changed):
    for name, text in {**texts, **changed}.items():
        (folder / name).write_text(text)
    return folder


def test_what_is_read_is_what_was_written(texts, tmp_path):
    found = read(put(tmp_path, texts[0]))
    assert np.array_equal(found.inputs, texts[1].inputs)
    assert np.array_equal(found.outputs, texts[1].outputs)
    assert (found.inputs.dtype, found.outputs.dtype) == (texts[1].inputs.dtype, texts[1].outputs.dtype)
    assert (found.fingerprint, found.sums) == (texts[1].fingerprint, texts[1].sums)


def test_both_ends_of_the_range_are_in(texts):
    program = lower(quantized_tiny("linear", Quantization(signed=True)))
    value = program.values[program.input]
    assert (texts[1].inputs[0] == value.low).all()
    assert (texts[1].inputs[1] == value.high).all()
    assert (texts[1].inputs[2] == value.zero_point).all()


def test_every_change_of_a_number_changes_the_fingerprint(texts, tmp_path):
    text = texts[0]["net_golden.h"]
    first = text.index("  {") + 3
    seen = {texts[1].fingerprint}
    for place in [i for i in range(first, len(text)) if text[i].isdigit()][::7]:
        changed = text[:place] + str((int(text[place]) + 1) % 10) + text[place + 1 :]
        try:
            seen.add(read(put(tmp_path, texts[0], **{"net_golden.h": changed})).fingerprint)
        except ArtifactError as error:
            assert "which is no int" in str(error)  # noqa: PT017 - either way
    assert len(seen) > 10


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda t: t.replace("-", "+"), "net_golden_inputs holds"),
        (lambda t: t.replace("{-128", "{-129"), "holds '-129', which is no int8_t"),
        (lambda t: t.replace("{-128", "{99999999999999999999999"), "holds '99999999999999999999'"),
        (lambda t: t.replace("{-128,", "{"), "net_golden_inputs has 175 numbers in place of 11 x 16"),
        (lambda t: t.replace("count 11", "count 12"), "has 176 numbers in place of 12 x 16"),
        (lambda t: t.replace("count 11", "count 0"), "has 176 numbers in place of 0 x 16"),
        (lambda t: t.replace("_count", "_many"), "inputs without type or size"),
        (lambda t: t.replace("outputs[", "output["), "net_golden_outputs has 0 numbers"),
        (lambda t: t[: len(t) // 2], "numbers in place of 11 x"),
        (lambda t: "", "inputs without type or size"),
        (lambda t: "\x00\xff" * 100, "inputs without type or size"),
    ],
)
def test_vectors_that_are_not_as_written_are_refused(texts, tmp_path, change, text):
    put(tmp_path, texts[0], **{"net_golden.h": change(texts[0]["net_golden.h"])})
    with pytest.raises(ArtifactError, match=text) as raised:
        read(tmp_path)
    assert "export the network again" in str(raised.value)


@given(cut=st.integers(0, 10**6), junk=st.binary(max_size=30))
def test_any_header_is_read_or_refused(texts, tmp_path_factory, cut, junk):
    folder = tmp_path_factory.mktemp("any")
    for name, text in texts[0].items():
        data = text.encode()
        at = cut % len(data)
        (folder / name).write_bytes(data[:at] + junk + data[at + len(junk) :])
    try:
        read(folder)
    except LilliputError as error:
        assert str(error).isprintable()  # noqa: PT017 - either way


def test_a_folder_has_the_vectors_of_one_network(texts, tmp_path):
    with pytest.raises(UsageError, match="no golden vectors in it; give a folder that lilliput export --to c"):
        read(tmp_path)
    put(tmp_path, texts[0], **{"other_golden.h": ""})
    with pytest.raises(UsageError, match="golden vectors of 2 networks"):
        read(tmp_path)
    with pytest.raises(UsageError, match="No such file or directory; check the path"):
        read(tmp_path / "none")
    (tmp_path / "net_golden.h").unlink()
    (tmp_path / "other_golden.h").rename(tmp_path / "a b_golden.h")
    with pytest.raises(ArtifactError, match="the name 'a b'"):
        read(tmp_path)


def test_a_missing_or_enormous_file_is_not_read(texts, tmp_path, monkeypatch):
    put(tmp_path, texts[0])
    monkeypatch.setattr(golden_module, "LARGEST_FILE", 1000)
    with pytest.raises(ArtifactError, match="more than 1,000 bytes"):
        read(tmp_path)
    (tmp_path / "net.h").unlink()
    with pytest.raises(ArtifactError, match="no such file"):
        read(tmp_path)
