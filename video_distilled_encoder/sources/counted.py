"""Sources without a clock: their pictures are counted, so many of them a second as the user tells."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np

from video_distilled_encoder.errors import InputError
from video_distilled_encoder.sources.pictures import decode_file
from video_distilled_encoder.sources.source import Source
from video_distilled_encoder.video import Pace, VideoFrame

WITHOUT_CLOCK = "without a clock; tell how many were taken a second, with --source-fps"


@dataclass(frozen=True)
class Counted(Source):
    """A recording whose pictures are taken at a steady rate."""

    fps: float
    bgr: bool = field(default=False, kw_only=True)
    """Red and blue are swapped in what is stored."""

    @abstractmethod
    def pictures(self, keeps: Callable[[int], bool]) -> Iterator[tuple[int, np.ndarray | bytes]]:
        """Yield pictures and their numbers: (H, W, 3) uint8 RGB, or a picture file's bytes.

        Args:
            keeps: tells whether the picture of a number is wanted; it is asked of each once, and in order.
        """

    def frames(self, min_interval: float = 0.0) -> Iterator[VideoFrame]:
        """Decode the pictures, which are of one size."""
        pace, shape = Pace(min_interval, 1 / self.fps), None
        pictures = self.pictures(lambda number: pace.keeps(number / self.fps))
        while True:
            with self._named():
                number, picture = next(pictures, (-1, b""))
            if number < 0:
                return
            with self._named(f", frame {number}"):
                image = decode_file(picture) if isinstance(picture, bytes) else picture
                shape = shape or image.shape
                if image.shape != shape:
                    raise InputError(
                        f"it is {image.shape[1]}x{image.shape[0]}, the first {shape[1]}x{shape[0]}; frames of a "
                        "recording are of one size: put them into recordings of their own"
                    )
            yield VideoFrame(number / self.fps, np.ascontiguousarray(image[..., ::-1]) if self.bgr else image)

    @contextmanager
    def _named(self, where: str = "") -> Iterator[None]:
        try:
            yield
        except InputError as error:
            raise InputError(f"{self}{where}: {error}") from error
