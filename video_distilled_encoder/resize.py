"""Antialiased resizing and cropping as two matrix products, one along each side.

Each row of such a matrix holds the few weights of one pixel. Of frames with their colours last, as cameras give them,
the matrices are sparse where torch has a fast product with such (that of MKL, on x86 processors); elsewhere, and in
exports, the products are taken in bands that leave out most of the zeros. Equal to
`torch.nn.functional.interpolate(antialias=True)`, and lanczos to PIL's, up to float32 rounding, and several times
faster on frames of a camera, since only what is kept is computed; and no runtime of an export needs a Resize.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import torch
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
    if channels_last and images.device.type == "cpu" and torch.backends.mkl.is_available():
        down, across = (
            sparse(have, whole, keep, interpolation)
            for have, whole, keep in zip((height, width), resized, crop, strict=True)
        )
        return torch.stack([apply_sparse(image, down, across) for image in images])
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
    rows = torch.arange(first, first + keep, dtype=torch.float64, device="cpu")
    if source == target:
        return (torch.arange(source, device="cpu") == rows[:, None]).double()
    return _filtered(source, target, rows, interpolation)


def weights(source: int, target: int, interpolation: str, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return (target, source) weights of torch's antialiasing filters, and of PIL's lanczos.

    In operations that every runtime knows, for sizes that may be symbolic: runtimes' own Resize differ from torch's,
    OpenVINO's by up to .001 in a feature.
    """
    return _filtered(source, target, torch.arange(target, dtype=dtype, device=device), interpolation)


def _filtered(source: int, target: int, rows: Tensor, interpolation: str) -> Tensor:
    """Return some rows of the matrix above, by their numbers."""
    reach, filter_ = FILTERS[interpolation]
    scale = source / target
    width: Any = torch.sym_max(scale, 1.0)  # of the filter: one source pixel, or one target pixel
    middle = (rows + 0.5) * scale
    x = (torch.arange(source, dtype=rows.dtype, device=rows.device) + 0.5 - middle[:, None]).abs() / width
    found = torch.where(x < reach, filter_(x), torch.zeros_like(x))
    return found / found.sum(1, keepdim=True)


FILTERS: dict[str, tuple[int, Callable[[Tensor], Tensor]]] = {
    "bilinear": (1, lambda x: 1 - x),
    "bicubic": (2, lambda x: torch.where(x < 1, (1.5 * x - 2.5) * x * x + 1, ((-0.5 * x + 2.5) * x - 4) * x + 2)),
    "lanczos": (3, lambda x: torch.sinc(x) * torch.sinc(x / 3)),
}
"""How many pixels each reaches to a side, and what it is at a distance of less."""
