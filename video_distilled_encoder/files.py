"""Writing files so that nothing half-written ever stands under its final name."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from video_distilled_encoder.errors import InputError

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".ppm", ".pgm"}
"""Of the files in a folder that are taken for pictures."""

_UMASK = os.umask(0)
os.umask(_UMASK)


def sha256(path: Path) -> str:
    """Return the hexadecimal SHA-256 of a file's content."""
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a .safetensors file, in memory of their own.

    The library's would be a map of the file, which change when it is written to and end the process when it is cut.

    Raises:
        SafetensorError: the file is damaged.
        OSError: it cannot be read.
    """
    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 (no mapping)


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path` with the same suffix; it takes the final name only if the block succeeds.

    Raises:
        InputError: the place cannot be written, or the disk is full.
    """
    temporary = path.with_name(f".{os.getpid()}.{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        _give_ordinary_rights(temporary)
        os.replace(temporary, path)
    except (OSError, SafetensorError) as error:
        raise _cannot_write(path, error) from error
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file, whole or not at all.

    Raises:
        InputError: the place cannot be written, or the disk is full.
    """
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


@contextmanager
def atomic_directory(path: Path) -> Iterator[Path]:
    """Yield an empty staging directory whose files move to `path` only if the block succeeds.

    A directory that does not exist yet appears whole, by one rename; into one that exists the files are moved one by
    one, in alphabetical order, each replaced whole.

    Raises:
        InputError: the place cannot be written, or the disk is full.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Inside a directory that exists, for it may be a disk of its own.
        staging = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path if path.is_dir() else path.parent))
    except OSError as error:
        raise _cannot_write(path, error) from error
    try:
        yield staging
        for entry in (staging, *staging.iterdir()):
            _give_ordinary_rights(entry)
        if not path.exists():
            os.replace(staging, path)
            return
        for file in sorted(staging.iterdir()):
            os.replace(file, path / file.name)
    except (OSError, SafetensorError) as error:
        raise _cannot_write(path, error) from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _cannot_write(path: Path, error: Exception) -> InputError:
    reason = getattr(error, "strerror", None) or error
    return InputError(f"cannot write {path}: {reason}; make room there, or choose another place")


def _give_ordinary_rights(path: Path) -> None:
    """Undo the owner-only rights of temporary files, as far as the user's umask allows."""
    path.chmod((0o777 if path.is_dir() else 0o666) & ~_UMASK)
