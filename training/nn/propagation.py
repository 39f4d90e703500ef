"""Label propagation: what is known of the patches of some frames, carried to another frame by similar features.

Legend: B = clips, T = frames, N = patches of a frame, h, w = grid, C = width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

TIE = 1e-6
"""Cosines this close to the last of the top-k count as equal to it and are taken too, so that order never decides."""


def mean_of_best(cosines: Tensor, values: Tensor, top_k: int, temperature: float) -> Tensor:
    """Average what the most similar sources hold, weighted by exp(cosine / temperature).

    Args:
        cosines: (..., q, s) of queries with sources; -inf for those that a query does not see.
        values: (..., s, L) of the sources.
        top_k: sources that count, and those that tie with the last of them.
        temperature: see above.

    Returns:
        (..., q, L).
    """
    best = cosines.topk(min(top_k, cosines.shape[-1])).values
    chosen = cosines >= best[..., -1:] - TIE
    weights = ((cosines - best[..., :1]) / temperature).exp() * chosen
    return weights @ values / weights.sum(-1, keepdim=True)


def transport(features: Tensor, *, top_k: int, radius: int, temperature: float) -> Tensor:
    """Return from which patches of the first frame of a clip those of its last frame come.

    Each frame in turn gets what all frames before it have, so that labels of the first frame come to those of the last
    by one product: last = transport @ first.

    Args:
        features: (B, T, h, w, C).
        top_k: patches of earlier frames that a patch is made of.
        radius: rows and columns, to each side of its place, in which they lie.
        temperature: of their weights, exp(cosine / temperature).

    Returns:
        (B, N, N) float32 or wider: by patch of the last frame, shares of those of the first; rows sum to 1.
    """
    clips, frames, height, width, _ = features.shape
    wide = torch.promote_types(features.dtype, torch.float32)
    with torch.autocast(features.device.type, enabled=False):
        units = F.normalize(features.to(wide), dim=-1).flatten(2, 3)
        far = _distance(height, width, features.device) > radius
        carried = torch.eye(height * width, dtype=wide, device=features.device).expand(clips, 1, -1, -1)
        for number in range(1, frames):
            cosines = torch.einsum("bqc,btsc->bqts", units[:, number], units[:, :number])
            cosines = cosines.masked_fill(far[:, None], -torch.inf).flatten(2)
            found = mean_of_best(cosines, carried.flatten(1, 2), top_k, temperature)
            carried = torch.cat([carried, found[:, None]], dim=1)
    return carried[:, -1]


def comes_home(there: Tensor, back: Tensor, grid: tuple[int, int], radius: int = 1) -> Tensor:
    """Tell which patches are led back to where they were, or at most `radius` rows and columns beside it.

    Args:
        there: (B, N, N) shares of the patches of another frame in those of this one.
        back: (B, N, N) shares of the patches of this frame in those of the other.
        grid: (h, w) of both.
        radius: see above.

    Returns:
        (B, N) bool.
    """
    returned = back.argmax(-1).gather(1, there.argmax(-1))
    places = torch.arange(grid[0] * grid[1], device=there.device)
    return _distance(*grid, there.device)[places, returned] <= radius


def _distance(height: int, width: int, device: torch.device) -> Tensor:
    """Return the (N, N) distances between the patches of a grid, the larger of rows and columns."""
    places = torch.arange(height * width, device=device)
    rows, columns = places // width, places % width
    return torch.maximum((rows[:, None] - rows).abs(), (columns[:, None] - columns).abs())
