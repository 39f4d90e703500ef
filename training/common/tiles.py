"""Pictures pasted together."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from video_distilled_encoder.files import atomic_path


def write_tiles(path: Path, rows: Sequence[Sequence[np.ndarray]], gap: int) -> None:
    """Write pictures side by side as one file.

    Args:
        path: a PNG.
        rows: of (H, W, 3) uint8 pictures of any size; each stands at the top left of its place, on white.
        gap: pixels between them.
    """
    heights = [max(len(tile) for tile in row) for row in rows]
    width = max(sum(tile.shape[1] + gap for tile in row) for row in rows) - gap
    sheet = np.full((sum(heights) + gap * (len(rows) - 1), width, 3), 255, dtype=np.uint8)
    top = 0
    for row, height in zip(rows, heights, strict=True):
        left = 0
        for tile in row:
            sheet[top : top + len(tile), left : left + tile.shape[1]] = tile
            left += tile.shape[1] + gap
        top += height + gap
    with atomic_path(path) as temporary:
        Image.fromarray(sheet).save(temporary)
