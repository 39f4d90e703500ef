"""Feature maps read at other places: those to which a flow leads, or turned by an affine map and back.

Places are normalised as torch.nn.functional.grid_sample has them without `align_corners`: x and y from -1 to 1 between
the outer edges of a map, whatever its rows and columns. Legend: B = maps, C = channels, h, w = rows and columns of a
map, n, m = rows and columns of places.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def middles(size: Sequence[int], like: Tensor) -> Tensor:
    """Return the (h, w, 2) places of the middles of the cells of a map of `size` (h, w), of the kind of `like`."""
    x, y = ((2 * torch.arange(count, dtype=like.dtype, device=like.device) + 1) / count - 1 for count in reversed(size))
    return torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1)


def read(maps: Tensor, places: Tensor) -> Tensor:
    """Read (B, C, h, w) maps at (B, n, m, 2) places: (B, C, n, m), bilinear; beyond an edge they go on as there."""
    return F.grid_sample(maps, places, mode="bilinear", padding_mode="border", align_corners=False)


def arrivals(flow: Tensor, width: float, height: float) -> Tensor:
    """Return the (B, n, m, 2) places that (B, 2, n, m) flows lead to, in units of which a map has width x height."""
    return middles(flow.shape[-2:], flow) + 2 * torch.stack([flow[:, 0] / width, flow[:, 1] / height], dim=-1)


def turned(places: Tensor, maps: Tensor) -> Tensor:
    """Apply (B, 2, 2) linear maps to (n, m, 2) or (B, n, m, 2) places."""
    # no matrix product, which would be one of bfloat16 under autocast, and half a pixel off
    return (maps[:, None, None] * places[..., None, :]).sum(-1)


def turn(images: Tensor, maps: Tensor) -> Tensor:
    """Return what (B, C, h, w) images hold at M p for every place p, given (B, 2, 2) M; 0 beyond their edges."""
    places = turned(middles(images.shape[-2:], images), maps)
    return F.grid_sample(images, places, mode="bilinear", padding_mode="zeros", align_corners=False)


def within(places: Tensor) -> Tensor:
    """Tell which (…, 2) places lie on a map: (…) bool."""
    return (places.abs() <= 1).all(-1)
