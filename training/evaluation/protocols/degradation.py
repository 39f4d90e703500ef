"""Degradation retention: how much of its linear-segmentation mIoU an encoder keeps when the camera fails.

The layer is trained as in `linear-segmentation`, on clean images alone, and scored on degraded test images: motion
blur, defocus, sensor noise, low light, exposure jump, JPEG, occlusion and dropped rows, of severities 1 to 5
(`training/evaluation/data/degradations.py`). mIoU is the mean over the classes that occur in the test images' labels.

    degraded_miou  mean over degradations and severities of the mIoU on degraded images, percent: the figure to compare
    clean_miou     on the same, undegraded images, percent
    retention      100 * degraded_miou / clean_miou; 0 to 100 and, by chance, above
    DEGRADATION    retention, mean over severities; with `miou`, each severity's mIoU

Retention alone can be won by an encoder that has nothing to lose: a constant encoder retains 100, of the mIoU of
always saying the commonest class, and raw pixels more than random weights: 82 of a clean mIoU of 13, against 76 of 17
(`model_cards/results`: CamVid, 24 test images, severity 3). So encoders are compared by degraded_miou, of which these
had 11.0 and 12.6, and the rows of random and pixels must stand beside it. All labelled pixels count, also those hidden
by occlusion or dropped rows, so that even a perfect encoder loses there.

An mIoU is no mean over images. So the test images, in order, are cut into twelve runs of equal length, and `units`
holds the degraded mIoU of each run by itself, over the classes that occur in it; `interval` (95 % bootstrap over runs),
`half_a` and `half_b` are of these, whose mean is not degraded_miou.
"""

from __future__ import annotations

import argparse

import numpy as np
import torch
from tqdm import tqdm

from training.evaluation.data.degradations import DEGRADATIONS, degrade
from training.evaluation.data.segmentation import describe_data
from training.evaluation.features import BATCH, compact
from training.evaluation.metrics.segmentation import intersection_over_union
from training.evaluation.probes import segmentation as probe
from training.evaluation.probes.linear import StandardizedLinear
from training.evaluation.statistics.figures import by_unit, percent
from training.models.model import Model
from video_distilled_encoder.errors import InputError
from video_distilled_encoder.image_files import open_image

RUNS = 12


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
    layer = probe.train_layer(train, steps=args.steps, seed=args.seed, device=model.device)
    clean = mean_iou(score_runs(layer, test).sum(0))
    if not clean > 0:  # not a number, where no pixel of the images that were chosen has a class
        raise InputError("the layer labels no pixel rightly on clean images, so there is nothing to retain; train more")
    degraded: dict[tuple[str, int], np.ndarray] = {}
    for name in tqdm(args.degradations, desc="degradations", dynamic_ncols=True):
        for severity in args.severities:
            features = encode_degraded(model, test, args, name, severity)
            degraded[name, severity] = score_runs(layer, probe.Split(features, test.pairs, test.layout))
    names = [f"{number}, from {test.pairs[run[0]].image.stem}" for number, run in enumerate(runs(test))]
    return {
        "figures": summarize(clean, degraded, names),
        "setting": {
            **probe.describe_features(model, train, args),
            "steps": args.steps,
            "degradations": args.degradations,
            "severities": args.severities,
        },
        "data": describe_data(train.pairs, test.pairs, args),
    }


def load_splits(model: Model, args: argparse.Namespace) -> tuple[probe.Split, probe.Split]:
    """Return the clean images to train on and the chosen ones to test on."""
    train, test = probe.load_splits(model, args)
    if 0 < args.test_images < len(test.pairs):
        test = select(test, np.linspace(0, len(test.pairs) - 1, args.test_images).round().astype(int))
    return train, test


def select(split: probe.Split, numbers: np.ndarray) -> probe.Split:
    """Return some images of a split."""
    return probe.Split(split.features[numbers], [split.pairs[number] for number in numbers], split.layout)


def runs(split: probe.Split) -> list[np.ndarray]:
    """Cut a split into `RUNS` runs of images, as equal as can be; fewer if it has fewer images."""
    return np.array_split(np.arange(len(split.pairs)), min(RUNS, len(split.pairs)))


def score_runs(layer: StandardizedLinear, test: probe.Split) -> np.ndarray:
    """Return the (runs, classes, classes) confusion matrices of a split's runs."""
    return np.stack([probe.score(layer, select(test, run)) for run in runs(test)])


def grid_size(model: Model, split: probe.Split) -> tuple[int, int]:
    """Return the (height, width) in pixels that a split's images were encoded at."""
    height, width = split.features.shape[1:3]
    return height * model.patch_size, width * model.patch_size


def encode_degraded(
    model: Model, test: probe.Split, args: argparse.Namespace, name: str, severity: int
) -> torch.Tensor:
    """Return the (n, h, w, C) features of a split's images, degraded."""
    size = grid_size(model, test)
    found = []
    for start in range(0, len(test.pairs), BATCH):
        numbers = range(start, min(start + BATCH, len(test.pairs)))
        images = [
            degrade(np.array(open_image(test.pairs[i].image)), name, severity, seed=args.seed, index=i) for i in numbers
        ]
        found.append(compact(model.encode(images, size, layers=args.layers).grid.movedim(1, -1)))
    return torch.cat(found)


def mean_iou(confusion: np.ndarray) -> float:
    """Return the mean IoU, in [0, 1], over the classes that occur in the labels."""
    return float(intersection_over_union(confusion)[confusion.sum(1) > 0].mean())


def summarize(clean: float, degraded: dict[tuple[str, int], np.ndarray], names: list[str]) -> dict[str, object]:
    """Return the figures in percent.

    Args:
        clean: mIoU of the clean images.
        degraded: by degradation and severity, the (runs, classes, classes) confusion matrices.
        names: of the runs.
    """
    mious = {key: mean_iou(confusions.sum(0)) for key, confusions in degraded.items()}
    labelled = {name: runs for name, *runs in zip(names, *degraded.values(), strict=True) if runs[0].any()}
    by_run = np.array([np.mean([mean_iou(run) for run in runs]) for runs in labelled.values()])
    figures: dict[str, object] = {
        "degraded_miou": percent(list(mious.values())),
        "clean_miou": percent(clean),
        "retention": percent(np.mean(list(mious.values())) / clean),
        **by_unit(by_run, list(labelled)),
    }
    tables: dict[str, dict[str, float | None]] = {}
    for name in dict.fromkeys(name for name, _ in mious):
        found = {severity: miou for (other, severity), miou in mious.items() if other == name}
        figures[name] = percent(np.mean(list(found.values())) / clean)
        tables[name] = {str(severity): percent(miou) for severity, miou in found.items()}
    return {**figures, "miou": tables}
