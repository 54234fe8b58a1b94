from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lilliput.core.errors import DataError, UsageError
from lilliput.data.augment import affine, compose, cutout, horizontal_flip, random_crop, random_shift, warp

STEPS = {
    "random_crop": partial(random_crop, padding=2),
    "random_shift": partial(random_shift, limits=(1, 2)),
    "horizontal_flip": partial(horizontal_flip, p=0.5),
    "cutout": partial(cutout, size=3),
    "affine": partial(affine, degrees=20.0, shift=2.0, scale=(0.8, 1.2)),
}
every_step = pytest.mark.parametrize("step", STEPS.values(), ids=STEPS)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def images(n=16, dtype=torch.uint8, height=8, width=10):
    pixels = torch.randint(1, 200, (n, 3, height, width), generator=seeded(9))
    return pixels.to(dtype)


@every_step
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.float16, torch.float32, torch.float64])
def test_shape_dtype_and_the_argument_are_kept(step, dtype):
    batch = images(dtype=dtype)
    before = batch.clone()
    out = step(batch, generator=seeded())
    assert (out.shape, out.dtype, out.device) == (batch.shape, batch.dtype, batch.device)
    assert torch.equal(batch, before)


@every_step
def test_same_seed_gives_same_bits_and_another_seed_others(step):
    first, again, other = (step(images(), generator=seeded(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@every_step
def test_every_sample_has_its_own_draw(step):
    same = images(1).expand(32, -1, -1, -1)
    assert len(torch.unique(step(same, generator=seeded()), dim=0)) > 1


@every_step
def test_channels_move_together(step):
    grey = images()[:, :1].expand(-1, 3, -1, -1)
    out = step(grey, generator=seeded())
    assert torch.equal(out[:, 0], out[:, 1])
    assert torch.equal(out[:, 0], out[:, 2])


@every_step
def test_empty_batches_stay_empty(step):
    assert step(images(0), generator=seeded()).shape == (0, 3, 8, 10)


@every_step
def test_global_random_state_is_not_touched(step):
    before = torch.get_rng_state()
    step(images(), generator=seeded())
    assert torch.equal(torch.get_rng_state(), before)


@given(st.integers(0, 4), st.integers(0, 99))
@settings(max_examples=30, deadline=None)
def test_each_crop_is_a_window_of_the_padded_image(padding, seed):
    batch = images(6)
    padded = torch.nn.functional.pad(batch, [padding] * 4)
    for image, crop in zip(padded, random_crop(batch, padding, seeded(seed)), strict=True):
        windows = [
            image[:, top : top + 8, left : left + 10]
            for top in range(2 * padding + 1)
            for left in range(2 * padding + 1)
        ]
        assert any(torch.equal(window, crop) for window in windows)


def test_all_places_of_a_crop_are_drawn_alike():
    marked = torch.zeros(9000, 1, 5, 5)
    marked[:, :, 2, 2] = 1
    share = random_crop(marked, 1, seeded()).mean(0)[0]
    assert share[1:4, 1:4] == pytest.approx(torch.full((3, 3), 1 / 9), abs=0.02)
    assert float(share.sum()) == pytest.approx(1)


@given(st.integers(0, 12), st.integers(0, 99))
@settings(max_examples=30, deadline=None)
def test_series_move_in_time_and_zeros_come_in(limit, seed):
    series = torch.arange(1, 11).view(1, 1, 10).repeat(5, 2, 1)
    for row in random_shift(series, (limit,), seeded(seed))[:, 0]:
        kept = row[row != 0]
        assert len(kept) >= 10 - limit
        if len(kept):
            assert torch.equal(kept, torch.arange(int(kept[0]), int(kept[0]) + len(kept)))


@pytest.mark.parametrize("p", [0.0, 0.5, 1.0])
def test_flip_mirrors_about_the_asked_share_and_nothing_else(p):
    batch = images(2000)
    out = horizontal_flip(batch, seeded(), p)
    mirrored = (out == batch.flip(-1)).flatten(1).all(1)
    same = (out == batch).flatten(1).all(1)
    assert bool((mirrored ^ same).all())
    assert float(mirrored.double().mean()) == pytest.approx(p, abs=0.04)


@given(st.integers(0, 12), st.integers(0, 99))
@settings(max_examples=30, deadline=None)
def test_cutout_clears_one_rectangle_no_larger_than_its_size(size, seed):
    batch = images(8)
    out = cutout(batch, size, seeded(seed))
    for image, cut in zip(batch, out, strict=True):
        gone = (cut == 0).all(0)
        rows, columns = gone.any(1), gone.any(0)
        assert torch.equal(gone, rows[:, None] & columns[None, :])
        assert int(rows.sum()) <= size
        assert int(columns.sum()) <= size
        assert int(gone.sum()) >= ((size + 1) // 2) ** 2 * (size <= 8)
        assert torch.equal(cut[:, ~gone], image[:, ~gone])


def still(n, **changed):
    settings = {"degrees": torch.zeros(n), "shifts": torch.zeros(n, 2), "scales": torch.ones(n)}
    return settings | changed


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.float64])
def test_warp_by_nothing_changes_nothing(dtype):
    batch = images(dtype=dtype)
    torch.testing.assert_close(warp(batch, **still(16)), batch, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("quarters", [1, 2, 3, -1])
def test_warp_by_quarter_turns_is_exact_and_counter_clockwise(quarters):
    batch = images(4, height=9, width=9)
    out = warp(batch, **still(4, degrees=torch.full((4,), 90.0 * quarters)))
    assert torch.equal(out, batch.rot90(quarters, (-2, -1)))


def test_half_turn_of_an_oblong_image_is_exact():
    batch = images(2)
    assert torch.equal(warp(batch, **still(2, degrees=torch.full((2,), 180.0))), batch.flip(-1, -2))


def test_warp_by_whole_pixels_moves_down_and_right():
    batch = images(3)
    out = warp(batch, **still(3, shifts=torch.tensor([[2.0, 3.0]]).repeat(3, 1)))
    assert torch.equal(out[:, :, 2:, 3:], batch[:, :, :-2, :-3])
    assert not out[:, :, :2].any()
    assert not out[:, :, :, :3].any()


def test_zoom_enlarges_about_the_centre():
    ramp = (torch.arange(9.0) - 4).view(1, 1, 1, 9).expand(1, 1, 9, 9)
    for image in (ramp, ramp.mT):
        torch.testing.assert_close(warp(image, **still(1, scales=torch.tensor([2.0]))), image / 2)
    shrunk = warp(ramp, **still(1, scales=torch.tensor([0.5])))
    torch.testing.assert_close(shrunk[:, :, 2:7, 2:7], 2 * ramp[:, :, 2:7, 2:7])
    assert not shrunk[:, :, :1].any()


def test_turn_is_a_turn_in_pixels_whatever_the_shape_of_the_image():
    tall = torch.zeros(1, 1, 21, 11)
    tall[:, :, 10 - 4, 5] = 1  # four above the centre
    out = warp(tall, **still(1, degrees=torch.tensor([90.0])))
    assert float(out[0, 0, 10, 5 - 4]) == pytest.approx(1, abs=1e-4)  # four to the left of it


def test_affine_stays_within_its_ranges():
    dot = torch.zeros(500, 1, 31, 31)
    dot[:, :, 15, 15] = 1
    place = affine(dot, 0.0, 3.0, (1.0, 1.0), seeded())[:, 0]
    rows = (place.sum(2) * torch.arange(31.0)).sum(1) - 15
    columns = (place.sum(1) * torch.arange(31.0)).sum(1) - 15
    for moved in (rows, columns):
        assert 2.8 < float(moved.max()) <= 3.001
        assert -3.001 <= float(moved.min()) < -2.8
    assert abs(float(torch.corrcoef(torch.stack([rows, columns]))[0, 1])) < 0.15


def test_composed_steps_are_the_steps_in_their_order():
    flip, crop = STEPS["horizontal_flip"], STEPS["random_crop"]
    generator = seeded(5)
    one_by_one = crop(flip(images(), generator=generator), generator=generator)
    assert torch.equal(compose(flip, crop)(images(), generator=seeded(5)), one_by_one)
    assert torch.equal(compose()(images(), generator=seeded()), images())


@pytest.mark.parametrize(
    ("call", "error"),
    [
        (lambda: random_crop(images(), -1, seeded()), UsageError),
        (lambda: random_shift(images(), (1, -1), seeded()), UsageError),
        (lambda: horizontal_flip(images(), seeded(), 1.5), UsageError),
        (lambda: horizontal_flip(images(), seeded(), float("nan")), UsageError),
        (lambda: cutout(images(), -1, seeded()), UsageError),
        (lambda: affine(images(), -1.0, 0.0, (1.0, 1.0), seeded()), UsageError),
        (lambda: affine(images(), 1.0, 0.0, (1.2, 1.0), seeded()), UsageError),
        (lambda: affine(images(), 1.0, 0.0, (0.0, 1.0), seeded()), UsageError),
        (lambda: random_crop(images()[0], 1, seeded()), DataError),
        (lambda: cutout(images()[0], 1, seeded()), DataError),
        (lambda: affine(images()[0], 1.0, 0.0, (1.0, 1.0), seeded()), DataError),
        (lambda: random_shift(torch.arange(5), (1,), seeded()), DataError),
    ],
)
def test_settings_and_batches_that_make_no_sense_are_refused(call, error):
    with pytest.raises(error):
        call()
