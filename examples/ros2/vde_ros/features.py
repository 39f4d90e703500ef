"""What the node does, without ROS: messages of a camera in, features of the newest out.

Any object with the fields of `sensor_msgs/Image` or `sensor_msgs/CompressedImage` is a message here, and the fields of
those that are to be published come back as plain values.
"""

from __future__ import annotations

import array
import threading
from collections.abc import Callable
from time import monotonic
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from video_distilled_encoder import Encoder, InputError, Stream, load_runtime
from video_distilled_encoder.pca import PCA
from video_distilled_encoder.sources.pictures import decode_file, decode_pixels, why_no_file, why_no_picture

PICTURE_SCALE = 16
"""Pixels of the side of a patch in the picture."""


class Published(NamedTuple):
    """What is to be published of one frame."""

    header: Any
    """Of the camera's message: its frame, and the stamp of the capture."""
    grid: dict[str, Any]
    """Fields of a `sensor_msgs/Image` of h x w pixels, one a patch, with C channels of float32 (encoding 32FC384)."""
    cls: dict[str, Any]
    """The class token, an image of one pixel."""
    picture: dict[str, Any] | None
    """The patches' three main directions as colours (rgb8), if asked for."""
    age: float
    """Seconds from the capture until now."""
    dropped: int
    """Frames since the one before that were not encoded."""


class Seen(NamedTuple):
    """Features of a message, and its header."""

    cls: Tensor
    grid: Tensor
    header: Any


class FeatureStream:
    """Encodes the newest message in the background and hands on what is to be published; nothing queues up.

    Args:
        encoder: an `Encoder` or a `Runtime`.
        publish: called with each result, in a thread of its own.
        fail: called with what went wrong with a message; the next one is tried.
        picture: also draw the features; the first frame's directions are kept, so that colours stay.
        options: of `encode`, such as `size` and `crop_mode`.
    """

    def __init__(
        self,
        encoder: Any,
        publish: Callable[[Published], None],
        fail: Callable[[Exception], None],
        picture: bool = True,
        **options: Any,
    ) -> None:
        self._encoder, self._options = encoder, options
        self._publish, self._fail, self._draw = publish, fail, picture
        self._pca: PCA | None = None
        self._stream = Stream(self)
        self._thread = threading.Thread(target=self._work, name="features", daemon=True)
        self._thread.start()

    def put(self, message: Any, age: float = 0.0) -> None:
        """Hand in a camera's newest message, so many seconds after its capture; called from one thread."""
        self._stream.put(message, monotonic() - max(age, 0.0), copy=False)

    def encode(self, message: Any) -> Seen:
        """Decode a message and encode it: what `Stream` calls for frames that are not dropped."""
        features = self._encoder.encode(decode(message), **self._options)
        return Seen(features.cls, features.grid, message.header)

    def close(self) -> None:
        """Stop, when the frame that is being encoded is done."""
        self._stream.close()
        self._thread.join()

    def _work(self) -> None:
        while True:
            try:
                result = next(self._stream)
            except StopIteration:
                return
            except Exception as error:  # of a message: the camera goes on
                self._fail(error)
                continue
            grid = result.features.grid[0].float()
            picture = None
            if self._draw:
                self._pca = self._pca or PCA.fit(grid.flatten(1).T)
                picture = image_fields(self._pca.picture(grid, tuple(PICTURE_SCALE * side for side in grid.shape[1:])))
            cls = image_fields(result.features.cls[:1, None].float().cpu().numpy())
            fields = image_fields(grid.movedim(0, -1).contiguous().cpu().numpy())
            self._publish(Published(result.features.header, fields, cls, picture, result.age, result.dropped))


def decode(message: Any) -> np.ndarray:
    """Return the (H, W, 3) uint8 RGB picture of a camera's message.

    Raises:
        InputError: it is damaged, or holds no colours.
    """
    if hasattr(message, "encoding"):
        if why := why_no_picture(message.encoding):
            raise InputError(f"the message holds {why}; give the topic of a colour camera")
        return decode_pixels(message.data, message.encoding, (message.width, message.height), message.step)
    data = bytes(message.data)
    if why := why_no_file(data):
        raise InputError(f"the message holds {why}; give the topic of a colour camera")
    return decode_file(data)


def image_fields(values: np.ndarray) -> dict[str, Any]:
    """Return the fields of a `sensor_msgs/Image` of (h, w, C) float32 (32FCn) or uint8 (rgb8) values."""
    height, width, channels = values.shape
    colours = values.dtype == np.uint8
    values = values.astype("u1" if colours else "<f4")
    return {
        "height": height,
        "width": width,
        "encoding": "rgb8" if colours else f"32FC{channels}",
        "is_bigendian": 0,
        "step": width * channels * values.itemsize,
        "data": array.array("B", values.tobytes()),
    }


def seconds_since(stamp: Any, now: Any) -> float:
    """Return how long ago a message was stamped, both `builtin_interfaces/Time`; 0 where its clock is another."""
    age = (now.sec - stamp.sec) + 1e-9 * (now.nanosec - stamp.nanosec)
    return age if 0 <= age < 10 else 0.0


def load(model: str, runtime: str, device: str) -> Any:
    """Return the exported encoder `runtime` if one is named, else the encoder `model` in torch."""
    return load_runtime(runtime, device or None) if runtime else Encoder.from_pretrained(model, device=device or None)


def encode_options(size: list[int], crop_mode: str) -> dict[str, Any]:
    """Return what `encode` is told: nothing where a parameter was left at its default.

    Raises:
        InputError: `size` has more than two numbers.
    """
    if len(size) > 2:
        raise InputError(f"size is [side] or [height, width] in pixels, got {size}")
    sizes = {} if not any(size) else {"size": size[0] if len(size) == 1 else tuple(size)}
    return sizes | ({"crop_mode": crop_mode} if crop_mode else {})
