"""What sources are there, as a table, before anything is decoded."""

from __future__ import annotations

import json
import os
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import astuple, dataclass, field
from pathlib import Path
from typing import Any

from training.common.cache import cache_root
from training.common.digests import YOUNG, stamp
from video_distilled_encoder.errors import CannotWrite, InputError
from video_distilled_encoder.files import atomic_path
from video_distilled_encoder.sources import Each
from video_distilled_encoder.sources.source import Found, Source
from video_distilled_encoder.sources.video_files import VideoFile
from video_distilled_encoder.video import VideoInfo

_NOTED = 100_000
"""Files whose headers are remembered."""
_HEAD = ("source", "recordings", "episodes", "hours", "frames/s", "size")


@dataclass
class _Group:
    """The recordings that clips are balanced by together."""

    episodes: list[int] = field(default_factory=list)
    infos: list[VideoInfo] = field(default_factory=list)

    @property
    def hours(self) -> float:
        return sum(info.frames / info.fps for info in self.infos if info.fps) / 3600

    def row(self, name: str) -> tuple[str, ...]:
        """Return what the table says of it."""
        episodes = f"{min(self.episodes)} to {max(self.episodes)}" if self.episodes else "-"
        rates = _few(f"{rate:g}" for rate in sorted({round(info.fps, 2) for info in self.infos}))
        sizes = _few(f"{width}x{height}" for width, height in sorted({(i.width, i.height) for i in self.infos}))
        return name, str(len(self.infos)), episodes, f"{self.hours:.2f}", rates, sizes


def describe(found: Found, each: Each = map) -> str:
    """Return the groups of sources with their episodes, hours, rates and sizes, and what is left out and why.

    Lengths are those that tables and headers tell. Sources whose header cannot be read are named.

    Args:
        found: the sources.
        each: `map`, or what does the same in several processes.
    """
    groups: dict[str, _Group] = defaultdict(_Group)
    damaged: list[str] = []
    sources = list(dict.fromkeys(found.sources))
    for source, info in zip(sources, _infos(sources, each), strict=True):
        if isinstance(info, InputError):
            damaged.append(str(info))
            continue
        group = groups[source.group]
        group.infos.append(info)
        if source.episode is not None:
            group.episodes.append(source.episode)
    rows = [_HEAD, *(group.row(name) for name, group in groups.items())]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    count = sum(len(group.infos) for group in groups.values())
    hours = sum(group.hours for group in groups.values())
    lines.append(f"{count} recordings in {len(groups)} groups, {hours:.2f} hours")
    lines += [f"left out: {line}" for line in found.left_out]
    lines += [f"cannot be read: {line}" for line in damaged]
    return "\n".join(lines)


def _infos(sources: list[Source], each: Each) -> Iterator[VideoInfo | InputError]:
    """Yield what headers tell; video files that are as they were when they were last listed are not opened for it."""
    note, begin = cache_root() / "headers.json", time.time()
    noted: dict[str, Any] = {}
    with suppress(OSError, ValueError):
        noted = dict(json.loads(note.read_text(encoding="utf-8")))
    states: dict[Source, list[int]] = {
        source: _state(source.path) for source in sources if isinstance(source, VideoFile)
    }
    known: dict[Source, VideoInfo] = {}
    for video, state in states.items():
        with suppress(LookupError, TypeError):
            before, *facts = noted[os.path.abspath(video.path)]
            if before == state:
                known[video] = VideoInfo(*facts)
    opened = iter(each(_info, [source for source in sources if source not in known]))
    for source in sources:
        info = known.get(source) or next(opened)
        yield info
        state = states.get(source, [])
        if state and state[1] < (begin - YOUNG) * 1e9 and isinstance(info, VideoInfo):
            place = os.path.abspath(source.path)
            noted.pop(place, None)  # the oldest stand first
            noted[place] = [state, *astuple(info)]
    with suppress(CannotWrite), atomic_path(note) as temporary:  # without it they are opened again
        temporary.write_text(json.dumps(dict(list(noted.items())[-_NOTED:])), encoding="utf-8")


def _state(path: Path) -> list[int]:
    """Return what changes with a file, nothing of one that is not there."""
    with suppress(OSError):
        return stamp(path.stat())
    return []


def _info(source: Source) -> VideoInfo | InputError:
    try:
        return source.info()
    except InputError as error:
        return error


def _few(words: Iterable[str]) -> str:
    several = list(words)
    return ", ".join(several) if len(several) <= 3 else f"{several[0]} to {several[-1]}"
