"""The distillation loss: cross-entropy of the student's distribution with the teacher's."""

from __future__ import annotations

import torch
from torch import Tensor


def cross_entropy(student_logits: Tensor, targets: Tensor, temperature: float) -> Tensor:
    """Return CE(targets, softmax(student_logits / temperature)), averaged over all but the last dimension.

    The P-CE and CE of equations 1 and 2. `targets` receive no gradient.

    Args:
        student_logits: (..., D).
        targets: (..., D) probabilities, broadcast against the logits.
        temperature: the student's, tau_S.
    """
    log_probabilities = torch.log_softmax(at_least_float32(student_logits) / temperature, dim=-1)
    return -(targets.detach() * log_probabilities).sum(-1).mean()


def at_least_float32(x: Tensor) -> Tensor:
    """Return half precision as float32 and leave float32 and float64 as they are."""
    return x if x.dtype == torch.float64 else x.float()
