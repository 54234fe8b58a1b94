"""Shared by all tests: one thread for torch, so that tests beside each other do not slow each other down."""

import os
from pathlib import Path

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def published_data() -> Path:
    """The folder with the published data sets and trained models; tests that need it skip without it."""
    folder = os.environ.get("LILLIPUT_TEST_DATA")
    if not folder or not Path(folder).is_dir():
        pytest.skip("set LILLIPUT_TEST_DATA to a folder with the published data sets")
    return Path(folder)
