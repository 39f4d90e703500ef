"""Image folders, ROOT/SPLIT/CLASS/**/NAME.jpg, and the class tokens of their images.

The layout is torchvision's ImageFolder: ImageNet's once unpacked (its validation images sorted into folders), and that
of most other sets for classification. Classes are the folders' names, in alphabetical order.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from training.evaluation.features import extract
from training.models.model import Model
from video_distilled_encoder.errors import InputError
from video_distilled_encoder.files import IMAGE_SUFFIXES, find_files

"""Suffixes of images, torchvision's."""

SIDE = 224
CROP = 224 / 256


@dataclass
class LabelledFeatures:
    """A feature and a class for each of n images or videos."""

    features: Tensor
    """(n, C)."""
    labels: Tensor
    """(n,) int64."""


class ClassTokens(Model):
    """A model for what needs class tokens only: of the grid it keeps the mean, (B, C, 1, 1), so that caches stay small.

    Every model's images come to it alike, as in DINO's evaluations: resized to 256, of which the middle 224 are kept.
    """

    def __init__(self, model: Model) -> None:
        config = replace(model.config, crop_pct=CROP)
        super().__init__({**model.description, "grid": "mean"}, model.patch_size, config, "cpu")
        self.device = model.device
        self.model = model

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) in pixels of the input: 224, or the multiple of the patch size nearest to it."""
        return self.nearest_size(SIDE, SIDE)

    def _features(self, pixels: Tensor, layers: int) -> tuple[Tensor, Tensor]:
        cls, grid = self.model._features(pixels, layers)
        return cls, grid.mean((2, 3), keepdim=True)


def add_split_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options that name the folders of training and test images."""
    parser.add_argument("--train-split", default="train", help="folder of the training images (%(default)s)")
    parser.add_argument("--test-split", default="val", help="folder of the test images (%(default)s)")


def find_images(root: Path, split: str) -> tuple[list[tuple[Path, int]], list[str]]:
    """Return the images of ROOT/SPLIT with their class numbers, and the names of the classes.

    Raises:
        InputError: the folder is missing, has no classes, or one of them has no image.
    """
    folder = root / split
    if not folder.is_dir():
        raise InputError(f"{folder} does not exist; expected a folder per class, {split}/CLASS/NAME.jpg, in {root}")
    classes = sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    if not classes:
        raise InputError(f"{folder} holds no class; expected a folder per class, {split}/CLASS/NAME.jpg")
    of_class: dict[str, list[Path]] = {name: [] for name in classes}
    for path in find_files(folder, IMAGE_SUFFIXES):
        of_class.get(path.relative_to(folder).parts[0], []).append(path)
    items = []
    for number, (name, images) in enumerate(of_class.items()):
        if not images:
            raise InputError(
                f"the class {folder / name} holds no image ({', '.join(sorted(IMAGE_SUFFIXES))}); fill or remove it"
            )
        items += [(path, number) for path in images]
    return items, classes


def find_splits(root: Path, train: str, test: str) -> tuple[list[tuple[Path, int]], list[tuple[Path, int]], list[str]]:
    """Return the images of both splits with their class numbers, and the names of the classes.

    Raises:
        InputError: a split cannot be used, see `find_images`, or they have different classes.
    """
    train_items, classes = find_images(root, train)
    test_items, test_classes = find_images(root, test)
    if classes != test_classes:
        odd = sorted(set(classes) ^ set(test_classes))
        raise InputError(
            f"{root / train} and {root / test} must have the same classes; {len(odd)} are in one alone, e.g. {odd[0]!r}"
        )
    return train_items, test_items, classes


def load_class_tokens(
    model: Model, args: argparse.Namespace, layers: int
) -> tuple[LabelledFeatures, LabelledFeatures, list[str]]:
    """Find and encode the images of `args.train_split` and `args.test_split`.

    Returns:
        Class tokens of the training and of the test images, and the names of the classes.

    Raises:
        InputError: the folders cannot be used, or an image cannot be read.
    """
    train, test, classes = find_splits(args.data, args.train_split, args.test_split)
    encoder = ClassTokens(model)
    encoded = []
    for split, items in ((args.train_split, train), (args.test_split, test)):
        found = extract(
            encoder,
            [path for path, _ in items],
            encoder.size,
            cache=args.cache,
            layers=layers,
            crop_mode="center",
            desc=f"encode {split}",
        )
        encoded.append(LabelledFeatures(found.cls, torch.tensor([number for _, number in items])))
    return encoded[0], encoded[1], classes


def describe(args: argparse.Namespace, train: LabelledFeatures, test: LabelledFeatures, classes: int) -> dict[str, str]:
    """Return what a result says of the data."""
    parts = (("train", args.train_split, train), ("test", args.test_split, test))
    return {
        name: f"{args.data.name}/{split}, {len(part.labels)} images of {classes} classes" for name, split, part in parts
    }


def accuracy(scores: Tensor, labels: Tensor) -> dict[str, float]:
    """Return top-1 and, with more than five classes, top-5 accuracy in percent.

    Args:
        scores: (n, classes); a class with the score -inf or NaN is never a hit.
        labels: (n,).
    """
    best = scores.topk(min(5, scores.shape[1]), dim=1)
    hits = (best.indices == labels[:, None]) & (best.values > -torch.inf)
    figures = {"top1": hits[:, 0]}
    if scores.shape[1] > 5:
        figures["top5"] = hits.any(1)
    return {name: round(100 * hit.float().mean().item(), 2) for name, hit in figures.items()}
