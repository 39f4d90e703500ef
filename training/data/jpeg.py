"""JPEGs of which a region can be decoded without the rest, and which any other reader sees as ordinary JPEGs.

The encoder sets restart markers (ITU-T T.81, section F.1.1.5) every few blocks. Each stretch between two markers can be
decoded alone, so the stretches that cover a region, under the header of a smaller picture, are a JPEG of the region.
"""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from training.data.box import Box

_BLOCK = 16
"""Side in pixels of the blocks between which markers can stand (4:2:0 chroma)."""
_MARGIN = 2
"""Pixels around a region that its upsampled chroma depends on."""
_START_OF_FRAME, _START_OF_SCAN, _RESTART, _END = 0xC0, 0xDA, 0xD0, b"\xff\xd9"


def encode(image: Image.Image, quality: int) -> bytes:
    """Return the image as a JPEG with restart markers about every fourth block."""
    buffer = io.BytesIO()
    interval = _restart_interval(image.width)
    image.save(buffer, "JPEG", quality=quality, subsampling="4:2:0", restart_marker_blocks=interval)
    return buffer.getvalue()


def decode(data: bytes, box: Box | None = None, scale: int = 1) -> np.ndarray:
    """Return the pixels of a JPEG from `encode`, or of a region of it, as (H, W, 3) uint8.

    A region has the pixels that it has in the whole picture, bit for bit.

    Args:
        data: the JPEG.
        box: the region; its sides are multiples of `scale` but where it ends with the picture.
        scale: 2, 4 or 8 for a half, a quarter or an eighth of the size, which is decoded at once (JPEG's scaled
            inverse transform) for less than the whole costs.
    """
    if box is None:
        return np.array(Image.open(io.BytesIO(data)).convert("RGB"))
    part, cover = _cut_out(data, box)
    image = Image.open(io.BytesIO(part))
    if scale > 1:
        image.draft("RGB", (max(cover.width // scale, 1), max(cover.height // scale, 1)))
    pixels = np.array(image.convert("RGB"))
    left, top = (box.left - cover.left) // scale, (box.top - cover.top) // scale
    return pixels[top : top - (-box.height // scale), left : left - (-box.width // scale)]


def _restart_interval(width: int) -> int:
    """Return how many blocks stand between markers: they divide a row, so that every row begins after one."""
    row = -(-width // _BLOCK)
    return min((count for count in range(1, row + 1) if row % count == 0), key=lambda count: abs(count - 4))


def _cut_out(data: bytes, box: Box) -> tuple[bytes, Box]:
    """Return a JPEG of the stretches that cover a region and its margin, and the region that it shows."""
    frame_header, scan = _find_headers(data)
    height, width = (int.from_bytes(data[at : at + 2], "big") for at in (frame_header + 5, frame_header + 7))
    side = _restart_interval(width) * _BLOCK
    first_column, last_column = _covering(box.left, box.width, side, width)
    first_row, last_row = _covering(box.top, box.height, _BLOCK, height)
    left, top = first_column * side, first_row * _BLOCK
    cover = Box(left, top, min(last_column * side, width) - left, min(last_row * _BLOCK, height) - top)

    markers = _find_markers(data, scan)
    begins, ends = [scan, *(markers + 2)], [*markers, len(data) - 2]
    per_row = -(-width // side)
    parts = [
        data[: frame_header + 5],
        cover.height.to_bytes(2, "big") + cover.width.to_bytes(2, "big"),
        data[frame_header + 9 : scan],
    ]
    numbers = [
        row * per_row + column for row in range(first_row, last_row) for column in range(first_column, last_column)
    ]
    for count, number in enumerate(numbers):
        parts += [data[begins[number] : ends[number]], bytes((0xFF, _RESTART + count % 8))]
    parts[-1] = _END
    return b"".join(parts), cover


def _covering(start: int, length: int, side: int, limit: int) -> tuple[int, int]:
    """Return the first tile of `side` pixels that a stretch and its margin touch, and the one after the last."""
    return max(start - _MARGIN, 0) // side, -(-min(start + length + _MARGIN, limit) // side)


def _find_markers(data: bytes, start: int) -> np.ndarray:
    """Return where the restart markers are; within compressed blocks 0xFF is followed by 0 or is a marker."""
    values = np.frombuffer(data, dtype=np.uint8)
    at = start + np.flatnonzero(values[start:-2] == 0xFF)
    return at[values[at + 1] & 0xF8 == _RESTART]


def _find_headers(data: bytes) -> tuple[int, int]:
    """Return where the frame header (SOF0) begins and where the compressed blocks begin."""
    at, frame_header = 2, 0
    while data[at + 1] != _START_OF_SCAN:
        if data[at + 1] == _START_OF_FRAME:
            frame_header = at
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return frame_header, at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")
