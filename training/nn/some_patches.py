"""A vision transformer that is shown some of an image's patches and is not told of the others."""

from __future__ import annotations

from typing import Any

import torch
from timm.layers import apply_keep_indices_nlc
from torch import Tensor, nn

from video_distilled_encoder.tokens import TokenLayout


def encode_some(backbone: nn.Module, pixels: Tensor, seen: Tensor, *, norm: bool = True) -> Tensor:
    """Encode some patches of images, each with the position that it has in the whole; timm's forward otherwise.

    Args:
        backbone: of timm, with learnt, fixed or rotary positions.
        pixels: (B, 3, H, W).
        seen: (B, k) the numbers of the patches, row by row from 0.
        norm: whether the final norm follows.

    Returns:
        (B, P + k, C): the P prefix tokens, then the patches in the order of `seen`.
    """
    network: Any = backbone
    embedded = network._pos_embed(network.patch_embed(pixels))
    tokens, rotary = embedded if isinstance(embedded, tuple) else (embedded, None)
    layout = TokenLayout.of(backbone)
    shown = torch.take_along_dim(layout.patches(tokens), seen[..., None], dim=1)
    tokens = network.norm_pre(layout.with_patches(tokens, shown))
    if rotary is None:
        tokens = network.blocks(tokens)
    else:
        turns = apply_keep_indices_nlc(tokens, rotary, seen)
        for number, block in enumerate(network.blocks):
            # of mixed rotary positions every block has its own: (B, blocks, heads, k, …), else (B, k, …)
            tokens = block(tokens, rope=turns[:, number] if network.rope_mixed else turns[:, None])
    return network.norm(tokens) if norm else tokens
