"""How sure a mean of few values is: Student's interval (1908), which holds its level however few there are.

A percentile bootstrap does not: of two values of one sign, resampling finds no other sign, so that half of all such
"differences" are none. Values that come in groups, such as the frames of a video, count as one each: the deviation is
that of the groups' sums from what the common mean gives them, and there are as many values as groups.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Hashable, Sequence
from typing import NamedTuple

import numpy as np

from training.evaluation.statistics.bootstrap import per_group
from video_distilled_encoder.errors import InputError


class Difference(NamedTuple):
    """How much larger one set of values is than another."""

    mean: float
    """Of a minus b."""
    low: float
    high: float
    groups: int
    """How many independent ones the values are of."""
    verdict: str
    """"larger", "smaller", or "cannot tell" if the interval holds 0 or there is none."""


def student_interval(
    values: Sequence[float] | np.ndarray, groups: Sequence[Hashable] | None = None, level: float = 0.95
) -> tuple[float, float]:
    """Return Student's interval of the mean of values.

    Args:
        values: n numbers.
        groups: what each value belongs to, such as its video; each value is its own group if None.
        level: how often such an interval holds the mean.

    Returns:
        (low, high); both NaN if there is only one group.

    Raises:
        InputError: as `training.evaluation.statistics.bootstrap.interval`.
    """
    sums, counts = per_group(values, groups)
    if len(sums) == 1:
        return float("nan"), float("nan")
    mean = sums.sum() / counts.sum()
    freedom = len(sums) - 1
    deviation = math.sqrt(len(sums) / freedom * float(((sums - mean * counts) ** 2).sum())) / counts.sum()
    reach = quantile((1 + level) / 2, freedom) * deviation
    return float(mean - reach), float(mean + reach)


def difference(
    a: Sequence[float] | np.ndarray,
    b: Sequence[float] | np.ndarray,
    groups: Sequence[Hashable] | None = None,
    level: float = 0.95,
) -> Difference:
    """Return the mean of a - b of paired values, such as two encoders' figures on the same videos, and its interval.

    Raises:
        InputError: as `student_interval`, or a and b are not of one length.
    """
    if len(a) != len(b):
        raise InputError(f"paired values must be as many on both sides, got {len(a)} and {len(b)}")
    values = np.asarray(a, dtype=float) - np.asarray(b, dtype=float)
    low, high = student_interval(values, groups, level)
    verdict = "larger" if low > 0 else "smaller" if high < 0 else "cannot tell"
    return Difference(float(values.mean()), low, high, len(per_group(values, groups)[0]), verdict)


@functools.cache
def quantile(level: float, freedom: int) -> float:
    """Return Student's t that is exceeded with probability 1 - level, level from one half, by halving."""
    low, high = 0.0, 1.0
    while probability(high, freedom) < level:
        high *= 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if probability(middle, freedom) < level else (low, middle)
    return high


def probability(t: float, freedom: int) -> float:
    """Return the probability that Student's t is at most t, for t >= 0 (Abramowitz and Stegun 1964, 26.7.3 and 4)."""
    angle = math.atan(t / math.sqrt(freedom))
    odd = freedom % 2
    term = math.cos(angle) if odd else 1.0
    total = term if freedom > 1 else 0.0
    for number in range(2 + odd, freedom, 2):
        term *= (number - 1) / number * math.cos(angle) ** 2
        total += term
    both = 2 / math.pi * (angle + math.sin(angle) * total) if odd else math.sin(angle) * total
    return (1 + both) / 2
