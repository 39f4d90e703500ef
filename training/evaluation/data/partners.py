"""Which frame stands for one some time later."""

from __future__ import annotations

import numpy as np

from video_distilled_encoder.video import nearest

TOLERANCE = 0.25
"""A frame stands for one `gap` later if it is so within this share of the gap."""


def find_partners(times: np.ndarray, gap: float) -> tuple[np.ndarray, np.ndarray]:
    """Find for each frame the one nearest to `gap` later.

    Args:
        times: (T,) ascending.
        gap: of the same unit.

    Returns:
        (T,) numbers of those frames, and (T,) bool: whether each lies near enough to stand for it.
    """
    later = nearest(times, times + gap)
    return later, np.abs(times[later] - times - gap) <= TOLERANCE * gap
