"""Views: which regions of a clip's frames are cut out, and at what size. Geometry only, on the CPU, in uint8.

A method states the views it wants as a list of `View`s; this module cuts them. Boxes are drawn as torchvision's
RandomResizedCrop draws them: area and aspect ratio at random, whole pixels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from training.data.box import Box, around
from video_distilled_encoder.errors import InputError

Style = Literal["view1", "view2", "local"]
"""Which photometric augmentation a view gets: that of DINO's first or second global view, or of its local ones."""


class View(NamedTuple):
    """One crop of one frame of a clip."""

    group: str
    """Views of a group have one size and are handed over together."""
    frame: int
    """Number of the frame within the clip, from 0."""
    box: Box
    """The region, in pixels of the frame."""
    flip: bool
    """Mirrored left to right."""
    size: tuple[int, int]
    """(height, width) in pixels."""
    style: Style | None
    """Its photometric augmentation; none leaves the colours as they are."""
    arrays: Mapping[str, np.ndarray] = MappingProxyType({})
    """What the method gets beside the pixels, by name, as masks of patches; those of a group have one shape."""


@dataclass(frozen=True)
class ViewsConfig:
    """Sizes and areas of the crops."""

    pre_crop_area: tuple[float, float] | None = (0.05, 0.20)
    """Area of the pre-crop as a share of the frame (paper, section 3.1); null for no pre-crop."""
    pre_crop_side: int = 0
    """Least size of the pre-crop in pixels, the side of a square of its area: of small frames it is a larger share than
    `pre_crop_area`, up to all of them, for a few pixels magnified teach nothing."""
    pre_crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """Aspect ratio of the pre-crop (unstated in the papers)."""
    global_size: int = 224
    """Side of a global view in pixels."""
    global_area: tuple[float, float] = (0.4, 1.0)
    """Area of a global view as a share of the pre-crop (DINO)."""
    local_size: int = 96
    """Side of a local view in pixels."""
    local_area: tuple[float, float] = (0.05, 0.4)
    """Area of a local view as a share of the region it is drawn from (DINO)."""
    local_views: int = 5
    """Local views per future frame (paper, section 3.1); of dino and ibot per clip."""
    local_from: Literal["pre_crop", "frame"] = "pre_crop"
    """The region that local views are drawn from (unstated in the papers)."""
    low_resolution: float = 0.0
    """Share of the run, from its start, with views of half the side: a fifth of the arithmetic."""
    end_sizes: tuple[int, ...] = ()
    """Sides of a global view in the last part of a run, one a step in turn (EUPE, third stage)."""
    end_share: float = 0.1
    """How much of the run that part is."""
    flip: float = 0.5
    """Probability of a mirrored view (DINO)."""
    flip_shared: bool = True
    """One flip for the global views of all frames of a clip, so that they show the same region (unstated)."""

    def __post_init__(self) -> None:
        for name in ("pre_crop_area", "global_area", "local_area"):
            low, high = getattr(self, name) or (1.0, 1.0)
            if not 0 < low <= high <= 1:
                raise InputError(f"views.{name} must be two shares 0 < low <= high <= 1, got {[low, high]}")
        low, high = self.pre_crop_ratio
        if not 0 < low <= high:
            raise InputError(f"views.pre_crop_ratio must be 0 < low <= high, got {[low, high]}")
        if self.pre_crop_side < 0:
            raise InputError(f"views.pre_crop_side is a number of pixels, got {self.pre_crop_side}")
        if not 0 <= self.flip <= 1:
            raise InputError(f"views.flip must be a probability, got {self.flip}")
        if not 0 <= self.low_resolution <= 1:
            raise InputError(f"views.low_resolution is a share of the run, in [0, 1], got {self.low_resolution}")
        if self.end_sizes and not 0 < self.end_share <= 1 - self.low_resolution:
            raise InputError(
                f"views.end_share is a share of what views.low_resolution {self.low_resolution:g} leaves of the run, "
                f"got {self.end_share}"
            )
        if self.local_views < 0:
            raise InputError(f"views.local_views must not be negative, got {self.local_views}")

    def check_sizes(self, patch: int) -> None:
        """Raise an InputError if a size is no multiple of the backbone's patches, at low resolution too."""
        multiple = 2 * patch if self.low_resolution else patch
        for name in ("global_size", "local_size"):
            if getattr(self, name) < multiple or getattr(self, name) % multiple:
                raise InputError(f"views.{name} must be a multiple of {multiple}, got {getattr(self, name)}")
        if any(size < patch or size % patch for size in self.end_sizes):
            raise InputError(f"views.end_sizes must be multiples of {patch}, got {list(self.end_sizes)}")

    def phases(self) -> list[float]:
        """Return where in the run, by its progress, the sizes change."""
        return [self.low_resolution, 1 - self.end_share] if self.end_sizes else [self.low_resolution]

    def turns(self, progress: float) -> int:
        """Return after how many steps the sizes come again."""
        return len(self.end_sizes) if self.end_sizes and progress >= 1 - self.end_share else 1

    def at(self, progress: float, step: int = 0) -> ViewsConfig:
        """Return the settings in force in a step when a share `progress` of the run is over."""
        if progress < self.low_resolution or self.low_resolution == 1:
            return replace(self, global_size=self.global_size // 2, local_size=self.local_size // 2, low_resolution=0.0)
        if self.end_sizes and progress >= 1 - self.end_share:
            return replace(self, global_size=self.end_sizes[step % len(self.end_sizes)])
        return self


def random_box(
    rng: np.random.Generator,
    region: Box,
    area: tuple[float, float],
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
) -> Box:
    """Draw a box inside `region`, as torchvision's RandomResizedCrop does.

    Args:
        rng: source of randomness.
        region: where the box must lie.
        area: its area, as a share of the region's, drawn uniformly.
        ratio: its width over height, drawn log-uniformly.
    """
    for _ in range(10):
        target = region.width * region.height * rng.uniform(*area)
        aspect = math.exp(rng.uniform(math.log(ratio[0]), math.log(ratio[1])))
        width, height = round(math.sqrt(target * aspect)), round(math.sqrt(target / aspect))
        if 0 < width <= region.width and 0 < height <= region.height:
            left = region.left + int(rng.integers(region.width - width + 1))
            top = region.top + int(rng.integers(region.height - height + 1))
            return Box(left, top, width, height)
    # No fit: the largest centred box with an allowed aspect ratio.
    aspect = min(max(region.width / region.height, ratio[0]), ratio[1])
    width = min(region.width, max(round(region.height * aspect), 1))
    height = min(region.height, max(round(region.width / aspect), 1))
    return Box(region.left + (region.width - width) // 2, region.top + (region.height - height) // 2, width, height)


def pre_crop(rng: np.random.Generator, size: tuple[int, int], config: ViewsConfig) -> tuple[Box, Box]:
    """Return the whole frame of `size` (width, height), and the region in it that views are cut from."""
    frame = Box(0, 0, *size)
    if config.pre_crop_area is None:
        return frame, frame
    least = min(1.0, config.pre_crop_side**2 / (size[0] * size[1]))
    low, high = (max(share, least) for share in config.pre_crop_area)
    return frame, random_box(rng, frame, (low, high), config.pre_crop_ratio)


def cut(pixels: Tensor, box: Box, size: tuple[int, int], flip: bool) -> Tensor:
    """Return a box of (H, W, 3) uint8 pixels as (3, h, w): resized (bicubic, antialiased), mirrored if asked."""
    crop = pixels[box.top : box.top + box.height, box.left : box.left + box.width].permute(2, 0, 1)
    resized = F.interpolate(crop[None], size, mode="bicubic", antialias=True)[0]
    return resized.flip(2) if flip else resized


def cut_all(read: Callable[[int, Box, int], np.ndarray], views: Sequence[View], reduced: bool = False) -> list[Tensor]:
    """Cut views from the frames of a clip, of each of which only the region that they cover is read.

    Args:
        read: returns a region of a frame of the clip at 1/n of its size as (H, W, 3) uint8.
        views: what to cut.
        reduced: read a frame at 1/2, 1/4 or 1/8 of its size where its views are so much smaller.

    Returns:
        The views, in order, as (3, h, w) uint8.
    """
    frames = {}
    for number in {view.frame for view in views}:
        of_frame = [view for view in views if view.frame == number]
        scale = largest_scale(of_frame) if reduced else 1
        region = around(view.box for view in of_frame).widened(scale)
        frames[number] = torch.from_numpy(read(number, region, scale)), region, scale
    cuts = []
    for view in views:
        pixels, region, scale = frames[view.frame]
        cuts.append(cut(pixels, view.box.within(region).divided(scale), view.size, view.flip))
    return cuts


def largest_scale(views: Sequence[View]) -> int:
    """Return by which of 1, 2, 4 and 8 a frame may be divided so that all its views have still twice their pixels."""
    spare = min(min(view.box.height / view.size[0], view.box.width / view.size[1]) for view in views) / 2
    return max(scale for scale in (1, 2, 4, 8) if scale == 1 or scale <= spare)
