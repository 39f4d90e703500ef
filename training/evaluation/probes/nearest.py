"""Nearest neighbours by cosine similarity, and their weighted votes (Wu et al. 2018)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

TEMPERATURE = 0.07
SIMILARITIES = 1 << 26
"""Most similarities held at a time."""


def nearest(queries: Tensor, bank: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Find the entries of a bank with the highest cosine similarity.

    Args:
        queries: (n, C), any length.
        bank: (m, C), any length.
        k: number of entries for each query.

    Returns:
        Similarities (n, k), falling, and numbers of entries (n, k); both on the CPU.
    """
    bank = F.normalize(bank.float(), dim=1)
    parts = queries.split(max(SIMILARITIES // len(bank), 1))
    found = [(F.normalize(part.float(), dim=1) @ bank.T).topk(k, dim=1) for part in parts]
    return torch.cat([part.values for part in found]).cpu(), torch.cat([part.indices for part in found]).cpu()


def vote(similarities: Tensor, voters: Tensor, classes: int, temperature: float = TEMPERATURE) -> Tensor:
    """(n, k) similarities and classes of neighbours -> (n, classes) share of each class, softmax-weighted."""
    weights = (similarities / temperature).softmax(dim=1)
    return torch.zeros(len(weights), classes, device=weights.device).scatter_add_(1, voters, weights)
