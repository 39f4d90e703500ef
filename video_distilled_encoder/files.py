"""Finding files, and writing them so that nothing half-written ever stands under its final name."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import stat
import tempfile
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from safetensors import SafetensorError, safe_open

from video_distilled_encoder.errors import CannotWrite, InputError, warn

if TYPE_CHECKING:
    from torch import Tensor  # what only reads video needs no torch

IMAGE_SUFFIXES = {
    *(".jpg", ".jpeg", ".jfif", ".png", ".webp", ".avif", ".jp2", ".heic", ".heif"),
    *(".bmp", ".tif", ".tiff", ".gif", ".ppm", ".pgm"),
}
"""Of the files in a folder that are taken for pictures."""
VIDEO_SUFFIXES = {
    *(".mp4", ".mov", ".m4v", ".3gp", ".3g2", ".mkv", ".webm", ".ogv", ".avi", ".mpg", ".mpeg", ".vob"),
    *(".ts", ".mts", ".m2ts", ".wmv", ".asf", ".flv", ".gif"),
}
"""Of the files in a folder that are taken for videos."""

_BLOCK = 1 << 20
_UMASK = os.umask(0)
os.umask(_UMASK)


def _never(path: Path) -> bool:
    return False


def find_files(path: Path, suffixes: Collection[str], known: Callable[[Path], bool] = _never) -> list[Path]:
    """Return a file, or those of a folder, and of the folders in it, whose names end in one of some suffixes; sorted.

    Files that are known by what they hold are found too, and so are folders, which are then not gone into.

    Links are followed, and a folder that several lead to is gone through once. What is left out is counted in a
    warning: other files, hidden ones and hidden folders, links that lead nowhere, pictures that `vde-encode` wrote. A
    folder that cannot be listed stands in the list itself: whoever opens it learns why.

    Raises:
        InputError: the path does not exist.
    """
    if not os.path.lexists(path):
        raise InputError(f"{path} does not exist")
    if not os.path.isdir(path) or known(path):
        return [path]
    found: list[Path] = []
    left_out: Counter[str] = Counter()
    others: set[str] = set()
    for entry in _walk(path, found, left_out, known):
        suffix = entry.suffix.lower()
        if entry.name.startswith("."):
            left_out["hidden"] += 1
        elif entry.name.lower().endswith((".pca.png", ".pca.mp4")):
            left_out["written by vde-encode"] += 1
        elif _is_file(entry) and (suffix in suffixes or known(entry)):
            found.append(entry)
        elif os.path.islink(entry) and not os.path.exists(entry):
            left_out["links that lead nowhere"] += 1
        else:
            others.add(suffix or "without suffix")
            left_out["of other kinds"] += 1
    if left_out.total():
        kinds = f" ({', '.join(sorted(others))})" if others else ""
        counts = ", ".join(f"{count} {why}{kinds * (why == 'of other kinds')}" for why, count in (+left_out).items())
        warn(f"of what is in {path}, {len(found)} files are used and left out are: {counts}")
    return sorted(found)


def _walk(root: Path, found: list[Path], left_out: Counter[str], known: Callable[[Path], bool]) -> Iterator[Path]:
    """Yield what is no folder below a folder; what links lead to comes last, so that its own place goes before them.

    Folders that are known, and those that cannot be listed, are added to what is found.
    """
    seen: set[tuple[int, int]] = set()
    starts = [root]
    while starts:
        links: list[Path] = []
        for start in starts:
            for name, folders, files in os.walk(start, onerror=lambda error: found.append(Path(error.filename))):
                folder = Path(name)
                status = folder.stat()
                if (place := (status.st_dev, status.st_ino)) in seen:
                    folders.clear()
                    continue
                seen.add(place)
                if folder != root and known(folder):
                    found.append(folder)
                    folders.clear()
                    continue
                left_out["hidden"] += sum(inner.startswith(".") for inner in folders)
                folders[:] = [inner for inner in folders if not inner.startswith(".")]
                links += [folder / inner for inner in folders if (folder / inner).is_symlink()]
                yield from (folder / file for file in files)
        starts = sorted(links)


def _is_file(path: Path) -> bool:
    try:
        return stat.S_ISREG(path.stat().st_mode)
    except PermissionError:  # whoever opens it learns why
        return True
    except OSError:
        return False


def natural_order(paths: Iterable[Path]) -> list[Path]:
    """Sort paths by name, numbers by their value: frame2.jpg comes before frame10.jpg."""
    return sorted(paths, key=lambda path: ([counted(part) for part in path.parts], path))


def counted(name: str) -> list[str | int]:
    """Split a name into text and numbers, in turns: what orders names as people count."""
    return [int(part) if place % 2 else part for place, part in enumerate(re.split(r"([0-9]+)", name))]


def find_frames(folder: Path, suffixes: Collection[str] = IMAGE_SUFFIXES) -> list[Path]:
    """Return the pictures in a folder in their order, none if it does not exist; hidden files are none.

    Args:
        folder: that they lie in.
        suffixes: theirs, in lower case.
    """
    if not folder.is_dir():
        return []
    return natural_order(
        path for path in folder.iterdir() if path.suffix.lower() in suffixes and not path.name.startswith(".")
    )


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn errors of the system while a file is read into sentences.

    Raises:
        InputError: the file does not exist, may not be read, or its disk fails.
    """
    try:
        yield
    except FileNotFoundError as error:
        raise InputError(f"{path} does not exist") from error
    except OSError as error:
        raise InputError(f"cannot read {path} ({error.strerror or error}); see to its rights and its disk") from error


def sha256(path: Path, *more: Path) -> str:
    """Return the hexadecimal SHA-256 of a file's content, of several files that of their own ones, a line each."""
    if more:
        return sha256_of_all(map(sha256, (path, *more)))
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def sha256_of_all(digests: Iterable[str]) -> str:
    """Return what `sha256` does of several files, from their own."""
    return hashlib.sha256("\n".join(digests).encode()).hexdigest()


class HashedFile:
    """A file opened for reading whose SHA-256 is taken of what is read, so that it need not be read once more for it.

    What was left out is read for it: on the way, if it is little, else at the end. A leap over more than all before, as
    to an index at the end, is not followed.
    """

    def __init__(self, path: Path) -> None:
        self.name = f"file:{path}"
        self._file = path.open("rb")
        self._digest, self._taken = hashlib.sha256(), 0
        self.seek, self.tell, self.close = self._file.seek, self._file.tell, self._file.close
        self.readable, self.seekable = self._file.readable, self._file.seekable

    def read(self, size: int = -1) -> bytes:
        """Return the next bytes, so many or fewer at the end."""
        begin = self._file.tell()
        data = self._file.read(size)
        left_out = begin - self._taken
        if 0 < left_out <= max(self._taken, _BLOCK):
            self._take(begin)
            left_out = 0
        if -len(data) < left_out <= 0:
            self._digest.update(memoryview(data)[-left_out:])
            self._taken = begin + len(data)
        return data

    def readline(self, size: int = -1) -> bytes:
        """Return the rest of a line, as some pictures begin with."""
        begin = self._file.tell()
        length = len(self._file.readline(size))
        self.seek(begin)
        return self.read(length)

    def __repr__(self) -> str:
        return repr(self.name)

    def sha256(self) -> str:
        """Return the hexadecimal SHA-256 of all that the file holds."""
        self._take(os.fstat(self._file.fileno()).st_size)
        return self._digest.hexdigest()

    def _take(self, end: int) -> None:
        file = self._file.fileno()
        while self._taken < end and (block := os.pread(file, min(_BLOCK, end - self._taken), self._taken)):
            self._digest.update(block)
            self._taken += len(block)


Opener = Callable[[Path], AbstractContextManager[HashedFile]]
"""Opens a file that is read whole, for whoever wants its digest afterwards."""


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
def atomic_path(path: Path, place: Callable[[], Path] | None = None) -> Iterator[Path]:
    """Yield a temporary path beside `path` with the same suffix; it takes the final name only if the block succeeds.

    Args:
        path: the final name.
        place: returns it when the block has succeeded, if it is not known before.

    Raises:
        InputError: the place cannot be written, or the disk is full.
    """
    temporary = path.with_name(f".{os.getpid()}-{uuid4().hex[:8]}.{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        _give_ordinary_rights(temporary)
        os.replace(temporary, place() if place else path)
    except (OSError, SafetensorError) as error:
        raise _cannot_write(path, error) from error
    finally:
        with suppress(OSError):  # it is not there, or its folder is not
            temporary.unlink()


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
            try:
                os.replace(staging, path)
                return
            except OSError:
                if not path.exists():  # nobody else has made it meanwhile
                    raise
        for file in sorted(staging.iterdir()):
            os.replace(file, path / file.name)
    except (OSError, SafetensorError) as error:
        raise _cannot_write(path, error) from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _cannot_write(path: Path, error: Exception) -> CannotWrite:
    reason = getattr(error, "strerror", None) or error
    return CannotWrite(f"cannot write {path}: {reason}; make room there, or choose another place")


def _give_ordinary_rights(path: Path) -> None:
    """Undo the owner-only rights of temporary files, as far as the user's umask allows."""
    path.chmod((0o777 if path.is_dir() else 0o666) & ~_UMASK)
