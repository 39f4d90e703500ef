"""What the report measures of each model on one video: over the time between two frames, and how long it takes.

Each measure is one number per pair of frames, so that any two models can be compared pair by pair. Frames close in time
resemble each other, and pairs may share a frame: so the clip is cut into parts, which no pair crosses, and how sure a
difference is is told by the parts, not by the pairs.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from training.evaluation.data.partners import find_partners
from training.evaluation.metrics.correspondence import cycle_map
from training.models.model import Model
from video_distilled_encoder.image_files import bundled_photographs

GAPS = (0.1, 0.25, 0.5, 1.0, 2.0)
"""Seconds between two frames."""
PAIRS = 24
"""Pairs of frames for each gap, evenly spaced."""
PART = 2.0
"""Seconds of a part in which a pair may begin, at least."""
CHANGE, COVERED, LEAST = 16, 0.3, 0.02
"""A pixel has changed that differs by so many grey levels; a patch, if that share of its pixels have, and where fewer
patches than that share of them do, those that have changed most."""


class Series(NamedTuple):
    """One number per pair of frames."""

    values: np.ndarray
    """(n,)."""
    times: np.ndarray
    """(n,) seconds of the earlier frame."""
    parts: np.ndarray
    """(n,) number of the part of the clip that the pair lies in."""

    def above(self, other: Series) -> Series:
        """Return by how much each number exceeds that of another series for the same earlier frame."""
        at = dict(zip(other.times.tolist(), other.values.tolist(), strict=True))
        return Series(self.values - np.array([at[time] for time in self.times.tolist()]), self.times, self.parts)


@dataclass(frozen=True)
class Measures:
    """One model's figures."""

    similarity: dict[float, Series]
    """By gap: mean cosine similarity of patches at one place."""
    unrelated: Series
    """The same between a frame and a photograph of another scene."""
    cycle: dict[float, Series]
    """By gap: share of the patches that change between the frames that find their way back."""
    chance: dict[float, Series]
    """By gap: the same of the same patches, in a photograph of another scene: what position alone achieves."""
    milliseconds: float
    """Median time of encoding one frame, preprocessing included."""


def choose_pairs(times: np.ndarray, shots: np.ndarray) -> dict[float, list[tuple[int, int]]]:
    """Return, by gap, pairs of frames of a shot that far apart, to within a quarter of it, and in one part of the clip.

    Args:
        times: (T,) seconds, ascending.
        shots: (T,) number of the shot that each frame is of.

    Returns:
        Numbers of the earlier and of the later frames; gaps without any are left out.
    """
    chosen = {}
    for gap in GAPS:
        later, near = find_partners(times, gap)
        part = part_of_frames(times, gap)
        close = np.flatnonzero(near & (part == part[later]) & (shots == shots[later]))
        if len(close):
            picked = close[np.linspace(0, len(close) - 1, min(PAIRS, len(close))).round().astype(int)]
            chosen[gap] = [(int(first), int(later[first])) for first in picked]
    return chosen


def part_of_frames(times: np.ndarray, gap: float) -> np.ndarray:
    """Return the number of the part that each frame is in: equal parts, as many as have `PART` and a gap of seconds."""
    since = times - times[0]
    count = max(int(since[-1] / (PART + gap)), 1)
    return np.minimum((since * count / max(since[-1], 1e-9)).astype(int), count - 1)


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
    every = {pair for found in pairs.values() for pair in found}
    grid = grids.shape[1], grids.shape[2]
    changed = {(first, later): changed_patches(frames[first], frames[later], grid) for first, later in every}
    ties = torch.Generator().manual_seed(0)

    def series(values: Iterable[float], starts: Iterable[int], gap: float = 0.0) -> Series:
        numbers = list(starts)
        return Series(np.array(list(values)), times[numbers], part_of_frames(times, gap)[numbers])

    def by_gap(function: Callable[[int, int, int], float]) -> dict[float, Series]:
        """Return the series of a function of a pair's number and of its two frames."""
        return {
            gap: series((function(n, *pair) for n, pair in enumerate(found)), (first for first, _ in found), gap)
            for gap, found in pairs.items()
        }

    def back(first: int, later: int, there: Tensor) -> float:
        return float(cycle_map(grids[first], there, ties)[changed[first, later]].double().mean())

    def elsewhere(number: int) -> Tensor:
        return others[number % len(others)]

    return Measures(
        similarity=by_gap(lambda _, first, later: similarity(grids[first], grids[later])),
        unrelated=series((similarity(grids[first], elsewhere(n)) for n, first in enumerate(starts)), starts),
        cycle=by_gap(lambda _, first, later: back(first, later, grids[later])),
        chance=by_gap(lambda number, first, later: back(first, later, elsewhere(number))),
        milliseconds=latency(model, frames[0], size),
    )


def changed_patches(one: np.ndarray, other: np.ndarray, grid: tuple[int, int]) -> Tensor:
    """Tell which patches of a frame look different in another: where nothing moves, any features find themselves again.

    Args:
        one: (H, W, 3) uint8.
        other: the same.
        grid: (h, w) patches.

    Returns:
        (h, w) bool, one at least.
    """
    far = np.maximum(one, other) - np.minimum(one, other) >= CHANGE
    pixels = torch.from_numpy(far[..., 0] | far[..., 1] | far[..., 2])  # several times as fast as a maximum of three
    share = F.adaptive_avg_pool2d(pixels.float()[None], grid)[0]
    least = max(1, round(LEAST * share.numel()))
    return share >= min(COVERED, float(share.flatten().topk(least).values[-1]))


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
