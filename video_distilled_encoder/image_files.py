"""Image files, opened upright and in RGB; without torch, for processes that only read frames."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from video_distilled_encoder.errors import InputError

_DAMAGED_EXIF = (struct.error, SyntaxError, KeyError, TypeError, ValueError)


def open_image(path: Path, opened: Any = None) -> Image.Image:
    """Read an image file, upright (EXIF orientation applied).

    Args:
        path: its name.
        opened: the same, opened for reading.

    Raises:
        InputError: the file is missing, empty, truncated or not an image.
    """
    with _opened(path, opened) as image:
        image.load()
        return to_rgb(image, str(path))


def size_of_image(path: Path) -> tuple[int, int]:
    """Return width and height of an image file, upright, of which no more than the header is read.

    Raises:
        InputError: as `open_image`, as far as the header tells.
    """
    with _opened(path) as image:
        _refuse_deep(image, str(path))
        width, height = image.size
        with suppress(*_DAMAGED_EXIF):
            if image.getexif().get(ExifTags.Base.Orientation, 1) > 4:  # it is turned by a quarter
                width, height = height, width
        return width, height


@contextmanager
def _opened(path: Path, opened: Any = None) -> Iterator[Image.Image]:
    try:
        with Image.open(opened or path) as image:
            yield image
    except FileNotFoundError as error:
        address = "; it is an address: download it first" if str(path).startswith(("http:", "https:")) else ""
        raise InputError(f"{path} does not exist{address}") from error
    except InputError:
        raise
    except (
        UnidentifiedImageError,
        OSError,
        SyntaxError,
        ValueError,
        struct.error,
        Image.DecompressionBombError,
    ) as error:
        reason = "is empty" if path.is_file() and path.stat().st_size == 0 else f"cannot be read as an image ({error})"
        mend = "; convert it to JPEG first" if path.suffix.lower() in (".heic", ".heif") else ""
        raise InputError(f"{path} {reason}{mend}") from error


def bundled_photographs() -> list[Path]:
    """Return the real photographs that come with the package, on which features are compared."""
    return sorted((Path(__file__).parent / "photographs").glob("*.jpg"))


def to_rgb(image: Image.Image, what: str) -> Image.Image:
    """Return an image upright and in RGB; `what` it is stands in the error.

    Raises:
        InputError: it has more than 8 bits a channel.
    """
    _refuse_deep(image, what)
    # where the block that tells how the camera was held is damaged, the pixels are not
    with suppress(*_DAMAGED_EXIF):
        image = ImageOps.exif_transpose(image)
    if image.mode in ("La", "RGBa"):  # which Pillow turns into RGB by a detour alone
        image = image.convert(image.mode.upper())
    return image.convert("RGB")


def _refuse_deep(image: Image.Image, what: str) -> None:
    if image.mode.startswith(("I", "F")):
        raise InputError(f"{what} has more than 8 bits a channel (mode {image.mode}); convert it to 8-bit RGB first")
