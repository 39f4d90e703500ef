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
    log_probabilities = torch.log_softmax(student_logits.float() / temperature, dim=-1)
    return -(targets.detach() * log_probabilities).sum(-1).mean()
