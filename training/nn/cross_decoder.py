"""A decoder whose queries, one for each patch, gather what they need from tokens of another kind by cross-attention.

Legend: B = images, N = patches, M = tokens to decode from, D = width of the decoder.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from timm.layers import Mlp
from timm.models.vision_transformer import Attention
from torch import Tensor, nn

from training.nn.attention import CrossAttention
from video_distilled_encoder.errors import InputError


@dataclass(frozen=True)
class DecoderConfig:
    """Sizes of the decoder."""

    width: int = 512
    """D (RSP)."""
    depth: int = 8
    """Blocks (RSP)."""
    heads: int = 16
    """Heads of each attention (RSP)."""
    mlp_ratio: float = 4.0
    """Width of the blocks' MLPs over D (RSP)."""

    def __post_init__(self) -> None:
        if min(self.width, self.heads, self.mlp_ratio) <= 0 or self.depth < 1:
            raise InputError("decoder.width, .depth, .heads and .mlp_ratio must be positive")
        if self.width % self.heads or self.width % 4:
            raise InputError(f"decoder.width {self.width} must be a multiple of 4, and of decoder.heads {self.heads}")


class CrossBlock(nn.Module):
    """Cross-attention, self-attention, MLP, each after a norm and beside what goes on unchanged."""

    def __init__(self, width: int, heads: int, mlp_ratio: float = 4.0) -> None:
        super().__init__()
        self.norm_cross, self.norm_memory, self.norm_self, self.norm_mlp = (
            nn.LayerNorm(width, eps=1e-6) for _ in range(4)
        )
        self.cross = CrossAttention(width, heads)
        self.attn = Attention(width, heads, qkv_bias=True)
        self.mlp = Mlp(width, int(width * mlp_ratio))

    def forward(self, x: Tensor, memory: Tensor) -> Tensor:
        """(B, N, D) queries and the (B, M, D) tokens that they look at -> (B, N, D)."""
        x = x + self.cross(self.norm_cross(x), self.norm_memory(memory))
        x = x + self.attn(self.norm_self(x))
        return x + self.mlp(self.norm_mlp(x))


class CrossDecoder(nn.Module):
    """Blocks of cross-attention over mask tokens, a norm and a linear layer.

    Args:
        config: sizes.
        out: numbers that are told of each patch.
    """

    def __init__(self, config: DecoderConfig, out: int) -> None:
        super().__init__()
        self.mask_token = nn.Parameter(torch.zeros(config.width))
        nn.init.normal_(self.mask_token, std=0.02)
        blocks = (CrossBlock(config.width, config.heads, config.mlp_ratio) for _ in range(config.depth))
        self.blocks = nn.ModuleList(blocks)
        self.norm = nn.LayerNorm(config.width, eps=1e-6)
        self.head = nn.Linear(config.width, out)

    def forward(self, memory: Tensor, positions: Tensor) -> Tensor:
        """(B, M, D) tokens and the (N, D) positions of the patches -> (B, N, out).

        One query more, without a position, stands for the class token, as in MAE; nothing is asked of it.
        """
        queries = self.mask_token + nn.functional.pad(positions, (0, 0, 1, 0))
        x = queries.expand(len(memory), -1, -1)
        for block in self.blocks:
            x = block(x, memory)
        return self.head(self.norm(x[:, 1:]))


def sincos_positions(
    grid: tuple[int, int], width: int, *, of: tuple[int, int] | None = None, device: torch.device | None = None
) -> Tensor:
    """Return the fixed positions of the patches of a grid (MAE, from "Attention is all you need", in two dimensions).

    A quarter of the channels each are sines and cosines of the column, then of the row, of wavelengths from 2 pi to
    20,000 pi patches.

    Args:
        grid: (rows, columns).
        width: channels, a multiple of 4.
        of: the grid whose patches are the unit, where that is another over the same image.
        device: of the result.

    Returns:
        (rows * columns, width) float32, row by row.
    """
    rates = 10_000 ** -(torch.arange(width // 4, dtype=torch.float64, device=device) / (width // 4))
    sides = []
    for count, unit in zip(grid, of or grid, strict=True):
        places = (torch.arange(count, dtype=torch.float64, device=device) + 0.5) * unit / count - 0.5
        angles = torch.outer(places, rates)
        sides.append(torch.cat([angles.sin(), angles.cos()], dim=1))
    rows, columns = sides
    of_columns, of_rows = columns.repeat(grid[0], 1), rows.repeat_interleave(grid[1], 0)
    return torch.cat([of_columns, of_rows], dim=1).float()
