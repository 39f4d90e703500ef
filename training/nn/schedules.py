"""Schedules as pure functions of the share of the run that is over."""

from __future__ import annotations

import math


def cosine(start: float, end: float, progress: float) -> float:
    """Go from `start` at progress 0 to `end` at 1 along half a cosine (DINO's `cosine_scheduler`)."""
    return end + (start - end) * (1 + math.cos(math.pi * min(progress, 1.0))) / 2


def linear_warmup(start: float, end: float, warmup: float, progress: float) -> float:
    """Go from `start` linearly to `end`, reached at progress `warmup`, and stay there."""
    return end if progress >= warmup else start + (end - start) * progress / warmup


def warmup_cosine(peak: float, end: float, warmup: float, progress: float, cycles: int = 1) -> float:
    """Rise linearly from 0 to `peak` until progress `warmup`, then follow half a cosine to `end`.

    Of several `cycles` each begins at the peak and takes an equal part of what is left: warm restarts (SGDR).
    """
    if progress < warmup:
        return peak * progress / warmup
    turns = cycles * (min(progress, 1.0) - warmup) / (1 - warmup)
    return cosine(peak, end, turns if turns >= cycles else turns % 1)
