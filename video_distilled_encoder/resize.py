"""Antialiased resizing and cropping as two matrix products, one along each side.

Each row of such a matrix holds the few weights of one pixel. Where torch has a fast product with sparse matrices (that
of MKL, on x86 processors) they are sparse; elsewhere, and in exports, the products are taken in bands that leave out
most of the zeros. Equal to `torch.nn.functional.interpolate(antialias=True)`, and lanczos to PIL's, up to float32
rounding, and several times faster on frames of a camera, since only what is kept is computed; and no runtime of an
export needs a Resize.
"""

from __future__ import annotations

import warnings
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
        interpolation: bicubic, bilinear or lanczos.
        channels_last: the layout of `images`; the result's is always the same.

    Returns:
        (n, 3, *crop) float32, in the units of `images`; bicubic and lanczos may overshoot them.
    """
    height, width = images.shape[1:3] if channels_last else images.shape[2:]
    if images.device.type == "cpu" and torch.backends.mkl.is_available():
        down, across = (
            sparse(have, whole, keep, interpolation)
            for have, whole, keep in zip((height, width), resized, crop, strict=True)
        )
        pixels = images if channels_last else images.permute(0, 2, 3, 1)
        return torch.stack([apply_sparse(image, down, across) for image in pixels])
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


def apply_sparse(image: Tensor, rows: Band, columns: Band) -> Tensor:
    """Return an (H, W, 3) image as (3, h, w) float32."""
    kept = image[rows.start : rows.stop, columns.start : columns.stop]
    kept = kept.to(torch.float32, memory_format=torch.contiguous_format)
    lower = (rows.weights @ kept.flatten(1)).unflatten(1, kept.shape[1:])
    smaller = columns.weights @ lower.transpose(0, 1).flatten(1)
    return smaller.unflatten(1, (-1, 3)).permute(2, 1, 0)


@lru_cache(maxsize=64)
@torch.inference_mode(False)  # what is kept must serve training too
def sparse(source: int, target: int, keep: int, interpolation: str) -> Band:
    """Return the weights of the `keep` middle ones of `target` pixels as one band, its weights in compressed rows."""
    band = _band(_kept_rows(source, target, keep, interpolation))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta")
        return band._replace(weights=band.weights.to_sparse_csr())


@lru_cache(maxsize=64)
@torch.inference_mode(False)  # what is kept must serve training too
def bands(source: int, target: int, keep: int, interpolation: str, device: torch.device) -> Bands:
    """Return the weights of the `keep` middle ones of `target` pixels, made of `source` pixels."""
    blocks = _kept_rows(source, target, keep, interpolation).to(device).split(_BAND)
    return tuple(_band(block) for block in blocks)


def _band(block: Tensor) -> Band:
    """Leave out the source pixels before and after those that neighbouring target pixels are made of."""
    used = block.ne(0).any(0).nonzero()
    start, stop = int(used[0]), int(used[-1]) + 1
    return Band(start, stop, block[:, start:stop].float())


def _kept_rows(source: int, target: int, keep: int, interpolation: str) -> Tensor:
    """Return the middle rows of the matrix below, (keep, source)."""
    first = round((target - keep) / 2)
    return _matrix(source, target, interpolation)[first : first + keep]


def _matrix(source: int, target: int, interpolation: str) -> Tensor:
    """Return (target, source) weights in float64: torch's filter's answer to one bright pixel after the other."""
    if source == target:
        return torch.eye(source, dtype=torch.float64, device="cpu")
    if interpolation == "lanczos":
        return _lanczos(source, target)
    pixels = torch.arange(source, device="cpu")
    answers = []
    for bright in pixels.split(256):  # an identity matrix for the width of a large photograph would take gigabytes
        lines = pixels[:, None].eq(bright).double()[None, None]
        answers.append(F.interpolate(lines, (target, len(bright)), mode=interpolation, antialias=True)[0, 0])
    return torch.cat(answers, dim=1)


def _lanczos(source: int, target: int) -> Tensor:
    """Return (target, source) weights of PIL's filter, a sinc under a window of three of its lobes to each side."""
    scale = source / target
    middle = (torch.arange(target, dtype=torch.float64, device="cpu") + 0.5) * scale
    x = (torch.arange(source, device="cpu") + 0.5 - middle[:, None]) / max(scale, 1.0)
    weights = torch.where(x.abs() < 3, torch.sinc(x) * torch.sinc(x / 3), 0.0)
    return weights / weights.sum(1, keepdim=True)
