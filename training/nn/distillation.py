"""The distillation loss without the memory: no more than a chunk of tokens ever has its logits written out.

The textbook formula holds several (M, D) tensors; with 64 clips, 392 patches and 65,536 prototypes each is 6 GiB in
float32. Here teacher and student stop at the bottleneck, and one autograd function goes through the tokens chunk by
chunk: both matrix products, both softmaxes, and at once the gradients of the student's bottleneck and prototypes, which
the backward pass only scales. These are the same four matrix products as in the textbook, with nothing recomputed.

What stands between the products is one function of the two logit matrices, compiled on a GPU. Counted by what goes in
and out of products and function, a float32 logit as 1, the loss takes 7 passes over the logits, with bf16 products 5.5;
where nothing is compiled 26.

Legend: M = the teacher's tokens, L = the student's tokens for each of them, E = bottleneck width, D = prototypes,
m = the teacher's tokens in a chunk.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import torch
from torch import Tensor

from training.nn.compiling import compile_on_gpu


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
        student: (M * L, E) bottleneck vectors, the L of a teacher's token one after another; receive gradients.
        student_prototypes: (D, E); receive gradients.
        teacher: (M, E) bottleneck vectors of the tokens that are predicted.
        teacher_prototypes: (D, E).
        bias: (D,) subtracted from the teacher's logits after the temperature, see `training.nn.balance`.
        student_temperature: tau_S.
        teacher_temperature: tau_T.
        weights: (M * L,) weight of each of the student's tokens, summing to 1; equal weights if not given.
        chunk: the student's tokens whose logits exist at one time; as many as have 2^26 logits if not given.
    """
    wide = torch.promote_types(student.dtype, torch.float32)
    # A temperature costs nothing where it divides E numbers of a token, and not D.
    scaled = student.to(wide) / student_temperature, teacher.detach().to(wide) / teacher_temperature
    prototypes = student_prototypes, teacher_prototypes.detach()
    dtype = dtype_of_products(student)
    if weights is None:
        weights = torch.full((len(student),), 1 / len(student), dtype=wide, device=student.device)
    arguments = (tensor.to(dtype) for pair in zip(scaled, prototypes, strict=True) for tensor in pair)
    found = _Distill.apply(*arguments, bias.detach(), weights.to(wide), chunk or chunk_of(len(bias)))
    return Distillation(*found)


def chunk_of(prototypes: int) -> int:
    """Return how many tokens are worked on at one time: 2^26 logits, 256 MiB in float32."""
    return max(2**26 // prototypes, 1)


def dtype_of_products(tensor: Tensor) -> torch.dtype:
    """Return in which type a tensor is multiplied: that of autocast where it is on, else its own, float32 at least."""
    if torch.is_autocast_enabled(tensor.device.type):
        return torch.get_autocast_dtype(tensor.device.type)
    return torch.promote_types(tensor.dtype, torch.float32)


def product(rows: Tensor, columns: Tensor) -> Tensor:
    """(m, E) @ (E, D) -> (m, D) in float32 at least: logits rounded to bf16 cost 0.1 nat at small temperatures."""
    if rows.dtype in (torch.bfloat16, torch.float16):
        if rows.is_cuda and _has_wide_products():
            return torch.mm(rows, columns, out_dtype=torch.float32)
        return (rows @ columns).float()
    return rows @ columns


@functools.cache
def _has_wide_products() -> bool:
    """Tell whether this torch multiplies halves into float32 (from 2.8 on, on CUDA)."""
    half = torch.ones(16, 16, dtype=torch.bfloat16, device="cuda")
    try:
        torch.mm(half, half, out_dtype=torch.float32)
    except (TypeError, RuntimeError):
        return False
    return True


def compare(
    teacher: Tensor, bias: Tensor, student: Tensor, weights: Tensor, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Compare the distributions of a chunk; its logits are overwritten.

    Args:
        teacher: (m, D) the teacher's logits over tau_T.
        bias: (D,) subtracted from them.
        student: (m * L, D) the student's logits over tau_S.
        weights: (m * L,) of the student's tokens.
        dtype: of the gradients.

    Returns:
        (m * L, D) gradients of the student's logits, without the weights; the weighted sum of cross-entropies; the sum
        of the teacher's entropies; (D,) the sum of its distributions.
    """
    log_target = torch.log_softmax(teacher.sub_(bias), dim=-1)
    target = log_target.exp()
    used = target.sum(0)
    # torch.sum adds in pairs; a dot product over so many numbers loses three digits
    entropy = -log_target.mul_(target).sum()
    log_predicted = torch.log_softmax(student.unflatten(0, (len(teacher), -1)), dim=-1)
    target = target[:, None]
    loss = -((target * log_predicted).sum(-1).flatten() * weights).sum()
    gradient = log_predicted.exp_().sub_(target)
    return gradient.flatten(0, 1).to(dtype), loss, entropy, used


_compare = compile_on_gpu(compare)


class _Distill(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        student: Tensor,
        student_prototypes: Tensor,
        teacher: Tensor,
        teacher_prototypes: Tensor,
        bias: Tensor,
        weights: Tensor,
        chunk: int,
    ) -> tuple[Tensor, Tensor, Tensor]:
        with torch.autocast(student.device.type, enabled=False):
            wide = weights.dtype
            loss, entropy = (torch.zeros((), dtype=wide, device=student.device) for _ in range(2))
            mean_target = torch.zeros(len(bias), dtype=wide, device=student.device)
            grad_student = torch.empty_like(student)
            grad_prototypes = torch.zeros_like(student_prototypes, dtype=wide)
            count, each = len(teacher), len(student) // len(teacher)
            size = max(chunk // each, 1)
            for start in range(0, count, size):
                taught, learnt = slice(start, start + size), slice(start * each, (start + size) * each)
                gradient, *sums = _compare(
                    product(teacher[taught], teacher_prototypes.T),
                    bias,
                    product(student[learnt], student_prototypes.T),
                    weights[learnt],
                    student.dtype,
                )
                for total, part in zip((loss, entropy, mean_target), sums, strict=True):
                    total += part
                weight = weights[learnt, None].to(student.dtype)
                grad_student[learnt] = (gradient @ student_prototypes) * weight
                grad_prototypes += product(gradient.T, student[learnt] * weight)
            ctx.save_for_backward(grad_student, grad_prototypes.to(student_prototypes.dtype))
            entropy, mean_target = entropy / count, mean_target / count
            ctx.mark_non_differentiable(entropy, mean_target)
            return loss, entropy, mean_target

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        grad_student, grad_prototypes = ctx.saved_tensors
        return (
            grad_student * grad_loss.to(grad_student.dtype),
            grad_prototypes * grad_loss.to(grad_prototypes.dtype),
            *[None] * 5,
        )
