"""The SHA-256 of large files, remembered from one start to the next by path, size and times."""

from __future__ import annotations

import hashlib
import json
import os
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from training.common.cache import cache_root
from video_distilled_encoder.errors import CannotWrite
from video_distilled_encoder.files import sha256, write_json

_YOUNG = 2.0
"""Seconds in which a file may be written again without its time telling."""


def remembered_sha256(path: Path, *more: Path) -> str:
    """Return the hexadecimal SHA-256 of a file's content (`files.sha256`), or of several files as one.

    They are read unless they are as they were when they last were.

    Raises:
        OSError: a file cannot be read.
    """
    begin = time.time()
    places = [place.resolve() for place in (path, *more)]
    states = [place.stat() for place in places]
    known: dict[str, Any] = {"path": os.fspath(places[0]), "state": _stamp(states[0])}
    name = hashlib.sha256(os.fsencode(places[0]))
    if more:
        known["files"] = len(places)
        known["state"] = [hashlib.sha256(repr([_stamp(state) for state in states]).encode()).hexdigest()]
        name = hashlib.sha256(b"\0".join(map(os.fsencode, places)))
    note = cache_root() / "digests" / f"{name.hexdigest()[:32]}.json"
    with suppress(OSError, ValueError, KeyError, TypeError):
        noted = json.loads(note.read_text(encoding="utf-8"))
        if {fact: noted[fact] for fact in known} == known and len(noted["sha256"]) == 64:
            return str(noted["sha256"])
    digest = sha256(*places)
    if max(state.st_mtime for state in states) < begin - _YOUNG:
        with suppress(CannotWrite):  # then it is read again
            write_json(note, {**known, "sha256": digest})
    return digest


def _stamp(state: os.stat_result) -> list[int]:
    return [state.st_size, state.st_mtime_ns, state.st_ctime_ns, state.st_ino]
