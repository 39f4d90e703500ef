"""What cameras do to images: eight degradations at five severities, of uint8 RGB arrays.

Values are those of ImageNet-C (Hendrycks & Dietterich, 2019) for motion blur (ImageMagick's radius and sigma), defocus
(radius of the disc and its smoothing), sensor noise (its Gaussian noise) and JPEG. They are in pixels of the image
as it is handed in, as there, where images have 224 pixels a side; larger images are degraded less. The other four have
no counterpart there; their values are this project's.

Each is a function of (image, severity, seed, index) alone: index is the image's number, so that each image has its own
noise, direction or place, and the same one for every encoder.
"""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torchvision.transforms.functional import gaussian_blur

from video_distilled_encoder.errors import InputError

MOTION_BLUR = ((10, 3.0), (15, 5.0), (15, 8.0), (15, 12.0), (20, 15.0))
"""ImageNet-C: pixels of the trail, and sigma of its one-sided Gaussian; directions within 45 degrees of horizontal."""
DEFOCUS = ((3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5))
"""ImageNet-C: radius of the disc in pixels, and sigma that smooths its edge."""
NOISE = (0.08, 0.12, 0.18, 0.26, 0.38)
"""ImageNet-C: deviation of Gaussian noise, white being 1."""
JPEG = (25, 18, 15, 10, 7)
"""ImageNet-C: quality."""
LOW_LIGHT = (2.0, 3.0, 4.0, 5.0, 6.0)
"""Stops of light lost. The sensor counts `FULL_WELL` electrons at white, with Poisson noise; nothing brightens it."""
EXPOSURE = (0.5, 1.0, 1.5, 2.0, 2.5)
"""Stops of light too much or too little, by chance; what exceeds white is lost."""
OCCLUSION = (0.05, 0.1, 0.2, 0.3, 0.4)
"""Share of the image that a grey rectangle of the image's proportions hides."""
DROPPED_ROWS = (0.05, 0.1, 0.2, 0.3, 0.5)
"""Share of the bands of `BAND` rows that are black, as when packets are lost."""
FULL_WELL = 2000
BAND = 8
_GAMMA = 2.2


def degrade(image: np.ndarray, name: str, severity: int, *, seed: int = 0, index: int = 0) -> np.ndarray:
    """Degrade an image.

    Args:
        image: (H, W, 3) uint8 RGB.
        name: one of `DEGRADATIONS`.
        severity: 1 to 5.
        seed: of all that is drawn.
        index: the image's number.

    Returns:
        (H, W, 3) uint8.

    Raises:
        InputError: there is no such degradation or severity, or it is not such an image.
    """
    if name not in DEGRADATIONS:
        raise InputError(f"there is no degradation {name!r}; choose from {', '.join(DEGRADATIONS)}")
    if severity not in range(1, 6):
        raise InputError(f"a severity is 1, 2, 3, 4 or 5, got {severity!r}")
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise InputError(f"an image to degrade must be (H, W, 3) uint8, got {image.shape} {image.dtype}")
    rng = np.random.default_rng([seed, index, list(DEGRADATIONS).index(name), severity])
    return DEGRADATIONS[name](image, severity - 1, rng)


def motion_blur(image: np.ndarray, level: int, rng: np.random.Generator) -> np.ndarray:
    """Mix the image with copies of it shifted along a line, with weights of a one-sided Gaussian."""
    radius, sigma = MOTION_BLUR[level]
    steps = np.arange(2 * radius + 1)
    weights = np.exp(-(steps**2) / (2 * sigma**2))
    angle = np.deg2rad(rng.uniform(-45, 45))
    rows, columns = (np.rint(steps * part).astype(int) for part in (np.sin(angle), np.cos(angle)))
    reach = 2 * radius
    padded = np.pad(image, ((reach, reach), (reach, reach), (0, 0)), mode="edge").astype(np.float32)
    height, width = image.shape[:2]
    mixed = np.zeros(image.shape, dtype=np.float32)
    for weight, row, column in zip(weights / weights.sum(), rows, columns, strict=True):
        mixed += np.float32(weight) * padded[reach + row :, reach + column :][:height, :width]
    return _to_uint8(mixed)


def defocus(image: np.ndarray, level: int, rng: np.random.Generator) -> np.ndarray:
    """Blur with a disc."""
    radius, sigma = DEFOCUS[level]
    margin = max(8, radius)
    y, x = np.mgrid[-margin : margin + 1, -margin : margin + 1]
    disc = torch.from_numpy((x**2 + y**2 <= radius**2).astype(np.float32))[None]
    disc = gaussian_blur(disc / disc.sum(), [3, 3] if radius <= 8 else [5, 5], [sigma, sigma])
    disc /= disc.sum()
    pixels = torch.from_numpy(image).movedim(-1, 0).float()
    padded = F.pad(pixels[:, None], (margin,) * 4, mode="replicate")
    return _to_uint8(F.conv2d(padded, disc[None])[:, 0].movedim(0, -1).numpy())


def sensor_noise(image: np.ndarray, level: int, rng: np.random.Generator) -> np.ndarray:
    """Add Gaussian noise, independent per pixel and channel."""
    return _to_uint8(image + rng.normal(0, 255 * NOISE[level], image.shape))


def low_light(image: np.ndarray, level: int, rng: np.random.Generator) -> np.ndarray:
    """Take most light away and count what is left."""
    electrons = rng.poisson(_to_light(image) * FULL_WELL * 2.0 ** -LOW_LIGHT[level])
    return _from_light(electrons / FULL_WELL)


def exposure_jump(image: np.ndarray, level: int, rng: np.random.Generator) -> np.ndarray:
    """Expose too long or too short."""
    return _from_light(_to_light(image) * 2.0 ** (rng.choice([-1, 1]) * EXPOSURE[level]))


def jpeg(image: np.ndarray, level: int, rng: np.random.Generator) -> np.ndarray:
    """Compress."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "jpeg", quality=JPEG[level])
    return np.array(Image.open(buffer))


def occlusion(image: np.ndarray, level: int, rng: np.random.Generator) -> np.ndarray:
    """Hide a rectangle."""
    sides = [max(round(side * OCCLUSION[level] ** 0.5), 1) for side in image.shape[:2]]
    top, left = (rng.integers(0, side - hidden + 1) for side, hidden in zip(image.shape[:2], sides, strict=True))
    result = image.copy()
    result[top : top + sides[0], left : left + sides[1]] = 128
    return result


def dropped_rows(image: np.ndarray, level: int, rng: np.random.Generator) -> np.ndarray:
    """Blacken bands of rows."""
    bands = -(-len(image) // BAND)
    dropped = rng.choice(bands, max(round(bands * DROPPED_ROWS[level]), 1), replace=False)
    result = image.copy()
    result[np.isin(np.arange(len(image)) // BAND, dropped)] = 0
    return result


DEGRADATIONS: dict[str, Callable[[np.ndarray, int, np.random.Generator], np.ndarray]] = {
    "motion-blur": motion_blur,
    "defocus": defocus,
    "sensor-noise": sensor_noise,
    "low-light": low_light,
    "exposure-jump": exposure_jump,
    "jpeg": jpeg,
    "occlusion": occlusion,
    "dropped-rows": dropped_rows,
}
"""Functions of (image, severity - 1, random numbers), by name."""


def _to_uint8(image: np.ndarray) -> np.ndarray:
    return np.rint(image).clip(0, 255).astype(np.uint8)


def _to_light(image: np.ndarray) -> np.ndarray:
    """Undo the display's gamma: uint8 -> light in [0, 1]."""
    return (image / 255.0) ** _GAMMA


def _from_light(light: np.ndarray) -> np.ndarray:
    return _to_uint8(255 * light.clip(0, 1) ** (1 / _GAMMA))
