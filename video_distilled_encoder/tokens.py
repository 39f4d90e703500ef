"""The tokens of timm's vision transformers, whatever their family: which token is what, and the one forward pass.

A sequence is prefix tokens, then the patches row by row. Prefix tokens are a class token, first if there is one, and
registers (DeiT's distillation token is taken for one). B = batch, P = prefix tokens, N = patches, C = width.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from video_distilled_encoder.errors import InputError

_NEEDED = ("forward_intermediates", "forward_head", "num_prefix_tokens", "patch_embed", "blocks", "norm", "embed_dim")
_AS_TOKENS = {"return_prefix_tokens": True, "output_fmt": "NLC"}


@dataclass(frozen=True)
class TokenLayout:
    """What a backbone's tokens are."""

    prefix: int
    """Tokens before those of the patches."""
    has_cls: bool
    """Whether the first of them is a class token. Without, the model's own pooling of all tokens stands for it:
    SigLIP's attention pooling, others' mean."""
    patch_size: int
    """Side of a patch in pixels."""
    width: int
    """C."""
    only_size: tuple[int, int] | None
    """(height, width) in pixels, where the family takes no other."""

    @classmethod
    def of(cls, backbone: nn.Module) -> TokenLayout:
        """Read the layout off a backbone of timm.

        Raises:
            InputError: it is no vision transformer with one grid of square patches.
        """
        network: Any = backbone
        missing = [name for name in _NEEDED if not hasattr(network, name)]
        # behind a convolutional stem, the pixels that a token stands for
        sides = () if missing else tuple(network.patch_embed.feat_ratio(as_scalar=False))
        if missing or len(set(sides)) != 1 or not isinstance(network.num_prefix_tokens, int):
            why = f"it has no {missing[0]}" if missing else f"its patches are {'x'.join(map(str, sides))}"
            raise InputError(f"{type(backbone).__name__} is not one of timm's vision transformers: {why}")
        return cls(
            prefix=network.num_prefix_tokens,
            has_cls=getattr(network, "cls_token", None) is not None,
            patch_size=sides[0],
            width=network.embed_dim,
            only_size=None if getattr(network, "dynamic_img_size", False) else image_size(network),
        )

    @property
    def registers(self) -> int:
        """Prefix tokens that are no class token."""
        return self.prefix - self.has_cls

    def grid(self, size: tuple[int, int]) -> tuple[int, int]:
        """Return how many patches an image of (height, width) pixels has in height and width."""
        return size[0] // self.patch_size, size[1] // self.patch_size

    def check(self, size: tuple[int, int]) -> None:
        """Refuse a (height, width) in pixels.

        Raises:
            InputError: it is no multiple of the patch size, or not the one that the family takes.
        """
        check_size(size, self.patch_size)
        if self.only_size not in (None, size):
            height, width = self.only_size
            raise InputError(
                f"this family of encoders has positions for one size of image and takes {height}x{width} alone, got "
                f"{size[0]}x{size[1]}"
            )

    def patches(self, tokens: Tensor) -> Tensor:
        """(…, P + N, C) -> (…, N, C)."""
        return tokens[..., self.prefix :, :]

    def with_patches(self, tokens: Tensor, patches: Tensor) -> Tensor:
        """(…, P + M, C) and (…, N, C) -> (…, P + N, C): other patches behind the same prefix tokens."""
        return torch.cat([tokens[..., : self.prefix, :], patches], dim=-2)

    def register_tokens(self, tokens: Tensor) -> Tensor:
        """(…, P + N, C) -> (…, P or P - 1, C)."""
        return tokens[..., int(self.has_cls) : self.prefix, :]

    def cls(self, tokens: Tensor) -> Tensor:
        """(…, P + N, C) of any block -> (…, C): the class token; the mean of the patches where there is none."""
        return tokens[..., 0, :] if self.has_cls else self.patches(tokens).mean(-2)

    def pooled(self, backbone: nn.Module, tokens: Tensor) -> Tensor:
        """(B, P + N, C) of the last block, normed -> (B, C): the class token, else the model's own pooling of them."""
        network: Any = backbone
        pooled: Tensor = self.cls(tokens) if self.has_cls else network.forward_head(tokens, pre_logits=True)
        return pooled


def image_size(backbone: nn.Module) -> tuple[int, int]:
    """Return the (height, width) in pixels that a backbone's weights were made for."""
    network: Any = backbone
    height, width = network.patch_embed.img_size
    return height, width


def encode_tokens(
    backbone: nn.Module, pixels: Tensor, blocks: Collection[int] = ()
) -> tuple[Tensor, dict[int, Tensor]]:
    """Run a backbone.

    Args:
        backbone: of timm.
        pixels: (B, 3, H, W), normalised.
        blocks: whose tokens are wanted too, counted from 0.

    Returns:
        (B, P + N, C) of the last block and of each of `blocks`, all after the final norm.
    """
    network: Any = backbone
    if not blocks:
        return network.forward_features(pixels), {}
    tokens, layers = network.forward_intermediates(pixels, indices=sorted(set(blocks)), norm=True, **_AS_TOKENS)
    return tokens, _by_block(blocks, layers)


def tokens_after(
    backbone: nn.Module, pixels: Tensor, blocks: Collection[int], *, norm: bool = True
) -> dict[int, Tensor]:
    """Run a backbone as far as the last of `blocks`: (B, P + N, C) of each, after the final norm if `norm`."""
    network: Any = backbone
    options = {"norm": norm, "stop_early": True, "intermediates_only": True, **_AS_TOKENS}
    return _by_block(blocks, network.forward_intermediates(pixels, indices=sorted(set(blocks)), **options))


def _by_block(blocks: Collection[int], layers: Any) -> dict[int, Tensor]:
    # A family without prefix tokens gives patches alone.
    whole = [torch.cat([one[1], one[0]], dim=1) if isinstance(one, tuple | list) else one for one in layers]
    return dict(zip(sorted(set(blocks)), whole, strict=True))


def check_size(size: tuple[int, int], multiple: int) -> None:
    """Raise InputError, naming the nearest good sizes, unless height and width are positive multiples of `multiple`."""
    for name, side in zip(("height", "width"), size, strict=True):
        if side < multiple or side % multiple:
            lower = max(side // multiple, 1) * multiple
            upper = max(side // multiple + 1, 2) * multiple
            raise InputError(
                f"{name} {side} is not a multiple of the patch size {multiple}; nearest: {lower} and {upper}"
            )
