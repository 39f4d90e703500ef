"""Scaling of a frozen teacher's features, so that each of their channels, or all together, weigh alike in a loss.

Legend: M = tokens, C = width.
"""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.common import distributed
from video_distilled_encoder.errors import InputError

Scaling = Literal["standard", "phi_s", "l2", "none"]


class Standardize(nn.Module):
    """An affine map of features, fitted to some and then fixed: y = matrix @ (x - mean).

    Args:
        width: C.
        kind: "standard", every channel with mean 0 and deviation 1 (EUPE, UNIC, Theia); "phi_s", the same by a rotation
            and one factor for all channels, so that distances keep their proportions (PHI-S, arXiv 2410.01680); "l2",
            every token of unit length; "none".

    Raises:
        InputError: the kind is unknown, or phi_s has no rotation for this width.
    """

    mean: Tensor
    matrix: Tensor

    def __init__(self, width: int, kind: Scaling = "standard") -> None:
        super().__init__()
        if kind not in get_args(Scaling):
            raise InputError(f"scaling must be one of {', '.join(get_args(Scaling))}, got {kind!r}")
        self.kind = kind
        self.fitted = kind in ("standard", "phi_s")
        """Whether it needs `fit`."""
        if kind == "phi_s":
            hadamard(width)
        if self.fitted:
            self.register_buffer("mean", torch.zeros(width))
            self.register_buffer("matrix", torch.eye(width))

    def forward(self, x: Tensor) -> Tensor:
        """(..., C) -> (..., C)."""
        if self.fitted:
            return (x - self.mean) @ self.matrix.T
        return F.normalize(x, dim=-1) if self.kind == "l2" else x

    @torch.no_grad()
    def fit(self, moments: Moments) -> None:
        """Take mean and spread of features."""
        mean, covariance = moments.result()
        if self.kind == "standard":
            matrix = torch.diag(covariance.diagonal().clamp(min=1e-12).rsqrt())
        else:
            values, vectors = torch.linalg.eigh(covariance)
            scale = values.clamp(min=0).mean().sqrt().clamp(min=1e-6)
            matrix = hadamard(len(mean)).to(covariance) @ vectors.T / scale
        self.mean.copy_(mean)
        self.matrix.copy_(matrix)


class Moments:
    """Mean and covariance of features that arrive in parts, in float64, of all processes together."""

    def __init__(self) -> None:
        self._count = 0
        self._sum: Tensor | None = None
        self._squares: Tensor | None = None

    def add(self, features: Tensor) -> None:
        """Add (M, C) features; every process adds equally many."""
        wide = features.detach().double()
        total, squares = wide.sum(0), wide.T @ wide
        self._count += len(wide)
        self._sum = total if self._sum is None else self._sum + total
        self._squares = squares if self._squares is None else self._squares + squares

    def result(self) -> tuple[Tensor, Tensor]:
        """Return the (C,) mean and the (C, C) covariance."""
        assert self._sum is not None
        assert self._squares is not None
        mean = distributed.average(self._sum) / self._count
        return mean, distributed.average(self._squares) / self._count - torch.outer(mean, mean)


def hadamard(order: int) -> Tensor:
    """Return an orthonormal matrix whose entries are all ±1 / sqrt(order), in float64.

    Sylvester's doubling of Paley's first construction: order = 2^k (q + 1), with a prime q = 3 modulo 4, or 2^k.

    Raises:
        InputError: there is none of this kind.
    """
    doublings = 0
    while True:
        rest, odd = divmod(order, 2**doublings)
        if odd or rest == 0:
            raise InputError(f"there is no Hadamard matrix of order {order} at hand for phi_s; take standard")
        if rest == 1 or (_is_prime(rest - 1) and (rest - 1) % 4 == 3):
            break
        doublings += 1
    matrix = _paley(rest - 1) if rest > 1 else torch.ones(1, 1, dtype=torch.float64)
    for _ in range(doublings):
        matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)])
    return matrix / math.sqrt(order)


def _paley(q: int) -> Tensor:
    """Return the (q + 1, q + 1) Hadamard matrix of Paley's first construction."""
    squares = {n * n % q for n in range(1, q)}
    character = torch.tensor([0.0] + [1.0 if n in squares else -1.0 for n in range(1, q)], dtype=torch.float64)
    numbers = torch.arange(q)
    matrix = torch.ones(q + 1, q + 1, dtype=torch.float64)
    matrix[1:, 0] = -1
    matrix[1:, 1:] = character[(numbers[:, None] - numbers[None]) % q] + torch.eye(q, dtype=torch.float64)
    return matrix


def _is_prime(number: int) -> bool:
    return number > 1 and all(number % factor for factor in range(2, math.isqrt(number) + 1))
