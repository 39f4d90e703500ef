"""Alignment of patch kernels (PaKA, arXiv 2509.05606) along time, for an encoder that exists.

1. Two frames of a clip are cut to one region; the student's is augmented in its colours, the teacher's is not.
2. The student encodes the first, the teacher the last, and a projection follows each.
3. The similarities between the patches of a frame are its kernel. The loss is 1 less the alignment of the two kernels
   (centred kernel alignment, CKA): what is alike now is to be alike later.

The paper aligns two crops of one image; that they are of two frames, and of one region, is ours. With `clips.still`
they are of one frame. Legend: B = clips, N = patches, C = width, E = width of the projection.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from training.data.batch import Batch
from training.data.views import Style, View, pre_crop, random_box
from training.methods.method import At, Build, Losses, Spec, need_first_and_last
from training.methods.self_distillation import LONG, Network, StudentAndTeacher, TeacherObjective, feature_spread
from training.nn.heads import projection
from video_distilled_encoder.errors import InputError

_FLAT_RANK = 1.1
"""Effective rank of the features below which patches differ along one direction alone."""


@dataclass(frozen=True)
class Objective(TeacherObjective):
    """Settings of the method."""

    teacher_momentum: tuple[float, float] = (0.992, 1.0)
    """Of the teacher's moving average, at the start and at the end of a cosine (lightly-train, DINOv2)."""
    hidden: int = 2048
    """Width of the projection's two hidden layers (PaKA)."""
    bottleneck: int = 256
    """E, width of what is compared (PaKA)."""
    student_style: Style | None = "local"
    """Photometrics of the student's frame: view1, view2 or local, as DINO's views of that name; null for none."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if min(self.hidden, self.bottleneck) < 1:
            raise InputError("objective.hidden and .bottleneck must be positive")


def plan_views(rng: np.random.Generator, size: tuple[int, int], spec: Spec) -> list[View]:
    """Return a view of the first frame and one of the last, of one region."""
    config = spec.views
    region = random_box(rng, pre_crop(rng, size, config)[1], config.global_area)
    flip, shape = bool(rng.random() < config.flip), (config.global_size,) * 2
    return [
        View("global", 0, region, flip, shape, spec.objective.student_style),
        View("global", spec.clips.frames - 1, region, flip, shape, None),
    ]


class Projected(Network):
    """Backbone and projection."""

    def __init__(self, backbone: VisionTransformer, objective: Objective) -> None:
        super().__init__(backbone)
        self.head = projection(backbone.embed_dim, objective.hidden, objective.bottleneck)

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 3, H, W) -> (B, N, C) patch tokens and (B, N, E) their projection."""
        patches = self.tokens.patches(self.backbone.forward_features(pixels))
        return patches, self.head(patches)


class Method(StudentAndTeacher):
    """Alignment of the student's patch kernels of one frame with the teacher's of a later one."""

    def __init__(self, spec: Spec, build: Build) -> None:
        objective: Objective = spec.objective
        need_first_and_last("paka", spec)
        student, teacher = build(True), build(False)
        super().__init__(objective, Projected(student, objective), Projected(teacher, objective))
        self._flat = 0

    def forward(self, batch: Batch, at: At) -> Losses:
        """Average 1 - CKA over clips."""
        frames = batch["global"]["pixels"]
        with torch.no_grad():
            tokens, taught = self.teacher(frames[:, 1])
        _, learnt = self.student(frames[:, 0])
        with torch.autocast(frames.device.type, enabled=False):
            aligned = alignment(learnt, taught)
            others = alignment(learnt.detach(), taught.roll(1, 0))
        spread, rank = feature_spread(tokens)
        metrics = {
            "alignment": aligned.detach().mean(),
            "alignment_with_others": others.mean(),
            "patch_feature_std": spread,
            "patch_feature_rank": rank,
        }
        return Losses(1 - aligned.mean(), metrics)

    def watch(self, row: Mapping[str, float]) -> str | None:
        """Tell when all images look the same, or when patches have differed along one direction for some time."""
        self._flat = self._flat + 1 if row["patch_feature_rank"] < _FLAT_RANK else 0
        if self._flat >= LONG:
            return (
                f"for {LONG} steps the effective rank of the features has been below {_FLAT_RANK}: kernels align along "
                f"one direction at no price; {self.remedy}, and start from an encoder (--init-from)"
            )
        return super().watch(row)


def alignment(one: Tensor, other: Tensor) -> Tensor:
    """Compare which patches are alike, of each image: linear CKA, in [0, 1].

    Rotations of the features, and their scale, change nothing.

    Args:
        one: (B, N, E) features.
        other: (B, N, F) features of the same places.

    Returns:
        (B,).
    """
    kernels = [_centred_kernel(features) for features in (one, other)]
    product = (kernels[0] * kernels[1]).sum((-2, -1))
    norms = [kernel.flatten(1).norm(dim=1) for kernel in kernels]
    return product / (norms[0] * norms[1]).clamp(min=1e-6)


def _centred_kernel(features: Tensor) -> Tensor:
    """(B, N, E) -> (B, N, N) H Z Z' H, with H = I - 1 1'/N."""
    wide = features.to(torch.promote_types(features.dtype, torch.float32))
    centred = wide - wide.mean(-2, keepdim=True)
    return centred @ centred.mT
