"""Folders of frames, `000000.jpg`, `000001.jpg`, …: one recording, in the order that people count in.

A folder has no clock: how many frames were taken a second has to be told.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from video_distilled_encoder.errors import InputError
from video_distilled_encoder.files import IMAGE_SUFFIXES, VIDEO_SUFFIXES, find_frames, reading, sha256
from video_distilled_encoder.preprocessing import open_image
from video_distilled_encoder.sources.source import Asked, Digest, Found, Source, identity_of
from video_distilled_encoder.video import Pace, VideoFrame, VideoInfo

_PICTURES = IMAGE_SUFFIXES - VIDEO_SUFFIXES


@dataclass(frozen=True)
class FrameFolder(Source):
    """The pictures of a folder, `fps` of them a second."""

    fps: float

    def identity(self, digest: Digest = sha256) -> str:
        """Return the SHA-256 of the pictures, in order, and of their rate; all are read for it."""
        with reading(self.path):
            return identity_of("", self.fps, *map(sha256, self._pictures()))

    def frames(self, min_interval: float = 0.0) -> Iterator[VideoFrame]:
        """Decode the pictures, which are of one size."""
        pace, size = Pace(min_interval, 1 / self.fps), None
        for number, path in enumerate(self._pictures()):
            if not pace.keeps(number / self.fps):
                continue
            image = np.asarray(open_image(path))
            size = size or image.shape
            if image.shape != size:
                raise InputError(
                    f"{path} is {image.shape[1]}x{image.shape[0]}, the first one there {size[1]}x{size[0]}; "
                    "frames of a recording are of one size: put them into folders of their own"
                )
            yield VideoFrame(number / self.fps, image)

    def info(self) -> VideoInfo:
        """Count the pictures and read the first."""
        pictures = self._pictures()
        return VideoInfo(*open_image(pictures[0]).size, self.fps, len(pictures))

    def _pictures(self) -> list[Path]:
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
        return Found(
            [],
            [
                f"{path}: {len(find_frames(path, _PICTURES))} pictures without a clock; tell how many were taken "
                "a second, with --source-fps"
            ],
        )
    return Found([FrameFolder(path, path.name, str(path.parent), asked.fps)])
