"""Features of many images, extracted once: a cache on disk, by the content of the images and of the model.

A cache entry is a folder `KEY/` with `cls.npy` (n, C) and `grid.npy` (n, h, w, C), both float16, which are mapped into
memory and not read as a whole. After each new entry the ones used longest ago are deleted until 20 GiB are left.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.lib.format import open_memmap
from torch import Tensor
from tqdm import tqdm

from training.common.cache import cache_root
from training.models.model import Model
from video_distilled_encoder.errors import InputError
from video_distilled_encoder.files import atomic_directory, sha256
from video_distilled_encoder.preprocessing import open_image

BATCH = 8
CACHE_BYTES = 20 * 2**30
IN_USE = 3600
"""Seconds for which an entry stays after it was used or written to, however full the cache is."""
_ENTRY = re.compile(r"[0-9a-f]{32}|\.[0-9a-f]{32}\.\w+")
"""An entry's name, or that of one whose writing was killed: the folder may hold files of the user's."""

Picture = Path | np.ndarray
"""An image file, or (H, W, 3) uint8 RGB pixels."""


class Features(NamedTuple):
    """Features of n images of one size, mapped from disk."""

    cls: Tensor
    """(n, C) float16."""
    grid: Tensor
    """(n, h, w, C) float16."""


def default_cache() -> Path:
    """Return the folder of cached features."""
    return cache_root() / "features"


def extract(
    model: Model,
    images: Sequence[Picture],
    size: tuple[int, int],
    *,
    cache: Path,
    layers: int = 1,
    crop_mode: str = "squash",
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
        desc: what the progress bar says.

    Raises:
        InputError: there are no images, one cannot be read, or the cache cannot be written.
    """
    if not images:
        raise InputError("there are no images to encode")
    what = {"model": model.description, "size": size, "layers": layers, "crop_mode": crop_mode}

    def write(folder: Path) -> None:
        _write(folder, model, images, size, layers, crop_mode, desc)

    return Features(*cached(cache, what, map(_content, images), Features._fields, write))


def cached(
    cache: Path,
    what: Mapping[str, object],
    contents: Iterable[str],
    names: Sequence[str],
    write: Callable[[Path], None],
) -> list[Tensor]:
    """Return arrays from the cache, or write them into it first.

    Args:
        cache: folder of the entries.
        what: says how the arrays are made; JSON.
        contents: hashes of what they are made of.
        names: of the arrays.
        write: writes each as NAME.npy into a folder.

    Returns:
        The arrays, mapped from disk.

    Raises:
        InputError: the cache cannot be written.
    """
    digest = hashlib.sha256(json.dumps(what, sort_keys=True).encode())
    for content in contents:
        digest.update(content.encode())
    entry = cache / digest.hexdigest()[:32]
    files = [entry / f"{name}.npy" for name in names]
    if not all(file.is_file() for file in files):
        with atomic_directory(entry) as staging:
            write(staging)
        _make_room(cache)
    with suppress(OSError):  # a cache that may only be read is still a cache
        os.utime(entry)
    # Mapped copy-on-write, since torch has no read-only tensors.
    return [torch.from_numpy(np.load(file, mmap_mode="c")) for file in files]


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
        arrays = {"cls": found.cls, "grid": found.grid.movedim(1, -1)}
        for name, tensor in arrays.items():
            array = tensor.half().cpu().numpy()
            if name not in files:
                shape = (len(images), *array.shape[1:])
                files[name] = open_memmap(folder / f"{name}.npy", mode="w+", dtype=np.float16, shape=shape)
            files[name][start : start + len(array)] = array


def _make_room(cache: Path) -> None:
    """Delete the entries used longest ago until the cache holds `CACHE_BYTES`, except those in use."""
    entries = []
    for folder in (path for path in cache.iterdir() if path.is_dir() and _ENTRY.fullmatch(path.name)):
        with suppress(FileNotFoundError):  # another process made room first
            files = [file.stat() for file in folder.iterdir()]
            used = max(stat.st_mtime for stat in (folder.stat(), *files))
            entries.append((used, sum(stat.st_size for stat in files), folder))
    excess = sum(size for _, size, _ in entries) - CACHE_BYTES
    for used, size, folder in sorted(entries):
        if excess <= 0 or time.time() - used < IN_USE:
            return
        shutil.rmtree(folder, ignore_errors=True)
        excess -= size


def _content(image: Picture) -> str:
    if isinstance(image, Path):
        return sha256(image)
    return hashlib.sha256(repr(image.shape).encode() + np.ascontiguousarray(image).tobytes()).hexdigest()
