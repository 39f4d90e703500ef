"""Stochastic depth whose choices are a pure function of seed, step, layer and the row of the whole batch.

With torch's generators the choices would depend on the number of processes, and their state would have to be kept for
an exact resume.
"""

from __future__ import annotations

import torch
from timm.layers import DropPath
from torch import Tensor, nn

_MASK = 0xFFFFFFFF


class PureDropPath(nn.Module):
    """Drop path (Huang et al. 2016) that hashes its position instead of asking a generator.

    Args:
        rate: probability that a row's branch is dropped.
        layer: number of this layer; each makes its own choices.
        rank: number of this process; row i of its share is row rank * rows + i of the whole batch.
    """

    key: Tensor

    def __init__(self, rate: float, layer: int, rank: int) -> None:
        super().__init__()
        self.rate = rate
        self.layer = layer
        self.rank = rank
        self.register_buffer("key", torch.zeros((), dtype=torch.int64), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """(rows, tokens, C): zero the dropped rows, scale up the others."""
        if not self.training or self.rate == 0:
            return x
        rows = torch.arange(len(x), device=x.device) + self.rank * len(x)
        # The number of tokens tells the passes of global and local views apart.
        keep = uniform(_mix(rows + _mix(self.key + self.layer * 7919 + x.shape[1] * 104729))) >= self.rate
        return x * (keep.to(x.dtype) / (1 - self.rate)).view(-1, *[1] * (x.ndim - 1))


def install(backbone: nn.Module, rank: int) -> list[PureDropPath]:
    """Replace every drop path of a timm backbone and return the new ones; `set_key` them before each step."""
    installed: list[PureDropPath] = []
    for module in list(backbone.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, DropPath):
                new = PureDropPath(child.drop_prob or 0.0, len(installed), rank)
                setattr(module, name, new)
                installed.append(new)
    return installed


def set_key(layers: list[PureDropPath], seed: int, step: int) -> None:
    """Set what the choices of the coming step depend on."""
    for layer in layers:
        layer.key.fill_((seed * 1_000_003 + step) & _MASK)


def uniform(bits: Tensor) -> Tensor:
    """Turn 32-bit integers into float32 numbers in [0, 1)."""
    return (bits >> 8).float() / 2**24


def _mix(x: Tensor) -> Tensor:
    """Scramble integers to 32 well-mixed bits (the "lowbias32" hash by C. Wellons)."""
    x = x & _MASK
    x = ((x ^ (x >> 16)) * 0x7FEB352D) & _MASK
    x = ((x ^ (x >> 15)) * 0x846CA68B) & _MASK
    return x ^ (x >> 16)
