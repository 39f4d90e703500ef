"""What frames come from, whatever format it is kept in."""

from __future__ import annotations

import copy
import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from math import inf
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from video_distilled_encoder.errors import InputError
from video_distilled_encoder.files import Opener, sha256
from video_distilled_encoder.video import VideoFrame, VideoInfo

_S = TypeVar("_S", bound="Source")
_T = TypeVar("_T")
Digest = Callable[..., str]
"""Returns the hexadecimal SHA-256 of a file's content, of several one of all (`files.sha256`)."""


@dataclass(frozen=True)
class Source(ABC):
    """One recording of one camera, from front to back: a video file, or of a data set a camera's view of an episode."""

    path: Path
    """The file, or the folder of the data set."""
    name: str
    """For people; relative to what was given."""
    group: str
    """What clips are balanced by: the folder of a video, the camera of a data set."""
    camera: str = field(default="", kw_only=True)
    episode: int | None = field(default=None, kw_only=True)
    opener: Opener | None = field(default=None, init=False, compare=False, repr=False)
    in_one_pass: ClassVar[bool] = False
    """Whether all sources of a path are read at once by `together`, and else one by one."""

    @property
    def read_whole(self) -> bool:
        """Whether `frames` reads the files that `identity` is taken of, and opens them by `opener` if there is one."""
        return False

    def having(self: _S, **changes: Any) -> _S:
        """Return the same source with an `opener`, or another attribute that it is the same with."""
        source = copy.copy(self)
        for name, value in changes.items():
            object.__setattr__(source, name, value)
        return source

    @classmethod
    def together(cls, sources: Sequence[Any], use: Callable[[Any], _T]) -> list[_T]:
        """Return what a function makes of each of several sources, which have one path and one opener."""
        return [use(source) for source in sources]

    def __str__(self) -> str:
        camera = f", {self.camera}" if self.camera else ""
        return f"{self.path}{camera}" + (f", episode {self.episode}" if self.episode is not None else "")

    @abstractmethod
    def identity(self, digest: Digest = sha256) -> str:
        """Return the hexadecimal SHA-256 of the content and of what is taken from it.

        Raises:
            InputError: a file is missing or cannot be read.
        """

    @abstractmethod
    def frames(self, min_interval: float = 0.0) -> Iterator[VideoFrame]:
        """Yield upright frames with the seconds since the first; where something new begins, `new_shot` says so.

        Args:
            min_interval: seconds; of the frames, the nearest to each multiple of it is kept. 0 keeps all.

        Raises:
            InputError: a file is missing, damaged or shorter than it ought to be.
        """

    @abstractmethod
    def info(self) -> VideoInfo:
        """Return size, rate and number of frames without decoding any.

        Raises:
            InputError: a file is missing, or its header is damaged.
        """


@dataclass(frozen=True)
class Unreadable(Source):
    """A file or data set that is damaged beside others that are not: whatever is asked of it says why."""

    error: InputError

    def identity(self, digest: Digest = sha256) -> str:
        """Raise the error."""
        raise self.error

    def frames(self, min_interval: float = 0.0) -> Iterator[VideoFrame]:
        """Raise the error."""
        raise self.error

    def info(self) -> VideoInfo:
        """Raise the error."""
        raise self.error


@dataclass(frozen=True)
class Asked:
    """What a user asks of sources."""

    cameras: str = "*"
    """Glob of the cameras (topics, keys) of data sets."""
    episodes: range | None = None
    """Numbers of the episodes of data sets; all if none are given."""
    fps: float | None = None
    """Frames per second of what has no clock."""
    bgr: bool = False
    """Red and blue are swapped in the arrays of data sets, and in their picture files."""

    def __post_init__(self) -> None:
        if self.fps is not None and not 0 < self.fps < inf:
            raise InputError(f"--source-fps must be positive, got {self.fps}")


@dataclass
class Found:
    """What lies at a path."""

    sources: list[Source]
    left_out: list[str] = field(default_factory=list)
    """What is no source and why, one sentence each."""


def identity_of(content: str, *chosen: object) -> str:
    """Return the SHA-256 of a content's SHA-256 and of what is chosen of it."""
    return hashlib.sha256("\n".join([content, *map(str, chosen)]).encode()).hexdigest()


def in_passes(sources: Iterable[_T]) -> list[list[_T]]:
    """Return the sources, or whatever else is read, in their order, those together that are read in one pass."""
    passes: dict[object, list[_T]] = {}
    for source in sources:
        together = (type(source), source.path) if isinstance(source, Source) and source.in_one_pass else source
        passes.setdefault(together, []).append(source)
    return list(passes.values())


def begins_with(path: Path, magic: bytes) -> bool:
    """Return whether a file begins with some bytes."""
    try:
        with path.open("rb") as file:
            return file.read(len(magic)) == magic
    except OSError:  # a folder, or whoever opens it learns why
        return False
