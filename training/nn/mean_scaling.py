"""Losses of different kinds, made comparable."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from training.common import distributed


class MeanScaling(nn.Module):
    """Divides each of several losses by its running mean, so that none outweighs another by what it measures.

    FRAME has it and does not say how the mean is taken: a running mean is ours.

    Args:
        count: of losses.
        momentum: of their means, which begin at the first losses that are seen.
    """

    mean: Tensor

    def __init__(self, count: int, momentum: float) -> None:
        super().__init__()
        self.momentum = momentum
        self.register_buffer("mean", torch.zeros(count))

    def forward(self, losses: Tensor) -> Tensor:
        """(count,) -> (count,); no gradient passes through the means, which are those of all processes."""
        now = distributed.average(losses.detach().to(self.mean.dtype))
        self.mean = torch.where(self.mean > 0, self.mean.lerp(now, 1 - self.momentum), now)
        return losses / self.mean.clamp(min=1e-12)
