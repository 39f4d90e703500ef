"""Pictures of an evaluation among the frames of a training, found by difference hashes (Krawetz 2013).

A hash has 256 bits: whether grey falls from one cell of a 16 x 17 grid to the next.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from training.common.tiles import write_tiles
from training.data.frame_store import FrameStore
from video_distilled_encoder.errors import InputError, warn
from video_distilled_encoder.files import IMAGE_SUFFIXES, find_files, reading, write_json
from video_distilled_encoder.image_files import open_image

SIDE = 16
_SHOWN, _SIZE = 6, (320, 180)
_FLAT = 0.9
"""Share of the pixels of a label picture, at least, that equal their neighbour."""


def overlap(stores: Sequence[FrameStore], evaluation: Sequence[Path], out: Path) -> dict[str, Any]:
    """Compare all frames of the stores with all images under the folders.

    Args:
        stores: of the training.
        evaluation: folders of images.
        out: the JSON file that is written; beside it, as .png, the images nearest to a frame, each with that frame.

    Returns:
        Distances in bits of 256: the smallest of an image to a frame, and the largest of an image to its copy.

    Raises:
        InputError: there are no images.
    """
    images = find_images(evaluation)
    with ThreadPoolExecutor() as pool:
        videos = tqdm(pool.map(hash_store, stores), total=len(stores), desc="training frames", unit="video")
        frames = np.concatenate(list(videos))
        pairs = list(tqdm(pool.map(hash_with_copy, images), total=len(images), desc="evaluation images", unit="image"))
    frame_of = [(store, number) for store in stores for number in range(len(store))]
    distances = np.array([distance(frames, image) for image, _ in pairs])
    nearest = np.argsort(distances.min(1))[:_SHOWN]
    result = {
        "bits": SIDE * SIDE,
        "smallest_distance": int(distances.min()),
        "largest_distance_of_a_copy": max(int(distance(copy[None], image)[0]) for image, copy in pairs),
        "nearest_image": images[nearest[0]].name,
        "training_frames": len(frames),
        "evaluation_images": len(images),
        "evaluation": [folder.name for folder in evaluation],
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    pairs_shown = [(open_image(images[n]), _frame(*frame_of[distances[n].argmin()])) for n in nearest]
    tiles = [[np.asarray(picture.resize(_SIZE)) for picture in pair] for pair in pairs_shown]
    write_tiles(out.with_suffix(".png"), tiles, gap=8)
    write_json(out, result)
    return result


def find_images(folders: Sequence[Path]) -> list[Path]:
    """Return the photographs under folders, without the pictures of labels.

    Raises:
        InputError: there are none, or one cannot be read.
    """
    files = [path for folder in folders for path in find_files(folder, IMAGE_SUFFIXES)]
    images = sorted(path for path in files if not _is_label(path))
    if left_out := len(files) - len(images):
        warn(f"{left_out} of {len(files)} pictures are flat areas of one channel, as labels are, and are left out")
    if not images:
        raise InputError(f"there are no images under {', '.join(map(str, folders))}")
    return images


def difference_hash(image: Image.Image) -> np.ndarray:
    """Return the (256,) bits of an image."""
    cells = np.asarray(image.convert("L").resize((SIDE + 1, SIDE), Image.Resampling.BOX), dtype=np.int16)
    return (cells[:, 1:] < cells[:, :-1]).ravel()


def hash_store(store: FrameStore) -> np.ndarray:
    """Return the (frames, 256) bits of a video."""
    return np.array([difference_hash(_frame(store, number)) for number in range(len(store))])


def hash_with_copy(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return the bits of an image, and of a copy of it at half the size and in low quality."""
    whole = open_image(path)
    buffer = io.BytesIO()
    whole.reduce(2).save(buffer, "JPEG", quality=30)
    return difference_hash(whole), difference_hash(Image.open(buffer))


def distance(hashes: np.ndarray, one: np.ndarray) -> np.ndarray:
    """Return in how many bits each of (n, 256) hashes differs from one."""
    return (hashes != one).sum(1, dtype=np.int16)


def _frame(store: FrameStore, number: int) -> Image.Image:
    return Image.fromarray(store.read(number))


def _is_label(path: Path) -> bool:
    """Tell label pictures, which have a palette or one channel and flat areas, from photographs."""
    with reading(path), Image.open(path) as image:
        if image.mode not in ("P", "L", "1"):
            return False
        values = np.asarray(image)
    return bool((values[:, 1:] == values[:, :-1]).mean() > _FLAT)
