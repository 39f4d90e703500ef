"""k-NN classification: how well the nearest training images by class token tell an image's class.

The weighted k-NN of Wu et al. 2018 (Unsupervised Feature Learning via Non-Parametric Instance Discrimination) with
DINO's settings (its eval_knn.py): the class token of the last block, L2-normalised; images resized to 256, of which the
middle 224 are kept (with other patch sizes the nearest multiple), no augmentation. Each of the k nearest training
images by cosine similarity s votes for its class with weight exp(s / 0.07); k = 10, 20, 100, 200. Nothing is trained.

Top-1 and, with more than five classes, top-5 for each k. A class without a vote is never among the five; DINO's code
fills them up with any such classes. A k larger than the training set is left out with a note. The data are
ROOT/SPLIT/CLASS/NAME.jpg, see `training/evaluation/data/image_folder.py`.
"""

from __future__ import annotations

import argparse

from training.evaluation.data.image_folder import accuracy, add_split_arguments, describe, load_class_tokens
from training.evaluation.probes.nearest import TEMPERATURE, nearest, vote
from training.models.model import Model
from video_distilled_encoder.errors import InputError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the protocol's options."""
    add_split_arguments(parser)
    parser.add_argument(
        "--k", type=int, nargs="+", default=[10, 20, 100, 200], help="numbers of neighbours (10 20 100 200)"
    )


def evaluate(model: Model, args: argparse.Namespace) -> dict[str, object]:
    """Classify the test images by their neighbours among the training images."""
    train, test, classes = load_class_tokens(model, args, layers=1)
    possible = usable(args.k, len(train.labels))
    similarities, neighbours = nearest(test.features.to(model.device), train.features.to(model.device), max(possible))
    voters = train.labels[neighbours]
    figures: dict[str, float] = {}
    for k in possible:
        votes = vote(similarities[:, :k], voters[:, :k], len(classes))
        figures |= {f"k{k}_{name}": value for name, value in accuracy(votes.log(), test.labels).items()}
    setting: dict[str, object] = {
        "features": "class token, last block",
        "size": list(model.nearest_size(224, 224)),
        "k": possible,
        "temperature": TEMPERATURE,
    }
    if left_out := sorted(set(args.k) - set(possible)):
        setting["note"] = f"k = {', '.join(map(str, left_out))} left out: there are {len(train.labels)} training images"
    return {"figures": figures, "setting": setting, "data": describe(args, train, test, len(classes))}


def usable(wanted: list[int], images: int) -> list[int]:
    """Return the numbers of neighbours that a training set of so many images has.

    Raises:
        InputError: one is not positive, or there is none.
    """
    if min(wanted) < 1:
        raise InputError(f"--k {min(wanted)} is no number of neighbours; give 1 or more")
    possible = sorted({k for k in wanted if k <= images})
    if not possible:
        raise InputError(f"there are {images} training images, fewer than any k; lower --k {min(wanted)}")
    return possible
