"""What sources are there, as a table, before anything is decoded."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field

from video_distilled_encoder.errors import InputError
from video_distilled_encoder.sources import Each
from video_distilled_encoder.sources.source import Found, Source
from video_distilled_encoder.video import VideoInfo

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
    for source, info in zip(sources, each(_info, sources), strict=True):
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


def _info(source: Source) -> VideoInfo | InputError:
    try:
        return source.info()
    except InputError as error:
        return error


def _few(words: Iterable[str]) -> str:
    several = list(words)
    return ", ".join(several) if len(several) <= 3 else f"{several[0]} to {several[-1]}"
