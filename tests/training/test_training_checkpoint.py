"""A training that was killed and resumed ends in the same bytes as one that was not."""

from dataclasses import replace

import pytest
import torch

from lilliput.core.container import dumps
from lilliput.core.errors import ArtifactError
from lilliput.training.checkpoint import read_checkpoint, write_checkpoint
from lilliput.training.fit import fit
from lilliput.training.hooks import Hook
from lilliput.training.settings import FitSettings

SETTINGS = FitSettings(epochs=4, batch_size=100, learning_rate=0.01, schedule="one_cycle")


class KilledError(Exception):
    pass


class Stop(Hook):
    """Dies at the end of an epoch, and remembers the losses."""

    def __init__(self, epoch=None):
        self.epoch, self.losses = epoch, []

    def on_epoch(self, moment):
        if moment.epoch == self.epoch:
            raise KilledError
        self.losses.append(moment.row["train_loss"])

    def state_dict(self):
        return {"losses": self.losses}

    def load_state_dict(self, state):
        self.losses = state["losses"]


def jitter(x, generator):
    return x + 0.1 * torch.rand(x.shape, generator=generator)


@pytest.fixture
def train(digits, make_net, tmp_path):
    """Trains a fresh network, with a checkpoint if asked; gives the bytes, the result, the hook and the next number."""

    def run(settings=SETTINGS, *, kill=None, resume=True, seed=0, task=None):
        net, hook, generator = make_net(dropout=0.1), Stop(kill), torch.Generator().manual_seed(seed)
        path = tmp_path / "fit.checkpoint" if resume else None
        task = task or replace(digits, augment=jitter)
        result = fit(net, task, settings, generator=generator, checkpoint=path, hooks=[hook])
        return dumps(net), result, hook, float(torch.rand((), generator=generator))

    run.path = tmp_path / "fit.checkpoint"
    return run


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
@pytest.mark.parametrize("keep", ["best", "last"])
@pytest.mark.parametrize("kills", [(1,), (2, 4), (3, 3)])
def test_killed_and_resumed_equals_uninterrupted(train, optimizer, keep, kills):
    settings = replace(SETTINGS, optimizer=optimizer, keep=keep)
    wanted, uninterrupted, first, number = train(settings, resume=False)
    for epoch in kills:
        with pytest.raises(KilledError):
            train(settings, kill=epoch)
    found, resumed, hook, next_number = train(settings)
    assert found == wanted
    assert hook.losses == first.losses
    assert next_number == number
    assert (resumed.best_epoch, resumed.best_score) == (uninterrupted.best_epoch, uninterrupted.best_score)
    assert [row["epoch"] for row in resumed.history] == [1, 2, 3, 4]
    timeless = [
        [{k: v for k, v in row.items() if k != "seconds"} for row in r.history] for r in (resumed, uninterrupted)
    ]
    assert timeless[0] == timeless[1]


def test_resuming_a_finished_training_changes_nothing(train):
    wanted, _, first, _ = train()
    found, result, hook, _ = train()
    assert found == wanted
    assert hook.losses == first.losses
    assert result.epochs_run == 4


def test_early_stopping_is_remembered(train):
    settings = replace(SETTINGS, epochs=9, patience=1, learning_rate=0.0)
    wanted, result, _, _ = train(settings)
    again, resumed, _, _ = train(settings)
    assert again == wanted
    assert result.stopped_early
    assert resumed.stopped_early
    assert resumed.epochs_run == result.epochs_run < 9


def test_another_training_does_not_resume(train, digits):
    train()
    kept = train.path.read_bytes()
    others = [
        {"settings": replace(SETTINGS, epochs=5)},
        {"settings": replace(SETTINGS, weight_decay=0.1)},
        {"seed": 1},
        {"task": digits},
        {"task": replace(digits, augment=jitter, train=digits.train.subset(torch.arange(300)))},
    ]
    for other in others:
        with pytest.raises(
            ArtifactError, match="of a training with other settings, data, seed or network; train as before"
        ):
            train(**other)
    assert train.path.read_bytes() == kept


def test_damaged_checkpoints_are_refused(train):
    train()
    data = train.path.read_bytes()
    flipped = bytearray(data)
    flipped[len(data) // 2] ^= 1
    for damaged in (b"", data[:100], data[:-1], bytes(flipped), b"PK" + data, data + b"\0"):
        train.path.write_bytes(damaged)
        with pytest.raises(ArtifactError, match="damaged, or not one; delete it to start anew"):
            train()


class Harmful:
    def __reduce__(self):
        return (print, ("code ran",))


def test_a_checkpoint_runs_no_code(tmp_path, capsys):
    path = tmp_path / "harmful"
    write_checkpoint(path, "id", {"x": Harmful()})
    with pytest.raises(ArtifactError, match="cannot be read"):
        read_checkpoint(path, "id")
    assert capsys.readouterr().out == ""


def test_a_missing_checkpoint_is_a_fresh_start_and_an_unreadable_one_an_error(tmp_path):
    assert read_checkpoint(tmp_path / "none", "id") is None
    with pytest.raises(ArtifactError, match="check the path"):
        read_checkpoint(tmp_path, "id")
