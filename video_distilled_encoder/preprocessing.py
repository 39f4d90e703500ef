"""From images in any form to normalised pixels, with the same arithmetic for every form.

All forms become float RGB in [0, 1] and are resized by torch's antialiased bicubic filter, which is PIL's without its
rounding to 8 bits: so a path, a PIL image, an array and a tensor of one photograph give one and the same result, on
every device. timm's and transformers' own transforms on PIL differ by that rounding: 0.3 of 255 grey levels on average.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from video_distilled_encoder.errors import InputError
from video_distilled_encoder.image_files import open_image, to_rgb
from video_distilled_encoder.model_config import ModelConfig
from video_distilled_encoder.resize import resize_and_crop
from video_distilled_encoder.tokens import check_size

Images: TypeAlias = Any
"""A path | PIL image | (..., H, W, 3) array | (..., 3, H, W) tensor, or a (nested) list of them."""

CROP_MODES = ("center", "squash", "whole")
MAX_PATCHES = 2**14
"""Of an image in mode "whole": a strip of a few pixels' height would otherwise come to any number."""
_NOISE = 1e-4
"""How far floating-point pixels may lie outside [0, 1] by rounding; they are clipped."""


def preprocess(
    images: Images,
    config: ModelConfig,
    *,
    size: int | tuple[int, int],
    crop_mode: str | None,
    multiple: int,
    device: torch.device,
) -> Tensor:
    """Turn images into normalised pixels.

    Args:
        images: any of the forms of `Images`.
        config: mean, std, interpolation, crop_pct and crop_mode.
        size: height and width of the result in pixels; one number means a square, or with "whole" the shorter side.
        crop_mode: "center" keeps the aspect ratio and cuts what is over, as timm and transformers do; "squash" resizes
            the whole image to exactly `size`; "whole" keeps the aspect ratio and the whole image, both sides rounded to
            a multiple of the patch size; None is the mode of `config`.
        multiple: the patch size.
        device: where the result lies.

    Returns:
        (B, 3, H, W) float32, or with further leading dimensions, such as (B, cameras, 3, H, W), if `images` has them.

    Raises:
        InputError: something is not an image, or the sizes do not fit.
    """
    crop_mode = config.crop_mode if crop_mode is None else crop_mode
    if crop_mode not in CROP_MODES:
        raise InputError(f"crop_mode must be one of {', '.join(CROP_MODES)}, got {crop_mode!r}")
    size = as_size(size)
    batches, lead = load(images)
    # resizing is done in float32, whatever the caller computes in
    with torch.autocast(device.type, enabled=False) if torch.is_autocast_enabled(device.type) else nullcontext():
        resized = [_resize(batch.to(device), config, size, crop_mode, multiple) for batch in batches]
    if len({batch.shape[-2:] for batch in resized}) > 1:
        sizes = sorted({f"{batch.shape[-2]}x{batch.shape[-1]}" for batch in resized})
        raise InputError(f"the images come out at different sizes, {', '.join(sizes)}; encode them one by one")
    pixels_BCHW = resized[0] if len(resized) == 1 else torch.cat(resized)
    mean, std = (
        torch.tensor(values, dtype=torch.float32, device=device).view(3, 1, 1) for values in (config.mean, config.std)
    )
    return ((pixels_BCHW - mean) / std).unflatten(0, lead)


def load(images: Images) -> tuple[list[Tensor], tuple[int, ...]]:
    """Read images of any form as batches of (n, 3, H, W), uint8 or float32 in [0, 1].

    Returns:
        The batches in order, and the leading dimensions of all images together; (1,) for a single image.

    Raises:
        InputError: an element is not an image.
    """
    batches, lead = _load(images)
    if 0 in lead:
        raise InputError("there are no images to encode: the batch is empty")
    return _merge(batches), lead or (1,)


def _load(images: Images) -> tuple[list[Tensor], tuple[int, ...]]:
    if isinstance(images, (str, Path)):
        return _load(open_image(Path(images)))
    if isinstance(images, Image.Image):
        try:
            array = np.array(to_rgb(images, "the PIL image"))
        except (OSError, SyntaxError, ValueError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(f"the PIL image cannot be read ({error}): it is damaged or closed") from error
        return [torch.from_numpy(array).permute(2, 0, 1)[None]], ()
    if isinstance(images, np.ndarray):
        if images.ndim < 3 or images.shape[-1] != 3:
            raise InputError(f"an array must be (..., H, W, 3), RGB; got {images.shape}")
        array = np.ascontiguousarray(_plain(images))
        tensor = torch.from_numpy(array if array.flags.writeable else array.copy())  # torch warns of read-only memory
        return _load(tensor.movedim(-1, -3))
    if isinstance(images, Tensor):
        if images.ndim < 3 or images.shape[-3] != 3:
            raise InputError(f"a tensor must be (..., 3, H, W), RGB; got {tuple(images.shape)}")
        lead = tuple(images.shape[:-3])
        return [_checked_values(images).flatten(0, -4) if lead else _checked_values(images)[None]], lead
    if isinstance(images, Sequence) and not isinstance(images, (bytes, bytearray)):
        return _load_sequence(images)
    raise InputError(f"{type(images).__name__} is not an image: give a path, PIL image, numpy array, tensor or a list")


def _plain(array: np.ndarray) -> np.ndarray:
    """Return an array in a form that torch takes: no masks, this machine's byte order, at most 64 bits a number.

    Raises:
        InputError: it holds no numbers, or some are masked.
    """
    if isinstance(array, np.ma.MaskedArray):
        if np.ma.is_masked(array):
            raise InputError("some pixels of the array are masked; fill them first, as by .filled(0)")
        array = array.data
    if array.dtype.kind not in "biuf":
        raise InputError(f"an array of pixels holds uint8 or floating-point numbers; got {array.dtype}")
    if array.dtype.kind == "f" and array.dtype.itemsize > 8:
        return array.astype(np.float64)
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def _load_sequence(images: Sequence[Images]) -> tuple[list[Tensor], tuple[int, ...]]:
    loaded = [_load(image) for image in images]
    leads = {lead for _, lead in loaded}
    if len(leads) > 1:
        raise InputError(f"the elements of a list must have equal leading dimensions, got {sorted(leads)}")
    lead = (len(loaded), *leads.pop()) if leads else (0,)
    return [batch for batches, _ in loaded for batch in batches], lead


def _merge(batches: Iterable[Tensor]) -> list[Tensor]:
    """Join the batches into one if all are alike, so that they are resized together."""
    batches = list(batches)
    alike = len({(batch.shape[1:], batch.dtype, batch.device) for batch in batches}) == 1
    return [torch.cat(batches)] if alike and len(batches) > 1 else batches


def _checked_values(images: Tensor) -> Tensor:
    if images.dtype == torch.uint8:
        return images
    if not images.is_floating_point():
        raise InputError(f"pixels must be uint8, or floating-point in [0, 1]; got {images.dtype}")
    images = images.detach()
    if images.numel():
        low, high = (value.item() for value in images.aminmax())
        if not (low >= -_NOISE and high <= 1 + _NOISE):
            raise InputError(
                f"floating-point images must lie in [0, 1], got [{low:.3g}, {high:.3g}]; "
                "for pixels already normalised call the encoder itself: encoder(pixel_values)"
            )
    return images.float().clamp(0, 1)


def as_size(size: Any) -> int | tuple[int, int]:
    """Return a size in pixels as one whole number or two; NumPy's numbers and 224.0 will do.

    Raises:
        InputError: it is neither, or not positive.
    """
    sides = list(size) if isinstance(size, (list, tuple, np.ndarray, torch.Size)) and np.ndim(size) == 1 else [size]
    whole = [int(side) if _is_whole(side) else 0 for side in sides]
    if len(whole) not in (1, 2) or min(whole) < 1 or (len(whole) == 1 and sides[0] is not size):
        raise InputError(f"size is a positive number of pixels, or two of them, (height, width); got {size!r}")
    return whole[0] if len(whole) == 1 else (whole[0], whole[1])


def _is_whole(side: Any) -> bool:
    return isinstance(side, (int, float, np.integer, np.floating)) and not isinstance(side, bool) and side == side // 1


def _resize(images: Tensor, config: ModelConfig, size: int | tuple[int, int], crop_mode: str, multiple: int) -> Tensor:
    """(n, 3, H, W) -> (n, 3, h, w) float32 in [0, 1]."""
    resized, crop = plan_resize(tuple(images.shape[-2:]), size, crop_mode, config.crop_pct, multiple)
    full_scale = 255 if images.dtype == torch.uint8 else 1
    interleaved = images.movedim(-3, -1)
    channels_last = interleaved.is_contiguous()
    images = interleaved if channels_last else images
    return (resize_and_crop(images, resized, crop, config.interpolation, channels_last) / full_scale).clamp(0, 1)


def plan_resize(
    image_hw: tuple[int, ...], size: int | tuple[int, int], crop_mode: str, crop_pct: float, multiple: int
) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return the (height, width) an image is resized to, and the (height, width) of the centre that is kept of it.

    Raises:
        InputError: the size asked for is not a multiple of the patch size.
    """
    height, width = image_hw
    if min(height, width) < 1:
        raise InputError(f"an image of {height}x{width} pixels has nothing to encode")
    if crop_mode == "whole":
        if not isinstance(size, int):
            raise InputError('crop_mode "whole" takes one number as size, the shorter side')
        scale = size / min(height, width)
        whole = (_nearest(height * scale, multiple), _nearest(width * scale, multiple))
        if (patches := whole[0] * whole[1] // multiple**2) > MAX_PATCHES:
            raise InputError(
                f"an image of {height}x{width} pixels comes to {whole[0]}x{whole[1]} as a whole, which is {patches} "
                f"patches, and {MAX_PATCHES} is the most; give a smaller size, or crop_mode center or squash"
            )
        return whole, whole
    target = (size, size) if isinstance(size, int) else size
    check_size(target, multiple)
    if crop_mode == "squash":
        return target, target
    scaled = [math.floor(side / crop_pct) for side in target]
    if scaled[0] == scaled[1]:  # torchvision's arithmetic, which timm takes for squares alone
        resized = [int(scaled[0] * side / min(height, width)) for side in image_hw]
    else:
        resized = [round(side / min(height / scaled[0], width / scaled[1])) for side in image_hw]
    return (resized[0], resized[1]), target


def _nearest(side: float, multiple: int) -> int:
    return max(round(side / multiple), 1) * multiple
