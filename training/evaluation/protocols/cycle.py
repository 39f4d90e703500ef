"""Cycle-consistent correspondence in unlabelled video: do patches find the same place some time later.

The share of patches of frame t whose most similar patch (cosine) of frame t+d has its most similar patch of frame t
within one patch of the start, for each d of --offsets. Features of position alone would come home on any two frames, so
each pair has a control: the same base frame with a later frame of another video.

    cycle      share that comes home, percent, 0 to 100; mean over pairs, then over videos
    control    the same with another video's frame: what position, and likeness of scenes, gives
    gap        cycle - control, -100 to 100: the figure to compare; with its `interval`, its value on each video
               (`units`), on every second one (`half_a`) and on the others (`half_b`)

A constant encoder scores `chance` in both (2 % of a 14x24 grid, since ties are broken at random) and a gap of 0; noise
of its own for each frame scores about 52 in both (see `training/evaluation/metrics/correspondence.py`), position alone
100 in both, and both a gap of 0. Random weights and raw pixels do NOT score 0: the same place looks much the same a
moment later, and looks alone match it. On the eight DAVIS sequences of `model_cards/results` (0.1 to 1 s) the gap was 0
for constant, 16 for pixels and 23 for random weights. The gap rewards telling the places of a scene apart, not
understanding, and never ranks encoders without those rows. Similar scenes, such as one race track in several videos,
raise the control, and so does likeness of meaning across videos. Intervals are 95 % percentile bootstraps over videos.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import numpy as np
import torch

from training.evaluation.data.video_frames import EncodedClip, add_video_arguments, describe, encode_clips, other_frame
from training.evaluation.metrics.correspondence import chance_share, cycle_share
from training.evaluation.statistics.figures import by_unit, percent, percent_interval
from training.models.model import Model


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the protocol's options."""
    add_video_arguments(parser)


def evaluate(model: Model, args: argparse.Namespace) -> dict[str, object]:
    """Measure cycle consistency, its control and the gap."""
    clips = encode_clips(model, args)
    cycle, control = measure(clips, args.offsets, args.seed)
    described = describe(model, clips, args)
    return {"figures": summarize(cycle, control, clips, args.offsets), **described}


def measure(clips: Sequence[EncodedClip], offsets: Sequence[float], seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the cycle consistency and the control of each video, means over its pairs, (videos, offsets) in [0, 1]."""
    generator = torch.Generator().manual_seed(seed)
    cycle, control = np.zeros((2, len(clips), len(offsets)))
    for number, clip in enumerate(clips):
        for column, offset in enumerate(offsets):
            shares = []
            for pair, (base, later) in enumerate(clip.pairs[offset]):
                other, frame = other_frame(clips, number, pair, offset)
                ends = clip.grid[later], clips[other].grid[frame]
                shares.append([cycle_share(clip.grid[base], end, generator) for end in ends])
            cycle[number, column], control[number, column] = np.mean(shares, axis=0)
    return cycle, control


def summarize(
    cycle: np.ndarray, control: np.ndarray, clips: Sequence[EncodedClip], offsets: Sequence[float]
) -> dict[str, object]:
    """Return the figures of (videos, offsets) shares, in percent."""
    gap = cycle - control
    figures: dict[str, object] = {
        "gap": percent(gap),
        "cycle": percent(cycle),
        "control": percent(control),
        "chance": percent(chance_share(*clips[0].grid.shape[1:3])),
        **by_unit(gap.mean(1), [clip.video for clip in clips]),
    }
    measured = {"cycle": cycle, "control": control, "gap": gap}
    for column, offset in enumerate(offsets):
        figures[f"at {offset:g} s"] = {
            **{name: percent(array[:, column]) for name, array in measured.items()},
            **{f"{name}_interval": percent_interval(array[:, column]) for name, array in measured.items()},
        }
    return figures
