"""The distillation loss without the memory: no more than a chunk of tokens ever has its logits written out.

The textbook formula holds several (M, D) tensors; with 64 clips, 392 patches and 65,536 prototypes each is 6 GiB in
float32. Here teacher and student stop at the bottleneck, and one autograd function goes through the tokens chunk by
chunk: both matrix products, both softmaxes, and at once the gradients of the student's bottleneck and prototypes, which
the backward pass only scales. These are the same four matrix products as in the textbook, with nothing recomputed.

Legend: M = tokens, E = bottleneck width, D = prototypes.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor


class Distillation(NamedTuple):
    """The loss and what the teacher's distributions looked like."""

    loss: Tensor
    """Scalar: cross-entropy of the student's distribution with the teacher's, mean over tokens."""
    entropy: Tensor
    """Scalar: mean entropy of the teacher's distributions, in nats."""
    mean_target: Tensor
    """(D,): mean of the teacher's distributions."""


def distill(
    student: Tensor,
    student_prototypes: Tensor,
    teacher: Tensor,
    teacher_prototypes: Tensor,
    bias: Tensor,
    *,
    student_temperature: float,
    teacher_temperature: float,
    weights: Tensor | None = None,
    chunk: int | None = None,
) -> Distillation:
    """Compute CE(softmax(z_T / tau_T - bias), softmax(z_S / tau_S)), the P-CE and CE of equations 1 and 2.

    Args:
        student: (M, E) bottleneck vectors; receive gradients.
        student_prototypes: (D, E); receive gradients.
        teacher: (M, E) bottleneck vectors of the tokens that are predicted, row by row.
        teacher_prototypes: (D, E).
        bias: (D,) subtracted from the teacher's logits after the temperature, see `training.targets`.
        student_temperature: tau_S.
        teacher_temperature: tau_T.
        weights: (M,) weight of each token, summing to 1; 1/M each if not given.
        chunk: tokens whose logits exist at one time; as many as have 2^26 logits if not given.
    """
    dtype = torch.get_autocast_dtype(student.device.type) if torch.is_autocast_enabled(student.device.type) else None
    arguments = (student, student_prototypes, teacher.detach(), teacher_prototypes.detach())
    cast = [tensor.to(dtype) if dtype else tensor for tensor in arguments]
    return Distillation(
        *_Distill.apply(
            *cast, bias.detach(), weights, student_temperature, teacher_temperature, chunk or chunk_of(len(bias))
        )
    )


def chunk_of(prototypes: int) -> int:
    """Return how many tokens are worked on at one time: 2^26 logits, 256 MiB in float32."""
    return max(2**26 // prototypes, 1)


class _Distill(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        student: Tensor,
        student_prototypes: Tensor,
        teacher: Tensor,
        teacher_prototypes: Tensor,
        bias: Tensor,
        weights: Tensor | None,
        student_temperature: float,
        teacher_temperature: float,
        chunk: int,
    ) -> tuple[Tensor, Tensor, Tensor]:
        with torch.autocast(student.device.type, enabled=False):
            wide = torch.promote_types(student.dtype, torch.float32)
            loss = torch.zeros((), dtype=wide, device=student.device)
            entropy = torch.zeros_like(loss)
            mean_target = torch.zeros(len(bias), dtype=wide, device=student.device)
            grad_student = torch.empty_like(student)
            grad_prototypes = torch.zeros_like(student_prototypes, dtype=wide)
            if weights is None:
                weights = torch.full((len(student),), 1 / len(student), dtype=wide, device=student.device)
            for start in range(0, len(student), chunk):
                rows = slice(start, start + chunk)
                # each is (m, D)
                target = (teacher[rows] @ teacher_prototypes.T).to(wide).div_(teacher_temperature).sub_(bias)
                target = torch.softmax(target, dim=-1)
                predicted = (student[rows] @ student_prototypes.T).to(wide).div_(student_temperature)
                log_predicted = torch.log_softmax(predicted, dim=-1)
                del predicted
                weight = weights[rows, None].to(wide)
                # torch.sum adds in pairs; a dot product over so many numbers loses three digits
                loss -= ((target * log_predicted).sum(-1, keepdim=True) * weight).sum()
                entropy += torch.special.entr(target).sum()
                mean_target += target.sum(0)
                gradient = log_predicted.exp_().sub_(target).mul_(weight / student_temperature).to(student.dtype)
                grad_student[rows] = gradient @ student_prototypes
                grad_prototypes += gradient.T @ student[rows]
            ctx.save_for_backward(grad_student, grad_prototypes.to(student_prototypes.dtype))
            count = len(student)
            ctx.mark_non_differentiable(entropy, mean_target)
            return loss, entropy / count, mean_target / count

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        grad_student, grad_prototypes = ctx.saved_tensors
        return (
            grad_student * grad_loss.to(grad_student.dtype),
            grad_prototypes * grad_loss.to(grad_prototypes.dtype),
            *[None] * 7,
        )
