"""k-NN segmentation: how much of a scene's layout the nearest training patches tell, with nothing trained.

The retrieval of Balažević et al. 2023 (Towards In-context Scene Understanding) in a small form, with the temperature of
DINO's k-NN. Images are encoded as in linear-segmentation, at the layout's size or the nearest multiples of the patch
size. The memory bank is a random draw (--seed) of --bank training patches, L2-normalised, each with its most frequent
class; patches that are mostly void are left out. A test patch takes the votes of its k = 30 nearest in the bank by
cosine similarity s, weighted with softmax(s / 0.07). The votes are upsampled bilinearly to the labels' size: mean IoU
over the classes that occur or are predicted, pixel accuracy, and how sure they are, as in linear-segmentation.

The paper keeps soft labels of patches and up to 10,240,000 of them, from augmented images; mIoU rises with the bank, so
figures compare at equal --bank only. 40,000 patches take some two minutes for CamVid's 233 test images on two free
processor cores. With --future see linear-segmentation; for the layouts `training/evaluation/data/segmentation.py`.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from training.evaluation.data.labels import VOID
from training.evaluation.data.segmentation import describe_data, unit_names
from training.evaluation.metrics.segmentation import confusion_matrix, figures_by_unit, sum_by_unit
from training.evaluation.probes.nearest import TEMPERATURE, vote
from training.evaluation.probes.segmentation import (
    Split,
    add_data_arguments,
    class_shares,
    describe_features,
    load_splits,
)
from training.models.model import Model
from video_distilled_encoder.errors import InputError


class Bank(NamedTuple):
    """Training patches whose classes are known."""

    tokens: Tensor
    """(m, C) float32, L2-normalised."""
    labels: Tensor
    """(m,) int64."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the protocol's options."""
    add_data_arguments(parser)
    parser.add_argument("--bank", type=int, default=40_000, help="training patches kept (%(default)s)")
    parser.add_argument("--k", type=int, default=30, help="neighbours that vote (%(default)s)")


def evaluate(model: Model, args: argparse.Namespace) -> dict[str, object]:
    """Fill the bank from one split and score it on the other."""
    train, test = load_splits(model, args)
    bank = fill_bank(train, args.bank, args.seed)
    if not 1 <= args.k <= len(bank.labels):
        raise InputError(f"--k must be from 1 to the {len(bank.labels)} patches of the bank, got {args.k}")
    bank = Bank(*(tensor.to(model.device) for tensor in bank))
    return {
        "figures": figures_by_unit(
            sum_by_unit(confusions(bank, test, args.k), unit_names(test.pairs)), test.layout.classes
        ),
        "setting": {
            **describe_features(model, train, args),
            "bank": len(bank.labels),
            "k": args.k,
            "temperature": TEMPERATURE,
        },
        "data": describe_data(train.pairs, test.pairs, args),
    }


def majority(labels: Tensor, grid: tuple[int, int], classes: int) -> Tensor:
    """(H, W) labels -> (h, w) most frequent class of each patch; `VOID` where void is more frequent than any class."""
    shares = class_shares(labels, grid, classes)
    most, number = shares.max(dim=-1)
    return torch.where(most >= 1 - shares.sum(-1), number, VOID)


def fill_bank(train: Split, size: int, seed: int) -> Bank:
    """Draw labelled patches of a split at random, all of them if they are not more than `size`.

    Raises:
        InputError: no patch is labelled, or `size` is not positive.
    """
    if size < 1:
        raise InputError(f"--bank {size} is no number of patches; give 1 or more")
    grid, classes = (train.features.shape[1], train.features.shape[2]), len(train.layout.classes)
    labels = torch.stack([majority(train.labels(number), grid, classes) for number in range(len(train.pairs))])
    known = (labels.flatten() != VOID).nonzero()[:, 0]
    if not len(known):
        raise InputError(f"all patches of the {len(train.pairs)} training images are void; there is nothing to vote")
    order = torch.randperm(len(known), generator=torch.Generator().manual_seed(seed))
    chosen = known[order[:size]].sort().values
    tokens = train.features.flatten(0, 2)[chosen]
    return Bank(F.normalize(tokens.float(), dim=1), labels.flatten()[chosen])


def confusions(bank: Bank, test: Split, k: int) -> Iterator[np.ndarray]:
    """Yield the (classes, classes) confusion matrix of each image of a split: pixels by label and prediction."""
    classes = len(test.layout.classes)
    for number, tokens in enumerate(tqdm(test.features, desc="neighbours", unit="image", dynamic_ncols=True)):
        labels = test.labels(number)
        votes = patch_votes(bank, tokens.to(bank.tokens.device), k, classes).movedim(-1, 0)[None]
        prediction = F.interpolate(votes, tuple(labels.shape), mode="bilinear")[0].argmax(0).cpu()
        yield confusion_matrix(prediction, labels, classes)


def patch_votes(bank: Bank, tokens: Tensor, k: int, classes: int) -> Tensor:
    """(h, w, C) tokens -> (h, w, classes) share of the neighbours' votes for each class."""
    queries = F.normalize(tokens.flatten(0, 1).float(), dim=1)
    similarities, neighbours = (queries @ bank.tokens.T).topk(k, dim=1)
    return vote(similarities, bank.labels[neighbours], classes).unflatten(0, tuple(tokens.shape[:2]))
