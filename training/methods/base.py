"""What all methods share: a student, a teacher that follows it, and a loss."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import NamedTuple

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn


class Losses(NamedTuple):
    """What a method returns for one batch."""

    total: Tensor
    """Scalar with gradients."""
    metrics: dict[str, Tensor]
    """Named scalars without gradients, for the log; they stay on the device."""


class Tower(nn.Module):
    """A backbone and what follows it during training."""

    backbone: VisionTransformer


class Method(nn.Module, ABC):
    """A student trained by gradients and a teacher that is its moving average.

    The teacher's modules are a subset of the student's, under the same names; `backbone` is in both.
    """

    student: Tower
    teacher: Tower

    @abstractmethod
    def forward(self, views: Mapping[str, Tensor], progress: float) -> Losses:
        """Compute the losses of a batch.

        Args:
            views: per group of views (B, n, 3, H, W) normalised pixels, n in the order of `plan_views`.
            progress: share of the run that is over, in [0, 1).
        """

    @abstractmethod
    def last_layer(self) -> list[nn.Parameter]:
        """Return the student's parameters that are frozen at the start of a run."""

    def start_teacher(self) -> None:
        """Make the teacher equal to the student; it never receives a gradient."""
        student = self.student.state_dict()
        self.teacher.load_state_dict({name: student[name] for name in self.teacher.state_dict()})
        self.teacher.requires_grad_(False)

    @torch.no_grad()
    def update_teacher(self, momentum: float) -> None:
        """Teacher <- momentum * teacher + (1 - momentum) * student."""
        student = dict(self.student.named_parameters())
        names, old = zip(*self.teacher.named_parameters(), strict=True)
        torch._foreach_lerp_(list(old), [student[name] for name in names], 1 - momentum)

    def train(self, mode: bool = True) -> Method:
        """Set the student's mode; the teacher stays in eval mode (no drop path)."""
        super().train(mode)
        self.teacher.eval()
        return self


@torch.no_grad()
def feature_std(tokens: Tensor) -> Tensor:
    """Return how far (..., C) tokens are spread: 1 for tokens all over the unit sphere, 0 for constant ones.

    It is the standard deviation of L2-normalised tokens, averaged over channels, times sqrt(C).
    """
    unit = nn.functional.normalize(tokens.float().flatten(0, -2), dim=-1)
    return unit.std(0).mean() * tokens.shape[-1] ** 0.5
