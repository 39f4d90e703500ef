"""The SHA-256 of large files, remembered from one start to the next by path, size and times."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from threading import Lock
from typing import Any

from training.common.cache import cache_root
from video_distilled_encoder.errors import CannotWrite
from video_distilled_encoder.files import HashedFile, sha256, sha256_of_all, write_json

YOUNG = 2.0
"""Seconds in which a file may be written again without its time telling."""


class NotRememberedError(LookupError):
    """A file has to be read for its digest."""


class _Note:
    """Where the digest of some files is remembered, and as what they were then."""

    def __init__(self, places: Sequence[Path]) -> None:
        self.places = [place.resolve() for place in places]
        states = [place.stat() for place in self.places]
        self.newest = max(state.st_mtime for state in states)
        self.sizes = [state.st_size for state in states]
        first, stamps = self.places[0], [stamp(state) for state in states]
        self.known: dict[str, Any] = {"path": os.fspath(first), "state": stamps[0]}
        name = os.fsencode(first)
        if len(places) > 1:
            self.known["files"] = hashlib.sha256(repr(stamps).encode()).hexdigest()
            name = b"\0".join(map(os.fsencode, self.places))
        self.path = cache_root() / "digests" / f"{hashlib.sha256(name).hexdigest()[:32]}.json"

    def read(self) -> str | None:
        """Return the digest, if the files are as they were."""
        with suppress(OSError, ValueError, KeyError, TypeError):
            noted = json.loads(self.path.read_text(encoding="utf-8"))
            if {fact: noted[fact] for fact in self.known} == self.known and len(noted["sha256"]) == 64:
                return str(noted["sha256"])
        return None

    def write(self, digest: str, begin: float) -> None:
        """Remember a digest that was taken after `begin` (`time.time`), unless a file was too young for it."""
        if self.newest < begin - YOUNG:
            with suppress(CannotWrite):  # then it is read again
                write_json(self.path, {**self.known, "sha256": digest})


def recalled_sha256(*paths: Path) -> str:
    """Return what `remembered_sha256` does, without reading a file.

    Raises:
        NotRememberedError: one would have to be read.
        OSError: one is missing.
    """
    digest = _Note(paths).read()
    if digest is None:
        raise NotRememberedError(paths[0])
    return digest


def remembered_sha256(*paths: Path) -> str:
    """Return the hexadecimal SHA-256 of a file's content, or of several files as one (`files.sha256`).

    They are read unless they are as they were when they last were, or another process reads them just now.

    Raises:
        OSError: a file cannot be read.
    """
    begin = time.time()
    note = _Note(paths)
    if digest := note.read():
        return digest
    with _alone(note.path):
        if digest := note.read():
            return digest
        digest = sha256(*note.places)
        note.write(digest, begin)
        return digest


class ReadOnce:
    """The digest of files that are read for something else, taken on the way."""

    def __init__(self) -> None:
        self._begin = time.time()
        self._note: _Note | None = None
        self._taken: dict[Path, str] = {}
        self._known: dict[tuple[Path, ...], str] = {}
        self._lock = Lock()

    def sizes(self, *paths: Path) -> str:
        """Return what stands for a digest before one is read: files of the same content have it in common.

        Raises:
            OSError: a file is missing.
        """
        self._note = _Note(paths)
        return " ".join(str(size) for size in self._note.sizes)

    @contextmanager
    def open(self, path: Path) -> Iterator[HashedFile]:
        """Open a file; its digest is taken when it was used to the end."""
        with closing(HashedFile(path)) as file:
            yield file
            self._taken[path] = file.sha256()

    def sha256(self, *paths: Path) -> str:
        """Return what `remembered_sha256` does; of files that were opened here no more is read."""
        with self._lock:
            if paths not in self._known:
                self._known[paths] = self._join(paths) if self._taken.keys() & paths else remembered_sha256(*paths)
            return self._known[paths]

    def _join(self, paths: Sequence[Path]) -> str:
        digests = [self._taken.get(path) or sha256(path) for path in paths]
        digest = digests[0] if len(paths) == 1 else sha256_of_all(digests)
        if self._note:
            self._note.write(digest, self._begin)
        return digest


@contextmanager
def _alone(note: Path) -> Iterator[None]:
    """Wait for another process of this machine that works on the same note, as far as locks work there."""
    lock = note.with_suffix(".lock")
    with ExitStack() as held:
        with suppress(OSError):
            lock.parent.mkdir(parents=True, exist_ok=True)
            fcntl.flock(held.enter_context(lock.open("w")), fcntl.LOCK_EX)
            held.callback(lock.unlink, missing_ok=True)
        yield


def stamp(state: os.stat_result) -> list[int]:
    """Return what changes with a file's content."""
    return [state.st_size, state.st_mtime_ns, state.st_ctime_ns, state.st_ino]
