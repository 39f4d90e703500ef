"""Whether data are those that a result was measured on: by their content, since names and times do not tell."""

from __future__ import annotations

import functools
import hashlib
import os
from collections.abc import Collection
from pathlib import Path

from video_distilled_encoder.files import sha256


def fingerprint(data: Path, beside: Collection[Path] = ()) -> str:
    """Return a hash of the names and the content of all files in a folder, or of one file.

    Hidden files are left out; links are followed.

    Args:
        data: the folder or file.
        beside: files and folders that may lie in it and are no part of it, such as a result.
    """
    if data.is_file():
        return _content(data)[:32]
    left_out = {path.resolve() for path in beside}
    digest, seen = hashlib.sha256(), set()
    for folder, folders, files in os.walk(data, followlinks=True):
        here = Path(folder)
        seen.add(here.resolve())
        folders[:] = sorted(
            name for name in folders if not name.startswith(".") and (here / name).resolve() not in left_out | seen
        )
        for file in (here / name for name in sorted(files) if not name.startswith(".")):
            if file.is_file() and file.resolve() not in left_out:
                digest.update(
                    f"{file.relative_to(data).as_posix()}\0{_content(file)}\0".encode("utf-8", "surrogateescape")
                )
    return digest.hexdigest()[:32]


def _content(file: Path) -> str:
    state = file.stat()
    return _remembered(file.resolve(), state.st_size, state.st_mtime_ns, state.st_ino)


@functools.lru_cache(maxsize=2**18)
def _remembered(file: Path, size: int, time: int, number: int) -> str:
    """Return the SHA-256 of a file, read once in a process as long as it seems the same."""
    return sha256(file)
