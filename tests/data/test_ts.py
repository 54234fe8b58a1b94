import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lilliput.core.errors import DataError
from lilliput.data.ts import read_ts

HEAD = "#A comment\n@problemName tiny\n@timeStamps false\n@missing false\n@dimensions 2\n@classLabel true a b\n@data\n"
fuzz = settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
series = st.integers(1, 6).flatmap(
    lambda n: st.lists(
        st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=n, max_size=n),
        min_size=2,
        max_size=2,
    )
)


def written(path, text):
    path.write_text(text)
    return path


@given(st.lists(st.tuples(series, st.sampled_from("ab")), min_size=1, max_size=5))
@fuzz
def test_reading_a_written_file_gives_its_series(tmp_path, rows):
    lines = [":".join([*(",".join(map(repr, channel)) for channel in values), label]) for values, label in rows]
    file = read_ts(written(tmp_path / "a.ts", HEAD + "\n".join(lines) + "\n"))
    assert file.classes == ("a", "b")
    assert file.labels == [label for _, label in rows]
    for read, (values, _) in zip(file.series, rows, strict=True):
        assert read.dtype == np.float32
        assert np.array_equal(read, np.array(values, dtype=np.float32))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "names no classes"),
        ("@data\n1,2:a\n", "names no classes"),
        ("@classLabel true a a\n@data\n1:a\n", "names no classes"),
        ("@classLabel false\n@data\n1:a\n", "names no classes"),
        (HEAD.replace("@missing false", "@missing true") + "1:1:a\n", "@missing true"),
        (HEAD.replace("@timeStamps false", "@timeStamps true") + "1:1:a\n", "@timestamps true"),
        (HEAD, "no series"),
        (HEAD + "1,2:3,4:c\n", "line 8 has the label 'c'"),
        (HEAD + "1,2:3,4\n", "has the label '3,4'"),
        (HEAD + "1,2:3:a\n", "line 8 is not a table"),
        (HEAD + "1,x:3,4:a\n", "line 8 is not a table"),
        (HEAD + "1,?:3,4:a\n", "line 8 is not a table"),
        (HEAD + ":a\n", "line 8 is not a table"),
        (HEAD + "1,nan:3,4:a\n", "not a finite float32"),
        (HEAD + "1,1e39:3,4:a\n", "not a finite float32"),
        (HEAD + "1:2:a\n1:a\n", "number of channels"),
    ],
)
def test_each_fault_of_a_series_file_is_named(tmp_path, text, message):
    with pytest.raises(DataError, match=message):
        read_ts(written(tmp_path / "a.ts", text))
