"""How sure a mean is: percentile bootstrap, resampling whole videos where values come from videos.

Frames of one video resemble each other, so resampling frames would make intervals far too narrow. With fewer than about
ten groups percentile intervals are still too narrow, so no verdict is built on them (see student.py); with one group
there is none, and NaN is returned.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np

from video_distilled_encoder.errors import InputError


def interval(
    values: Sequence[float] | np.ndarray,
    groups: Sequence[Hashable] | None = None,
    resamples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> tuple[float, float]:
    """Return a percentile bootstrap interval of the mean of values.

    A resample draws as many groups as there are, with replacement, and takes the mean of all their values.

    Args:
        values: n numbers.
        groups: what each value belongs to, such as its video; each value is its own group if None.
        resamples: number of means drawn.
        seed: of the draws.
        level: share of the means that lie inside.

    Returns:
        (low, high); both NaN if there is only one group.

    Raises:
        InputError: there are no values, they are not finite, or groups has another length.
    """
    sums, counts = per_group(values, groups)
    if len(sums) == 1:
        return float("nan"), float("nan")
    chosen = np.random.default_rng(seed).integers(0, len(sums), (resamples, len(sums)))
    means = sums[chosen].sum(1) / counts[chosen].sum(1)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def per_group(values: Sequence[float] | np.ndarray, groups: Sequence[Hashable] | None) -> tuple[np.ndarray, np.ndarray]:
    """Return the sum and the number of values of each group."""
    array = np.asarray(values, dtype=float)
    if array.ndim != 1 or not len(array):
        raise InputError(f"a bootstrap needs a list of at least one value, got an array of shape {array.shape}")
    if not np.isfinite(array).all():
        raise InputError("a bootstrap needs finite values, got NaN or infinity; leave them out first")
    if groups is None:
        return array, np.ones(len(array))
    if len(groups) != len(array):
        raise InputError(f"each value needs its group, got {len(array)} values and {len(groups)} groups")
    numbers: dict[Hashable, int] = {}
    index = [numbers.setdefault(group, len(numbers)) for group in groups]
    return np.bincount(index, weights=array), np.bincount(index).astype(float)
