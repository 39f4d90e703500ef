"""The backbone that is trained."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
from timm.models.vision_transformer import VisionTransformer

from video_distilled_encoder.model_config import ModelConfig


@dataclass(frozen=True)
class BackboneConfig:
    """The encoder that is trained."""

    architecture: str = "vit_small_patch16_224"
    """A timm vision transformer."""
    drop_path: float = 0.1
    """Stochastic depth of the student (DINO)."""

    @property
    def config(self) -> ModelConfig:
        """Facts of the encoder that a run leaves."""
        return ModelConfig(architecture=self.architecture)

    def build(self, stochastic: bool) -> VisionTransformer:
        """Build the backbone with random weights, with stochastic depth or without."""
        return self.config.build_backbone(**({"drop_path_rate": self.drop_path} if stochastic else {}))

    @property
    def patch(self) -> int:
        """Side of a patch in pixels."""
        return _patch_of(self.architecture)


@functools.cache
def _patch_of(architecture: str) -> int:
    """Return the side of an architecture's patches, of a backbone that takes no memory."""
    with torch.device("meta"):
        patch: int = ModelConfig(architecture=architecture).build_backbone().patch_embed.patch_size[0]
    return patch
