"""A linear layer that tells the class of each pixel from frozen patch tokens: its data, its training and its score.

`training/evaluation/protocols/linear_segmentation.py` states the procedure.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from training.common.commands import parse_positive
from training.evaluation.data.labels import VOID
from training.evaluation.data.segmentation import LAYOUTS, Layout, Pair, split_names, with_future_labels
from training.evaluation.features import Features, extract
from training.evaluation.metrics.segmentation import confusion_matrix
from training.evaluation.probes.linear import StandardizedLinear
from training.models.model import Model


@dataclass
class Split:
    """One part of the data: features of n images, and where their labels are."""

    features: Tensor
    """(n, h, w, C), as `Features` has them."""
    pairs: list[Pair]
    layout: Layout

    def labels(self, number: int) -> Tensor:
        """Return the (H, W) classes of an image."""
        return torch.from_numpy(self.layout.read(self.pairs[number].label))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options that `load_splits` takes, and --steps."""
    add_data_arguments(parser)
    parser.add_argument("--steps", type=parse_positive, default=1000, help="training steps (%(default)s)")


def add_data_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options that `load_splits` takes."""
    parser.add_argument("--layout", choices=LAYOUTS, default="camvid", help="of the data (%(default)s)")
    parser.add_argument("--train-split", help="images the layer is trained on (the layout's)")
    parser.add_argument("--test-split", help="images it is tested on (the layout's)")
    parser.add_argument("--future", type=float, default=0, metavar="SECONDS", help="labels so much later (%(default)s)")
    parser.add_argument("--layers", type=int, default=1, help="last blocks whose tokens are concatenated (%(default)s)")


def load_splits(model: Model, args: argparse.Namespace) -> tuple[Split, Split]:
    """Find and encode the images to train and to test on."""
    layout = LAYOUTS[args.layout]
    found = [layout.labelled_pairs(args.data, name) for name in split_names(args)]
    height, width = layout.size or layout.read(found[0][0].label).shape
    size = model.nearest_size(height, width)
    train, test = (
        look_ahead(Split(encode_pairs(model, pairs, size, args, name).grid, pairs, layout), args.future)
        for pairs, name in zip(found, split_names(args), strict=True)
    )
    return train, test


def look_ahead(split: Split, seconds: float) -> Split:
    """Pair each image's features with the labels of the frame some seconds later in its sequence."""
    if seconds == 0:
        return split
    pairs = with_future_labels(split.pairs, seconds, split.layout.fps)
    number = {pair.image: number for number, pair in enumerate(split.pairs)}
    return Split(split.features[[number[pair.image] for pair in pairs]], pairs, split.layout)


def encode_pairs(
    model: Model, pairs: list[Pair], size: tuple[int, int], args: argparse.Namespace, name: str
) -> Features:
    """Return the features of the pairs' images."""
    images = [pair.image for pair in pairs]
    return extract(model, images, size, cache=args.cache, layers=args.layers, desc=f"encode {name}")


def describe_features(model: Model, train: Split, args: argparse.Namespace) -> dict[str, object]:
    """Return what a result says of the features."""
    return {
        "features": f"patch tokens, last {args.layers} block(s)",
        "size": [side * model.patch_size for side in train.features.shape[1:3]],
        "future": told_future(args),
    }


def told_future(args: argparse.Namespace) -> object:
    """Return what a result says of how far ahead its labels are; a bare number used to count labelled frames."""
    return f"{args.future:g} s" if args.future else 0


def class_shares(labels: Tensor, grid: tuple[int, int], classes: int) -> Tensor:
    """(H, W) labels -> (h, w, classes) share of a patch's pixels in each class; void pixels belong to none."""
    one_hot = F.one_hot(torch.where(labels == VOID, classes, labels.long()), classes + 1)[..., :classes]
    return F.adaptive_avg_pool2d(one_hot.movedim(-1, 0).float(), grid).movedim(0, -1)


def train_layer(train: Split, *, steps: int, seed: int, device: torch.device | str = "cpu") -> StandardizedLinear:
    """Train the layer on one split, of which a part at a time goes to the device."""
    torch.manual_seed(seed)
    layer = StandardizedLinear(train.features, len(train.layout.classes)).to(device)
    shares = quantized_shares(train)
    optimizer = torch.optim.AdamW(layer.parameters(), lr=1e-3, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.PolynomialLR(optimizer, steps, power=0.9)
    for _ in tqdm(range(steps), desc="linear layer", unit="step", dynamic_ncols=True):
        chosen = torch.randint(len(shares), (64,))
        labelled = shares[chosen].sum().clamp_min(1)  # all that are drawn may be void
        optimizer.zero_grad()
        for part in chosen.split(8):  # small parts stay in the processor's caches
            log_probabilities = F.log_softmax(layer(train.features[part].to(device)), dim=-1)
            (-(shares[part].to(device) * log_probabilities).sum() / labelled).backward()
        optimizer.step()
        schedule.step()
    return layer


def quantized_shares(split: Split) -> Tensor:
    """Return the class shares of all patches in 255ths, (n, h, w, classes) uint8: a quarter of the memory."""
    grid = (split.features.shape[1], split.features.shape[2])
    classes = len(split.layout.classes)
    shares = torch.empty(len(split.pairs), *grid, classes, dtype=torch.uint8)
    for number in range(len(split.pairs)):
        shares[number] = class_shares(split.labels(number), grid, classes).mul(255).round()
    return shares


def score(layer: StandardizedLinear, test: Split) -> np.ndarray:
    """Return the (classes, classes) confusion matrix of a split: pixels by label and prediction."""
    return np.sum(list(confusions(layer, test)), axis=0)


def confusions(layer: StandardizedLinear, test: Split) -> Iterator[np.ndarray]:
    """Yield the (classes, classes) confusion matrix of each image of a split."""
    for number, tokens in enumerate(test.features):
        labels = test.labels(number)
        yield confusion_matrix(predict(layer, tokens, labels.shape), labels, len(test.layout.classes))


@torch.no_grad()
def predict(layer: StandardizedLinear, tokens: Tensor, size: tuple[int, ...]) -> Tensor:
    """(h, w, C) -> (H, W) classes, on the CPU."""
    logits = layer(tokens.to(layer.mean.device)).movedim(-1, 0)[None]
    return F.interpolate(logits, tuple(size), mode="bilinear")[0].argmax(0).cpu()
