"""How protocols write their figures down: in percent, and unit by unit, by which encoders are compared."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from training.evaluation.statistics.bootstrap import interval


def percent(shares: float | np.floating | np.ndarray | Sequence[float]) -> float | None:
    """Return the mean of shares in percent, to hundredths; None, which JSON knows, for NaN or the mean of nothing."""
    mean = float(np.mean(shares)) if np.size(shares) else float("nan")
    return None if np.isnan(mean) else round(100 * mean, 2) + 0.0


def percent_interval(shares: Sequence[float] | np.ndarray, units: Sequence[str] | None = None) -> list[float | None]:
    """Return the 95 % bootstrap interval of the mean of shares, in percent; of None if there is one unit only."""
    return [percent(bound) for bound in interval(shares, units)]


def by_unit(shares: Sequence[float] | np.ndarray, units: Sequence[str]) -> dict[str, object]:
    """Return what a result says of a figure unit by unit, in percent, where a unit is a video or a run of images.

    Args:
        shares: n numbers.
        units: the unit of each, those of a unit side by side.

    Returns:
        interval: of the mean of all shares, 95 % bootstrap over units
        half_a, half_b: mean over every second unit, and over the others
        units: the mean of each; by these `training/evaluation/statistics/comparison.py` compares
    """
    names = np.array(units)
    means = {name: np.mean(np.asarray(shares)[names == name]) for name in dict.fromkeys(units)}
    return {
        "interval": percent_interval(shares, units),
        **{f"half_{letter}": percent(half) for letter, half in zip("ab", halves(list(means.values())), strict=True)},
        "units": {name: percent(mean) for name, mean in means.items()},
    }


def halves(values: Sequence[float]) -> tuple[Sequence[float], Sequence[float]]:
    """Split units into every second one and the others."""
    return values[::2], values[1::2]
