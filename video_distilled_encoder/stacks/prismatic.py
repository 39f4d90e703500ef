"""OpenVLA and Prismatic: an entry in their registry of vision backbones.

Written against openvla/openvla c8f03f4. Its `TimmViTBackbone` builds any model that timm can name; here that is our
model directory. It pins timm 0.9.10, whose `get_intermediate_layers` returns a tuple; this package needs timm 1, which
returns a list that Prismatic would hand on as it is, so the patches are taken out of it here.
"""

from __future__ import annotations

import importlib
from functools import partial
from pathlib import Path
from typing import Any

from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from video_distilled_encoder.errors import InputError
from video_distilled_encoder.hub import DEFAULT_RELEASE, find_model
from video_distilled_encoder.model_directory import read


def register(identifier: str, encoder: str | Path = DEFAULT_RELEASE, image_size: int = 224, block: int = -2) -> None:
    """Enter an encoder in Prismatic's registry, for `--model.vision_backbone_id IDENTIFIER`.

    Args:
        identifier: what Prismatic is to call it.
        encoder: what `Encoder.from_pretrained` takes; its directory is found now.
        image_size: side of the square that Prismatic's image transform makes, in pixels.
        block: whose patch tokens are used, before the final norm; Prismatic's choice is the last but one.

    Raises:
        InputError: there is no such encoder, it is no plain ViT of timm's, Prismatic is not installed, or it has
            another backbone of that name.
    """
    try:
        registry = importlib.import_module("prismatic.models.materialize").VISION_BACKBONES
    except ImportError as error:
        raise InputError(
            f"Prismatic cannot be imported ({error}); install it from a clone of openvla/openvla"
        ) from error
    if identifier in registry:
        raise InputError(f"Prismatic has a vision backbone {identifier!r} already; choose another name")
    directory = find_model(encoder)
    kind = type(read(directory)[0])
    if not issubclass(kind, VisionTransformer):
        raise InputError(f"{encoder} is timm's {kind.__name__}, and Prismatic takes its VisionTransformer alone")
    backbone = backbone_class(directory, block)
    registry[identifier] = {"cls": backbone, "kwargs": {"default_image_size": image_size}}


def backbone_class(directory: Path, block: int = -2) -> type[nn.Module]:
    """Return a `TimmViTBackbone` on a model directory, called as Prismatic's registry calls its own."""
    base: Any = importlib.import_module("prismatic.models.backbones.vision.base_vision")

    class EncoderBackbone(base.TimmViTBackbone):
        """Patches (B, N, C) of pixels (B, 3, H, W) that its own `image_transform` made."""

        def __init__(self, vision_backbone_id: str, image_resize_strategy: str, default_image_size: int = 224) -> None:
            source = f"local-dir:{directory}"
            super().__init__(vision_backbone_id, source, image_resize_strategy, default_image_size=default_image_size)
            number = block % len(self.featurizer.blocks)
            self.featurizer.forward = partial(_patches, self.featurizer.get_intermediate_layers, number)

    return EncoderBackbone


def _patches(layers: Any, block: int, pixel_values: Tensor) -> Tensor:
    """Return the patch tokens (B, N, C) after a block."""
    return layers(pixel_values, n=[block])[0]
