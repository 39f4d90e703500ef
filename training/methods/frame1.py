"""FRAME's first stage (arXiv 2506.05543): into one encoder the patches of a frozen one, and the class token of another.

1. A frame is cut to a region; the student and the teachers see the same pixels, the semantic teacher at its own size.
2. A linear layer leads from the student's class token to the semantic teacher's (FRAME: CLIP's), a block of a
   transformer from its patch tokens to the spatial teacher's (FRAME: DINO's). Both are thrown away.
3. Class tokens are compared by their angle, patch tokens by the mean squared error. Each loss is divided by its running
   mean, so that the two weigh alike.

The parts are `distill`'s, with two teachers. What the paper leaves out stands beside the settings. CLIP's class token
is timm's, before CLIP's own projection. Without a semantic teacher it is the paper's row "DINO alone". The second stage
is `frame2`. Legend: B = clips, N = patches, C = width, W = a teacher's width.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from training.data.batch import Batch
from training.data.views import View, pre_crop, random_box
from training.methods.distill import credit, explained, identify, resize
from training.methods.method import At, Build, Losses, Spec
from training.methods.method import Method as BaseMethod
from training.methods.method import Objective as BaseObjective
from training.methods.self_distillation import CollapseWatch, Network, feature_spread
from training.models.loading import load_model
from training.models.model import Model
from training.models.video_encoder import heads_of
from training.nn.mean_scaling import MeanScaling
from training.nn.spatial_decoder import SpatialDecoder
from video_distilled_encoder import EncoderOutput, ModelConfig
from video_distilled_encoder.errors import InputError


@dataclass(frozen=True)
class TeachersObjective(BaseObjective):
    """Settings of what learns from two frozen teachers."""

    spatial_teacher: str = ""
    """Whose patch tokens are learnt (FRAME: DINO ViT-S/16 or DINOv2), as `training.evaluate --model`."""
    semantic_teacher: str = ""
    """Whose class token is learnt (FRAME: CLIP ViT-B/32), likewise; if not given, none is."""
    semantic_size: int = 224
    """Side of its input in pixels: CLIP's positions are of one size."""
    cls_weight: float = 1.0
    """Weight of the class token's loss after scaling (FRAME's weights are lost: ours)."""
    patch_weight: float = 1.0
    """Weight of the patch tokens' loss after scaling (likewise)."""
    scale_momentum: float = 0.99
    """Of the running means that losses are divided by (FRAME: "mean scaling", no more is said: ours)."""

    def __post_init__(self) -> None:
        if not self.spatial_teacher:
            raise InputError(
                "FRAME learns from encoders that exist: set objective.spatial_teacher, as to nota/vfd-vits16"
            )
        used = self.patch_weight, self.cls_weight * bool(self.semantic_teacher)
        if min(self.cls_weight, self.patch_weight) < 0 or not any(used):
            raise InputError(
                "objective.cls_weight and .patch_weight must not be negative, nor 0 both, or without a semantic teacher"
            )
        if not 0 <= self.scale_momentum < 1 or self.semantic_size < 1:
            raise InputError("objective.scale_momentum must lie in [0, 1) and .semantic_size be positive")


@dataclass(frozen=True)
class Objective(TeachersObjective):
    """Settings of the method."""


class Teachers:
    """The frozen encoders.

    Args:
        objective: which.
        config: of the student.
        patch: side of the student's patches.
        side: of the student's views in pixels.
    """

    def __init__(self, objective: TeachersObjective, config: ModelConfig, patch: int, side: int) -> None:
        self.config, self.patch, self.size = config, patch, objective.semantic_size
        with torch.random.fork_rng(devices=[]):  # whatever the teachers are, the student's weights are the same
            self.spatial = load_model(objective.spatial_teacher, device="cpu")
            name = objective.semantic_teacher
            self.semantic = load_model(name, device="cpu") if name else None
        blank = torch.zeros(1, 3, side, side)
        self.spatial_width = self.patches(blank).patches.shape[-1]
        self.semantic_width = self.cls(blank).shape[-1] if self.semantic else None

    def all(self) -> list[Model]:
        """Return them."""
        return [self.spatial, *([self.semantic] if self.semantic else [])]

    def patches(self, pixels: Tensor) -> EncoderOutput:
        """(B, 3, H, W) pixels, normalised for the student -> the spatial teacher's features, of as many patches."""
        height, width = (side // self.patch * self.spatial.patch_size for side in pixels.shape[-2:])
        return self.spatial.features(pixels, self.config, (height, width))

    def cls(self, pixels: Tensor) -> Tensor:
        """(B, 3, H, W) likewise -> (B, W) class tokens of the semantic teacher."""
        assert self.semantic is not None
        return self.semantic.features(pixels, self.config, (self.size, self.size)).cls


def plan_views(rng: np.random.Generator, size: tuple[int, int], spec: Spec) -> list[View]:
    """Return a view of the first frame, in its own colours (FRAME's teachers' features are made beforehand)."""
    config = spec.views
    region = random_box(rng, pre_crop(rng, size, config)[1], config.global_area)
    return [View("global", 0, region, bool(rng.random() < config.flip), (config.global_size,) * 2, None)]


class Student(Network):
    """Backbone and decoders."""

    def __init__(self, backbone: VisionTransformer, teachers: Teachers) -> None:
        super().__init__(backbone)
        width = backbone.embed_dim
        self.spatial = SpatialDecoder(width, heads_of(backbone), teachers.spatial_width)
        self.semantic = nn.Linear(width, teachers.semantic_width) if teachers.semantic_width else None


class Method(BaseMethod):
    """Regression of two frozen teachers' tokens."""

    def __init__(self, spec: Spec, build: Build) -> None:
        super().__init__()
        self.objective: Objective = spec.objective
        self.patch = spec.patch
        backbone = build(True)
        self.teachers = Teachers(self.objective, spec.config, spec.patch, spec.views.global_size)
        self.student = Student(backbone, self.teachers)
        self.scaling = MeanScaling(len(self.teachers.all()), self.objective.scale_momentum)
        self._collapse = CollapseWatch()

    @property
    def trained(self) -> Student:
        """The student."""
        return self.student

    def encoder(self) -> VisionTransformer:
        """Return the student's backbone."""
        return self.student.backbone

    def outside(self) -> dict[str, str]:
        """Return the teachers' names and hashes."""
        return identify(self.teachers.all())

    def provenance(self) -> str:
        """Return names, licences and hashes of the teachers."""
        return credit(self.teachers.all())

    def forward(self, batch: Batch, at: At) -> Losses:
        """Add the losses of patch tokens and of class tokens, each over its running mean."""
        pixels, layout = batch["global"]["pixels"][:, 0], self.student.tokens
        with torch.autocast(pixels.device.type, enabled=False):
            taught = self.teachers.patches(pixels)
        tokens = self.student.backbone.forward_features(pixels)
        patches = layout.patches(tokens)
        learnt = on_grid(self.student.spatial(patches), pixels, self.patch, taught).to(taught.patches.dtype)
        losses = {"patch_loss": F.mse_loss(learnt, taught.patches)}
        if self.student.semantic is not None:
            losses["cls_loss"] = angle(self.student.semantic(layout.cls(tokens)), self.teachers.cls(pixels))
        total = add(losses, self.objective, self.scaling)
        spread, rank = feature_spread(patches)
        metrics = {name: loss.detach() for name, loss in losses.items()}
        metrics |= {"patch_r2": explained(learnt.detach(), taught.patches)}
        return Losses(total, metrics | {"patch_feature_std": spread, "patch_feature_rank": rank})

    def watch(self, row: Mapping[str, float]) -> str | None:
        """Tell when all images have looked the same for some time."""
        return self._collapse(row, "lower optimizer.learning_rate")


def on_grid(patches: Tensor, pixels: Tensor, patch: int, taught: EncoderOutput) -> Tensor:
    """Return (B, N, W) decoded patches of pixels on the grid of a teacher's features."""
    height, width = (side // patch for side in pixels.shape[-2:])
    return resize(patches, (height, width), (taught.grid.shape[-2], taught.grid.shape[-1]))


def angle(learnt: Tensor, taught: Tensor) -> Tensor:
    """Return the mean of 1 - cosine of (B, W) vectors."""
    return (1 - F.cosine_similarity(learnt.to(taught.dtype), taught, dim=-1)).mean()


def add(losses: Mapping[str, Tensor], objective: TeachersObjective, scaling: MeanScaling) -> Tensor:
    """Return the sum of losses, `X_loss`, over their running means, weighted by the settings `X_weight`."""
    scaled = scaling(torch.stack(list(losses.values())))
    weights = [getattr(objective, name.replace("_loss", "_weight")) for name in losses]
    return torch.stack([weight * loss for weight, loss in zip(weights, scaled, strict=True)]).sum()
