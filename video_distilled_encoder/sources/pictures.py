"""Single pictures as data sets hold them: as a file's bytes, or as raw pixels in one of a camera's layouts."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from PIL import Image

from video_distilled_encoder.errors import InputError, first_line, import_extra

_CHANNELS = {"rgb8": (0, 1, 2), "bgr8": (2, 1, 0), "rgba8": (0, 1, 2), "bgra8": (2, 1, 0), "8uc3": (2, 1, 0)}
"""Where red, green and blue stand among the bytes of a pixel; OpenCV's 8UC3 is taken for its usual BGR."""
_FFMPEG = {
    **{f"bayer_{order}8": f"bayer_{order}8" for order in ("rggb", "bggr", "gbrg", "grbg")},
    **{"yuv422": "uyvy422", "uyvy": "uyvy422", "yuv422_yuy2": "yuyv422", "yuyv": "yuyv422"},
    **{"nv12": "nv12", "nv21": "nv21"},
}
_NO_COLOUR = re.compile(r"\d+[usf]c\d+|mono16|.*16|compresseddepth")
_OTHER = re.compile(r"(?:^|[^a-z])(depth|disparity|mask|segmentation|semantic|label|thermal|normals?)(?:$|[^a-z])")


def why_no_picture(encoding: str) -> str:
    """Return why pixels of an encoding, by ROS's names, are not read; "" if they are."""
    name = encoding.lower()
    if name == "mono8" or name in _CHANNELS or name in _FFMPEG:
        return ""
    if _NO_COLOUR.fullmatch(name):
        return f"{encoding} values, as of depth, heat or labels, and no picture"
    return f"the encoding {encoding!r}, which is not read"


def why_left_out(camera: str, cameras: str) -> str:
    """Return why a camera is left out by its name, unless cameras are asked for by name; "" if it is not."""
    match = _OTHER.search(camera.lower())
    return f"its name says {match[1]}; --cameras takes it" if match and cameras == "*" else ""


@contextmanager
def open_file(data: bytes | memoryview) -> Iterator[Image.Image]:
    """Open a JPEG, PNG or other picture file, of which nothing but the header is decoded at once.

    Raises:
        InputError: it is damaged, or none.
    """
    try:
        yield Image.open(io.BytesIO(data))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"the picture is damaged ({first_line(error)})") from error


def decode_file(data: bytes | memoryview) -> np.ndarray:
    """Return the (H, W, 3) uint8 RGB picture of a picture file.

    Raises:
        InputError: it is damaged, or none.
    """
    with open_file(data) as image:
        return np.asarray(image.convert("RGB"))


def why_no_file(data: bytes | memoryview) -> str:
    """Return why a picture file is not read; "" if it is.

    Raises:
        InputError: it is damaged, or none.
    """
    with open_file(data) as image:
        return f"{image.mode} values, as of depth or heat, and no picture" if image.mode[0] in "IF" else ""


def decode_pixels(data: Any, encoding: str, size: tuple[int, int], step: int = 0) -> np.ndarray:
    """Return raw pixels as an (H, W, 3) uint8 RGB picture.

    Args:
        data: the bytes.
        encoding: by ROS's names (sensor_msgs/image_encodings.hpp), one that `why_no_picture` has nothing against.
        size: (width, height).
        step: bytes of a row, which may hold more than the pixels; 0 if it does not.

    Raises:
        InputError: there are more or fewer bytes than the size says.
    """
    name, (width, height) = encoding.lower(), size
    layout = _FFMPEG.get(name, "")
    planar = layout in ("nv12", "nv21")
    depth = 2 if layout.endswith("422") else 4 if name in ("rgba8", "bgra8") else 3 if name in _CHANNELS else 1
    rows = height + (height + 1) // 2 if planar else height
    values = np.frombuffer(data, np.uint8)
    step = step or width * depth
    if step < width * depth or len(values) < rows * step or not width or not height:
        raise InputError(f"the picture has {len(values)} bytes, and {width}x{height} in {encoding} are {rows * step}")
    values = values[: rows * step].reshape(rows, step)[:, : width * depth]
    if name in _CHANNELS:
        return np.ascontiguousarray(values.reshape(height, width, depth)[..., _CHANNELS[name]])
    if name == "mono8":
        return np.repeat(values[..., None], 3, axis=2)
    return _convert(values, layout, size)


def _convert(values: np.ndarray, layout: str, size: tuple[int, int]) -> np.ndarray:
    """Let FFmpeg turn rows of bytes, those of one plane after those of another, into colours."""
    frame = import_extra("av", "robot").VideoFrame(*size, layout)
    for plane, rows in zip(frame.planes, np.split(values, [size[1]]), strict=False):
        padded = np.zeros((len(rows), plane.line_size), np.uint8)
        padded[:, : rows.shape[1]] = rows
        plane.update(padded)
    image: np.ndarray = frame.to_ndarray(format="rgb24")
    return image
