"""Arrays of pictures, one after the other, as HDF5 and Zarr hold them."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np

from video_distilled_encoder.sources.counted import Counted
from video_distilled_encoder.sources.pictures import open_file
from video_distilled_encoder.video import VideoInfo

_LEAST_SIDE = 16
"""Arrays whose last sides are smaller are no pictures: poses, actions."""
_FILES = (b"\xff\xd8\xff", b"\x89PNG")


@dataclass(frozen=True)
class ArrayEpisode(Counted):
    """A stretch of an array whose rows are pictures or picture files.

    Args:
        length: number of pictures.
        size: width and height of the pictures; (0, 0) of picture files.
        key: the array's name in its file.
        begin: its row with the first picture.
        flip: the pictures are upside down.
    """

    length: int
    size: tuple[int, int]
    key: str
    begin: int = 0
    flip: bool = False

    @abstractmethod
    def opened(self) -> AbstractContextManager[Any]:
        """Open the array."""

    def pictures(self, keeps: Callable[[int], bool]) -> Iterator[tuple[int, np.ndarray | bytes]]:
        """Read each chunk of the array once."""
        scale = 0.0
        with self.opened() as array:
            chunk = array.chunks[0] if array.chunks else 1
            wanted = (self.begin + number for number in range(self.length) if keeps(number))
            for _, numbers in groupby(wanted, key=lambda number: number // chunk):
                rows = list(numbers)
                block = array[rows[0] : rows[-1] + 1]
                if block.dtype.kind == "f" and not scale:  # 0 to 255, or 0 to 1 where nothing in the first is above
                    scale = 255.0 if block[0].max() <= 1 else 1.0
                for row in rows:
                    yield row - self.begin, self._picture(block[row - rows[0]], scale)

    def _picture(self, row: Any, scale: float) -> np.ndarray | bytes:
        if row.ndim < 3:
            return bytes(row)
        if scale:
            row = np.clip(row * scale, 0, 255).round().astype(np.uint8)
        if row.shape[-1] not in (3, 4):
            row = row.transpose(1, 2, 0)
        return np.ascontiguousarray(row[:: -1 if self.flip else 1, :, :3])

    def info(self) -> VideoInfo:
        """Return what the array's shape tells; of picture files, read the header of the first."""
        if any(self.size):
            return VideoInfo(*self.size, self.fps, self.length)
        with self.opened() as array, self._named(", frame 0"), open_file(bytes(array[self.begin])) as image:
            return VideoInfo(*image.size, self.fps, self.length)


def size_of(array: Any) -> tuple[int, int]:
    """Return width and height of an array's pictures; (0, 0) of picture files."""
    if array.ndim != 4:
        return 0, 0
    height, width = array.shape[1:3] if array.shape[-1] in (3, 4) else array.shape[2:4]
    return width, height


def why_no_pictures(array: Any) -> str | None:
    """Return why the rows of an array are not read as pictures, "" if they are, and None if nobody would think so."""
    if array.ndim in (1, 2):
        rows = array.dtype.kind in "OSV" if array.ndim == 1 else array.dtype == np.uint8
        return "" if rows and array.shape[0] and bytes(array[0])[:4].startswith(_FILES) else None
    sides = array.shape[1:3] if array.ndim == 3 or array.shape[-1] <= 4 else array.shape[2:4]
    if array.ndim not in (3, 4) or min(sides) < _LEAST_SIDE:
        return None
    channels = 1 if array.ndim == 3 else array.shape[-1] if array.shape[-1] <= 4 else array.shape[1]
    if channels in (3, 4) and (array.dtype == np.uint8 or (array.dtype.kind == "f" and channels == 3)):
        return ""
    return f"{array.dtype} of {'x'.join(map(str, array.shape[1:]))}, no pictures in colour"
