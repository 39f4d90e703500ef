"""A sheet of real views, as the network sees them: the quickest way to see whether crops and colours make sense."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from training.data.batch import augment
from training.data.loading import ClipViews, Place
from video_distilled_encoder.files import atomic_path

_GAP = 4


def draw_sheet(clips: ClipViews, positions: Sequence[int], picture: Path) -> None:
    """Draw the augmented views of some clips as a PNG, one row a clip, group by group, as at the start of a run."""
    rows = [_row(clips, position) for position in positions]
    sheet = np.concatenate([part for row in rows for part in (row, np.full_like(row[:_GAP], 255))])
    with atomic_path(picture) as temporary:
        Image.fromarray(sheet).save(temporary)


def _row(clips: ClipViews, position: int) -> np.ndarray:
    # mean 0 and deviation 1 leave the pixels in [0, 1]
    groups = augment(clips[Place(position, 0.0)], torch.zeros(3), torch.ones(3)).values()
    height = max(found["pixels"].shape[-2] for found in groups)
    return np.concatenate([_tile(view, height) for found in groups for view in found["pixels"]], axis=1)


def _tile(view: Tensor, height: int) -> np.ndarray:
    """(3, h, w) in [0, 1] -> (height, w + gap, 3) uint8 on white."""
    pixels = (view.clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    tile = np.full((height, pixels.shape[1] + _GAP, 3), 255, dtype=np.uint8)
    tile[: pixels.shape[0], : pixels.shape[1]] = pixels
    return tile
