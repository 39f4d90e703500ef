"""Nearest neighbours between the patches of two frames, and whether going there and back leads home.

Cycle consistency is the share of patches of one frame whose most similar patch (cosine) in another frame has, in turn,
its most similar patch within one patch of the start: Chebyshev distance of at most 1. It is in [0, 1].

    constant features   all similarities tie. `argmax` would send every patch to patch 0, and score the patch's own
                        neighbourhood, 4 of N. Ties are broken at random instead, which gives chance: the mean size of a
                        neighbourhood over N, (3h - 2)(3w - 2) / N^2, below 9 / N.
    noise               about 1/2 on any two frames: of independent similarities the largest in its row is the largest
                        in its column with probability N / (2N - 1). A cycle consistency of 60 % is thus no success.
    position alone      1, on any two frames. Cycle consistency must therefore stand beside a control: the same between
                        frames of different videos, where only position, or such chance, can lead home. What counts is
                        the gap.
    raw pixels          near 1 where nothing moves and light is steady, falling with motion: a strong row, since a cycle
                        says only that a match is mutual, not that it is right.
"""

from __future__ import annotations

import torch
from torch import Tensor

TIE = 1e-9
"""Similarities, in double precision, this close to the largest count as equal to it."""


def normalize(features: Tensor) -> Tensor:
    """(..., C) -> (..., C) float64 of length 1; zero stays zero."""
    return torch.nn.functional.normalize(features.double(), dim=-1)


def most_similar(similarity: Tensor, generator: torch.Generator) -> Tensor:
    """(N, M) -> (N,) the column of the largest value of each row; one at random of those that tie."""
    tied = similarity >= similarity.amax(1, keepdim=True) - TIE
    if int(tied.sum()) == len(tied):
        return similarity.argmax(1)
    drawn = torch.rand(similarity.shape, generator=generator, device=generator.device)
    return (tied * (1 + drawn.to(similarity.device))).argmax(1)


def match(start: Tensor, end: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Match the patches of two frames by cosine similarity.

    Args:
        start: (h, w, C) features.
        end: (H, W, C) features.
        generator: breaks ties.

    Returns:
        (h * w,) the patch of `end` most similar to each of `start`, and (H * W,) the other way round.
    """
    similarity = normalize(start.flatten(0, 1)) @ normalize(end.flatten(0, 1)).T
    return most_similar(similarity, generator), most_similar(similarity.T, generator)


def cycle_map(start: Tensor, end: Tensor, generator: torch.Generator, *, radius: int = 1) -> Tensor:
    """Tell which patches come home.

    Args:
        start: (h, w, C) features of a frame.
        end: (H, W, C) features of another.
        generator: breaks ties.
        radius: how far, in patches and by Chebyshev distance, home extends.

    Returns:
        (h, w) bool.
    """
    there, back = match(start, end, generator)
    width = start.shape[1]
    home = torch.arange(len(there))
    returned = back[there]
    rows = (returned // width - home // width).abs()
    columns = (returned % width - home % width).abs()
    return (torch.maximum(rows, columns) <= radius).view(start.shape[:2])


def cycle_share(start: Tensor, end: Tensor, generator: torch.Generator, *, radius: int = 1) -> float:
    """Return the share of patches that come home, in [0, 1]; arguments as of `cycle_map`."""
    return float(cycle_map(start, end, generator, radius=radius).double().mean())


def chance_share(height: int, width: int) -> float:
    """Return what random matches score with radius 1: the mean share of a grid within one patch of a patch."""
    return (3 * height - 2) * (3 * width - 2) / (height * width) ** 2
