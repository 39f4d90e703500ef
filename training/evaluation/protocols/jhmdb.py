"""JHMDB: the joints in a video's first frame are carried to its other frames by the similarity of patch features.

Nothing is trained: see `training/evaluation/probes/propagation.py` for the procedure. Frames are squashed to 320 x 320;
first + 20 frames, top-7, radius 20, temperature 0.7. Each of the 15 joints is a Gaussian on the grid of patches
(deviation half a patch, 1 at its top), and is found again at the weighted mean of the 3 highest patches. Scored by PCK:
the share of the joints within 0.1 (0.2) of 0.6 x the diagonal of the box around the person's joints, of all frames but
the first, the mean over the 15 kinds of joints. A joint that is outside the first frame is left out. These are the
rules of the public code of videowalk, except that a patch stands for its centre and that joints are not rounded to
patches. Expected:

    Rename_Images/ACTION/VIDEO/*.png
    joint_positions/ACTION/VIDEO/joint_positions.mat     pos_img, 2 x 15 x frames: x and y, counted from 1
    splits/ACTION_test_splitN.txt                        as handed out: "VIDEO.avi 2" is a video to test on
    or testlist_splitN.txt                               videowalk's list: folder of frames and .mat file in each line,
                                                         from the data's folder or absolute
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from training.evaluation.data.listing import read_list, split_use
from training.evaluation.features import extract
from training.evaluation.probes.propagation import Variant, propagate
from training.evaluation.statistics.figures import percent
from training.models.model import Model
from video_distilled_encoder.errors import InputError, import_extra
from video_distilled_encoder.files import find_frames

JOINTS = (
    "neck", "belly", "face", "right-shoulder", "left-shoulder", "right-hip", "left-hip", "right-elbow", "left-elbow",
    "right-knee", "left-knee", "right-wrist", "left-wrist", "right-ankle", "left-ankle",
)  # fmt: skip
VARIANT = Variant("jhmdb", context=20, radius=20, top_k=7, temperature=0.7, size=(320, 320))
DEVIATION = 0.5
"""Of a joint's Gaussian, in patches."""
PEAK = 3
"""Patches that a joint's place is the mean of."""
BOX = 0.6
"""Of the diagonal of the joints' box: the length that distances are measured in."""
THRESHOLDS = (0.1, 0.2)
LAYOUT = (
    "Rename_Images/ACTION/VIDEO/*.png, joint_positions/ACTION/VIDEO/joint_positions.mat and "
    "splits/ACTION_test_split1.txt, or testlist_split1.txt"
)


@dataclass(frozen=True)
class Video:
    """Frames in order, and where their joints are."""

    name: str
    images: list[Path]
    joints: np.ndarray
    """(n, 15, 2) x and y of each joint, in pixels, the first pixel's centre being 0."""
    size: tuple[int, int]
    """(height, width) of the frames in pixels."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the protocol's options."""
    parser.add_argument("--split", type=int, choices=(1, 2, 3), default=1, help="number of the split (%(default)s)")


def evaluate(model: Model, args: argparse.Namespace) -> dict[str, object]:
    """Propagate and score every video."""
    places = find_videos(args.data, args.split)
    size = VARIANT.input_size(0, 0, model.patch_size)
    distances, frames = [], 0
    for folder, positions in tqdm(places, desc="propagate", unit="video", dynamic_ncols=True):
        video = read_video(folder, positions)
        grids = extract(model, video.images, size, cache=args.cache, in_order=True, desc=f"encode {video.name}").grid
        distances.append(relative_distances(np.stack(list(track(video, grids, model))), video))
        frames += len(video.images)
    per_joint = {limit: pck(np.concatenate(distances), limit) for limit in THRESHOLDS}
    return {
        "figures": {
            **{f"pck_{limit}": percent(np.nanmean(values)) for limit, values in per_joint.items()},
            "joints": {
                name: {f"pck_{limit}": percent(values[number]) for limit, values in per_joint.items()}
                for number, name in enumerate(JOINTS)
                if not np.isnan(per_joint[THRESHOLDS[0]][number])
            },
        },
        "setting": {
            **VARIANT.setting(),
            "features": "patch tokens, last block",
            "resizing": model.resizing(),
            "encoded_size": list(size),
            "gaussian_deviation": DEVIATION,
            "normalised_by": f"{BOX} x diagonal of the joints' box",
        },
        "data": {"test": f"{args.data.name}/split {args.split}, {len(places)} videos, {frames} frames"},
    }


def track(video: Video, grids: Tensor, model: Model) -> Iterator[np.ndarray]:
    """Yield the (15, 2) x and y of the joints in each frame after the first, NaN for a joint that is lost."""
    grid = (grids.shape[1], grids.shape[2])
    labels = draw_joints(video.joints[0], video.size, grid)
    for carried in propagate(grids, labels, VARIANT, model.device):
        yield find_joints(carried.cpu(), video.size)


def draw_joints(joints: np.ndarray, size: tuple[int, int], grid: tuple[int, int]) -> Tensor:
    """Return (h, w, J) Gaussians at the joints; nothing for a joint outside the frame.

    Args:
        joints: (J, 2) x and y in pixels.
        size: (height, width) of the frame in pixels.
        grid: (h, w).
    """
    height, width = size
    x = (joints[:, 0] + 0.5) / width
    y = (joints[:, 1] + 0.5) / height
    inside = (x >= 0) & (x < 1) & (y >= 0) & (y < 1)
    rows = np.arange(grid[0])[:, None, None] + 0.5 - y * grid[0]
    columns = np.arange(grid[1])[:, None] + 0.5 - x * grid[1]
    return torch.from_numpy(np.exp(-(rows**2 + columns**2) / (2 * DEVIATION**2)) * inside).float()


def find_joints(maps: Tensor, size: tuple[int, int]) -> np.ndarray:
    """(h, w, J) -> (J, 2) x and y in pixels of a frame of `size`; NaN for an empty map."""
    height, width, _ = maps.shape
    values, places = maps.flatten(0, 1).double().topk(min(PEAK, height * width), dim=0)
    weights = values / values.sum(0)
    x = ((places % width + 0.5) * weights).sum(0) / width * size[1] - 0.5
    y = ((places // width + 0.5) * weights).sum(0) / height * size[0] - 0.5
    return torch.stack([x, y], dim=1).numpy()


def relative_distances(found: np.ndarray, video: Video) -> np.ndarray:
    """Return (n - 1, 15): how far joints are from their place, in `BOX` diagonals of the joints' box; NaN if left out.

    Args:
        found: (n - 1, 15, 2) joints in the frames after the first.
        video: where they are; the box is of those inside the first frame.
    """
    height, width = video.size
    first = video.joints[0] + 0.5
    used = ((first >= 0) & (first < (width, height))).all(-1)
    truth = video.joints[1:]
    if not used.any():
        return np.full(truth.shape[:2], np.nan)
    box = np.ptp(truth[:, used], axis=1)
    length = BOX * np.hypot(box[:, 0], box[:, 1])
    distances = np.linalg.norm(found - truth, axis=-1) / np.maximum(length, 1e-6)[:, None]
    return np.where(used, np.where(np.isnan(distances), np.inf, distances), np.nan)


def pck(distances: np.ndarray, limit: float) -> np.ndarray:
    """(n, J) distances -> (J,) share of each joint's that are within the limit; NaN for one that never counts."""
    counted = ~np.isnan(distances)
    right = (np.where(counted, distances, np.inf) <= limit).sum(0)
    return np.divide(right, counted.sum(0), out=np.full(len(right), np.nan), where=counted.any(0))


def find_videos(root: Path, split: int) -> list[tuple[Path, Path]]:
    """Return the folder of frames and the .mat file of each video to test on.

    Raises:
        InputError: no list is there, or a video of it is not.
    """
    listing = root / f"testlist_split{split}.txt"
    if listing.is_file():
        places = [_place(root, line, listing) for line in read_list(listing)]
    else:
        places = _official_places(root, split)
    if not places:
        raise InputError(f"no video to test on for split {split}; expected {LAYOUT} in {root}")
    for place in (path for pair in places for path in pair):
        if not place.exists():
            raise InputError(f"{place} does not exist; expected {LAYOUT} in {root}")
    return places


def _place(root: Path, line: str, listing: Path) -> tuple[Path, Path]:
    """Return the two paths of a line; of the gaps at which names with spaces may end, the one that leaves two paths."""
    gaps = list(re.finditer(r"\s+", line))
    places = [(root / line[: gap.start()], root / line[gap.end() :]) for gap in gaps]
    if not places or (len(places) > 1 and not any(folder.is_dir() for folder, _ in places)):
        raise InputError(f"{listing} must hold a folder of frames and a .mat file in each line")
    return next((place for place in places if place[0].is_dir() and place[1].is_file()), places[0])


def _official_places(root: Path, split: int) -> list[tuple[Path, Path]]:
    ending = f"_test_split{split}.txt"
    places = []
    for listing in sorted((root / "splits").glob(f"*{ending}")):
        action = listing.name.removesuffix(ending)
        for line in read_list(listing):
            video, part = split_use(line)
            if part == "2":
                name = video.removesuffix(".avi")
                positions = root / "joint_positions" / action / name / "joint_positions.mat"
                places.append((root / "Rename_Images" / action / name, positions))
    return places


def read_video(folder: Path, positions: Path) -> Video:
    """Read a video's joints and list its frames; frames beyond the labelled ones are left out.

    Raises:
        InputError: the joints cannot be read, or there are more of them than frames.
    """
    joints = read_joints(positions)
    images = find_frames(folder, {".png"})
    if not 2 <= len(joints) <= len(images):
        raise InputError(
            f"{folder} has {len(images)} frames, {positions} {len(joints)}; at least 2 and no fewer frames"
        )
    with Image.open(images[0]) as image:
        size = (image.height, image.width)
    return Video(folder.name, images[: len(joints)], joints, size)


def read_joints(path: Path) -> np.ndarray:
    """Return the (n, 15, 2) x and y of a joint_positions.mat, counted from 0.

    Raises:
        InputError: scipy is missing, or the file is not one of JHMDB's.
    """
    matlab = import_extra("scipy.io.matlab", "evaluation")
    try:
        positions = np.asarray(matlab.loadmat(str(path))["pos_img"], dtype=float)
    except (OSError, ValueError, TypeError, KeyError, NotImplementedError, matlab.MatReadError) as error:
        raise InputError(f"{path} cannot be read as JHMDB's joint positions: {error}") from error
    if positions.ndim != 3 or positions.shape[:2] != (2, len(JOINTS)):
        raise InputError(f"pos_img in {path} has shape {positions.shape}, expected (2, {len(JOINTS)}, frames)")
    return positions.transpose(2, 1, 0) - 1
