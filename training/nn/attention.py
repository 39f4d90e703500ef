"""How the attention of a vision transformer is computed, and what its last block attends to.

Legend: B = images, N = patches, P = prefix tokens, the class token first, C = width, h = heads, d = width of a head.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from timm.layers.attention import Attention, AttentionRope
from timm.models.eva import EvaAttention, EvaBlock
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from video_distilled_encoder.errors import InputError
from video_distilled_encoder.tokens import TokenLayout

_BLOCKS = (Block, EvaBlock)
_ATTENTIONS = (Attention, AttentionRope, EvaAttention)


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
    parts: list[Any] = [part for part in module.modules() if isinstance(part, (*_ATTENTIONS, CrossAttention))]
    for part in parts:  # whose attribute is final for TorchScript alone
        part.fused_attn = False


class LastBlock(NamedTuple):
    """A forward pass, and the last block's view of the patches."""

    tokens: Tensor
    """(B, P + N, C), as `forward_features` returns them."""
    patches: Tensor
    """(B, N, C), those of the patches."""
    attention: Tensor
    """(B, h, N) of the class token to the patches, after the softmax over all tokens."""
    queries: Tensor
    """(B, h, N, d), rotated where the backbone has rotary positions."""
    keys: Tensor
    """(B, h, N, d), likewise."""


def check_last_block(backbone: nn.Module) -> Any:
    """Return the last block of a backbone whose attention can be looked at.

    Raises:
        InputError: it has no class token, or gives its attention something else than `norm1` of what it is given.
    """
    network: Any = backbone
    block, layout = network.blocks[-1], TokenLayout.of(backbone)
    if type(block) not in _BLOCKS or type(block.attn) not in _ATTENTIONS or not layout.has_cls:
        raise InputError(
            "attention can be looked at in ViTs with a class token and blocks as ViT, DINOv2, DINOv3 and PE have them; "
            f"this one's last block is a {type(block).__name__} with {type(getattr(block, 'attn', None)).__name__}, "
            f"and it has {'a' if layout.has_cls else 'no'} class token; choose another architecture or method"
        )
    return block


def last_block(backbone: VisionTransformer, pixels: Tensor) -> LastBlock:
    """Encode images and look at the last block.

    The block's queries and keys are computed a second time from what it was given, so that its own attention may stay
    fused or compiled. Their product is one of float32 under autocast, too: in bfloat16 most patches would be attended
    to alike.

    Args:
        backbone: one that `check_last_block` lets pass.
        pixels: (B, 3, H, W).

    Raises:
        InputError: it does not.
    """
    block, layout = check_last_block(backbone), TokenLayout.of(backbone)
    given: list[tuple[Tensor, dict[str, Any]]] = []
    hook = block.register_forward_pre_hook(
        lambda module, inputs, options: given.append((inputs[0], options)), with_kwargs=True
    )
    try:
        tokens = backbone.forward_features(pixels)
    finally:
        hook.remove()
    queries, keys = _products_of(block.attn, block.norm1(given[0][0]), given[0][1])
    with torch.autocast(pixels.device.type, enabled=False):
        scores = (layout.cls(queries)[..., None, :].float() * block.attn.scale) @ keys.float().mT
    shares = layout.patches(torch.softmax(scores, dim=-1).mT)[..., 0]
    return LastBlock(tokens, layout.patches(tokens), shares, layout.patches(queries), layout.patches(keys))


def _products_of(attention: Any, tokens: Tensor, options: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """Return the (B, h, P + N, d) queries and keys that an attention gives to torch's fused operation."""
    fused, attention.fused_attn = attention.fused_attn, True
    try:
        with _Watch() as watch:
            attention(tokens, **options)
    finally:
        attention.fused_attn = fused
    return watch.queries, watch.keys


class _Watch(TorchFunctionMode):
    """Keeps the queries and keys of a fused attention."""

    queries: Tensor
    keys: Tensor

    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if function is F.scaled_dot_product_attention:
            self.queries, self.keys = args[:2]
        return function(*args, **(kwargs or {}))
