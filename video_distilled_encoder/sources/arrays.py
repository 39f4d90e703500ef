"""Arrays of pictures, one after the other, as HDF5 and Zarr hold them."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
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
        key: the array's name in its file.
        begin: its row with the first picture.
        flip: the pictures are upside down.
    """

    key: str
    begin: int = 0
    flip: bool = False

    @abstractmethod
    def opened(self) -> AbstractContextManager[Any]:
        """Open the array."""

    def pictures(self, numbers: Sequence[int]) -> Iterator[np.ndarray | bytes]:
        """Read each chunk of the array once."""
        with self.opened() as array:
            chunk = array.chunks[0] if array.chunks else 1
            scale = 0.0
            for _, rows in groupby((self.begin + number for number in numbers), key=lambda row: row // chunk):
                wanted = list(rows)
                for row in array[wanted[0] : wanted[-1] + 1][[row - wanted[0] for row in wanted]]:
                    if row.ndim < 3:
                        yield bytes(row)
                        continue
                    if row.dtype.kind == "f":
                        # 0 to 255, or 0 to 1 where nothing in the first picture is above
                        scale = scale or (255.0 if row.max() <= 1 else 1.0)
                        row = np.clip(row * scale, 0, 255).round().astype(np.uint8)
                    row = row if row.shape[-1] in (3, 4) else row.transpose(1, 2, 0)
                    yield np.ascontiguousarray(row[:: -1 if self.flip else 1, :, :3])

    def info(self) -> VideoInfo:
        """Read the array's shape, or the header of the first picture file."""
        with self.opened() as array:
            if array.ndim == 4:
                height, width = array.shape[1:3] if array.shape[-1] in (3, 4) else array.shape[2:4]
                return VideoInfo(width, height, self.fps, self.length)
            with self._named(0), open_file(bytes(array[self.begin])) as image:
                return VideoInfo(*image.size, self.fps, self.length)


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
