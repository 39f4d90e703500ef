"""How the attention of a vision transformer is computed, and what its last block attends to.

Legend: B = images, N = patches, P = prefix tokens, the class token first, C = width, h = heads, d = width of a head.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from timm.layers.attention import Attention
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn

from video_distilled_encoder.errors import InputError


class CrossAttention(nn.Module):
    """What tokens gather from others: timm's attention, with keys and values that are not those of the queries."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.fused_attn = True
        self.q, self.kv, self.proj = (nn.Linear(width, count * width) for count in (1, 2, 1))

    def forward(self, x: Tensor, memory: Tensor) -> Tensor:
        """(B, N, C) that ask and (B, M, C) that are asked -> (B, N, C)."""
        queries = self.q(x).unflatten(2, (self.heads, -1)).transpose(1, 2)
        keys, values = self.kv(memory).unflatten(2, (2, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        if self.fused_attn:
            found = F.scaled_dot_product_attention(queries, keys, values)
        else:
            scale = queries.shape[-1] ** -0.5
            found = torch.softmax((queries * scale) @ keys.mT, dim=-1) @ values
        return self.proj(found.transpose(1, 2).flatten(2))


def write_out(module: nn.Module) -> None:
    """Let attention be products and a softmax: on CPUs torch's fused one is slower to differentiate."""
    parts: list[Any] = [part for part in module.modules() if isinstance(part, Attention | CrossAttention)]
    for part in parts:  # whose attribute is final for TorchScript alone
        part.fused_attn = False


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
    fused or compiled. Their product is one of float32 under autocast, too: in bfloat16 most patches would be attended
    to alike.

    Args:
        backbone: a ViT with a class token, whose blocks are timm's `Block`: those of other forms give their attention
            something else than `norm1` of what they are given.
        pixels: (B, 3, H, W).

    Raises:
        InputError: it is of another kind.
    """
    block: Any = backbone.blocks[-1]
    if type(block) is not Block or type(block.attn) is not Attention or backbone.cls_token is None:
        raise InputError(
            f"attention can be looked at in plain ViTs with a class token; this one's last block is a "
            f"{type(block).__name__}, and it has {backbone.num_prefix_tokens} tokens before its patches"
        )
    attention = block.attn
    given: list[Tensor] = []
    hook = block.register_forward_pre_hook(lambda module, inputs: given.append(inputs[0]))
    try:
        tokens = backbone.forward_features(pixels)
    finally:
        hook.remove()
    qkv = attention.qkv(block.norm1(given[0]))
    queries, keys, _ = qkv.unflatten(2, (3, attention.num_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
    queries, keys = attention.q_norm(queries), attention.k_norm(keys)
    with torch.autocast(pixels.device.type, enabled=False):
        scores = (queries[:, :, :1].float() * attention.scale) @ keys.float().mT
    shares = torch.softmax(scores, dim=-1)[:, :, 0, backbone.num_prefix_tokens :]
    return LastBlock(tokens, shares, queries, keys)
