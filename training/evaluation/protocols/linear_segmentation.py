"""Linear segmentation: how much of a scene's layout one linear layer reads from frozen patch tokens.

Images are stretched to the layout's size, or to the nearest multiples of the patch size; the features are the patch
tokens of the last block, or of several (--layers 4), standardised per channel with the training images' mean and
deviation. One linear layer is trained for 1,000 steps of 64 images (the papers' Fast-LP; the optimiser is not stated
there: AdamW 1e-3, weight decay 1e-4, polynomial decay). Its loss is the cross-entropy of every labelled pixel with its
patch's prediction, computed from the share of each class in each patch. For the score, logits are upsampled bilinearly
to the labels' size: mean IoU over the classes that occur.

With --future N each image's features must tell the labels of the N-th labelled frame after it (1 s in most sequences of
CamVid). For the layouts of the data see `training/evaluation/data/segmentation.py`.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from training.evaluation.data.segmentation import LAYOUTS, VOID, Layout, Pair, with_future_labels
from training.evaluation.features import Features, extract
from training.evaluation.statistics.figures import percent
from training.models.loading import Model


@dataclass
class Split:
    """One part of the data: features of n images, and where their labels are."""

    features: Tensor
    """(n, h, w, C) float16."""
    pairs: list[Pair]
    layout: Layout

    def labels(self, number: int) -> Tensor:
        """Return the (H, W) classes of an image."""
        return torch.from_numpy(self.layout.read(self.pairs[number].label))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the protocol's options."""
    add_data_arguments(parser)
    parser.add_argument("--steps", type=int, default=1000, help="training steps (%(default)s)")


def add_data_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options that `load_splits` takes."""
    parser.add_argument("--layout", choices=LAYOUTS, default="camvid", help="of the data (%(default)s)")
    parser.add_argument("--train-split", help="images the layer is trained on (the layout's)")
    parser.add_argument("--test-split", help="images it is tested on (the layout's)")
    parser.add_argument("--future", type=int, default=0, help="labels of the N-th next labelled frame (%(default)s)")
    parser.add_argument("--layers", type=int, default=1, help="last blocks whose tokens are concatenated (%(default)s)")


def evaluate(model: Model, args: argparse.Namespace) -> dict[str, object]:
    """Train the layer on one split and score it on the other."""
    train, test = load_splits(model, args)
    layer = train_layer(train, steps=args.steps, seed=args.seed)
    return {
        "figures": figures_of(score(layer, test), test.layout),
        "setting": {**describe_features(model, train, args), "steps": args.steps, "batch": 64},
        "data": describe_data(train, test, args),
    }


def figures_of(confusion: np.ndarray, layout: Layout) -> dict[str, object]:
    """Return mean IoU, pixel accuracy and the IoU of each class, in percent; None for one that is nowhere."""
    iou = intersection_over_union(confusion)
    return {
        "miou": percent(np.nanmean(iou)),
        "pixel_accuracy": percent(np.trace(confusion) / confusion.sum()),
        "iou": {name: percent(v) for name, v in zip(layout.classes, iou, strict=True)},
    }


def describe_features(model: Model, train: Split, args: argparse.Namespace) -> dict[str, object]:
    """Return what a result says of the features."""
    return {
        "features": f"patch tokens, last {args.layers} block(s)",
        "size": [side * model.patch_size for side in train.features.shape[1:3]],
        "future": args.future,
    }


def describe_data(train: Split, test: Split, args: argparse.Namespace) -> dict[str, str]:
    """Return what a result says of the data."""
    return {
        name: f"{args.data.name}/{split}, {len(part.pairs)} images"
        for name, split, part in zip(("train", "test"), split_names(args), (train, test), strict=True)
    }


def split_names(args: argparse.Namespace) -> tuple[str, str]:
    """Return the names of the parts to train and to test on."""
    train, test = LAYOUTS[args.layout].splits
    return args.train_split or train, args.test_split or test


def load_splits(model: Model, args: argparse.Namespace) -> tuple[Split, Split]:
    """Find and encode the images to train and to test on."""
    layout = LAYOUTS[args.layout]
    found = [layout.find(args.data, name) for name in split_names(args)]
    height, width = layout.size or layout.read(found[0][0].label).shape
    size = model.nearest_size(height, width)
    train, test = (
        look_ahead(Split(encode_pairs(model, pairs, size, args, name).grid, pairs, layout), args.future)
        for pairs, name in zip(found, split_names(args), strict=True)
    )
    return train, test


def look_ahead(split: Split, steps: int) -> Split:
    """Pair each image's features with the labels of the image `steps` labelled frames later in its sequence."""
    if steps == 0:
        return split
    pairs = with_future_labels(split.pairs, steps)
    number = {pair.image: number for number, pair in enumerate(split.pairs)}
    return Split(split.features[[number[pair.image] for pair in pairs]], pairs, split.layout)


def encode_pairs(
    model: Model, pairs: list[Pair], size: tuple[int, int], args: argparse.Namespace, name: str
) -> Features:
    """Return the features of the pairs' images."""
    images = [pair.image for pair in pairs]
    return extract(model, images, size, cache=args.cache, layers=args.layers, desc=f"encode {name}")


class StandardizedLinear(nn.Module):
    """One linear layer on features standardised per channel; the standardisation is folded into its weights.

    Args:
        tokens: (..., C) features that mean and deviation are taken from.
        classes: outputs.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, tokens: Tensor, classes: int) -> None:
        super().__init__()
        flat = tokens.flatten(0, -2)
        mean = flat.mean(0, dtype=torch.float32)
        square = torch.stack([part.float().sub(mean).square().mean(0) for part in flat.chunk(16)]).mean(0)
        self.register_buffer("mean", mean)
        self.register_buffer("std", square.sqrt().clamp(min=1e-6))
        self.linear = nn.Linear(tokens.shape[-1], classes)

    def forward(self, tokens: Tensor) -> Tensor:
        """(..., C) -> (..., classes) logits."""
        weight = self.linear.weight / self.std
        return F.linear(tokens.float(), weight, self.linear.bias - weight @ self.mean)


def class_shares(labels: Tensor, grid: tuple[int, int], classes: int) -> Tensor:
    """(H, W) labels -> (h, w, classes) share of a patch's pixels in each class; void pixels belong to none."""
    one_hot = F.one_hot(torch.where(labels == VOID, classes, labels.long()), classes + 1)[..., :classes]
    return F.adaptive_avg_pool2d(one_hot.movedim(-1, 0).float(), grid).movedim(0, -1)


def train_layer(train: Split, *, steps: int, seed: int) -> StandardizedLinear:
    """Train the layer on one split."""
    torch.manual_seed(seed)
    layer = StandardizedLinear(train.features, len(train.layout.classes))
    shares = quantized_shares(train)
    optimizer = torch.optim.AdamW(layer.parameters(), lr=1e-3, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.PolynomialLR(optimizer, steps, power=0.9)
    for _ in tqdm(range(steps), desc="linear layer", unit="step", dynamic_ncols=True):
        chosen = torch.randint(len(shares), (64,))
        labelled = shares[chosen].sum()
        optimizer.zero_grad()
        for part in chosen.split(8):  # small parts stay in the processor's caches
            log_probabilities = F.log_softmax(layer(train.features[part]), dim=-1)
            (-(shares[part] * log_probabilities).sum() / labelled).backward()
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
    classes = len(test.layout.classes)
    confusion = np.zeros((classes, classes), dtype=np.int64)
    for number, tokens in enumerate(test.features):
        labels = test.labels(number)
        confusion += confusion_matrix(predict(layer, tokens, labels.shape), labels, classes)
    return confusion


@torch.no_grad()
def predict(layer: StandardizedLinear, tokens: Tensor, size: tuple[int, ...]) -> Tensor:
    """(h, w, C) -> (H, W) classes."""
    logits = layer(tokens).movedim(-1, 0)[None]
    return F.interpolate(logits, tuple(size), mode="bilinear")[0].argmax(0)


def confusion_matrix(prediction: Tensor, labels: Tensor, classes: int) -> np.ndarray:
    """Count pixels by (label, prediction); void is left out."""
    valid = labels != VOID
    pairs = labels[valid].long() * classes + prediction[valid]
    return torch.bincount(pairs, minlength=classes**2).view(classes, classes).numpy()


def intersection_over_union(confusion: np.ndarray) -> np.ndarray:
    """Return the IoU of each class; NaN for one that neither occurs nor is predicted."""
    hits = np.diag(confusion).astype(float)
    union = confusion.sum(0) + confusion.sum(1) - hits
    return np.divide(hits, union, out=np.full_like(hits, np.nan), where=union > 0)
