"""Errors are one line that says what was asked, what was found and what to do, and an exit code."""

import copy
import pickle

import pytest

from lilliput.core import errors
from lilliput.core.errors import LilliputError

ALL = [e for e in vars(errors).values() if isinstance(e, type) and issubclass(e, LilliputError)]
CODES = {"UnsupportedError": 3, "ExportError": 3, "VerificationError": 4}


@pytest.mark.parametrize("cls", ALL)
def test_message_is_asked_found_do(cls):
    error = cls("sic on 'conv1'", "grouped convolution", "add 'conv1' to skip")
    assert str(error) == "sic on 'conv1': grouped convolution; add 'conv1' to skip"
    assert (error.asked, error.found, error.do) == ("sic on 'conv1'", "grouped convolution", "add 'conv1' to skip")


@pytest.mark.parametrize(
    ("found", "shown"),
    [
        ("two\nlines\r\nand more", "two lines and more"),
        ("\x1b[2Jgone\x07", "\\x1b[2Jgone\\x07"),
        ("\x9b31mred", "\\x9b31mred"),
        ("\u202etxt.exe", "\\u202etxt.exe"),
        ("Größe 中文  twice", "Größe 中文  twice"),
    ],
)
def test_message_is_one_line_that_a_terminal_only_shows(found, shown):
    error = LilliputError("a", found, "c")
    assert str(error) == f"a: {shown}; c"
    assert error.found == found
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


@pytest.mark.parametrize("cls", ALL)
def test_exit_code_is_that_of_the_command_line(cls):
    assert cls.exit_code == CODES.get(cls.__name__, 2)


@pytest.mark.parametrize("cls", ALL)
def test_errors_pass_between_processes(cls):
    error = cls("a", "b", "c")
    for other in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
        assert type(other) is cls
        assert str(other) == str(error)
        assert other.do == "c"


def test_no_error_has_the_exit_code_of_a_bug_or_of_a_missed_budget():
    assert not {cls.exit_code for cls in vars(errors).values() if isinstance(cls, type)} & {0, 1, errors.BUG}


def test_all_errors_are_lilliput_errors_and_no_others():
    assert len(ALL) == 10
    assert not issubclass(LilliputError, (ValueError, RuntimeError, OSError))
