"""Images with a class per pixel, in the layouts in which the data sets are handed out.

    camvid   SPLIT/NAME.jpg|png                              SPLITannot/NAME.png           0-10, 11 void (SegNet's)
    vspw     data/VIDEO/origin/*.jpg   SPLIT.txt (videos)    data/VIDEO/mask/*.png         1-124, others void
    ade20k   images/SPLIT/*.jpg  (training, validation)      annotations/SPLIT/*.png       1-150, 0 void

Labels are handed on with classes counted from 0 and void as 255. NAME is SEQUENCE_NUMBER in camvid, and a NUMBER in
vspw: frames of the video, of which camvid has 30 a second and vspw 15. All lie as their images do, see
`training/evaluation/data/labels.py`.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import numpy as np

from training.evaluation.data.labels import VOID, check_labels, read_labels
from training.evaluation.data.listing import by_stem, read_list
from training.evaluation.data.partners import find_partners
from video_distilled_encoder.errors import InputError
from video_distilled_encoder.files import find_frames

CAMVID_CLASSES = (
    "Sky", "Building", "Pole", "Road", "Pavement", "Tree", "SignSymbol", "Fence", "Car", "Pedestrian", "Bicyclist",
)  # fmt: skip
UNITS = 12
"""Least number of recordings that are not cut into runs."""


class Pair(NamedTuple):
    """One labelled image."""

    image: Path
    label: Path
    sequence: str
    """The video it is from; empty if it is from none."""
    frame: int
    """Its number within the sequence."""


@dataclass(frozen=True)
class Layout:
    """How a data set lies on disk."""

    classes: tuple[str, ...]
    """Names, by number."""
    first: int
    """The number that the label images give to class 0."""
    size: tuple[int, int] | None
    """(height, width) in pixels that images are encoded at; their own, in whole patches, if None."""
    splits: tuple[str, str]
    """Names of the parts to train and to test on."""
    find: Callable[[Path, str], list[Pair]]
    """What `pairs` returns, before it is checked."""
    voids: tuple[int, ...]
    """Numbers in label images that mean no class."""
    fps: float | None = None
    """Frames of a sequence in a second, as they are numbered; None if there are no sequences."""

    def pairs(self, root: Path, split: str) -> list[Pair]:
        """Return the labelled images of a split, sequences in order.

        Raises:
            InputError: files are missing, or labels do not lie as their image does.
        """
        pairs = self.find(root, split)
        for pair in pairs:
            check_labels(pair.image, pair.label)
        return pairs

    def labelled_pairs(self, root: Path, split: str) -> list[Pair]:
        """Return the same, if a pixel of them has a class.

        Raises:
            InputError: all are void, or as of `pairs`.
        """
        pairs = self.pairs(root, split)
        if not any((self.read(pair.label) != VOID).any() for pair in pairs):
            raise InputError(
                f"every pixel of the {len(pairs)} label pictures of {root / split} is void "
                f"({', '.join(map(str, self.voids))}); check that the labels are of this layout"
            )
        return pairs

    def read(self, path: Path) -> np.ndarray:
        """Return (H, W) uint8 classes, `VOID` where there is none.

        Raises:
            InputError: it cannot be read, is not a single-channel 8-bit image, or holds a number that is no class.
        """
        labels = read_labels(path).astype(np.int64)
        void = np.isin(labels, self.voids)
        labels -= self.first
        wrong = ~void & ((labels < 0) | (labels >= len(self.classes)))
        if wrong.any():
            last = self.first + len(self.classes) - 1
            raise InputError(
                f"{path} holds class {labels[wrong][0] + self.first}; classes are {self.first} to {last}, and "
                f"{', '.join(map(str, self.voids))} for void"
            )
        labels[void] = VOID
        return labels.astype(np.uint8)


def find_camvid(root: Path, split: str) -> list[Pair]:
    """Return the pairs of SPLIT/ and SPLITannot/; names are SEQUENCE_NUMBER."""
    images, labels = root / split, root / f"{split}annot"
    need(images, f"{split}/NAME.jpg and {split}annot/NAME.png", root)
    need(labels, f"{split}/NAME.jpg and {split}annot/NAME.png", root)
    return [_numbered(image, label) for image, label in match_pairs(images, labels)]


def find_vspw(root: Path, split: str) -> list[Pair]:
    """Return the frames of the videos that SPLIT.txt lists."""
    listing = root / f"{split}.txt"
    need(listing, f"{split}.txt with a video per line, data/VIDEO/origin and data/VIDEO/mask", root)
    pairs = []
    for video in read_list(listing):
        folder = root / "data" / video
        need(folder / "origin", "data/VIDEO/origin/*.jpg and data/VIDEO/mask/*.png", root)
        for image, label in match_pairs(folder / "origin", folder / "mask"):
            pairs.append(_numbered(image, label)._replace(sequence=video))
    return pairs


def find_ade20k(root: Path, split: str) -> list[Pair]:
    """Return the pairs of images/SPLIT and annotations/SPLIT."""
    images, labels = root / "images" / split, root / "annotations" / split
    need(images, f"images/{split}/*.jpg and annotations/{split}/*.png", root)
    need(labels, f"images/{split}/*.jpg and annotations/{split}/*.png", root)
    return [Pair(image, label, "", number) for number, (image, label) in enumerate(match_pairs(images, labels))]


LAYOUTS = {
    "camvid": Layout(CAMVID_CLASSES, 0, None, ("train", "test"), find_camvid, (11,), 30),
    "vspw": Layout(tuple(str(n) for n in range(1, 125)), 1, (480, 848), ("train", "val"), find_vspw, (0, 254, 255), 15),
    "ade20k": Layout(
        tuple(str(n) for n in range(1, 151)), 1, (512, 512), ("training", "validation"), find_ade20k, (0,)
    ),
}


def split_names(args: argparse.Namespace) -> tuple[str, str]:
    """Return the names of the parts to train and to test on."""
    train, test = LAYOUTS[args.layout].splits
    return args.train_split or train, args.test_split or test


def describe_data(train: list[Pair], test: list[Pair], args: argparse.Namespace) -> dict[str, str]:
    """Return what a result says of the data."""
    return describe_parts(args.data, split_names(args), (train, test))


def describe_parts(root: Path, splits: Sequence[str], parts: Sequence[list[Pair]]) -> dict[str, str]:
    """Return what a result says of the images to train and to test on."""
    return {
        name: f"{root.name}/{split}, {len(part)} images"
        for name, split, part in zip(("train", "test"), splits, parts, strict=True)
    }


def unit_names(pairs: Sequence[Pair]) -> list[str]:
    """Return for each labelled image the unit it is of, by which results are compared: a recording, or a part of one.

    Images of one recording resemble each other. Where there are fewer than `UNITS` recordings, which is too few to tell
    anything by, they are cut into runs of images, about `UNITS` in all; so are images of no recording, in their order.
    """
    recordings = [list(group) for _, group in groupby(pairs, key=lambda pair: pair.sequence)]
    names = []
    for recording in recordings:
        share = 1 if len(recordings) >= UNITS else max(round(UNITS * len(recording) / len(pairs)), 1)
        for run in np.array_split(np.arange(len(recording)), min(share, len(recording))):
            first = recording[run[0]]
            name = f"from {first.image.stem}" if share > 1 else first.sequence or first.image.stem
            names += [f"{first.sequence} {name}" if name in names else name] * len(run)
    return names


def with_future_labels(pairs: list[Pair], seconds: float, fps: float | None) -> list[Pair]:
    """Give each image the labels of the frame some seconds later in its sequence; those that have none go.

    Args:
        pairs: labelled images, sequences in order.
        seconds: how much later, as `find_partners` has it.
        fps: frames of a sequence in a second, as they are numbered.

    Raises:
        InputError: no two labelled frames lie so far apart, or `seconds` is negative.
    """
    if seconds == 0:
        return pairs
    if seconds < 0:
        raise InputError(f"--future is a number of seconds ahead, from 0, got {seconds:g}")
    if fps is None or not any(pair.sequence for pair in pairs):
        raise InputError("--future needs labelled frames of videos, and these images are of none; leave it out")
    future = []
    for _, group in groupby((pair for pair in pairs if pair.sequence), key=lambda pair: pair.sequence):
        sequence = list(group)
        frames = np.array([pair.frame for pair in sequence])
        later, close = find_partners(frames, seconds * fps)
        future += [
            now._replace(label=sequence[other].label)
            for now, other, fits in zip(sequence, later, close, strict=True)
            if fits
        ]
    if not future:
        raise InputError(
            f"no sequence has two labelled frames {seconds:g} s apart, at {fps:g} a second; lower --future"
        )
    return future


def _numbered(image: Path, label: Path) -> Pair:
    match = re.fullmatch(r"(.*?)_?([0-9]+)", image.stem)
    return Pair(image, label, match[1], int(match[2])) if match else Pair(image, label, "", 0)


def match_pairs(images: Path, labels: Path) -> list[tuple[Path, Path]]:
    """Return the pictures of two folders that have one name, in their order; labels are PNG files.

    Raises:
        InputError: a picture has no partner, or there are none.
    """
    found, masks = by_stem(find_frames(images)), by_stem(find_frames(labels, {".png"}))
    if not found or found.keys() != masks.keys():
        odd = sorted(found.keys() ^ masks.keys())
        raise InputError(f"images in {images} and labels in {labels} do not match, e.g. {odd[:3] or 'both empty'}")
    return [(found[name], masks[name]) for name in found]


def need(path: Path, layout: str, root: Path) -> None:
    """Check that a path exists, and say else how the data should lie.

    Raises:
        InputError: it does not.
    """
    if not path.exists():
        raise InputError(f"{path} does not exist; expected {layout} in {root}")
