"""A sheet of real views, as the network sees them: the quickest way to see whether crops and colours make sense."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from training.common.tiles import write_tiles
from training.data.batch import augment
from training.data.loading import ClipViews, Place


def draw_sheet(clips: ClipViews, positions: Sequence[int], picture: Path) -> None:
    """Draw the augmented views of some clips as a PNG, one row a clip, group by group, as at the start of a run."""
    write_tiles(picture, [_views(clips, position) for position in positions], gap=4)


def _views(clips: ClipViews, position: int) -> list[np.ndarray]:
    # mean 0 and deviation 1 leave the pixels in [0, 1]
    groups = augment(clips[Place(position, 0.0)], torch.zeros(3), torch.ones(3)).values()
    views = (view.clamp(0, 1) for found in groups for view in found["pixels"])
    return [(view * 255).round().to(torch.uint8).permute(1, 2, 0).numpy() for view in views]
