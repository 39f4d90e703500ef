"""Folders of frames, `000000.jpg`, `000001.jpg`, …: one recording, in the order that people count in.

A folder has no clock: how many frames were taken a second has to be told.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from video_distilled_encoder.files import IMAGE_SUFFIXES, VIDEO_SUFFIXES, find_frames, reading, sha256
from video_distilled_encoder.preprocessing import open_image
from video_distilled_encoder.sources.counted import WITHOUT_CLOCK, Counted
from video_distilled_encoder.sources.source import Asked, Digest, Found, identity_of
from video_distilled_encoder.video import VideoInfo

_PICTURES = IMAGE_SUFFIXES - VIDEO_SUFFIXES


@dataclass(frozen=True)
class FrameFolder(Counted):
    """The pictures of a folder."""

    @property
    def read_whole(self) -> bool:
        """Its files are."""
        return True

    def identity(self, digest: Digest = sha256) -> str:
        """Return the SHA-256 of the pictures, in order, and of their rate."""
        with reading(self.path):
            return identity_of(digest(*self._files()), self.fps)

    def pictures(self, keeps: Callable[[int], bool]) -> Iterator[tuple[int, np.ndarray]]:
        """Read the pictures."""
        for number, file in enumerate(self._files()):
            if not keeps(number):
                continue
            with reading(file), self.opener(file) if self.opener else nullcontext() as opened:
                picture = np.asarray(open_image(file, opened))
            yield number, picture

    def info(self) -> VideoInfo:
        """Count the pictures and read the first."""
        files = self._files()
        return VideoInfo(*open_image(files[0]).size, self.fps, len(files))

    def _files(self) -> list[Path]:
        with reading(self.path):
            return find_frames(self.path, _PICTURES)


def recognises(path: Path) -> bool:
    """Return whether a folder holds at least two pictures, all of them numbered, and no video."""
    if not path.is_dir():
        return False
    try:
        files = [file for file in path.iterdir() if not file.name.startswith(".")]
    except OSError:  # whoever opens it learns why
        return False
    pictures = [file for file in files if file.suffix.lower() in _PICTURES]
    return (
        len(pictures) > 1
        and all(file.stem[-1:].isdigit() for file in pictures)
        and not any(file.suffix.lower() in VIDEO_SUFFIXES for file in files)
    )


def find(path: Path, asked: Asked) -> Found:
    """Return the folder as a source, if its rate is told."""
    if asked.fps is None:
        return Found([], [f"{path}: {len(find_frames(path, _PICTURES))} pictures {WITHOUT_CLOCK}"])
    return Found([FrameFolder(path, path.name, str(path.parent), asked.fps)])
