"""Drift of features in unlabelled video, beside whether they still tell one thing from another.

drift at d is the mean cosine distance, 1 - cosine, between the features of frames t and t+d: of co-located patches, and
of the class feature (`cls`). Constant features drift least of all and are useless; so each similarity stands beside two
others: with the patch in the same place of another video's frame, and with other patches of the frame t+d.

    auc          probability that a patch is more similar to itself d later than to the patch in its place in another
                 video, ties counted half; mean over videos and offsets. The figure to compare, with its `interval`,
                 its value on each video (`units`), on every second one (`half_a`) and on the others (`half_b`)
    auc_within   the same against another patch, drawn at random, of the frame d later
    auc_cls      as auc, of class features
    drift, drift_cls, other, within, other_cls
                 mean cosine distance: to itself d later; to another video; between patches of one frame
    margin       other - drift

All times 100: an auc in 0 to 100, a distance in 0 to 200. A constant encoder scores drift 0, auc 50. Position alone
scores auc 50 but auc_within 100; one vector per frame, repeated in all patches, auc 100 but auc_within 50: an encoder
must hold up in both. Random weights and raw pixels score far above 50, since the same place looks much the same a
moment later: on the eight DAVIS sequences of `model_cards/results` (0.1 to 1 s) auc was 86 and 81, auc_within 69 and
68, drift 30 and 37. They are the rows to beat. Intervals are 95 % percentile bootstraps over videos.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from training.evaluation.data.video_frames import EncodedClip, add_video_arguments, describe, encode_clips, other_frame
from training.evaluation.metrics.correspondence import normalize
from training.evaluation.statistics.figures import by_unit, percent, percent_interval
from training.models.model import Model

MEASURES = ("auc", "auc_within", "auc_cls", "drift", "drift_cls", "other", "other_cls", "within", "margin")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the protocol's options."""
    add_video_arguments(parser)


def evaluate(model: Model, args: argparse.Namespace) -> dict[str, object]:
    """Measure drift and what stands beside it."""
    clips = encode_clips(model, args)
    described = describe(model, clips, args)
    return {"figures": summarize(measure(clips, args.offsets, args.seed), clips, args.offsets), **described}


def measure(clips: Sequence[EncodedClip], offsets: Sequence[float], seed: int) -> dict[str, np.ndarray]:
    """Return each of `MEASURES` per video and offset, (videos, offsets)."""
    generator = torch.Generator().manual_seed(seed)
    found = {name: np.zeros((len(clips), len(offsets))) for name in MEASURES}
    for number in range(len(clips)):
        for column, offset in enumerate(offsets):
            for name, value in measure_video(clips, number, offset, generator).items():
                found[name][number, column] = value
    return found


def measure_video(
    clips: Sequence[EncodedClip], number: int, offset: float, generator: torch.Generator
) -> dict[str, float]:
    """Return `MEASURES` of one video at one offset."""
    clip = clips[number]
    same, other, elsewhere, within, same_cls, other_cls = ([] for _ in range(6))  # similarities
    for pair, (base, later) in enumerate(clip.pairs[offset]):
        control = other_frame(clips, number, pair, offset)
        start, end = (normalize(clip.grid[frame].flatten(0, 1)) for frame in (base, later))
        control_end = normalize(clips[control[0]].grid[control[1]].flatten(0, 1))
        same.append((start * end).sum(1))
        other.append((start * control_end).sum(1))
        elsewhere.append((start * end[other_patches(len(end), generator)]).sum(1))
        within.append(mean_similarity(start))
        start, end, control_end = (
            normalize(cls) for cls in (clip.cls[base], clip.cls[later], clips[control[0]].cls[control[1]])
        )
        same_cls.append(start @ end)
        other_cls.append(start @ control_end)
    alike, unlike = torch.cat(same), torch.cat(other)
    distances = {
        "drift": 1 - float(alike.mean()),
        "other": 1 - float(unlike.mean()),
        "within": 1 - float(np.mean(within)),
        "drift_cls": 1 - float(torch.stack(same_cls).mean()),
        "other_cls": 1 - float(torch.stack(other_cls).mean()),
    }
    return {
        "auc": area_under_curve(alike, unlike),
        "auc_within": area_under_curve(alike, torch.cat(elsewhere)),
        "auc_cls": area_under_curve(torch.stack(same_cls), torch.stack(other_cls)),
        **distances,
        "margin": distances["other"] - distances["drift"],
    }


def area_under_curve(positives: Tensor, negatives: Tensor) -> float:
    """Return the probability that a positive exceeds a negative, ties (to nine decimals) counted half.

    Args:
        positives: (n,) scores.
        negatives: (m,) scores.
    """
    high, low = (values.double().round(decimals=9) for values in (positives, negatives))
    low = low.sort().values
    below = torch.searchsorted(low, high) + torch.searchsorted(low, high, right=True)
    return float(below.double().mean()) / (2 * len(low))


def other_patches(count: int, generator: torch.Generator) -> Tensor:
    """Return for each of N patches the number of another one, at random."""
    if count == 1:
        return torch.zeros(1, dtype=torch.long)
    return (torch.arange(count) + torch.randint(1, count, (count,), generator=generator)) % count


def mean_similarity(features: Tensor) -> float:
    """(N, C) of length 1 -> mean cosine of all pairs of two different rows."""
    count = len(features)
    total = features.sum(0).square().sum() - features.square().sum()
    return float(total) / max(count * (count - 1), 1)


def summarize(
    found: dict[str, np.ndarray], clips: Sequence[EncodedClip], offsets: Sequence[float]
) -> dict[str, object]:
    """Return the figures of (videos, offsets) measures, times 100."""
    figures: dict[str, object] = {name: percent(array) for name, array in found.items()}
    figures.update(by_unit(found["auc"].mean(1), [clip.video for clip in clips]))
    for column, offset in enumerate(offsets):
        figures[f"at {offset:g} s"] = {
            **{name: percent(array[:, column]) for name, array in found.items()},
            **{f"{name}_interval": percent_interval(found[name][:, column]) for name in ("auc", "auc_within", "drift")},
        }
    return figures
