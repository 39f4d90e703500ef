"""The decoder of FRAME that leads from an encoder's patch tokens to a teacher's."""

from __future__ import annotations

from timm.models.vision_transformer import Block
from torch import Tensor, nn


class SpatialDecoder(nn.Module):
    """One pre-norm transformer block, and a linear layer where the teacher's width is another (ours).

    Args:
        width: of the tokens.
        heads: of the block's attention.
        out: width of the teacher's tokens.
    """

    def __init__(self, width: int, heads: int, out: int) -> None:
        super().__init__()
        self.block = Block(width, heads, qkv_bias=True)
        self.linear = nn.Identity() if out == width else nn.Linear(width, out)

    def forward(self, patches: Tensor) -> Tensor:
        """(B, N, C) -> (B, N, W)."""
        decoded: Tensor = self.linear(self.block(patches))
        return decoded
