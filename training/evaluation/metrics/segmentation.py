"""Region similarity J and boundary accuracy F of objects, as the DAVIS benchmark defines them, and IoU of classes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from training.evaluation.data.labels import VOID
from training.evaluation.statistics.figures import halves, percent

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


def figures_by_unit(by_unit: Mapping[str, np.ndarray], classes: Sequence[str]) -> dict[str, object]:
    """Return what `figures_of` does of all units together, and how sure the mean IoU is.

    A mean IoU is no mean over images or units. So

        interval        its 95 % percentile bootstrap: units are drawn with replacement and their confusions summed
        half_a, half_b  it on every second unit, and on the others
        units           what each unit adds to it: its jackknife pseudo-value (Tukey 1958), n times the mean IoU of all
                        n units less n - 1 times that without this one. Their mean is the mean IoU but for a small
                        correction, so that two models are compared by them as by any figure per unit; one may lie
                        outside 0 to 100

    Args:
        by_unit: (classes, classes) pixels by label and prediction, of each unit.
        classes: names.
    """
    confusions = np.stack(list(by_unit.values()))
    whole, count = confusions.sum(0), len(confusions)
    drawn = np.random.default_rng(0).integers(0, count, (1000, count))
    means = [mean_iou(np.tensordot(np.bincount(draw, minlength=count), confusions, 1)) for draw in drawn]
    without = [mean_iou(whole - one) for one in confusions]
    parts = count * mean_iou(whole) - (count - 1) * np.array(without) if count > 1 else np.array([mean_iou(whole)])
    return {
        **figures_of(whole, classes),
        "interval": [percent(bound) for bound in np.nanquantile(means, (0.025, 0.975))] if count > 1 else [None, None],
        **{
            f"half_{letter}": percent(mean_iou(np.sum(half, axis=0))) if len(half) else None
            for letter, half in zip("ab", halves(list(confusions)), strict=True)
        },
        "units": {name: percent(part) for name, part in zip(by_unit, parts, strict=True)},
    }


def mean_iou(confusion: np.ndarray) -> float:
    """Return the mean IoU, in [0, 1], over the classes that occur or are predicted; NaN if there is none."""
    iou = intersection_over_union(confusion)
    return float(np.nanmean(iou)) if not np.isnan(iou).all() else float("nan")
