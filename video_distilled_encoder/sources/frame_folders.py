"""Folders of frames, `000000.jpg`, `000001.jpg`, …: one recording, in the order that people count in.

A folder has no clock: how many frames were taken a second has to be told. Where a number is missing, so is a frame, and
those after it keep their times.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np

from video_distilled_encoder.files import IMAGE_SUFFIXES, VIDEO_SUFFIXES, counted, find_frames, reading, sha256
from video_distilled_encoder.image_files import open_image, size_of_image
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
        """Return the SHA-256 of the pictures, in order, of their rate, and of their numbers if some are missing."""
        with reading(self.path):
            files = self._files()
            numbers = numbers_of(files)
            return identity_of(digest(*files), self.fps, *(numbers if numbers[-1] >= len(files) else ()))

    def pictures(self, keeps: Callable[[int], bool]) -> Iterator[tuple[int, np.ndarray]]:
        """Read the pictures."""
        files = self._files()
        for number, file in zip(numbers_of(files), files, strict=True):
            if not keeps(number):
                continue
            with reading(file), self.opener(file) if self.opener else nullcontext() as opened:
                picture = np.asarray(open_image(file, opened))
            yield number, picture

    def info(self) -> VideoInfo:
        """Count the pictures and read the first one's header."""
        files = self._files()
        return VideoInfo(*size_of_image(files[0]), self.fps, len(files))

    def _files(self) -> list[Path]:
        with reading(self.path):
            return find_frames(self.path, _PICTURES)


def numbers_of(files: Sequence[Path]) -> list[int]:
    """Return when pictures were taken, counted in pictures from 0, by the numbers at the end of their names.

    Numbers that are no multiples of their smallest step apart, as of times in milliseconds, only tell the order.
    """
    numbers = [found[-2] for file in files if len(found := counted(file.stem)) > 1]
    steps = [int(after) - int(before) for before, after in pairwise(numbers)]
    step = min(steps, default=0)
    if len(numbers) < len(files) or step < 1 or any(one % step for one in steps):
        return list(range(len(files)))
    return [(int(number) - int(numbers[0])) // step for number in numbers]


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
