"""Where the keypoints of one image are found in another by the similarity of features.

An image's features are a grid of cells: the patches, or parts of them where these are enlarged bilinearly by a factor.
A keypoint has the features of the cell that it lies in, and is found at the centre of the cell of the other image whose
cosine similarity to it is largest; ties are broken at random, so that constant features score chance.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from training.evaluation.metrics.correspondence import most_similar, normalize


def enlarge(grid: Tensor, factor: int) -> Tensor:
    """(h, w, C) -> (factor h, factor w, C) float32 features between which is interpolated bilinearly."""
    if factor == 1:
        return grid.float()
    return F.interpolate(grid.float().movedim(-1, 0)[None], scale_factor=factor, mode="bilinear")[0].movedim(0, -1)


def cells_of(points: np.ndarray, size: tuple[int, int], grid: tuple[int, int]) -> Tensor:
    """(k, 2) x and y in an image of (width, height) `size` -> (k,) numbers of the cells of a (rows, columns) grid."""
    share = (points + 0.5) / np.array(size)
    column, row = (np.floor(share[:, axis] * grid[1 - axis]).clip(0, grid[1 - axis] - 1).astype(int) for axis in (0, 1))
    return torch.from_numpy(row * grid[1] + column)


def centres_of(cells: Tensor, size: tuple[int, int], grid: tuple[int, int]) -> np.ndarray:
    """Return the (k, 2) x and y of the centres of cells; the other way round than `cells_of`."""
    x = (cells % grid[1] + 0.5) / grid[1] * size[0] - 0.5
    y = (cells // grid[1] + 0.5) / grid[0] * size[1] - 0.5
    return torch.stack([x, y], dim=1).double().numpy()


def find_points(queries: Tensor, target: Tensor, generator: torch.Generator) -> Tensor:
    """Return the cells most similar to queries.

    Args:
        queries: (k, C) features.
        target: (N, C) float64 features of length 1 or 0, as `normalize` returns them.
        generator: breaks ties.

    Returns:
        (k,) cells.
    """
    return most_similar(normalize(queries) @ target.T, generator)


def correct(found: np.ndarray, truth: np.ndarray, extent: float, limit: float) -> np.ndarray:
    """(k, 2) found and true places -> (k,) bool: within `limit` times the object's extent."""
    return np.hypot(*(found - truth).T) <= limit * extent
