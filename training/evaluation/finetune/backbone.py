"""The feature pyramid of a plain vision transformer, and its layer-wise learning rates (BEiT, iBOT).

Tokens after blocks 3, 5, 7 and 11 of 12 (in proportion for other depths) each pass the final norm (`normed`; left out
by iBOT's code unless told otherwise) and are brought to strides of 4, 8, 16 and 32 pixels. Strides are the same for
every patch size, for heads take powers of two for granted:

    patch 16   deconvolution x4, x2, as it is, max-pool x1/2 (iBOT)
    patch 14   as patch 16, on the image resized by 14/16, so that a patch covers 16 pixels
    patch 8    deconvolution x2, as it is, max-pool x1/2, x1/4 (iBOT)
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import DropPath
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from training.models.loading import EncoderModel
from training.models.model import Model
from video_distilled_encoder.errors import InputError
from video_distilled_encoder.tokens import TokenLayout

STRIDES = (4, 8, 16, 32)
MULTIPLE = STRIDES[-1]
_UNDECAYED = ("pos_embed", "cls_token", "reg_token", "dist_token")
_FIRST = ("patch_embed", "norm_pre", *_UNDECAYED)


class VitPyramid(nn.Module):
    """A vision transformer with four feature maps of equal width.

    Args:
        backbone: timm's VisionTransformer with dynamic_img_size; it is trained along.
        drop_path: stochastic depth of the last block, from 0 at the first in equal steps.
        normed: pass the tokens of each block through the final norm.

    Raises:
        InputError: its patches are not square or of 16, 14 or 8 pixels, or it takes one image size only.
    """

    def __init__(self, backbone: VisionTransformer, drop_path: float = 0.0, normed: bool = True) -> None:
        super().__init__()
        tokens = TokenLayout.of(backbone)
        patch = tokens.patch_size
        if patch not in (16, 14, 8):
            raise InputError(f"fine-tuning takes patches of 16, 14 or 8 pixels, this model has {patch}; choose another")
        if tokens.only_size:
            raise InputError("fine-tuning needs a model that takes any image size; build it with dynamic_img_size")
        self.backbone = backbone
        self.width = tokens.width
        self.normed = normed
        self.blocks = pyramid_blocks(len(backbone.blocks))
        self.image_scale = 14 / 16 if patch == 14 else 1.0
        self.levels = nn.ModuleList(_levels(self.width, fine=patch == 8))
        set_drop_path(backbone, drop_path)

    def forward(self, pixels: Tensor) -> list[Tensor]:
        """Return the pyramid.

        Args:
            pixels: (B, 3, H, W) normalised; padded with zeros on the right and below to multiples of 32.

        Returns:
            (B, C, h/4, w/4), (B, C, h/8, w/8), (B, C, h/16, w/16), (B, C, h/32, w/32) of the padded size (h, w).
        """
        height, width = pixels.shape[-2:]
        pixels = F.pad(pixels, (0, -width % MULTIPLE, 0, -height % MULTIPLE))
        if self.image_scale != 1:
            size = [round(side * self.image_scale) for side in pixels.shape[-2:]]
            pixels = F.interpolate(pixels, size, mode="bilinear", antialias=True)
        grids: Any = self.backbone.forward_intermediates(
            pixels, indices=self.blocks, norm=self.normed, output_fmt="NCHW", intermediates_only=True
        )
        return [level(grid) for level, grid in zip(self.levels, grids, strict=True)]


def _levels(width: int, fine: bool) -> list[nn.Module]:
    def up() -> nn.Module:
        return nn.ConvTranspose2d(width, width, kernel_size=2, stride=2)

    if fine:
        return [up(), nn.Identity(), nn.MaxPool2d(2), nn.MaxPool2d(4)]
    return [nn.Sequential(up(), nn.BatchNorm2d(width), nn.GELU(), up()), up(), nn.Identity(), nn.MaxPool2d(2)]


def pyramid_blocks(depth: int) -> list[int]:
    """Return the blocks whose tokens are taken: 3, 5, 7, 11 of 12, 7, 11, 15, 23 of 24 (BEiT).

    Raises:
        InputError: there are fewer than four blocks.
    """
    blocks = [math.ceil(share * depth / 12) - 1 for share in (4, 6, 8, 12)]
    if len(set(blocks)) < 4:
        raise InputError(
            f"fine-tuning takes the features of four blocks spread over five or more, this model has {depth}; "
            "choose another"
        )
    return blocks


def set_drop_path(backbone: VisionTransformer, rate: float) -> None:
    """Set the stochastic depth of all blocks, rising linearly from 0 to `rate`."""
    depth = len(backbone.blocks)
    for number, block in enumerate(backbone.blocks):
        share = rate * number / max(depth - 1, 1)
        for name in ("drop_path1", "drop_path2"):
            if hasattr(block, name):
                setattr(block, name, DropPath(share) if share else nn.Identity())


def trainable_backbone(model: Model) -> VisionTransformer:
    """Return a copy of a model's vision transformer, to be trained.

    Raises:
        InputError: it has none.
    """
    found = model.encoder.backbone if isinstance(model, EncoderModel) else None
    if not isinstance(found, VisionTransformer):
        raise InputError(
            f"{model.description['name']} cannot be fine-tuned; choose an encoder of this package or a timm vision "
            "transformer"
        )
    return copy.deepcopy(found).float().requires_grad_(True)


def layer_number(name: str, depth: int) -> int:
    """Return a backbone parameter's layer: 0 embedding, 1 to depth the blocks, depth + 1 the final norm (BEiT)."""
    if name.startswith("blocks."):
        return int(name.split(".")[1]) + 1
    return 0 if name.startswith(_FIRST) else depth + 1


def parameter_groups(
    network: nn.Module, backbone: VisionTransformer, *, learning_rate: float, weight_decay: float, layer_decay: float
) -> list[dict[str, Any]]:
    """Return an optimiser's groups: the rate of layer l is learning_rate * layer_decay^(depth + 1 - l).

    All that is not of the backbone has the whole rate. Biases, norms, position embedding and class token are not
    decayed. (iBOT's code means to spare the last two, but looks for names without their prefix, and so decays them.)

    Args:
        network: what is trained.
        backbone: the vision transformer in it.
        learning_rate: of the heads.
        weight_decay: of matrices and kernels.
        layer_decay: factor from a layer to the one before it.
    """
    depth = len(backbone.blocks)
    names = {id(parameter): name for name, parameter in backbone.named_parameters()}
    groups: dict[tuple[int, bool], dict[str, Any]] = {}
    for name, parameter in _trained(network):
        inner = names.get(id(parameter))
        layer = depth + 1 if inner is None else layer_number(inner, depth)
        decayed = parameter.ndim > 1 and not name.endswith(".bias") and inner not in _UNDECAYED
        group = groups.setdefault(
            (layer, decayed),
            {
                "params": [],
                "lr": learning_rate * layer_decay ** (depth + 1 - layer),
                "weight_decay": weight_decay if decayed else 0.0,
            },
        )
        group["params"].append(parameter)
    return [groups[key] for key in sorted(groups)]


def _trained(network: nn.Module) -> Iterator[tuple[str, torch.nn.Parameter]]:
    return ((name, parameter) for name, parameter in network.named_parameters() if parameter.requires_grad)
