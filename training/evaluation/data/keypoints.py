"""Pairs of images of one kind of object with the same keypoints in both, in SPair-71k's layout (Min et al. 2019).

PairAnnotation/SPLIT/*.json        a pair each, SPLIT trn, val or test: category, src_imname and trg_imname,
                                   src_imsize and trg_imsize (width, height, channels), src_kps and trg_kps (x and y
                                   in pixels, as many in both), trg_bndbox (left, top, right, bottom)
JPEGImages/CATEGORY/NAME.jpg
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from training.evaluation.data.labels import check_size
from training.evaluation.data.segmentation import need
from video_distilled_encoder.errors import InputError

LAYOUT = "PairAnnotation/SPLIT/*.json and JPEGImages/CATEGORY/NAME.jpg"


@dataclass(frozen=True)
class KeypointPair:
    """Keypoints that are known in a source and a target image."""

    category: str
    source: Path
    target: Path
    source_size: tuple[int, int]
    """(width, height) in pixels."""
    target_size: tuple[int, int]
    source_points: np.ndarray
    """(k, 2) x and y in pixels, the first pixel's centre being 0."""
    target_points: np.ndarray
    """(k, 2)."""
    extent: float
    """Longer side of the box around the target's object, in pixels: what distances are measured in."""


def find_pairs(root: Path, split: str) -> list[KeypointPair]:
    """Return the pairs of a split, those of a category, and in it of a target, side by side.

    Raises:
        InputError: there are none, a description cannot be read, or an image is missing or of another size.
    """
    folder = root / "PairAnnotation" / split
    need(folder, LAYOUT, root)
    pairs = [read_pair(path, root) for path in sorted(folder.glob("*.json")) if not path.name.startswith(".")]
    if not pairs:
        raise InputError(f"{folder} holds no .json file; expected {LAYOUT} in {root}")
    sizes = {pair.source: pair.source_size for pair in pairs} | {pair.target: pair.target_size for pair in pairs}
    for image, size in sizes.items():
        check_size(image, size, f"its keypoints' image in {folder}")
    return sorted(pairs, key=lambda pair: (pair.category, pair.target, pair.source))


def read_pair(path: Path, root: Path) -> KeypointPair:
    """Read the description of a pair.

    Raises:
        InputError: it is not one of SPair-71k's.
    """
    try:
        told = json.loads(path.read_bytes())
        category = str(told["category"])
        folder = root / "JPEGImages" / category
        points = [np.array(told[f"{side}_kps"], dtype=float).reshape(-1, 2) for side in ("src", "trg")]
        sizes = [(int(told[f"{side}_imsize"][0]), int(told[f"{side}_imsize"][1])) for side in ("src", "trg")]
        left, top, right, bottom = map(float, told["trg_bndbox"])
        images = [folder / str(told[f"{side}_imname"]) for side in ("src", "trg")]
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        raise InputError(f"{path} is no description of a pair as SPair-71k has them: {error!r}") from error
    if len(points[0]) != len(points[1]) or not len(points[0]) or not np.isfinite(points).all():
        raise InputError(
            f"{path} has {len(points[0])} and {len(points[1])} keypoints; expected as many in both, from 1"
        )
    if not (right > left and bottom > top):
        raise InputError(f"{path} has the box {told['trg_bndbox']}; expected left, top, right, bottom")
    extent = max(right - left, bottom - top)
    return KeypointPair(category, images[0], images[1], sizes[0], sizes[1], points[0], points[1], extent)
