"""Linear segmentation: how much of a scene's layout one linear layer reads from frozen patch tokens.

Images are stretched to the nearest multiples of the patch size; the features are the last block's patch tokens,
standardised per channel with the training images' mean and deviation. One linear layer is trained for 1,000 steps of
64 images (the papers' Fast-LP; the optimiser is not stated there: AdamW 1e-3, weight decay 1e-4, polynomial decay).
Its loss is the cross-entropy of every labelled pixel with its patch's prediction, computed from the share of each class
in each patch. For the score, logits are upsampled bilinearly to the labels' size: mean IoU over the classes that occur.

Layout of the data (CamVid as in SegNet's tutorial): SPLIT/NAME.jpg or .png, and SPLITannot/NAME.png with one 8-bit
class number per pixel.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from tqdm import tqdm

from training.evaluation.models import PATCH, DenseModel
from video_distilled_encoder.errors import InputError
from video_distilled_encoder.preprocessing import open_image

CAMVID_CLASSES = (
    "Sky", "Building", "Pole", "Road", "Pavement", "Tree", "SignSymbol", "Fence", "Car", "Pedestrian", "Bicyclist",
)  # fmt: skip
VOID = len(CAMVID_CLASSES)


@dataclass
class Features:
    """One split: features and labels of n images."""

    tokens: Tensor
    """(n, h, w, C) float16."""
    labels: Tensor
    """(n, H, W) uint8, void where there is no label."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the protocol's options."""
    parser.add_argument("--train-split", default="train", help="images the layer is trained on (%(default)s)")
    parser.add_argument("--test-split", default="test", help="images it is tested on (%(default)s)")
    parser.add_argument("--steps", type=int, default=1000, help="training steps (%(default)s)")


def evaluate(model: DenseModel, args: argparse.Namespace) -> dict[str, object]:
    """Train the layer on one split and score it on the other."""
    train = extract_features(model, args.data, args.train_split)
    test = extract_features(model, args.data, args.test_split)
    layer = train_layer(train, steps=args.steps, seed=args.seed)
    confusion = np.zeros((VOID, VOID), dtype=np.int64)
    for tokens, labels in zip(test.tokens, test.labels, strict=True):
        confusion += confusion_matrix(predict(layer, tokens, labels.shape), labels)
    iou = intersection_over_union(confusion)
    return {
        "figures": {
            "miou": round(100 * float(np.nanmean(iou)), 2),
            "pixel_accuracy": round(100 * float(np.trace(confusion) / confusion.sum()), 2),
            "iou": {name: round(100 * float(v), 2) for name, v in zip(CAMVID_CLASSES, iou, strict=True)},
        },
        "setting": {
            "features": "last block, patch tokens",
            "size": [side * PATCH for side in train.tokens.shape[1:3]],
            "steps": args.steps,
            "batch": 64,
        },
        "data": {
            "train": f"{args.data.name}/{args.train_split}, {len(train.labels)} images",
            "test": f"{args.data.name}/{args.test_split}, {len(test.labels)} images",
        },
    }


def find_pairs(root: Path, split: str) -> list[tuple[Path, Path]]:
    """Return the (image, label) files of a split.

    Raises:
        InputError: a folder is missing, or images and labels do not match.
    """
    images, annotations = root / split, root / f"{split}annot"
    for folder in (images, annotations):
        if not folder.is_dir():
            raise InputError(f"{folder} does not exist; expected {split}/NAME.jpg and {split}annot/NAME.png in {root}")
    found = {path.stem: path for path in sorted(images.iterdir()) if path.suffix.lower() in (".jpg", ".jpeg", ".png")}
    labels = {path.stem: path for path in annotations.glob("*.png")}
    if not found or found.keys() != labels.keys():
        odd = sorted(found.keys() ^ labels.keys())
        raise InputError(f"images in {images} and labels in {annotations} do not match, e.g. {odd[:3] or 'both empty'}")
    return [(found[name], labels[name]) for name in found]


def read_labels(path: Path) -> np.ndarray:
    """Return the (H, W) class numbers of a label image.

    Raises:
        InputError: it is not a single-channel 8-bit image, or holds a number that is no class.
    """
    with Image.open(path) as image:
        if image.mode not in ("L", "P"):
            raise InputError(f"{path} is not a single-channel 8-bit label image (mode {image.mode})")
        labels = np.array(image)
    if labels.max() > VOID:
        raise InputError(f"{path} holds class {labels.max()}; classes are 0 to {VOID - 1}, and {VOID} for void")
    return labels


def extract_features(model: DenseModel, root: Path, split: str) -> Features:
    """Encode a split; all its images have one size."""
    pairs = find_pairs(root, split)
    labels = torch.from_numpy(np.stack([read_labels(label) for _, label in pairs]))
    size = tuple(max(round(side / PATCH), 1) * PATCH for side in labels.shape[1:])
    tokens = []
    for start in tqdm(range(0, len(pairs), 8), desc=f"encode {split}", unit="batch", dynamic_ncols=True):
        images = [open_image(image) for image, _ in pairs[start : start + 8]]
        tokens.append(model.grid(images, (size[0], size[1])).movedim(1, -1).half().cpu())
    return Features(torch.cat(tokens), labels)


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


def class_shares(labels: Tensor, grid: tuple[int, int]) -> Tensor:
    """Return the share of a patch's pixels in each class, (n, h, w, classes); void pixels belong to none."""
    one_hot = F.one_hot(labels.long(), VOID + 1)[..., :VOID].movedim(-1, 1).float()
    return F.adaptive_avg_pool2d(one_hot, grid).movedim(1, -1)


def train_layer(train: Features, *, steps: int, seed: int) -> StandardizedLinear:
    """Train the layer on one split."""
    torch.manual_seed(seed)
    layer = StandardizedLinear(train.tokens, VOID)
    grid = (train.tokens.shape[1], train.tokens.shape[2])
    shares = torch.cat([class_shares(labels, grid) for labels in train.labels.split(16)])
    optimizer = torch.optim.AdamW(layer.parameters(), lr=1e-3, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.PolynomialLR(optimizer, steps, power=0.9)
    for _ in tqdm(range(steps), desc="linear layer", unit="step", dynamic_ncols=True):
        chosen = torch.randint(len(shares), (64,))
        labelled = shares[chosen].sum()
        optimizer.zero_grad()
        for part in chosen.split(8):  # small parts stay in the processor's caches
            log_probabilities = F.log_softmax(layer(train.tokens[part]), dim=-1)
            (-(shares[part] * log_probabilities).sum() / labelled).backward()
        optimizer.step()
        schedule.step()
    return layer


@torch.no_grad()
def predict(layer: StandardizedLinear, tokens: Tensor, size: tuple[int, ...]) -> Tensor:
    """(h, w, C) -> (H, W) classes."""
    logits = layer(tokens).movedim(-1, 0)[None]
    return F.interpolate(logits, tuple(size), mode="bilinear")[0].argmax(0)


def confusion_matrix(prediction: Tensor, labels: Tensor) -> np.ndarray:
    """Count pixels by (label, prediction); void is left out."""
    valid = labels != VOID
    pairs = labels[valid].long() * VOID + prediction[valid]
    return torch.bincount(pairs, minlength=VOID * VOID).view(VOID, VOID).numpy()


def intersection_over_union(confusion: np.ndarray) -> np.ndarray:
    """Return the IoU of each class; NaN for one that neither occurs nor is predicted."""
    hits = np.diag(confusion).astype(float)
    union = confusion.sum(0) + confusion.sum(1) - hits
    return np.divide(hits, union, out=np.full_like(hits, np.nan), where=union > 0)
