import os
from pathlib import Path

import pytest


@pytest.fixture
def real_data() -> Path:
    """A root with MNIST/raw, FashionMNIST/raw and cifar-10-batches-bin, as their publishers lay them out."""
    root = os.environ.get("LILLIPUT_TEST_DATA")
    if not root:
        pytest.skip("real data is not here: set LILLIPUT_TEST_DATA to a folder that has MNIST/raw and so on")
    return Path(root)


@pytest.fixture
def empty_home(tmp_path, monkeypatch) -> Path:
    """No data root from outside: an empty home folder, and LILLIPUT_DATA unset."""
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.delenv("LILLIPUT_DATA", raising=False)
    return home
