"""Region similarity J and boundary accuracy F of objects, as the DAVIS benchmark defines them, and IoU of classes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from training.evaluation.data.labels import VOID
from training.evaluation.statistics.figures import by_unit, percent

TOLERANCE = 0.008
"""Of the image's diagonal: how far a boundary pixel may be from the other boundary."""


class Statistics(NamedTuple):
    """What is said of one measure over the frames of one object."""

    mean: float
    recall: float
    """Share of the frames above one half."""
    decay: float
    """Mean of the first quarter of the frames minus that of the last."""


def region_similarity(mask: np.ndarray, truth: np.ndarray) -> float:
    """Return J: intersection over union of two (H, W) masks; 1 if both are empty."""
    union = np.count_nonzero(mask | truth)
    return np.count_nonzero(mask & truth) / union if union else 1.0


def boundary_accuracy(mask: np.ndarray, truth: np.ndarray) -> float:
    """Return F: the harmonic mean of precision and recall of a mask's boundary pixels.

    A boundary pixel is right if the other boundary passes within a disk of `TOLERANCE` diagonals, rounded up to whole
    pixels. Two masks without boundary agree; one without is wrong altogether.

    Args:
        mask: (H, W) bool, predicted.
        truth: (H, W) bool.
    """
    found, wanted = boundary(mask), boundary(truth)
    if not found.any() or not wanted.any():
        return float(found.any() == wanted.any())
    radius = int(np.ceil(TOLERANCE * np.hypot(*mask.shape)))
    precision = np.mean(dilate(wanted, radius)[found])
    recall = np.mean(dilate(found, radius)[wanted])
    return float(2 * precision * recall / (precision + recall)) if precision + recall else 0.0


def boundary(mask: np.ndarray) -> np.ndarray:
    """(H, W) bool -> (H, W) bool: pixels that differ from their neighbour below, right, or below and right."""
    padded = np.pad(mask, ((0, 1), (0, 1)), mode="edge")
    return (mask != padded[1:, :-1]) | (mask != padded[:-1, 1:]) | (mask != padded[1:, 1:])


def dilate(points: np.ndarray, radius: int) -> np.ndarray:
    """(H, W) bool -> (H, W) bool: what lies within a radius of a point."""
    height, width = points.shape
    steps = np.arange(-radius, radius + 1)
    down, right = np.nonzero(steps[:, None] ** 2 + steps**2 <= radius**2)
    rows, columns = np.nonzero(points)
    covered = np.zeros((height + 2 * radius, width + 2 * radius), dtype=bool)
    covered[rows[:, None] + down, columns[:, None] + right] = True
    return covered[radius : radius + height, radius : radius + width]


def statistics(values: np.ndarray) -> Statistics:
    """Return mean, recall and decay of a measure over n >= 1 frames.

    Quarters are the benchmark's: their borders are rounded to frames, and a frame on a border belongs to both sides.
    """
    borders = np.round(np.linspace(1, len(values), 5) + 1e-10).astype(int) - 1
    first, last = values[: borders[1] + 1], values[borders[3] :]
    return Statistics(float(values.mean()), float((values > 0.5).mean()), float(first.mean() - last.mean()))


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


def figures_of(confusion: np.ndarray, classes: Sequence[str]) -> dict[str, object]:
    """Return mean IoU, pixel accuracy and the IoU of each class, in percent; None for one that is nowhere."""
    iou = intersection_over_union(confusion)
    return {
        "miou": percent(np.nanmean(iou)),
        "pixel_accuracy": percent(np.trace(confusion) / confusion.sum()),
        "iou": {name: percent(v) for name, v in zip(classes, iou, strict=True)},
    }


def sum_by_unit(confusions: Iterable[np.ndarray], units: Sequence[str]) -> dict[str, np.ndarray]:
    """Return the sum of the images' (classes, classes) confusion matrices over the images of each unit."""
    sums: dict[str, np.ndarray] = {}
    for confusion, unit in zip(confusions, units, strict=True):
        sums[unit] = sums[unit] + confusion if unit in sums else confusion
    return sums


def figures_by_unit(confusions: Mapping[str, np.ndarray], classes: Sequence[str]) -> dict[str, object]:
    """Return what `figures_of` does of all units together, and how sure the mean IoU is.

    A mean IoU is no mean over images or units, and of a part of them it is too large: classes that are rare, and poor,
    are not in it. So `interval`, `half_a`, `half_b` and `units` (`by_unit` of evaluation/statistics/figures.py) are of
    what each unit adds to the whole: its jackknife pseudo-value (Tukey 1958), n times the mean IoU of all n units less
    n - 1 times that without this one. Their mean is the mean IoU less its bias; one may lie outside 0 to 100.

    Args:
        confusions: (classes, classes) pixels by label and prediction, of each unit; one at least has a labelled pixel.
        classes: names.
    """
    labelled = {name: confusion for name, confusion in confusions.items() if confusion.any()}
    whole, count = np.sum(list(labelled.values()), axis=0), len(labelled)
    if count == 1:
        parts = [mean_iou(whole)]
    else:
        parts = [count * mean_iou(whole) - (count - 1) * mean_iou(whole - one) for one in labelled.values()]
    return {**figures_of(whole, classes), **by_unit(parts, list(labelled))}


def mean_iou(confusion: np.ndarray) -> float:
    """Return the mean IoU, in [0, 1], over the classes that occur or are predicted."""
    return float(np.nanmean(intersection_over_union(confusion)))
