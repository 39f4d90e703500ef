"""What the report measures of each model on one video: over the time between two frames, and how long it takes.

Each measure is one number per pair of frames, so that any two models can be compared pair by pair.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from training.evaluation.metrics.correspondence import cycle_share
from training.models.model import Model
from video_distilled_encoder.preprocessing import bundled_photographs
from video_distilled_encoder.video import nearest

GAPS = (0.1, 0.25, 0.5, 1.0, 2.0)
"""Seconds between two frames."""
PAIRS = 24
"""Pairs of frames for each gap, evenly spaced."""


class Series(NamedTuple):
    """One number per pair of frames."""

    values: np.ndarray
    """(n,)."""
    times: np.ndarray
    """(n,) seconds of the earlier frame."""

    def above(self, other: Series) -> Series:
        """Return by how much each number exceeds that of another series for the same earlier frame."""
        at = dict(zip(other.times.tolist(), other.values.tolist(), strict=True))
        return Series(self.values - np.array([at[time] for time in self.times.tolist()]), self.times)


@dataclass(frozen=True)
class Measures:
    """One model's figures."""

    similarity: dict[float, Series]
    """By gap: mean cosine similarity of patches at one place."""
    unrelated: Series
    """The same between a frame and a photograph of another scene."""
    cycle: dict[float, Series]
    """By gap: share of patches that find their way back."""
    chance: Series
    """The same between a frame and a photograph of another scene: what position alone achieves."""
    milliseconds: float
    """Median time of encoding one frame, preprocessing included."""


def choose_pairs(times: np.ndarray) -> dict[float, list[tuple[int, int]]]:
    """Return, by gap, pairs of frames that lie that far apart, to within a quarter of it; gaps with none are left out.

    Args:
        times: (T,) seconds, ascending.
    """
    chosen = {}
    for gap in GAPS:
        later = nearest(times, times + gap)
        close = np.flatnonzero(np.abs(times[later] - times - gap) <= gap / 4)
        if len(close):
            picked = close[np.linspace(0, len(close) - 1, min(PAIRS, len(close))).round().astype(int)]
            chosen[gap] = [(int(first), int(later[first])) for first in picked]
    return chosen


def measure(
    model: Model,
    frames: list[np.ndarray],
    times: np.ndarray,
    grids: Tensor,
    pairs: dict[float, list[tuple[int, int]]],
) -> Measures:
    """Measure a model.

    Args:
        model: for its latency and the features of other scenes.
        frames: (H, W, 3) uint8 each.
        times: (T,) seconds.
        grids: (T, h, w, C) its features of them.
        pairs: frames to compare, by gap.
    """
    size = (grids.shape[1] * model.patch_size, grids.shape[2] * model.patch_size)
    others = model.encode(bundled_photographs(), size).grid.movedim(1, -1).cpu()
    starts = sorted({first for found in pairs.values() for first, _ in found})
    ties = torch.Generator().manual_seed(0)

    def series(function: Callable[[Tensor, Tensor], float], found: list[tuple[int, int]], second: Tensor) -> Series:
        values = [function(grids[first], second[other]) for first, other in found]
        return Series(np.array(values), times[[first for first, _ in found]])

    def back(one: Tensor, other: Tensor) -> float:
        return cycle_share(one, other, ties)

    elsewhere = [(first, number % len(others)) for number, first in enumerate(starts)]
    return Measures(
        similarity={gap: series(similarity, found, grids) for gap, found in pairs.items()},
        unrelated=series(similarity, elsewhere, others),
        cycle={gap: series(back, found, grids) for gap, found in pairs.items()},
        chance=series(back, elsewhere, others),
        milliseconds=latency(model, frames[0], size),
    )


def similarity(one: Tensor, other: Tensor) -> float:
    """Return the mean cosine similarity of two (h, w, C) grids, place by place."""
    return float(F.cosine_similarity(one.float(), other.float(), dim=-1).mean())


def latency(model: Model, frame: np.ndarray, size: tuple[int, int], repeats: int = 9) -> float:
    """Return the median milliseconds of encoding one frame."""
    seconds = []
    for _ in range(repeats + 2):
        start = time.perf_counter()
        model.encode([frame], size)
        if model.device.type == "cuda":
            torch.cuda.synchronize(model.device)
        seconds.append(time.perf_counter() - start)
    return 1000 * float(np.median(seconds[2:]))
