"""The SHA-256 of large files, remembered from one start to the next by path, size and times."""

from __future__ import annotations

import hashlib
import json
import os
import time
from contextlib import suppress
from pathlib import Path

from training.common.cache import cache_root
from video_distilled_encoder.errors import CannotWrite
from video_distilled_encoder.files import sha256, write_json

_YOUNG = 2.0
"""Seconds in which a file may be written again without its time telling."""


def remembered_sha256(path: Path) -> str:
    """Return the hexadecimal SHA-256 of a file's content, which is read unless the file is as it was when it last was.

    Raises:
        OSError: it cannot be read.
    """
    begin, place = time.time(), path.resolve()
    state = place.stat()
    known = {"path": os.fspath(place), "state": [state.st_size, state.st_mtime_ns, state.st_ctime_ns, state.st_ino]}
    note = cache_root() / "digests" / f"{hashlib.sha256(os.fsencode(place)).hexdigest()[:32]}.json"
    with suppress(OSError, ValueError, KeyError, TypeError):
        noted = json.loads(note.read_text(encoding="utf-8"))
        if {name: noted[name] for name in known} == known and len(noted["sha256"]) == 64:
            return str(noted["sha256"])
    digest = sha256(place)
    if state.st_mtime < begin - _YOUNG:
        with suppress(CannotWrite):  # then it is read again
            write_json(note, {**known, "sha256": digest})
    return digest
