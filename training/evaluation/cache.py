"""What takes long to make and is kept: features and trained weights, by what they were made of.

An entry is a folder `KEY/` of files. After each new one those used longest ago are deleted until 20 GiB are left.
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

import numpy as np
import torch
from torch import Tensor

from training.common.cache import cache_root
from video_distilled_encoder.files import atomic_directory

CACHE_BYTES = 20 * 2**30
IN_USE = 3600
"""Seconds for which an entry stays after it was used or written to, however full the cache is."""
_ENTRY = re.compile(r"[0-9a-f]{32}|\.[0-9a-f]{32}\.\w+")
"""An entry's name, or that of one whose writing was killed: the folder may hold files of the user's."""


def default_cache() -> Path:
    """Return the folder of cached features."""
    return cache_root() / "features"


def find_entry(
    cache: Path,
    what: Mapping[str, object],
    contents: Iterable[str],
    names: Sequence[str],
    write: Callable[[Path], None],
) -> Path:
    """Return the folder of an entry, which is written first if it is not there.

    Args:
        cache: folder of the entries.
        what: says how the files are made; JSON.
        contents: hashes of what they are made of.
        names: of the files.
        write: writes them into a folder.

    Raises:
        InputError: the cache cannot be written.
    """
    digest = hashlib.sha256(json.dumps(what, sort_keys=True).encode())
    for content in contents:
        digest.update(content.encode())
    entry = cache / digest.hexdigest()[:32]
    if not all((entry / name).is_file() for name in names):
        with atomic_directory(entry) as staging:
            write(staging)
        _make_room(cache)
    with suppress(OSError):  # a cache that may only be read is still a cache
        os.utime(entry)
    return entry


def cached(
    cache: Path,
    what: Mapping[str, object],
    contents: Iterable[str],
    names: Sequence[str],
    write: Callable[[Path], None],
) -> list[Tensor]:
    """Return arrays from the cache, mapped from disk; they are written into it first if they are not there.

    Args:
        cache: folder of the entries.
        what: says how the arrays are made; JSON.
        contents: hashes of what they are made of.
        names: of the arrays.
        write: writes each as NAME.npy into a folder.

    Raises:
        InputError: the cache cannot be written.
    """
    files = [f"{name}.npy" for name in names]
    entry = find_entry(cache, what, contents, files, write)
    # Mapped copy-on-write, since torch has no read-only tensors.
    return [torch.from_numpy(np.load(entry / file, mmap_mode="c")) for file in files]


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
