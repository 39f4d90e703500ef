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

from training.common import distributed
from training.nn.compiling import compile_on_gpu
from training.nn.distillation import chunk_of, dtype_of_products, product
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
    each round takes a and the next b from the same logits: two passes over them a round where the rounds are compiled,
    and 7 where not.

    Args:
        teacher: (M, E).
        prototypes: (D, E).
        temperature: tau.
        iterations: rounds.
        chunk: tokens whose logits exist at one time; as many as have 2^26 logits if not given.
    """
    wide = torch.promote_types(teacher.dtype, torch.float32)
    dtype = dtype_of_products(teacher)
    with torch.autocast(teacher.device.type, enabled=False):
        scaled, columns = (teacher.to(wide) / temperature).to(dtype), prototypes.to(dtype).T
        parts = scaled.split(chunk or chunk_of(len(prototypes)))
        sums = [_sum_columns(product(part, columns)) for part in parts]
        bias = distributed.logsumexp(torch.logsumexp(torch.stack(sums), dim=0))
        for _ in range(iterations - 1):
            used = torch.stack([_use_of_columns(product(part, columns), bias) for part in parts]).sum(0)
            bias = distributed.logsumexp(bias + used.log())
        return bias


@compile_on_gpu
def _sum_columns(scores: Tensor) -> Tensor:
    """(m, D) -> (D,) logarithms of the sums of exp(scores)."""
    return torch.logsumexp(scores, dim=0)


@compile_on_gpu
def _use_of_columns(scores: Tensor, bias: Tensor) -> Tensor:
    """(m, D) scores, (D,) bias -> (D,) sums of the rows' softmax(scores - bias); the scores are overwritten.

    No sum is 0: as `bias` is the columns' logsumexp of the scores, less a number for each row, one row at least holds
    a column's share of 1/M.
    """
    shifted = scores.sub_(bias)
    shares = shifted.sub_(shifted.amax(dim=1, keepdim=True)).exp_()
    return (1 / shares.sum(1)) @ shares
