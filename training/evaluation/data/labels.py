"""Label pictures: one class or object number for each pixel, lying as the pixels of its image do."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import numpy as np
from PIL import Image

from video_distilled_encoder.errors import InputError
from video_distilled_encoder.image_files import open_image

VOID = 255
"""No class."""
_ORIENTATION = 0x0112
"""EXIF's entry that says how the camera was held; 1 is upright."""
_UPRIGHT, _ON_ITS_SIDE = 1, range(5, 9)


def read_labels(path: Path) -> np.ndarray:
    """Return the (H, W) uint8 palette indices of a label image.

    Raises:
        InputError: it cannot be read, or is not a single-channel 8-bit image.
    """
    try:
        with Image.open(path) as image:
            if image.mode not in ("L", "P"):
                raise InputError(f"{path} is not a single-channel 8-bit label image (mode {image.mode})")
            return np.array(image)
    except (OSError, SyntaxError) as error:
        raise InputError(f"{path} cannot be read as a label image: {error}") from error


def check_labels(image: Path, labels: Path) -> None:
    """Check that labels lie as their image does once it stands upright; of most images the header tells it.

    Raises:
        InputError: they do not, or it cannot be told; or a file cannot be read.
    """
    check_size(image, _header(labels)[0], f"its labels {labels}")


def check_size(image: Path, size: tuple[int, int], labels: str) -> None:
    """Check that an image has the size of its labels once it stands upright; of most images the header tells it.

    A photograph that is stored turned is turned by every reader, its labels by none: where both have one size all the
    same, nothing tells whether the labels are of the photograph as it is stored, or as it is seen.

    Args:
        image: the file.
        size: (width, height) of the labels.
        labels: what they are called in the message.

    Raises:
        InputError: it has another size, or it cannot be told; or the file cannot be read.
    """
    stored, orientation = _header(image)
    seen = stored if orientation == _UPRIGHT else open_image(image).size
    if size != seen:
        told = [f"{height} x {width}" for width, height in (seen, size)]
        turned = " when it is turned upright" if orientation != _UPRIGHT else ""
        raise InputError(f"{image} is {told[0]}{turned} but {labels} are {told[1]}; mend the data")
    if orientation != _UPRIGHT and (orientation not in _ON_ITS_SIDE or seen[0] == seen[1]):
        raise InputError(
            f"{image} is stored turned (EXIF orientation {orientation}), and nothing tells whether {labels} are turned "
            "too; save it upright, as its labels lie"
        )


def _header(path: Path) -> tuple[tuple[int, int], int]:
    """Return the (width, height) that a picture's header tells, and its EXIF orientation."""
    try:
        with Image.open(path) as image:
            orientation = _UPRIGHT
            with suppress(Exception):  # where the block that tells it is damaged the picture is not
                orientation = int(image.getexif().get(_ORIENTATION, _UPRIGHT))
            return image.size, orientation if orientation in range(1, 9) else _UPRIGHT
    except FileNotFoundError as error:
        raise InputError(f"{path} does not exist") from error
    except (OSError, SyntaxError, ValueError) as error:
        raise InputError(f"{path} cannot be read as an image ({error})") from error
