"""The backbone that is trained."""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass, field
from typing import Any

import torch
from timm.models.vision_transformer import VisionTransformer

from video_distilled_encoder.errors import InputError
from video_distilled_encoder.model_config import ModelConfig
from video_distilled_encoder.tokens import TokenLayout


@dataclass(frozen=True)
class BackboneConfig:
    """The encoder that is trained."""

    architecture: str = "vit_small_patch16_224"
    """A timm vision transformer."""
    model_args: dict[str, Any] = field(default_factory=dict)
    """Arguments of timm's VisionTransformer that differ from the architecture's, as {"depth": 6}."""
    drop_path: float = 0.1
    """Stochastic depth of the student (DINO)."""
    train_blocks: int | None = None
    """Train the last so many blocks alone, as works that post-train an encoder do (MoSiC, TimeT: 2); what is below them
    and the final norm stay as they are, and cost no backward pass. All of the backbone if not given."""

    def __post_init__(self) -> None:
        if not 0 <= self.drop_path < 1:
            raise InputError(f"backbone.drop_path is a probability in [0, 1), got {self.drop_path}")

    @property
    def config(self) -> ModelConfig:
        """Facts of the encoder that a run leaves."""
        return ModelConfig(architecture=self.architecture, model_args=self.model_args)

    def build(self, stochastic: bool) -> VisionTransformer:
        """Build the backbone with random weights, with stochastic depth or without.

        Raises:
            InputError: it has no class token, which the methods learn, or takes one size of image alone.
        """
        backbone = self.config.build_backbone(**({"drop_path_rate": self.drop_path} if stochastic else {}))
        tokens = TokenLayout.of(backbone)
        if not tokens.has_cls or tokens.only_size:
            why = "takes one size of image alone" if tokens.has_cls else "has no class token"
            raise InputError(f"{self.architecture} cannot be trained here: it {why}; as a teacher of distill it serves")
        if self.train_blocks is not None:
            train_last(backbone, self.train_blocks)
        return backbone

    @property
    def patch(self) -> int:
        """Side of a patch in pixels."""
        return _patch_of(self.architecture, json.dumps(self.model_args))


def train_last(backbone: VisionTransformer, blocks: int) -> None:
    """Leave only the last blocks of a backbone to be trained.

    Raises:
        InputError: it has not so many.
    """
    depth = len(backbone.blocks)
    if not 0 <= blocks <= depth:
        raise InputError(f"backbone.train_blocks must lie in 0 to {depth}, the blocks that there are; got {blocks}")
    backbone.requires_grad_(False)
    backbone.blocks[depth - blocks :].requires_grad_(True)


@functools.cache
def _patch_of(architecture: str, model_args: str) -> int:
    """Return the side of an architecture's patches, of a backbone that takes no memory."""
    config = ModelConfig(architecture=architecture, model_args=json.loads(model_args))
    with torch.device("meta"):
        return TokenLayout.of(config.build_backbone()).patch_size
