"""The backbone that is trained."""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass, field
from typing import Any

import torch
from timm.models.vision_transformer import VisionTransformer

from video_distilled_encoder.model_config import ModelConfig


@dataclass(frozen=True)
class BackboneConfig:
    """The encoder that is trained."""

    architecture: str = "vit_small_patch16_224"
    """A timm vision transformer."""
    model_args: dict[str, Any] = field(default_factory=dict)
    """Arguments of timm's VisionTransformer that differ from the architecture's, as {"depth": 6}."""
    drop_path: float = 0.1
    """Stochastic depth of the student (DINO)."""

    @property
    def config(self) -> ModelConfig:
        """Facts of the encoder that a run leaves."""
        return ModelConfig(architecture=self.architecture, model_args=self.model_args)

    def build(self, stochastic: bool) -> VisionTransformer:
        """Build the backbone with random weights, with stochastic depth or without."""
        return self.config.build_backbone(**({"drop_path_rate": self.drop_path} if stochastic else {}))

    @property
    def patch(self) -> int:
        """Side of a patch in pixels."""
        return _patch_of(self.architecture, json.dumps(self.model_args))


@functools.cache
def _patch_of(architecture: str, model_args: str) -> int:
    """Return the side of an architecture's patches, of a backbone that takes no memory."""
    config = ModelConfig(architecture=architecture, model_args=json.loads(model_args))
    with torch.device("meta"):
        patch: int = config.build_backbone().patch_embed.patch_size[0]
    return patch
