"""Images with a depth per pixel, in 16-bit PNG files, in the layouts in which the data sets are handed out.

    nyu      nyu_train.txt, nyu_test.txt    a line a pair, SCENE/rgb_N.jpg SCENE/sync_depth_N.png FOCAL, from the root
    folder   SPLIT/rgb/NAME.jpg|png         SPLIT/depth/NAME.png

NYU Depth v2's lists are those of BTS and of the Monocular-Depth-Estimation-Toolbox; its pixels count millimetres. Lines
whose depth is called "None" are left out. A pixel of 0 has no depth in any layout.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from training.evaluation.data.labels import check_labels
from training.evaluation.data.listing import read_list
from training.evaluation.data.segmentation import Pair, match_pairs, need
from video_distilled_encoder.errors import InputError

_MODES = ("L", "I", "I;16", "I;16B", "I;16L")
_EIGHT_BITS = 255


@dataclass(frozen=True)
class Crop:
    """The part of pictures of one size that has a trusted depth."""

    size: tuple[int, int]
    """(height, width) of the pictures."""
    rows: slice
    columns: slice


EIGEN = Crop((480, 640), slice(45, 471), slice(41, 601))
"""Eigen et al. 2014's part of NYU Depth v2, as the toolbox has it."""


@dataclass(frozen=True)
class DepthLayout:
    """How a data set lies on disk."""

    splits: tuple[str, str]
    """Names of the parts to train and to test on."""
    find: Callable[[Path, str], list[Pair]]
    """(root, split) -> its pairs, those of a scene side by side, before they are checked."""
    crop: Crop | None = None

    def pairs(self, root: Path, split: str) -> list[Pair]:
        """Return the pairs of a split.

        Raises:
            InputError: files are missing, or depths do not lie as their image does.
        """
        pairs = self.find(root, split)
        for pair in pairs:
            check_labels(pair.image, pair.label)
        return pairs


@dataclass(frozen=True)
class Range:
    """What depth pictures count in, and which depths are used."""

    scale: float
    """Steps of a pixel's value in a metre."""
    least: float
    """Metres."""
    most: float
    """Metres."""

    def __post_init__(self) -> None:
        if not (self.scale > 0 and 0 < self.least < self.most < float("inf")):
            raise InputError(
                f"depths must count --depth-scale > 0 steps a metre, and 0 < --min-depth < --max-depth; "
                f"got {self.scale:g}, {self.least:g} and {self.most:g}"
            )


def find_nyu(root: Path, split: str) -> list[Pair]:
    """Return the pairs that nyu_SPLIT.txt lists, by scene.

    Raises:
        InputError: the list is missing or has a line that is no pair, or lists none.
    """
    listing = root / f"nyu_{split}.txt"
    need(listing, "nyu_train.txt and nyu_test.txt with a line 'rgb.jpg depth.png focal' a pair", root)
    pairs = []
    for line in read_list(listing):
        words = line.split()
        if len(words) not in (2, 3):
            raise InputError(f"{listing} has the line {line[:80]!r}; expected 'rgb.jpg depth.png focal'")
        if words[1] != "None":
            image, depth = (root / word.lstrip("/\\") for word in words[:2])
            pairs.append(Pair(image, depth, image.parent.relative_to(root).as_posix(), 0))
    if not pairs:
        raise InputError(f"{listing} lists no image with a depth")
    return sorted(pairs, key=lambda pair: (pair.sequence, pair.image))


def find_folder(root: Path, split: str) -> list[Pair]:
    """Return the pairs of SPLIT/rgb and SPLIT/depth."""
    images, depths = root / split / "rgb", root / split / "depth"
    for folder in (images, depths):
        need(folder, f"{split}/rgb/NAME.jpg and {split}/depth/NAME.png", root)
    return [Pair(image, depth, "", number) for number, (image, depth) in enumerate(match_pairs(images, depths))]


LAYOUTS = {
    "nyu": DepthLayout(("train", "test"), find_nyu, EIGEN),
    "folder": DepthLayout(("train", "test"), find_folder),
}


def read_depth(path: Path, within: Range, crop: Crop | None = None) -> np.ndarray:
    """Return (H, W) float32 metres, 0 where a depth is not given, outside of the range, or outside of the crop.

    Raises:
        InputError: it cannot be read, has more than one channel, has 8 bits at a scale at which these reach one metre
            at most, or is not of the crop's size.
    """
    try:
        with Image.open(path) as image:
            mode, steps = image.mode, np.asarray(image)
    except (OSError, SyntaxError, ValueError) as error:
        raise InputError(f"{path} cannot be read as a depth image: {error}") from error
    if mode not in _MODES:
        raise InputError(f"{path} is no single-channel depth image (mode {mode}); save depths as 16-bit PNG")
    if mode == "L" and within.scale >= _EIGHT_BITS:
        raise InputError(
            f"{path} has 8 bits, at most {_EIGHT_BITS / within.scale:.2g} m at --depth-scale {within.scale:g}; give "
            "the steps a metre that it counts in"
        )
    depth = steps.astype(np.float32) / np.float32(within.scale)
    known = (steps > 0) & (depth >= within.least) & (depth <= within.most)
    if crop:
        if depth.shape != crop.size:
            raise InputError(f"{path} is {depth.shape[0]} x {depth.shape[1]}, not {crop.size[0]} x {crop.size[1]}")
        inside = np.zeros_like(known)
        inside[crop.rows, crop.columns] = True
        known &= inside
    return np.where(known, depth, np.float32(0))
