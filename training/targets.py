"""From a teacher's logits to target distributions: centring (DINO) or Sinkhorn-Knopp (SwAV, DINOv2).

Both keep the teacher from collapsing. Legend: M = samples, D = prototypes.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor, nn

from training.loss import at_least_float32
from video_distilled_encoder.errors import InputError

TargetKind = Literal["centering", "sinkhorn_knopp"]


class Targets(nn.Module):
    """Sharpened, balanced target distributions, with the running centre they need.

    Args:
        prototypes: D.
        kind: "centering" subtracts a running mean of the logits and applies a softmax (Caron et al. 2021, section 3.1);
            "sinkhorn_knopp" balances the batch so that every prototype is used equally (DINOv2, section 4).
        momentum: of the running centre.

    Raises:
        InputError: the kind is unknown.
    """

    center: Tensor

    def __init__(self, prototypes: int, kind: TargetKind = "centering", momentum: float = 0.9) -> None:
        super().__init__()
        if kind not in get_args(TargetKind):
            raise InputError(f"targets must be one of {', '.join(get_args(TargetKind))}, got {kind!r}")
        self.kind = kind
        self.momentum = momentum
        self.register_buffer("center", torch.zeros(prototypes))

    @torch.no_grad()
    def forward(self, logits: Tensor, temperature: float) -> Tensor:
        """(..., D) logits -> (..., D) probabilities, in float32 at least; the centre moves afterwards."""
        logits = at_least_float32(logits)
        if self.kind == "sinkhorn_knopp":
            return sinkhorn_knopp(logits.flatten(0, -2) / temperature).view_as(logits)
        targets = torch.softmax((logits - self.center) / temperature, dim=-1)
        self.center.lerp_(logits.flatten(0, -2).mean(0), 1 - self.momentum)
        return targets


def sinkhorn_knopp(scores_MD: Tensor, iterations: int = 3) -> Tensor:
    """Alternately scale columns and rows of exp(scores) so that rows sum to 1 and columns to M / D.

    Args:
        scores_MD: logits over the temperature.
        iterations: rounds; the rows are scaled last.
    """
    log_q = scores_MD
    for _ in range(iterations):
        log_q = log_q - torch.logsumexp(log_q, dim=0, keepdim=True)
        log_q = log_q - torch.logsumexp(log_q, dim=1, keepdim=True)
    return log_q.exp()
