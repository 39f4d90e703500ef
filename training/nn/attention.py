"""What the last block of a vision transformer attends to.

Legend: B = images, N = patches, P = prefix tokens, the class token first, C = width, h = heads, d = width of a head.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from timm.layers.attention import Attention
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from video_distilled_encoder.errors import InputError


class LastBlock(NamedTuple):
    """A forward pass, and the last block's view of it."""

    tokens: Tensor
    """(B, P + N, C), as `forward_features` returns them."""
    attention: Tensor
    """(B, h, N) of the class token to the patches, after the softmax over all tokens."""
    queries: Tensor
    """(B, h, P + N, d)."""
    keys: Tensor
    """(B, h, P + N, d)."""


def last_block(backbone: VisionTransformer, pixels: Tensor) -> LastBlock:
    """Encode images and look at the last block.

    The block's queries and keys are computed a second time from what it was given, so that its own attention may stay
    fused or compiled.

    Args:
        backbone: a ViT whose blocks are timm's.
        pixels: (B, 3, H, W).

    Raises:
        InputError: its last block has no attention of this kind.
    """
    block: Any = backbone.blocks[-1]
    attention = getattr(block, "attn", None)
    if not isinstance(attention, Attention) or not hasattr(block, "norm1"):
        raise InputError(f"{type(backbone).__name__} has no block whose attention can be looked at; take a plain ViT")
    given: list[Tensor] = []
    hook = block.register_forward_pre_hook(lambda module, inputs: given.append(inputs[0]))
    try:
        tokens = backbone.forward_features(pixels)
    finally:
        hook.remove()
    qkv = attention.qkv(block.norm1(given[0]))
    queries, keys, _ = qkv.unflatten(2, (3, attention.num_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
    queries, keys = attention.q_norm(queries), attention.k_norm(keys)
    scores = (queries[:, :, :1].float() * attention.scale) @ keys.float().mT
    shares = torch.softmax(scores, dim=-1)[:, :, 0, backbone.num_prefix_tokens :]
    return LastBlock(tokens, shares, queries, keys)
