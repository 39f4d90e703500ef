"""Regions of frames."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple


class Box(NamedTuple):
    """A region of a frame in whole pixels."""

    left: int
    top: int
    width: int
    height: int

    def within(self, outer: Box) -> Box:
        """Return the same region in the coordinates of a box that holds it."""
        return Box(self.left - outer.left, self.top - outer.top, self.width, self.height)

    def widened(self, step: int) -> Box:
        """Return the smallest box around this one whose borders are multiples of `step`."""
        left, top = self.left // step * step, self.top // step * step
        right, bottom = (-(-end // step) * step for end in (self.left + self.width, self.top + self.height))
        return Box(left, top, right - left, bottom - top)

    def divided(self, by: int) -> Box:
        """Return the same region of a picture whose sides are divided, to the nearest pixel."""
        left, top = round(self.left / by), round(self.top / by)
        right, bottom = round((self.left + self.width) / by), round((self.top + self.height) / by)
        return Box(left, top, right - left, bottom - top)


def around(boxes: Iterable[Box]) -> Box:
    """Return the smallest box that holds all of several."""
    boxes = list(boxes)
    left, top = min(box.left for box in boxes), min(box.top for box in boxes)
    right = max(box.left + box.width for box in boxes)
    bottom = max(box.top + box.height for box in boxes)
    return Box(left, top, right - left, bottom - top)
