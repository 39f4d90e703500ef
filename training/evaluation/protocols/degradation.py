"""Degradation retention: how much of its linear-segmentation mIoU an encoder keeps when the camera fails.

The layer is trained as in `linear-segmentation`, on clean images alone, and scored on degraded test images: motion
blur, defocus, sensor noise, low light, exposure jump, JPEG, occlusion and dropped rows, of severities 1 to 5
(`training/evaluation/degradations.py`). mIoU is the mean over the classes that occur in the test images' labels.

    retention      mean over degradations and severities of 100 * degraded mIoU / clean mIoU; 0 to 100 and, by chance,
                   above
    degraded_miou  the mean of the degraded mIoU itself, percent
    clean_miou     on the same, undegraded images, percent
    DEGRADATION    retention, mean over severities; with `miou`, each severity's mIoU

Retention alone can be won by an encoder that has nothing to lose: a constant encoder retains 100, of the mIoU of always
saying the commonest class, and raw pixels retained 89 of 7.9 % on CamVid (trained on val, 12 test images, severity 3;
blur even helped). So an encoder is better only if degraded_miou is higher too, and the rows of random and pixels must
stand beside it. All labelled pixels count, also those hidden by occlusion or dropped rows, so that even a
perfect encoder loses there.
"""

from __future__ import annotations

import argparse

import numpy as np
import torch
from tqdm import tqdm

from training.evaluation.degradations import DEGRADATIONS, degrade
from training.evaluation.features import BATCH
from training.evaluation.models import Model
from training.evaluation.protocols import linear_segmentation as probe
from training.evaluation.segmentation_data import LAYOUTS, with_future_labels
from video_distilled_encoder.errors import InputError
from video_distilled_encoder.preprocessing import open_image


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the protocol's options."""
    probe.add_arguments(parser)
    parser.add_argument(
        "--severities", type=int, nargs="+", choices=range(1, 6), default=[1, 3, 5], help="1 to 5 (%(default)s)"
    )
    parser.add_argument(
        "--degradations", nargs="+", choices=DEGRADATIONS, default=list(DEGRADATIONS), help="which (all)"
    )
    parser.add_argument("--test-images", type=int, default=60, help="evenly spaced test images; 0 = all (%(default)s)")


def evaluate(model: Model, args: argparse.Namespace) -> dict[str, object]:
    """Train the layer on clean images and score it on degraded ones."""
    train, test = load_splits(model, args)
    layer = probe.train_layer(train, steps=args.steps, seed=args.seed)
    clean = mean_iou(probe.score(layer, test))
    if clean == 0:
        raise InputError("the layer labels no pixel rightly on clean images, so there is nothing to retain; train more")
    degraded = {}
    for name in tqdm(args.degradations, desc="degradations", dynamic_ncols=True):
        for severity in args.severities:
            features = encode_degraded(model, test, args, name, severity)
            degraded[name, severity] = mean_iou(probe.score(layer, probe.Split(features, test.pairs, test.layout)))
    return {
        "figures": summarize(clean, degraded),
        "setting": {
            **probe.describe_features(model, train, args),
            "steps": args.steps,
            "degradations": args.degradations,
            "severities": args.severities,
            "note": "retention is read beside degraded_miou and beside the rows of random and pixels",
        },
        "data": probe.describe_data(train, test, args),
    }


def load_splits(model: Model, args: argparse.Namespace) -> tuple[probe.Split, probe.Split]:
    """Encode the clean images to train on and the chosen ones to test on."""
    layout = LAYOUTS[args.layout]
    splits = []
    for part, name in zip(("train", "test"), probe.split_names(args), strict=True):
        pairs = with_future_labels(layout.find(args.data, name), args.future)
        if part == "test" and 0 < args.test_images < len(pairs):
            pairs = [pairs[i] for i in np.linspace(0, len(pairs) - 1, args.test_images).round().astype(int)]
        size = model.nearest_size(*(layout.size or layout.read(pairs[0].label).shape))
        grid = probe.encode_pairs(model, pairs, size, args, name).grid
        splits.append(probe.Split(grid, pairs, layout))
    return splits[0], splits[1]


def grid_size(model: Model, split: probe.Split) -> tuple[int, int]:
    """Return the (height, width) in pixels that a split's images were encoded at."""
    height, width = split.features.shape[1:3]
    return height * model.patch_size, width * model.patch_size


def encode_degraded(
    model: Model, test: probe.Split, args: argparse.Namespace, name: str, severity: int
) -> torch.Tensor:
    """Return the (n, h, w, C) float16 features of a split's images, degraded."""
    size = grid_size(model, test)
    found = []
    for start in range(0, len(test.pairs), BATCH):
        numbers = range(start, min(start + BATCH, len(test.pairs)))
        images = [
            degrade(np.array(open_image(test.pairs[i].image)), name, severity, seed=args.seed, index=i) for i in numbers
        ]
        found.append(model.encode(images, size, layers=args.layers).grid.movedim(1, -1).half().cpu())
    return torch.cat(found)


def mean_iou(confusion: np.ndarray) -> float:
    """Return the mean IoU, in [0, 1], over the classes that occur in the labels."""
    return float(probe.intersection_over_union(confusion)[confusion.sum(1) > 0].mean())


def summarize(clean: float, degraded: dict[tuple[str, int], float]) -> dict[str, object]:
    """Return the figures, in percent, of the mIoU by degradation and severity."""
    figures: dict[str, object] = {
        "retention": round(100 * float(np.mean(list(degraded.values()))) / clean, 2),
        "degraded_miou": round(100 * float(np.mean(list(degraded.values()))), 2),
        "clean_miou": round(100 * clean, 2),
    }
    for name in dict.fromkeys(name for name, _ in degraded):
        values = [miou for (other, _), miou in degraded.items() if other == name]
        figures[name] = round(100 * float(np.mean(values)) / clean, 2)
    miou: dict[str, dict[str, float]] = {}
    for (name, severity), value in degraded.items():
        miou.setdefault(name, {})[str(severity)] = round(100 * value, 2)
    figures["miou"] = miou
    return figures
