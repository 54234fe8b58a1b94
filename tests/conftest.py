"""Shared by all tests."""

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def published_data() -> Path:
    """The folder with the published data sets and trained models; tests that need it skip without it."""
    folder = os.environ.get("LILLIPUT_TEST_DATA")
    if not folder or not Path(folder).is_dir():
        pytest.skip("set LILLIPUT_TEST_DATA to a folder with the published data sets")
    return Path(folder)
