"""The layer that linear probes train."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class StandardizedLinear(nn.Module):
    """One linear layer on features standardised per channel; the standardisation is folded into its weights.

    Args:
        tokens: (..., C) features that mean and deviation are taken from.
        classes: outputs.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, tokens: Tensor, classes: int) -> None:
        super().__init__()
        flat = tokens.flatten(0, -2)
        mean = flat.mean(0, dtype=torch.float32)
        square = torch.stack([part.float().sub(mean).square().mean(0) for part in flat.chunk(16)]).mean(0)
        self.register_buffer("mean", mean)
        self.register_buffer("std", square.sqrt().clamp(min=1e-6))
        self.linear = nn.Linear(tokens.shape[-1], classes)

    def forward(self, tokens: Tensor) -> Tensor:
        """(..., C) -> (..., classes) logits."""
        weight = self.linear.weight / self.std
        return F.linear(tokens.float(), weight, self.linear.bias - weight @ self.mean)
