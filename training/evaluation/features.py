"""Features of many images, extracted once and kept in the cache, by the content of the images and of the model.

An entry holds `cls.npy` (n, C) and `grid.npy` (n, h, w, C), which are mapped into memory and not read as a whole. They
are float16, or float32 where a model, as one without a final norm, has features too large for float16.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.lib.format import open_memmap
from torch import Tensor
from tqdm import tqdm

from training.evaluation.cache import cached
from training.models.model import Model
from training.models.video_encoder import VideoEncoderModel
from video_distilled_encoder.errors import InputError
from video_distilled_encoder.files import sha256
from video_distilled_encoder.image_files import open_image

BATCH = 8

Picture = Path | np.ndarray
"""An image file, or (H, W, 3) uint8 RGB pixels."""


class Features(NamedTuple):
    """Features of n images of one size, mapped from disk."""

    cls: Tensor
    """(n, C) float16, or float32 if they are too large."""
    grid: Tensor
    """(n, h, w, C), likewise."""


def extract(
    model: Model,
    images: Sequence[Picture],
    size: tuple[int, int],
    *,
    cache: Path,
    layers: int = 1,
    crop_mode: str = "squash",
    in_order: bool = False,
    desc: str = "encode",
) -> Features:
    """Return the features of images, from the cache if they are there.

    Args:
        model: what encodes them.
        images: files or pixels.
        size: (height, width) in pixels of the network's input.
        cache: folder of the entries.
        layers: number of last blocks concatenated.
        crop_mode: how an image comes to `size`, see `Model.encode`.
        in_order: the images are the frames of one video, one after another.
        desc: what the progress bar says.

    Raises:
        InputError: there are no images, one cannot be read or has features that are not finite, or the cache cannot be
            written.
    """
    if not images:
        raise InputError("there are no images to encode")
    what = {**model.identity, "size": size, "layers": layers, "crop_mode": crop_mode}
    if isinstance(model, VideoEncoderModel):
        what["in_order"] = in_order
        model.begin(in_order)

    def write(folder: Path) -> None:
        _write(folder, model, images, size, layers, crop_mode, desc)

    found = Features(*cached(cache, what, map(_content, images), Features._fields, write))
    if isinstance(model, VideoEncoderModel):
        model.begin(False)
    return found


def compact(features: Tensor) -> Tensor:
    """Return features as they are kept: on the CPU, in float16 if it holds numbers as large, else in float32.

    Raises:
        InputError: they are not finite.
    """
    largest = features.abs().max()
    if not largest.isfinite():
        raise InputError("the model has features that are not finite numbers; choose another, or mend its weights")
    return features.cpu().half() if largest <= torch.finfo(torch.float16).max else features.cpu()


def _write(
    folder: Path,
    model: Model,
    images: Sequence[Picture],
    size: tuple[int, int],
    layers: int,
    crop_mode: str,
    desc: str,
) -> None:
    files: dict[str, np.ndarray] = {}
    starts = tqdm(range(0, len(images), BATCH), desc=desc, unit="batch", dynamic_ncols=True)
    for start in starts:
        batch = [open_image(i) if isinstance(i, Path) else i for i in images[start : start + BATCH]]
        found = model.encode(batch, size, layers=layers, crop_mode=crop_mode)
        for name, tensor in {"cls": found.cls, "grid": found.grid.movedim(1, -1)}.items():
            array = compact(tensor).numpy()
            if name not in files:
                files[name] = _open(folder / f"{name}.npy", (len(images), *array.shape[1:]), array.dtype)
            elif array.dtype.itemsize > files[name].itemsize:
                files[name] = _widened(folder / f"{name}.npy", files[name], array.dtype)
            files[name][start : start + len(array)] = array


def _open(path: Path, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    return open_memmap(path, mode="w+", dtype=dtype, shape=shape)


def _widened(path: Path, narrow: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Replace the file of an array by one of a wider type, which holds the same so far."""
    wide = _open(path.with_suffix(".wide"), narrow.shape, dtype)
    wide[:] = narrow
    path.with_suffix(".wide").replace(path)
    return wide


def _content(image: Picture) -> str:
    if isinstance(image, Path):
        return sha256(image)
    return hashlib.sha256(repr(image.shape).encode() + np.ascontiguousarray(image).tobytes()).hexdigest()
