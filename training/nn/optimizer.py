"""AdamW as a recipe sets it: learning rate, weight decay, clipping."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from training.nn.schedules import cosine, warmup_cosine
from video_distilled_encoder.errors import InputError


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW and its schedules (defaults: DINO's; shares are of the run)."""

    learning_rate: float = 5e-4
    """Peak, for a batch of 256."""
    learning_rate_rule: Literal["linear", "square_root", "absolute"] = "linear"
    """How the peak follows the batch: with batch / 256, with the root of that, or not at all."""
    learning_rate_end: float = 1e-6
    """At the end of the cosine; not scaled."""
    backbone_scale: float = 1.0
    """The backbone's learning rate over that of all else; works that post-train an encoder take 0.1."""
    learning_rate_batch: Literal["clips", "frames"] = "clips"
    """What the batch counts for that scaling: clips, or clips times frames (the papers' "batch 256" says neither)."""
    warmup: float = 0.1
    """Share of linear warm-up (10 of 100 epochs)."""
    cycles: int = 1
    """Cosines of the learning rate, one after another, each from its peak (FRAME: warm restarts)."""
    weight_decay: tuple[float, float] = (0.04, 0.4)
    """At the start and at the end of a cosine; biases and norms are exempt."""
    betas: tuple[float, float] = (0.9, 0.999)
    """AdamW's running averages."""
    clip_grad: float | None = 3.0
    """Largest norm of a gradient."""
    clip_norm: Literal["tensor", "global"] = "tensor"
    """Of what that norm is: the gradient of each parameter tensor (DINO), or of all together."""

    def __post_init__(self) -> None:
        if self.learning_rate <= 0 or self.learning_rate_end < 0:
            raise InputError("optimizer.learning_rate must be positive and .learning_rate_end not negative")
        if self.backbone_scale < 0:
            raise InputError(f"optimizer.backbone_scale must not be negative, got {self.backbone_scale}")
        if not 0 <= self.warmup < 1:
            raise InputError(f"optimizer.warmup is a share of the run in [0, 1), got {self.warmup}")
        if self.cycles < 1:
            raise InputError(f"optimizer.cycles must be at least 1, got {self.cycles}")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise InputError(f"optimizer.betas lie in [0, 1), got {self.betas}")
        if self.clip_grad is not None and self.clip_grad <= 0:
            raise InputError("optimizer.clip_grad must be positive, or null for none")

    def peak(self, clips: int, frames: int) -> float:
        """Return the peak of the learning rate for a batch of so many clips, of so many frames each."""
        share = clips * (frames if self.learning_rate_batch == "frames" else 1) / 256
        return (
            self.learning_rate * {"linear": share, "square_root": share**0.5, "absolute": 1.0}[self.learning_rate_rule]
        )

    def at(self, progress: float, peak: float) -> dict[str, float]:
        """Return learning rate and weight decay when a share `progress` of the run is over."""
        return {
            "learning_rate": warmup_cosine(peak, self.learning_rate_end, self.warmup, progress, self.cycles),
            "weight_decay": cosine(*self.weight_decay, progress),
        }


def parameter_groups(module: nn.Module, backbone_scale: float) -> list[dict[str, Any]]:
    """Split what is trained by the weight decay and the learning rate that it gets.

    Args:
        module: whose parameters they are; those of its `backbone`, if it has one, have a learning rate of their own.
        backbone_scale: that over the others'.

    Returns:
        Groups with their `params`; whether they are `decayed`, which biases and norms are not, as in DINO; and the
        `rate` by which their learning rate is multiplied.
    """
    groups: dict[tuple[bool, float], list[nn.Parameter]] = {}
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            kind = parameter.ndim > 1, backbone_scale if name.startswith("backbone.") else 1.0
            groups.setdefault(kind, []).append(parameter)
    return [{"params": params, "decayed": decayed, "rate": rate} for (decayed, rate), params in groups.items()]


def clip(parameters: Sequence[nn.Parameter], limit: float | None, together: bool = False) -> Tensor:
    """Scale gradients down to a norm.

    Args:
        parameters: whose gradients are scaled.
        limit: the largest norm; none if not given.
        together: of all gradients as one vector; else of each tensor (DINO).

    Returns:
        The largest norm of a tensor there was, or that of all.
    """
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    norms = torch.stack(torch._foreach_norm(gradients))
    if together:
        norms = norms.norm().expand(len(gradients))
    if limit is not None:
        factors = (limit / (norms + 1e-6)).clamp(max=1.0)
        torch._foreach_mul_(gradients, list(factors.unbind()))
    return norms.max()
