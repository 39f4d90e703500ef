"""Antialiased resizing and cropping as two matrix products, one along each side.

Each row of such a matrix holds the few weights of one pixel, so the products are taken in bands that leave out the
zeros. Equal to `torch.nn.functional.interpolate(antialias=True)` up to float32 rounding, and several times faster on
frames of a camera, since only what is kept is computed; the same code is what an export holds, where no runtime needs a
Resize.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

_BAND = 16  # target pixels: fewer are more calls, more are more zeros


class Band(NamedTuple):
    """Some neighbouring target pixels: the source pixels they are made of, and with which weights."""

    start: int
    stop: int
    weights: Tensor
    """(target pixels, stop - start)."""


Bands = tuple[Band, ...]


def resize_and_crop(
    images: Tensor, resized: tuple[int, int], crop: tuple[int, int], interpolation: str, channels_last: bool = False
) -> Tensor:
    """Resize, and keep the centre.

    Args:
        images: (n, 3, H, W), or (n, H, W, 3) with `channels_last`; uint8 or floating point.
        resized: (height, width) of the whole image, in pixels.
        crop: (height, width) of the centre to keep.
        interpolation: bicubic or bilinear.
        channels_last: the layout of `images`; the result's is always the same.

    Returns:
        (n, 3, *crop) float32, in the units of `images`; bicubic may overshoot them.
    """
    height, width = images.shape[1:3] if channels_last else images.shape[2:]
    rows, columns = both_bands((height, width), resized, crop, interpolation, images.device)
    return apply_bands(images, rows, columns, channels_last)


def both_bands(
    source: tuple[int, int], resized: tuple[int, int], crop: tuple[int, int], interpolation: str, device: torch.device
) -> tuple[Bands, Bands]:
    """Return the bands of rows and of columns; arguments as of `resize_and_crop`, (height, width) each."""
    rows, columns = (
        bands(have, whole, keep, interpolation, device) for have, whole, keep in zip(source, resized, crop, strict=True)
    )
    return rows, columns


def apply_bands(images: Tensor, rows: Bands, columns: Bands, channels_last: bool) -> Tensor:
    """Return `images` as `resize_and_crop` does, with bands that are already made."""
    left, right = min(band.start for band in columns), max(band.stop for band in columns)
    images = images[:, :, left:right].flatten(2) if channels_last else images[..., left:right]
    # Bands are made float32 one by one, while they are in the processor's cache.
    images = torch.cat([weights @ images[..., a:b, :].float() for a, b, weights in rows], dim=-2)
    if channels_last:
        images = images.unflatten(2, (right - left, 3)).permute(0, 3, 1, 2).contiguous()
    return torch.cat([images[..., a - left : b - left] @ weights.T for a, b, weights in columns], dim=-1)


@lru_cache(maxsize=64)
def bands(source: int, target: int, keep: int, interpolation: str, device: torch.device) -> Bands:
    """Return the weights of the `keep` middle ones of `target` pixels, made of `source` pixels."""
    matrix = _matrix(source, target, interpolation)
    first = round((target - keep) / 2)
    found = []
    for block in matrix[first : first + keep].split(_BAND):
        used = block.ne(0).any(0).nonzero()
        start, stop = int(used[0]), int(used[-1]) + 1
        found.append(Band(start, stop, block[:, start:stop].to(device, torch.float32)))
    return tuple(found)


def _matrix(source: int, target: int, interpolation: str) -> Tensor:
    """Return (target, source) weights in float64: torch's filter's answer to one bright pixel after the other."""
    if source == target:
        return torch.eye(source, dtype=torch.float64)
    pixels = torch.arange(source)
    answers = []
    for bright in pixels.split(256):  # an identity matrix for the width of a large photograph would take gigabytes
        lines = pixels[:, None].eq(bright).double()[None, None]
        answers.append(F.interpolate(lines, (target, len(bright)), mode=interpolation, antialias=True)[0, 0])
    return torch.cat(answers, dim=1)
