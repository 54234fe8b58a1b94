"""Training with the coded size in the loss: the slopes of the bits, and sizes that are held."""

import numpy as np
import pytest
import torch
from torch import nn

import lilliput as ll
from lilliput.core.artifact import Artifact
from lilliput.core.container import dumps
from lilliput.core.encoding import Encoding, Grid
from lilliput.core.errors import RecipeError
from lilliput.core.method import Context, apply_checked_
from lilliput.ops.rate_rounding import Bits, Shape
from lilliput.testing import tiny_model, tiny_task
from lilliput.training.attach import Attached
from lilliput.training.coded_rate import CodedRate, countable, counted, smallest
from lilliput.training.fit import fit
from lilliput.training.settings import FitSettings
from stopped import KilledError, Stop

TASK = tiny_task()


def channel_grid(rows, bits=6, scale=0.1):
    return Grid(
        scale=torch.full((rows,), scale),
        zero_point=torch.zeros(rows, dtype=torch.int64),
        bit_width=torch.full((rows,), bits),
        signed=True,
        narrow=True,
        axis=0,
    )


def encoded(seed=0, shape=(6, 4, 3, 3)):
    q = (torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 2).round().long()
    return Encoding.of(q.float() * 0.1).with_grid(channel_grid(shape[0]), q)


def rounded_net(seed=0):
    model = tiny_model("residual")
    net, context = Artifact.of(model, TASK.spec), Context.of(TASK, model, seed=seed)
    for method in (ll.FoldBatchNorm(), ll.RateDistortion(weight_bits=4)):
        apply_checked_(method, net, context)
    return net, context


def plain_size():
    net, _ = rounded_net()
    return len(dumps(net, strip=True))


def test_bits_are_those_of_the_tables_and_slopes_their_differences():
    encoding = encoded()
    q, shape = encoding.values.flatten(1).numpy(), Shape.of(encoding.shape)
    found = counted(encoding, encoding.values.float())
    bits = Bits.of(q, shape)
    cost = bits.of_each(q, shape)
    assert found.bits == pytest.approx(float(cost.sum()))
    slopes = found.slopes.flatten(1).numpy()
    for i, j in ((0, 0), (2, 5), (5, 35)):
        size = abs(q[i, j])
        up, down = (bits.of_each(q, shape, instead=np.full_like(q, s))[i, j] for s in (size + 1, max(size - 1, 0)))
        assert slopes[i, j] == pytest.approx(0.0 if size == 0 else np.sign(q[i, j]) * (up - down) / 2, abs=1e-5)


def test_slopes_at_zero_are_those_to_one_in_proportion_to_the_distance():
    encoding = encoded()
    q, shape = encoding.values.flatten(1).numpy(), Shape.of(encoding.shape)
    bits = Bits.of(q, shape)
    more = torch.from_numpy(bits.of_each(q, shape, instead=np.abs(q) + 1) - bits.of_each(q, shape)).float()
    zeros = encoding.values == 0
    slopes = [counted(encoding, encoding.values + torch.where(zeros, d, 0.0)).slopes[zeros] for d in (-0.4, -0.2, 0.2)]
    torch.testing.assert_close(slopes[2], 0.4 * more.reshape(zeros.shape)[zeros])
    torch.testing.assert_close(slopes[0], 2 * slopes[1])
    torch.testing.assert_close(slopes[1], -slopes[2])


def test_only_integers_of_their_own_around_zero_are_counted():
    plain = Encoding.of(torch.randn(4, 3))
    shifted = Grid.per_tensor(0.1, 3, 8, signed=False)
    assert countable(encoded())
    assert not countable(plain)
    assert not countable(Encoding.of(torch.zeros(4, 3)).with_grid(shifted, torch.full((4, 3), 3)))
    assert not countable(Encoding.of(torch.zeros(4)).with_grid(Grid.per_tensor(0.1, 0, 8, signed=True)))


def test_copies_in_steps_start_in_their_cells_and_see_gradients_scaled_by_the_step():
    net, _ = rounded_net()
    before = dumps(net)
    attached = Attached(net, dither=torch.Generator().manual_seed(0))
    attached.project_()
    net.module(TASK.data("train").batch(torch.arange(16))[0]).square().sum().backward()
    slopes = {name: p.grad.clone() for name, p in net.module.named_parameters() if p.grad is not None}
    attached.pull_()
    assert len(attached.latents()) >= 3
    for name, raw, encoding in attached.latents():
        grid = encoding.grid
        assert grid is not None
        low, high = (grid.spread(v, raw.dim()) for v in grid.range())
        away = (raw.detach() - encoding.values).abs()
        assert 0.1 < float(away.mean()) < float(away.max()) <= 0.4
        inside = (raw.detach() > low - 0.5) & (raw.detach() < high + 0.5)
        unit = grid.spread(grid.scale, raw.dim())
        torch.testing.assert_close(raw.grad, torch.where(inside, slopes[name] * unit, 0.0))
    attached.bake_(net)
    assert dumps(net) == before


def test_a_training_ends_at_the_wanted_size():
    start = plain_size()
    limit = round(0.9 * start)
    net, context = rounded_net()
    result = apply_checked_(ll.FineTune(epochs=12, max_bytes=limit, step_rate=0.05, batch_size=32), net, context)
    size = len(dumps(net, strip=True))
    assert 0.85 * limit <= size <= limit < start
    assert f"{size:,} bytes" in result.notes[0]
    net.check()


def test_without_a_limit_the_size_is_not_held():
    limit = round(0.8 * plain_size())
    net, context = rounded_net()
    apply_checked_(ll.FineTune(epochs=3, step_rate=0.02, batch_size=32, keep="last"), net, context)
    assert len(dumps(net, strip=True)) > limit


@pytest.mark.parametrize("kill", [1, 2, 3])
def test_a_training_with_a_limit_that_was_killed_goes_on_as_if_it_had_not(tmp_path, kill):
    settings = FitSettings(epochs=4, batch_size=24, step_rate=0.05, keep="last")
    limit = round(0.9 * plain_size())

    def train(path, kill=0):
        net, _ = rounded_net()
        rate = CodedRate(net, limit)
        result = fit(
            net, TASK, settings, generator=torch.Generator().manual_seed(0), checkpoint=path, rate=rate,
            hooks=[Stop(kill)],
        )  # fmt: skip
        return dumps(net), rate.price, [row["train_loss"] for row in result.history]

    whole = train(None)
    with pytest.raises(KilledError):
        train(tmp_path / "c", kill=kill)
    assert train(tmp_path / "c") == whole


def test_the_price_alone_brings_a_training_to_its_size(monkeypatch):
    monkeypatch.setattr(CodedRate, "shave_", lambda *_: pytest.fail("the price has not held the size"))
    net, context = rounded_net()
    limit = round(0.95 * plain_size())
    method = ll.FineTune(epochs=60, max_bytes=limit, step_rate=0.2, batch_size=16, schedule="constant")
    apply_checked_(method, net, context)
    assert len(dumps(net, strip=True)) <= limit


def test_what_the_price_does_not_bring_down_in_time_goes_before_the_last_epochs(monkeypatch):
    """So that these train what is left."""
    net, _ = rounded_net()
    limit = round(0.8 * plain_size())
    epochs = []
    shave = CodedRate.shave_
    monkeypatch.setattr(
        CodedRate, "shave_", lambda rate, attached: (epochs.append(rate.bytes_of(attached)), shave(rate, attached))
    )
    settings = FitSettings(epochs=10, batch_size=24, step_rate=0.01, learning_rate=1e-4)
    result = fit(net, TASK, settings, generator=torch.Generator().manual_seed(0), rate=CodedRate(net, limit))
    assert epochs
    assert epochs[0] > limit
    assert len(epochs) <= 3
    assert result.best_epoch > 7
    assert len(dumps(net, strip=True)) <= limit


def test_a_limit_needs_weights_on_grids():
    model = tiny_model("residual")
    net, context = Artifact.of(model, TASK.spec), Context.of(TASK, model)
    with pytest.raises(RecipeError, match="rate_distortion"):
        apply_checked_(ll.FineTune(epochs=1, max_bytes=1000), net, context)


def test_a_size_that_zeros_alone_exceed_is_refused_before_any_training():
    net, context = rounded_net()
    before = dumps(net)
    with pytest.raises(RecipeError, match=r"with all its integers 0 the file has [0-9,]+ bytes; allow more bytes"):
        apply_checked_(ll.FineTune(epochs=10**6, max_bytes=smallest(net) - 1), net, context)
    assert dumps(net) == before


def test_linear_layers_alone_are_held_too():
    model = nn.Sequential(nn.Flatten(), nn.Linear(int(np.prod(TASK.spec.shape)), 12), nn.ReLU(), nn.Linear(12, 3))
    net, context = Artifact.of(model, TASK.spec), Context.of(TASK, model)
    apply_checked_(ll.RateDistortion(price=1e-6), net, context)
    before = len(dumps(net, strip=True))
    apply_checked_(ll.FineTune(epochs=10, max_bytes=round(0.85 * before), step_rate=0.05), net, context)
    assert len(dumps(net, strip=True)) <= round(0.85 * before)
