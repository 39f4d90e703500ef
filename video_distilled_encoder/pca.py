"""Pictures of features: the three main directions of patch tokens as red, green and blue."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor


@dataclass(frozen=True)
class PCA:
    """Three principal directions and the range each is stretched over."""

    mean: Tensor
    """(C,) float64."""
    directions: Tensor
    """(C, 3) float64, strongest first, signs fixed so that the largest entry is positive."""
    low: Tensor
    """(3,) value shown as 0: the 1st percentile."""
    high: Tensor
    """(3,) value shown as 255: the 99th percentile."""

    @classmethod
    def fit(cls, tokens: Tensor) -> PCA:
        """Fit to (M, C) tokens, of one image or of many."""
        tokens = tokens.detach().double().cpu()
        mean = tokens.mean(0)
        centred = tokens - mean
        _, vectors = torch.linalg.eigh(centred.T @ centred)
        directions = vectors[:, -3:].flip(1)
        largest = directions.gather(0, directions.abs().argmax(0, keepdim=True))
        directions = directions * largest.sign()
        values = (centred @ directions).numpy()
        low, high = np.percentile(values, (1, 99), axis=0)
        return cls(mean, directions, torch.from_numpy(low), torch.from_numpy(high))

    def picture(self, grid: Tensor, size: tuple[int, int]) -> np.ndarray:
        """Draw (C, h, w) features as (H, W, 3) uint8 of `size` (H, W), each patch a block."""
        values = (grid.detach().double().cpu().movedim(0, -1) - self.mean) @ self.directions
        colours = ((values - self.low) / (self.high - self.low).clamp(min=1e-12)).clamp(0, 1)
        image = Image.fromarray((colours * 255).round().to(torch.uint8).numpy())
        return np.asarray(image.resize((size[1], size[0]), Image.Resampling.NEAREST))
