"""Augmentation of a whole batch, drawn anew for every sample.

Each function takes a batch [n, ...] on any device and a `torch.Generator`, and returns a new batch of the same shape,
dtype and device; the same generator state gives the same batch. Zeros come in at the edges: augment before the mean
is subtracted if they are to be black.
"""

from math import pi
from typing import Protocol

import torch
from torch.nn import functional

from lilliput.core.errors import DataError, UsageError


class Step(Protocol):
    """One augmentation with its settings bound, such as `functools.partial(random_crop, padding=4)`."""

    def __call__(self, images: torch.Tensor, *, generator: torch.Generator) -> torch.Tensor: ...


def compose(*steps: Step) -> Step:
    """The steps in the order given, as one step."""

    def composed(images: torch.Tensor, *, generator: torch.Generator) -> torch.Tensor:
        for step in steps:
            images = step(images, generator=generator)
        return images

    return composed


def random_shift(images: torch.Tensor, limits: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    """Moves each sample by up to `limits` steps either way along its last axes, one limit per axis.

    `(4,)` moves a series [n, channels, frames] in time, `(2, 2)` an image down or up and sideways.
    """
    if any(limit < 0 for limit in limits):
        raise UsageError(f"random_shift by {limits}", "a limit is negative", "use 0 or more")
    _check_rank("random_shift", images, 1 + len(limits))
    for axis, limit in enumerate(limits, start=-len(limits)):
        size = images.shape[axis]
        offsets = torch.randint(-limit, limit + 1, (len(images), 1), generator=generator, device=generator.device)
        source = torch.arange(size, device=images.device) - offsets.to(images.device)
        source = source.view(-1, *[size if i == axis else 1 for i in range(1 - images.ndim, 0)])
        moved = images.gather(axis, source.clamp(0, max(size - 1, 0)).expand_as(images))
        images = moved.masked_fill((source < 0) | (source >= size), 0)
    return images


def random_crop(images: torch.Tensor, padding: int, generator: torch.Generator) -> torch.Tensor:
    """Pads by `padding` zeros on each side and cuts the original size out at a random place: a shift in both axes."""
    _check_rank("random_crop", images, 4)
    return random_shift(images, (padding, padding), generator)


def horizontal_flip(images: torch.Tensor, generator: torch.Generator, p: float = 0.5) -> torch.Tensor:
    """Mirrors the last axis of each sample with probability `p`."""
    if not 0 <= p <= 1:
        raise UsageError(f"horizontal_flip with p={p}", "not a probability", "use 0..1")
    _check_rank("horizontal_flip", images, 2)
    chosen = torch.rand(len(images), generator=generator, device=generator.device) < p
    return torch.where(chosen.to(images.device).view(-1, *[1] * (images.ndim - 1)), images.flip(-1), images)


def cutout(images: torch.Tensor, size: int, generator: torch.Generator) -> torch.Tensor:
    """Sets one square of `size` x `size` pixels to zero in each image; its centre is any pixel, so edges may cut it.

    Source: DeVries & Taylor (2017), "Improved Regularization of Convolutional Neural Networks with Cutout".
    """
    if size < 0:
        raise UsageError(f"cutout with size={size}", "it is negative", "use 0 or more")
    _check_rank("cutout", images, 4)
    inside = []
    for length in images.shape[-2:]:
        centres = torch.randint(length, (len(images), 1), generator=generator, device=generator.device)
        from_start = torch.arange(length, device=images.device) - (centres.to(images.device) - size // 2)
        inside.append((from_start >= 0) & (from_start < size))
    return images.masked_fill((inside[0][:, :, None] & inside[1][:, None, :])[:, None], 0)


def affine(
    images: torch.Tensor, degrees: float, shift: float, scale: tuple[float, float], generator: torch.Generator
) -> torch.Tensor:
    """Turns by up to `degrees` either way, zooms by a factor in `scale`, moves by up to `shift` pixels in each axis."""
    if degrees < 0 or shift < 0 or not 0 < scale[0] <= scale[1]:
        asked = f"affine with degrees={degrees}, shift={shift}, scale={scale}"
        raise UsageError(asked, "a range is empty", "use degrees and shift of 0 or more, and 0 < scale[0] <= scale[1]")
    draws = torch.rand(4, len(images), generator=generator, device=generator.device).to(images.device)
    angles, shifts = (2 * draws[0] - 1) * degrees, (2 * draws[1:3].T - 1) * shift
    return warp(images, angles, shifts, scale[0] + draws[3] * (scale[1] - scale[0]))


def warp(images: torch.Tensor, degrees: torch.Tensor, shifts: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """Turns each image [c, h, w] about its centre (counter-clockwise), zooms it, then moves it by (down, right) pixels.

    `degrees` and `scales` are [n], `shifts` [n, 2]. Bilinear; integer images are rounded.
    """
    _check_rank("warp", images, 4)
    height, width = images.shape[-2:]
    work = images.dtype if images.dtype in (torch.float32, torch.float64) else torch.float32
    y = torch.arange(height, device=images.device, dtype=work) - (height - 1) / 2
    x = torch.arange(width, device=images.device, dtype=work) - (width - 1) / 2
    down = y.view(1, -1, 1) - shifts[:, 0].to(work).view(-1, 1, 1)
    right = x.view(1, 1, -1) - shifts[:, 1].to(work).view(-1, 1, 1)
    turn = degrees.to(work).view(-1, 1, 1) * (pi / 180)
    zoom = scales.to(work).view(-1, 1, 1)
    source_y = (torch.cos(turn) * down + torch.sin(turn) * right) / zoom
    source_x = (torch.cos(turn) * right - torch.sin(turn) * down) / zoom
    grid = torch.stack([2 * source_x / width, 2 * source_y / height], dim=-1)
    moved = functional.grid_sample(images.to(work), grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    return (moved if images.is_floating_point() else moved.round()).to(images.dtype)


def _check_rank(asked: str, images: torch.Tensor, rank: int) -> None:
    if images.ndim < rank or (rank == 4 and images.ndim != 4):
        form = "[n, channels, height, width]" if rank == 4 else f"of at least {rank} axes, samples first"
        raise DataError(asked, f"a batch of shape {list(images.shape)}", f"give a batch {form}")
