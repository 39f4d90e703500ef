"""Modules that exist during training only: the projection head and the prediction head.

Legend: B = images, N = tokens, C = width of the backbone, D = prototypes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from timm.layers import trunc_normal_
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from video_distilled_encoder.errors import InputError


@dataclass(frozen=True)
class HeadConfig:
    """DINO's projection head."""

    prototypes: int = 65536
    """D, outputs of the last layer (DINO)."""
    hidden: int = 2048
    """Width of the two hidden layers (DINO)."""
    bottleneck: int = 256
    """Width of the L2-normalised bottleneck (DINO)."""
    norm_last_layer: bool = False
    """Fix the length of the prototypes at 1 (True in DINO's code, False in its longer recipes, iBOT and DoRA)."""
    shared: bool = True
    """One head for class and patch tokens; the papers speak of one head. Their centres are separate always."""

    def __post_init__(self) -> None:
        if min(self.prototypes, self.hidden, self.bottleneck) < 1:
            raise InputError("head.prototypes, head.hidden and head.bottleneck must be positive")


def projection(width: int, hidden: int, out: int) -> nn.Sequential:
    """Return DINO's MLP of three layers."""
    sides = (width, hidden, hidden, out)
    first, second, third = (nn.Linear(sides[number], sides[number + 1]) for number in range(3))
    for layer in (first, second, third):
        trunc_normal_(layer.weight, std=0.02)
        nn.init.zeros_(layer.bias)
    return nn.Sequential(first, nn.GELU(), second, nn.GELU(), third)


class ProjectionHead(nn.Module):
    """MLP of three layers, L2 normalisation, weight-normalised prototypes (Caron et al. 2021, appendix C)."""

    def __init__(self, width: int, config: HeadConfig) -> None:
        super().__init__()
        self.mlp = projection(width, config.hidden, config.bottleneck)
        self.prototypes = nn.Parameter(torch.empty(config.prototypes, config.bottleneck))
        nn.init.kaiming_uniform_(self.prototypes, a=5**0.5)
        self.gain = nn.Parameter(torch.ones(config.prototypes, 1), requires_grad=not config.norm_last_layer)

    def forward(self, tokens: Tensor) -> Tensor:
        """(..., C) -> (..., D) logits."""
        return F.linear(self.project(tokens), self.weight())

    def project(self, tokens: Tensor) -> Tensor:
        """(..., C) -> (..., bottleneck), of unit length."""
        return F.normalize(self.mlp(tokens), dim=-1)

    def weight(self) -> Tensor:
        """(D, bottleneck) prototypes: direction times gain."""
        return F.normalize(self.prototypes, dim=-1) * self.gain


@dataclass(frozen=True)
class PredictorConfig:
    """The prediction head between the student's backbone and its projection head; the papers give no sizes."""

    hidden: int = 1536
    """Width of the MLP's hidden layer."""
    depth: int = 2
    """Attention blocks (paper, section 2)."""
    heads: int = 6
    """Heads of each attention block."""
    mlp_ratio: float = 4.0
    """Width of the blocks' MLPs over that of the tokens."""
    drop_path: float = 0.0
    """Stochastic depth of the blocks."""
    norm_input: bool = True
    """Feed it the backbone's tokens after the final norm; before it otherwise."""
    norm_output: bool = True
    """Normalise its output."""

    def __post_init__(self) -> None:
        if self.hidden < 1 or self.depth < 0 or self.heads < 1 or self.mlp_ratio <= 0:
            raise InputError("predictor.hidden, .heads and .mlp_ratio must be positive and .depth at least 0")


class Predictor(nn.Module):
    """2-layer MLP, attention blocks, norm: (B, N, C) tokens of a frame -> (B, N, C) tokens of the next."""

    def __init__(self, width: int, config: PredictorConfig) -> None:
        super().__init__()
        if width % config.heads:
            raise InputError(f"predictor.heads {config.heads} does not divide the backbone's width {width}")
        self.mlp = nn.Sequential(nn.Linear(width, config.hidden), nn.GELU(), nn.Linear(config.hidden, width))
        self.blocks = nn.Sequential(
            *(
                Block(width, config.heads, mlp_ratio=config.mlp_ratio, qkv_bias=True, drop_path=config.drop_path)
                for _ in range(config.depth)
            )
        )
        self.norm = nn.LayerNorm(width, eps=1e-6) if config.norm_output else nn.Identity()
        for module in self.modules():
            if isinstance(module, nn.Linear):
                trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, tokens: Tensor) -> Tensor:
        """Predict the tokens of the next frame from those of this one."""
        return self.norm(self.blocks(self.mlp(tokens)))
