"""How far a predicted depth is from the true one, over the pixels of an image whose depth is known."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class DepthErrors(NamedTuple):
    """Of one image; NaN if no pixel's depth is known."""

    rmse: float
    """Root of the mean squared error, in metres."""
    abs_rel: float
    """Mean error as a share of the true depth."""
    delta1: float
    """Share of pixels less than a factor of 1.25 away."""


def depth_errors(prediction: np.ndarray, truth: np.ndarray) -> DepthErrors:
    """Compare (H, W) positive depths with the true ones, which are 0 where they are not known."""
    known = truth > 0
    if not known.any():
        return DepthErrors(*[float("nan")] * 3)
    ours, theirs = prediction[known].astype(float), truth[known].astype(float)
    error = ours - theirs
    return DepthErrors(
        float(np.sqrt(np.mean(error**2))),
        float(np.mean(np.abs(error) / theirs)),
        float(np.mean(np.maximum(ours / theirs, theirs / ours) < 1.25)),
    )
