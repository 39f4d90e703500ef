"""A memory of past frames for an encoder of single images (FRAME, arXiv 2506.05543, section 3.2).

What FRAME does not say is chosen here and named: one norm each for the tokens of the frame and for what comes from the
memory, none at the end, so that the tokens keep the encoder's scale; heads as the encoder has them. Legend: B = videos,
T = frames in memory, N = patches, P = prefix tokens, C = width of the tokens, M = width of the memory.
"""

from __future__ import annotations

from collections import deque

import torch
import torch.nn.functional as F
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from training.nn.attention import CrossAttention


class Memory:
    """What is kept of the last frames, oldest first.

    Args:
        frames: how many are.
    """

    def __init__(self, frames: int) -> None:
        self._entries: deque[Tensor] = deque(maxlen=frames)

    def push(self, entry: Tensor) -> None:
        """Take (B, N, M) of one more frame; of more than there is room for the oldest goes."""
        self._entries.append(entry)

    def stacked(self) -> Tensor | None:
        """Return (B, T, N, M), or None while nothing is known."""
        return torch.stack(list(self._entries), dim=1) if self._entries else None


class MemoryAttention(nn.Module):
    """The tokens of a frame, enriched by those of the frames before it.

    Args:
        width: C.
        heads: of each attention.
        grid: (rows, columns) of the patches that positions are learnt for; they are resized to other grids.
        frames: most frames in memory.
        memory_width: M.
    """

    def __init__(self, width: int, heads: int, grid: tuple[int, int], frames: int, memory_width: int) -> None:
        super().__init__()
        self.compress, self.expand = nn.Linear(width, memory_width), nn.Linear(memory_width, width)
        self.space = nn.Parameter(torch.empty(1, memory_width, *grid))
        self.time = nn.Parameter(torch.empty(frames, memory_width))
        for positions in (self.space, self.time):
            nn.init.trunc_normal_(positions, std=0.02)
        self.norm, self.norm_memory = (nn.LayerNorm(width, eps=1e-6) for _ in range(2))
        self.cross = CrossAttention(width, heads)
        self.block = Block(width, heads, qkv_bias=True)

    def remember(self, patches: Tensor) -> Tensor:
        """(…, N, C) patch tokens of a frame -> (…, N, M), what the memory keeps of them."""
        kept: Tensor = self.compress(patches)
        return kept

    def forward(self, tokens: Tensor, memory: Tensor | None, grid: tuple[int, int]) -> Tensor:
        """Enrich the tokens of a frame.

        Args:
            tokens: (B, P + N, C).
            memory: (B, T, N, M) of the frames before it, the newest last; None if there are none.
            grid: (rows, columns) of the patches.

        Returns:
            (B, P + N, C).
        """
        asked = self.norm(tokens)
        known = [asked]
        if memory is not None:
            known.insert(0, self.norm_memory(self.expand(self.place(memory, grid).flatten(1, 2))))
        enriched: Tensor = self.block(tokens + self.cross(asked, torch.cat(known, dim=1)))
        return enriched

    def place(self, memory: Tensor, grid: tuple[int, int]) -> Tensor:
        """Add to (B, T, N, M) where each patch is, and how many frames ago."""
        space: Tensor = self.space
        if grid != tuple(space.shape[-2:]):
            space = F.interpolate(space, grid, mode="bicubic", align_corners=False, antialias=True)
        return memory + space.flatten(2).mT + self.time[-memory.shape[1] :, None]
