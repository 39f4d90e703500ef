"""What keeps the teacher's distributions balanced, so that it does not collapse: centring, or Sinkhorn-Knopp.

Both come down to one number per prototype, subtracted from the teacher's logits before their softmax:
target = softmax(z / tau - bias). For centring it is the running mean of the logits over tau; for Sinkhorn-Knopp it is
what makes every prototype equally used in this batch. Neither needs all logits at once.

Legend: M = tokens, E = bottleneck width, D = prototypes.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor, nn

from training import distributed
from training.loss import chunk_of
from video_distilled_encoder.errors import InputError

TargetKind = Literal["centering", "sinkhorn_knopp"]


class Balance(nn.Module):
    """The bias of the teacher's logits, with the running centre it may need.

    Args:
        prototypes: D.
        kind: "centering" subtracts a running mean of the logits (Caron et al. 2021, section 3.1); "sinkhorn_knopp"
            uses every prototype equally often within the batch (SwAV; DINOv2, section 4).
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
    def forward(self, teacher: Tensor, prototypes: Tensor, temperature: float) -> Tensor:
        """Return the (D,) bias for a batch; a running centre moves afterwards.

        Args:
            teacher: (M, E) the teacher's bottleneck vectors.
            prototypes: (D, E) the teacher's prototypes.
            temperature: the teacher's, tau_T.
        """
        if self.kind == "sinkhorn_knopp":
            return sinkhorn_bias(teacher, prototypes, temperature)
        with torch.autocast(teacher.device.type, enabled=False):
            bias = self.center / temperature
            # The last layer is linear: the mean of the logits is the logits of the mean.
            mean = distributed.average(teacher.to(self.center.dtype).mean(0))
            mean_logits = prototypes.to(self.center.dtype) @ mean
            self.center.lerp_(mean_logits, 1 - self.momentum)
            return bias


def sinkhorn_bias(
    teacher: Tensor, prototypes: Tensor, temperature: float, *, iterations: int = 3, chunk: int | None = None
) -> Tensor:
    """Return the (D,) bias b for which softmax(z / tau - b) is the result of Sinkhorn-Knopp on exp(z / tau).

    The algorithm scales columns and rows of exp(z / tau) in turn, `iterations` times, rows last; in logarithms
    b_d = logsumexp_m(z_md / tau - a_m) and a_m = logsumexp_d(z_md / tau - b_d). Going through the tokens in chunks,
    each round takes a and the next b from the same logits.

    Args:
        teacher: (M, E).
        prototypes: (D, E).
        temperature: tau.
        iterations: rounds.
        chunk: tokens whose logits exist at one time; as many as have 2^26 logits if not given.
    """
    wide = torch.promote_types(teacher.dtype, torch.float32)
    bias: Tensor | None = None
    for _ in range(iterations):
        total = torch.full((len(prototypes),), -torch.inf, dtype=wide, device=teacher.device)
        for rows in teacher.split(chunk or chunk_of(len(prototypes))):
            scores = (rows @ prototypes.T).to(wide) / temperature
            if bias is not None:
                scores = scores - torch.logsumexp(scores - bias, dim=1, keepdim=True)
            total = torch.logaddexp(total, torch.logsumexp(scores, dim=0))
        bias = distributed.logsumexp(total)
    assert bias is not None
    return bias
