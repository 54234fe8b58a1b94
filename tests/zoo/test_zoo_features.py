"""Networks of MLPerf Tiny take the user's features, for their own data sets cannot be handed on."""

import numpy as np
import pytest
import torch

from lilliput.core.errors import DataError
from lilliput.zoo.registry import ZOO, open_model
from lilliput.zoo.tasks import KEYWORDS

OWN = {"ds-cnn": "speech-commands", "mobilenet-025": "visual-wake-words", "autoencoder-ad": "toyadmos"}


def write(folder, name, pixels=False):
    rng = np.random.default_rng(0)
    folder.mkdir()
    for role in ("train", "validation", "test"):
        shape = (12, *ZOO[name].shape)
        x = rng.integers(0, 256, shape, dtype=np.uint8) if pixels else rng.standard_normal(shape)
        y = np.zeros(12, np.int64) if (name, role) == ("autoencoder-ad", "train") else np.arange(12) % 2
        np.savez(folder / f"{role}.npz", x=x, y=y)


@pytest.mark.parametrize("pixels", [False, True])
@pytest.mark.parametrize("name", OWN)
def test_features_of_the_user_train_and_judge_the_network(name, pixels, tmp_path):
    write(tmp_path / OWN[name], name, pixels)
    model, task = open_model(name, data_root=tmp_path, trained=False)
    batch = task.data("test").batch(torch.arange(12))
    if pixels:
        assert 0 <= float(batch[0].min()) < 0.1
        assert 0.9 < float(batch[0].max()) <= 1
    outputs = task.forward(model.train(), batch)
    assert torch.isfinite(task.loss(outputs, task.target(batch)))
    assert task.score.value(task.score.statistics(outputs, task.target(batch))) >= 0
    assert [len(task.data(role)) for role in ("train", "validation", "test")] == [12] * 3
    assert task.spec.shape == ZOO[name].shape


@pytest.mark.parametrize("name", OWN)
def test_without_them_the_error_says_which_files_to_make(name, tmp_path):
    with pytest.raises(DataError) as error:
        open_model(name, data_root=tmp_path, trained=False, download=True)
    assert f"data set '{OWN[name]}': no train.npz" in str(error.value)
    assert f"x of shape [n, {', '.join(map(str, ZOO[name].shape))}]" in str(error.value)


def test_keywords_have_names():
    assert len(KEYWORDS) == len(set(KEYWORDS)) == 12
