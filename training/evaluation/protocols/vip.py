"""VIP: the body parts in a video's first frame are carried to its other frames by the similarity of patch features.

Video Instance Parsing, semantic parts: 20 classes, background among them. Nothing is trained: see
`training/evaluation/probes/propagation.py` for the procedure. Frames are encoded 880 pixels wide, their height in
proportion, both in whole patches; first + 20 frames, top-10, radius 20, temperature 0.7. Labels are upsampled
bilinearly to the annotations' size. Scored by the mean IoU over the classes that occur or are predicted, from one
confusion matrix over all labelled frames; as in the public script the first frames, whose labels are given, count too:
`miou_without_first` leaves them out. Expected (VIP_Fine):

    Images/VIDEO/*.jpg
    Annotations/Category_ids/VIDEO/*.png    0-19, 255 void; one for the first frame, and for as many others as there are
    lists/val_videos.txt                    a video per line
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from training.evaluation.data.labels import VOID, check_labels, read_labels
from training.evaluation.data.listing import by_stem, read_list
from training.evaluation.features import extract
from training.evaluation.metrics.segmentation import confusion_matrix, intersection_over_union
from training.evaluation.probes.propagation import Variant, decide, labels_on_grid, propagate
from training.evaluation.statistics.figures import percent
from training.models.model import Model
from video_distilled_encoder.errors import InputError
from video_distilled_encoder.files import find_frames

CLASSES = (
    "background", "hat", "hair", "sun-glasses", "upper-clothes", "dress", "coat", "socks", "pants", "gloves", "scarf",
    "skirt", "torso-skin", "face", "right-arm", "left-arm", "right-leg", "left-leg", "right-shoe", "left-shoe",
)  # fmt: skip
VARIANT = Variant("vip", context=20, radius=20, top_k=10, temperature=0.7, width=880)
LAYOUT = "Images/VIDEO/*.jpg, Annotations/Category_ids/VIDEO/*.png and lists/val_videos.txt"


@dataclass(frozen=True)
class Video:
    """Frames in order, and the label image of each or None."""

    name: str
    images: list[Path]
    labels: list[Path | None]

    def read(self, number: int) -> np.ndarray | None:
        """Return the (H, W) classes of a frame if it is labelled.

        Raises:
            InputError: it holds a number that is no class.
        """
        path = self.labels[number]
        if path is None:
            return None
        classes = read_labels(path)
        wrong = classes[(classes >= len(CLASSES)) & (classes != VOID)]
        if wrong.size:
            raise InputError(f"{path} holds class {wrong[0]}; classes are 0 to {len(CLASSES) - 1}, and 255 for void")
        return classes


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the protocol's options."""
    parser.add_argument("--split", default="val", help="lists/SPLIT_videos.txt (%(default)s)")


def evaluate(model: Model, args: argparse.Namespace) -> dict[str, object]:
    """Propagate and score every video."""
    videos = find_videos(args.data, args.split)
    first, others = (np.zeros((len(CLASSES), len(CLASSES)), dtype=np.int64) for _ in range(2))
    sizes, labelled = set(), 0
    for video in tqdm(videos, desc="propagate", unit="video", dynamic_ncols=True):
        start = _first(video)
        height, width = start.shape
        size = VARIANT.input_size(height, width, model.patch_size)
        sizes.add(size)
        first += _count(start, start)
        for number, prediction in enumerate(predict(model, video, start, size, args), start=1):
            truth = video.read(number)
            if truth is not None:
                others += _count(prediction, truth, video.labels[number])
                labelled += 1
    iou = intersection_over_union(first + others)
    return {
        "figures": {
            "miou": percent(np.nanmean(iou)),
            "miou_without_first": percent(np.nanmean(intersection_over_union(others))),
            "iou": {name: percent(value) for name, value in zip(CLASSES, iou, strict=True) if not np.isnan(value)},
        },
        "setting": {
            **VARIANT.setting(),
            "features": "patch tokens, last block",
            "resizing": model.resizing(),
            "encoded_sizes": sorted(sizes),
        },
        "data": {
            "test": f"{args.data.name}/{args.split}, {len(videos)} videos, "
            f"{sum(len(v.images) for v in videos)} frames, {labelled + len(videos)} labelled"
        },
    }


def find_videos(root: Path, split: str) -> list[Video]:
    """Return the videos of a split.

    Raises:
        InputError: a file is missing or has no counterpart that lies as it does.
    """
    listing = root / "lists" / f"{split}_videos.txt"
    if not listing.is_file():
        raise InputError(f"{listing} does not exist; expected {LAYOUT} in {root}")
    names = [Path(line).name for line in read_list(listing)]
    if not names:
        raise InputError(f"{listing} lists no video")
    return [_find_video(root, name) for name in names]


def _find_video(root: Path, name: str) -> Video:
    images = by_stem(find_frames(root / "Images" / name, {".jpg"}))
    labels = by_stem(find_frames(root / "Annotations" / "Category_ids" / name, {".png"}))
    odd = sorted(labels.keys() - images.keys())
    if odd:
        raise InputError(f"labels of {name} in {root} are without image, e.g. {odd[:3]}; expected {LAYOUT}")
    if len(images) < 2 or next(iter(images)) not in labels or len(labels) < 2:
        raise InputError(
            f"{name} in {root} must have at least two labelled frames, the first among them; expected {LAYOUT}"
        )
    for stem, label in labels.items():
        check_labels(images[stem], label)
    return Video(name, list(images.values()), [labels.get(stem) for stem in images])


def predict(
    model: Model, video: Video, start: np.ndarray, size: tuple[int, int], args: argparse.Namespace
) -> Iterator[np.ndarray]:
    """Yield the (H, W) classes of every frame after the first, whose classes are `start`; its void is propagated."""
    numbers = np.unique(start).tolist()
    grids = extract(model, video.images, size, cache=args.cache, in_order=True, desc=f"encode {video.name}").grid
    labels = labels_on_grid(start, numbers, (grids.shape[1], grids.shape[2]))
    known = [channel for channel, number in enumerate(numbers) if number != VOID]
    for carried in propagate(grids, labels, VARIANT, model.device):
        yield decide(carried[..., known], [numbers[channel] for channel in known], start.shape)


def _first(video: Video) -> np.ndarray:
    classes = video.read(0)
    if classes is None or (classes == VOID).all():
        raise InputError(f"the first frame of {video.name} has no class; it must be labelled")
    return classes


def _count(prediction: np.ndarray, truth: np.ndarray, path: Path | None = None) -> np.ndarray:
    if prediction.shape != truth.shape:
        raise InputError(f"{path} is not of the size of the video's first label image")
    return confusion_matrix(torch.from_numpy(prediction), torch.from_numpy(truth), len(CLASSES))
