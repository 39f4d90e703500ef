"""Label pictures: one class or object number for each pixel."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from video_distilled_encoder.errors import InputError

VOID = 255
"""No class."""


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
