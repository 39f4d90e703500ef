"""Random numbers as a function of a key and of their place, on any device, with no generator's state to keep."""

from __future__ import annotations

import math
from typing import TypeVar

import torch
from torch import Tensor

_MASK = 0xFFFFFFFF
Bits = TypeVar("Bits", int, Tensor)


def key_of(seed: int, number: int) -> int:
    """Return the 32-bit key of a numbered event of a run."""
    return (seed * 1_000_003 + number) & _MASK


def uniform(key: int, rows: Tensor, columns: int) -> Tensor:
    """Draw numbers that depend on the key, the row's number and the column.

    Args:
        key: of what is drawn; another key, other numbers.
        rows: (n,) int64 numbers of the rows, as of the clips in the whole batch.
        columns: how many are drawn for each.

    Returns:
        (n, columns) float32 in [0, 1).
    """
    column = mix(key + torch.arange(columns, device=rows.device) * 7919)
    return unit(mix(rows[:, None] + column))


def normal(key: int, rows: Tensor, columns: int) -> Tensor:
    """Draw numbers as `uniform` does, of a normal distribution of mean 0 and deviation 1 (Box and Muller's way)."""
    pairs = -(-columns // 2)
    length, turn = uniform(key, rows, 2 * pairs).split(pairs, dim=1)
    radius = (-2 * torch.log1p(-length)).sqrt()
    angle = 2 * math.pi * turn
    return torch.cat([radius * angle.cos(), radius * angle.sin()], dim=1)[:, :columns]


def number(key: int, column: int) -> float:
    """Draw one number in [0, 1) that depends on the key and the column, without a tensor."""
    return int(mix(key + mix(column * 7919 + 1)) >> 8) / 2**24


def unit(bits: Tensor) -> Tensor:
    """Turn 32-bit integers into float32 numbers in [0, 1)."""
    return (bits >> 8).float() / 2**24


def mix(x: Bits) -> Bits:
    """Scramble integers to 32 well-mixed bits (the "lowbias32" hash by C. Wellons)."""
    x = x & _MASK
    x = ((x ^ (x >> 16)) * 0x7FEB352D) & _MASK
    x = ((x ^ (x >> 15)) * 0x846CA68B) & _MASK
    return x ^ (x >> 16)
