"""Photometric augmentation of a whole batch on the device, each view with its own parameters.

The parameters are drawn on the CPU from the sample's own generator (a pure function of seed, epoch and index), so the
result depends neither on the device nor on the number of workers. The operations are those of DINO's augmentation and
equal torchvision's float functions: brightness, contrast, saturation and hue in random order, greyscale, Gaussian
blur, solarisation, normalisation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import get_args

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from training.data.views import Style, View
from video_distilled_encoder.errors import InputError

_GREY = (0.2989, 0.587, 0.114)
_ORDER, _FACTORS, _GREYSCALE, _SIGMA, _SOLARIZE = slice(0, 4), slice(4, 8), 8, 9, 10
_PARAMETERS = 11


@dataclass(frozen=True)
class PhotometricConfig:
    """Strengths and probabilities of the colour augmentations (defaults: DINO's)."""

    jitter: float = 0.8
    """Probability of colour jitter."""
    brightness: float = 0.4
    """Factor of brightness, drawn from 1 ± this."""
    contrast: float = 0.4
    """Factor of contrast, drawn from 1 ± this."""
    saturation: float = 0.2
    """Factor of saturation, drawn from 1 ± this."""
    hue: float = 0.1
    """Shift of the hue, drawn from ± this, in turns of the colour circle."""
    greyscale: float = 0.2
    """Probability of greyscale."""
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    """Standard deviation of the blur in pixels, drawn uniformly."""
    blur: tuple[float, float, float] = (1.0, 0.1, 0.5)
    """Probability of blur in view 1, view 2 and local views."""
    solarize: tuple[float, float, float] = (0.0, 0.2, 0.0)
    """Probability of solarisation in view 1, view 2 and local views."""

    def __post_init__(self) -> None:
        for value in (self.jitter, self.greyscale, *self.blur, *self.solarize):
            if not 0 <= value <= 1:
                raise InputError(f"photometric probabilities must lie in [0, 1], got {value}")
        for value in (self.brightness, self.contrast, self.saturation):
            if not 0 <= value <= 1:
                raise InputError(f"photometric strengths must lie in [0, 1], got {value}")
        if not 0 <= self.hue <= 0.5:
            raise InputError(f"photometric.hue must lie in [0, 0.5], got {self.hue}")
        if not 0 < self.blur_sigma[0] <= self.blur_sigma[1]:
            raise InputError(f"photometric.blur_sigma must be 0 < low <= high, got {list(self.blur_sigma)}")

    def scaled(self, share: float) -> PhotometricConfig:
        """Return the settings for views whose side is a share of the usual: a blur as wide in proportion."""
        low, high = self.blur_sigma
        return replace(self, blur_sigma=(low * share, high * share))


def draw_parameters(rng: np.random.Generator, views: Sequence[View], config: PhotometricConfig) -> np.ndarray:
    """Draw the parameters of each view.

    Returns:
        (n, 11) float32: order of the four colour operations, their factors (identity where jitter does not apply),
        greyscale 0 or 1, blur sigma (0: none), solarise 0 or 1.
    """
    rows = np.zeros((len(views), _PARAMETERS), dtype=np.float32)
    styles = get_args(Style)
    for row, view in zip(rows, views, strict=True):
        if view.style is None:
            row[_ORDER], row[_FACTORS] = range(4), (1, 1, 1, 0)
            continue
        style = styles.index(view.style)
        row[_ORDER] = rng.permutation(4)
        factors = [
            rng.uniform(1 - config.brightness, 1 + config.brightness),
            rng.uniform(1 - config.contrast, 1 + config.contrast),
            rng.uniform(1 - config.saturation, 1 + config.saturation),
            rng.uniform(-config.hue, config.hue),
        ]
        row[_FACTORS] = factors if rng.random() < config.jitter else (1, 1, 1, 0)
        row[_GREYSCALE] = rng.random() < config.greyscale
        sigma = rng.uniform(*config.blur_sigma)
        row[_SIGMA] = sigma if rng.random() < config.blur[style] else 0
        row[_SOLARIZE] = rng.random() < config.solarize[style]
    return rows


def apply(views: Tensor, parameters: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Augment and normalise a batch of views on the device where `mean` and `std` are, without waiting for it.

    Args:
        views: (..., 3, H, W) uint8 RGB.
        parameters: (..., 11) as `draw_parameters` returns them, on the CPU: which views an operation touches is known
            there.
        mean: (3,) of the RGB channels, for the normalisation.
        std: (3,) likewise.

    Returns:
        (..., 3, H, W) float32.
    """
    device = mean.device
    plan = _plan(parameters.flatten(0, -2))
    indices = torch.cat([chosen for _, chosen in plan])
    if device.type == "cuda":
        indices = indices.pin_memory()
    indices = indices.to(device, non_blocking=True)
    rows = parameters.to(device, non_blocking=True).flatten(0, -2)
    x = views.to(device, non_blocking=True).flatten(0, -4).float() / 255
    for (operation, _), index in zip(plan, indices.split([len(chosen) for _, chosen in plan]), strict=True):
        if len(index):
            x.index_copy_(0, index, operation(x.index_select(0, index), rows.index_select(0, index)))
    return x.sub_(mean.view(3, 1, 1)).div_(std.view(3, 1, 1)).unflatten(0, views.shape[:-3])


def _plan(rows: Tensor) -> list[tuple[Operation, Tensor]]:
    """Return the operations in order, each with the numbers of the views that it changes."""
    plan: list[tuple[Operation, Tensor]] = []
    for step in range(4):
        for number, (identity, operation) in enumerate(_JITTER):
            chosen = (rows[:, _ORDER][:, step] == number) & (rows[:, _FACTORS][:, number] != identity)
            plan.append((operation, chosen.nonzero()[:, 0]))
    for column, operation in ((_GREYSCALE, _to_grey), (_SIGMA, _blur), (_SOLARIZE, _invert)):
        plan.append((operation, rows[:, column].nonzero()[:, 0]))
    return plan


# In the functions below x is (n, 3, H, W) in [0, 1] and a factor is (n,).


def adjust_brightness(x: Tensor, factor: Tensor) -> Tensor:
    """Blend with black."""
    return (x * factor.view(-1, 1, 1, 1)).clamp(0, 1)


def adjust_contrast(x: Tensor, factor: Tensor) -> Tensor:
    """Blend with the mean grey of the image."""
    return _blend(x, greyscale(x).mean(dim=(1, 2, 3), keepdim=True), factor)


def adjust_saturation(x: Tensor, factor: Tensor) -> Tensor:
    """Blend with the grey image."""
    return _blend(x, greyscale(x), factor)


def adjust_hue(x: Tensor, shift: Tensor) -> Tensor:
    """Turn the hue by `shift` turns of the colour circle (HSV)."""
    high, low = x.amax(1), x.amin(1)
    spread = high - low
    grey = spread == 0
    scale = torch.where(grey, 1.0, spread)
    red, green, blue = ((high - channel) / scale for channel in x.unbind(1))
    hue = torch.where(
        x[:, 0] == high,
        blue - green,
        torch.where(x[:, 1] == high, 2 + red - blue, 4 + green - red),
    )
    hue = ((hue / 6 + shift.view(-1, 1, 1)) % 1.0) * 6
    # Channel c of HSV (h, s, v) is v - v s max(0, min(k, 4 - k, 1)) with k = (offset_c + h) mod 6.
    offsets = (5 - 2 * torch.arange(3, device=x.device)).view(1, 3, 1, 1)
    k = (offsets + hue[:, None]) % 6
    weight = torch.minimum(k, 4 - k).clamp(0, 1)
    return (high[:, None] - spread[:, None] * weight).clamp(0, 1)


def greyscale(x: Tensor) -> Tensor:
    """ITU-R 601 luma in all three channels."""
    red, green, blue = x.split(1, dim=1)
    return (red * _GREY[0] + green * _GREY[1] + blue * _GREY[2]).expand_as(x)


def gaussian_blur(x: Tensor, sigma: Tensor, radius: int = 6) -> Tensor:
    """Blur with a Gaussian of standard deviation `sigma` (n,) pixels, cut at `radius`, edges mirrored."""
    n, channels, height, width = x.shape
    radius = min(radius, height - 1, width - 1)
    distance = torch.arange(-radius, radius + 1, device=x.device, dtype=x.dtype)
    kernel = torch.softmax(-0.5 * (distance / sigma[:, None]) ** 2, dim=1).repeat_interleave(channels, 0)
    planes = F.pad(x, [radius] * 4, mode="reflect").view(1, n * channels, height + 2 * radius, width + 2 * radius)
    planes = F.conv2d(planes, kernel[:, None, None, :], groups=n * channels)
    planes = F.conv2d(planes, kernel[:, None, :, None], groups=n * channels)
    return planes.view(n, channels, height, width)


def solarize(x: Tensor, threshold: float = 0.5) -> Tensor:
    """Invert what is at least as bright as `threshold`."""
    return torch.where(x >= threshold, 1 - x, x)


def _blend(x: Tensor, other: Tensor, factor: Tensor) -> Tensor:
    weight = factor.view(-1, 1, 1, 1)
    return (weight * x + (1 - weight) * other).clamp(0, 1)


Operation = Callable[[Tensor, Tensor], Tensor]
"""From (n, 3, H, W) pixels and their (n, 11) parameters to new pixels."""

_JITTER: list[tuple[float, Operation]] = [
    (1.0, lambda x, row: adjust_brightness(x, row[:, 4])),
    (1.0, lambda x, row: adjust_contrast(x, row[:, 5])),
    (1.0, lambda x, row: adjust_saturation(x, row[:, 6])),
    (0.0, lambda x, row: adjust_hue(x, row[:, 7])),
]
"""The four colour operations, each with the factor that changes nothing."""


def _to_grey(x: Tensor, row: Tensor) -> Tensor:
    return greyscale(x)


def _blur(x: Tensor, row: Tensor) -> Tensor:
    return gaussian_blur(x, row[:, _SIGMA])


def _invert(x: Tensor, row: Tensor) -> Tensor:
    return solarize(x)
