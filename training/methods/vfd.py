"""Next-frame self-distillation (Simon, Kim, Yeom: Video Self-Distillation for Single-Image Encoders).

1. A clip of K frames is cut to one region, shared by all frames; local views are cut from the future frames.
2. The student encodes all global views but the last, and all local views; a prediction head follows its backbone.
3. The teacher, the student's moving average without the prediction head, encodes the future frames' global views.
4. Dense loss (equation 1): from frame j the student predicts the teacher's patch tokens of frame j + 1.
5. Global loss (equation 2): from a local view the student predicts the teacher's class token of the same frame.

Legend: B = clips, F = future frames, L = local views per frame, N = patches, C = width, D = prototypes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from training import distributed
from training.heads import HeadConfig, Predictor, PredictorConfig, ProjectionHead
from training.loss import distill
from training.methods.base import Losses, Tower, feature_std
from training.methods.base import Method as BaseMethod
from training.schedules import linear_warmup
from training.targets import Balance, TargetKind
from training.views import Box, View, random_box
from video_distilled_encoder.errors import InputError

if TYPE_CHECKING:
    from training.recipe import Recipe


@dataclass(frozen=True)
class Objective:
    """Settings of the method."""

    dense_weight: float = 0.5
    """Weight of equation 1; 0 leaves it out ("global only")."""
    global_weight: float = 0.5
    """Weight of equation 2; 0 leaves it out ("dense only")."""
    teacher_frames: Literal["future", "last"] = "future"
    """Frames the teacher encodes: from the second on (both equations), or the last alone (the first paper's prose)."""
    local_path: Literal["predictor", "bypass"] = "predictor"
    """Local views pass through the prediction head (the hat of equation 2), or go straight to the projection head."""
    frame_styles: Literal["mixed", "view1", "view2"] = "mixed"
    """Photometrics of a frame's global view: DINO's first or second at random, or one of them (unstated)."""
    targets: TargetKind = "centering"
    """How the teacher's patch and class logits become targets: centering (DINO) or sinkhorn_knopp (DINOv2)."""
    center_momentum: float = 0.9
    """Momentum of the running centres (DINO)."""
    student_temperature: float = 0.1
    """tau_S (DINO)."""
    teacher_temperature: tuple[float, float] = (0.04, 0.07)
    """tau_T at the start and after its warm-up (DINO's longer recipe; its code's default is 0.04 flat)."""
    teacher_temperature_warmup: float = 0.3
    """Share of the run over which tau_T rises (DINO: 30 of 100 epochs)."""
    head: HeadConfig = field(default_factory=HeadConfig)
    """The projection head."""
    predictor: PredictorConfig = field(default_factory=PredictorConfig)
    """The prediction head."""

    def __post_init__(self) -> None:
        if min(self.dense_weight, self.global_weight) < 0 or self.dense_weight + self.global_weight == 0:
            raise InputError("objective.dense_weight and .global_weight must not be negative, nor both 0")
        if min(self.student_temperature, *self.teacher_temperature) <= 0:
            raise InputError("objective temperatures must be positive")


def future_frames(objective: Objective, frames: int) -> list[int]:
    """Return the numbers, from 0, of the frames that the teacher encodes."""
    return list(range(1, frames)) if objective.teacher_frames == "future" else [frames - 1]


def plan_views(rng: np.random.Generator, size: tuple[int, int], recipe: Recipe) -> list[View]:
    """Return the views of a clip: one global view per frame, all of one region, then the local views frame by frame."""
    config, objective = recipe.views, recipe.objective
    frame = Box(0, 0, *size)
    pre_crop = random_box(rng, frame, config.pre_crop_area, config.pre_crop_ratio)
    region = random_box(rng, pre_crop, config.global_area)
    flip = bool(rng.random() < config.flip)
    views = []
    for number in range(recipe.clips.frames):
        if not config.flip_shared:
            flip = bool(rng.random() < config.flip)
        style = objective.frame_styles
        if style == "mixed":
            style = ("view1", "view2")[rng.integers(2)]
        views.append(View("global", number, region, flip, style))
    source = pre_crop if config.local_from == "pre_crop" else frame
    for number in future_frames(objective, recipe.clips.frames):
        for _ in range(config.local_views):
            box = random_box(rng, source, config.local_area)
            views.append(View("local", number, box, bool(rng.random() < config.flip), "local"))
    return views


class Teacher(Tower):
    """Backbone and projection head; the patch tokens may have a head of their own."""

    def __init__(self, backbone: VisionTransformer, objective: Objective) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = ProjectionHead(backbone.embed_dim, objective.head)
        self.own_patch_head = None if objective.head.shared else ProjectionHead(backbone.embed_dim, objective.head)

    @property
    def patch_head(self) -> ProjectionHead:
        """The head of the patch tokens."""
        return self.own_patch_head or self.head


class Student(Teacher):
    """Backbone, prediction head and projection head."""

    def __init__(self, backbone: VisionTransformer, objective: Objective) -> None:
        super().__init__(backbone, objective)
        self.predictor = Predictor(backbone.embed_dim, objective.predictor)


class Method(BaseMethod):
    """Equations 1 and 2."""

    student: Student
    teacher: Teacher

    def __init__(self, recipe: Recipe, student: VisionTransformer, teacher: VisionTransformer) -> None:
        super().__init__()
        objective: Objective = recipe.objective
        if recipe.clips.frames < 2:
            raise InputError(f"vfd predicts the next frame: clips.frames must be at least 2, got {recipe.clips.frames}")
        self.objective = objective
        self.frames = future_frames(objective, recipe.clips.frames)
        self.student = Student(student, objective)
        self.teacher = Teacher(teacher, objective)
        arguments = (objective.head.prototypes, objective.targets, objective.center_momentum)
        self.cls_balance = Balance(*arguments)
        self.patch_balance = Balance(*arguments)
        self.start_teacher()

    def last_layer(self) -> list[torch.nn.Parameter]:
        """Return prototypes and gains of the student's heads."""
        heads = {self.student.head, self.student.patch_head}
        return [parameter for head in heads for parameter in (head.prototypes, head.gain)]

    def forward(self, views: Mapping[str, Tensor], progress: float) -> Losses:
        """Compute the weighted sum of equations 1 and 2."""
        objective = self.objective
        temperature = linear_warmup(*objective.teacher_temperature, objective.teacher_temperature_warmup, progress)
        tokens_BFNC = self.teach(views["global"][:, self.frames])
        total = torch.zeros((), device=tokens_BFNC.device)
        metrics = {"teacher_temperature": torch.tensor(temperature)}
        if objective.dense_weight:
            now = views["global"][:, [number - 1 for number in self.frames]]
            loss = self.dense_loss(now, tokens_BFNC[:, :, 1:], temperature, metrics)
            total = total + objective.dense_weight * loss
        if objective.global_weight:
            local = views["local"].unflatten(1, (len(self.frames), -1))
            loss = self.global_loss(local, tokens_BFNC[:, :, 0], temperature, metrics)
            total = total + objective.global_weight * loss
        metrics["loss"] = total.detach()
        return Losses(total, metrics)

    @torch.no_grad()
    def teach(self, future: Tensor) -> Tensor:
        """Encode (B, F, 3, H, W) future frames as (B, F, 1 + N, C) tokens."""
        return self.teacher.backbone.forward_features(future.flatten(0, 1)).unflatten(0, future.shape[:2])

    def dense_loss(self, now: Tensor, patches: Tensor, temperature: float, metrics: dict[str, Tensor]) -> Tensor:
        """Equation 1.

        Args:
            now: (B, F, 3, H, W) frames.
            patches: (B, F, N, C) the teacher's patch tokens of the frames that follow them.
            temperature: tau_T.
            metrics: receives the loss and the statistics of the targets.
        """
        predicted = self.predict_patches(now)
        heads = self.student.patch_head, self.teacher.patch_head
        return self._distill("dense_loss", "patch", predicted, patches, heads, temperature, metrics)

    def global_loss(self, local: Tensor, cls: Tensor, temperature: float, metrics: dict[str, Tensor]) -> Tensor:
        """Equation 2.

        Args:
            local: (B, F, L, 3, h, w) local views.
            cls: (B, F, C) the teacher's class tokens of the frames they are cut from.
            temperature: tau_T.
            metrics: receives the loss and the statistics of the targets.
        """
        predicted = self.predict_cls(local)
        heads = self.student.head, self.teacher.head
        return self._distill("global_loss", "cls", predicted, cls, heads, temperature, metrics)

    def _distill(
        self,
        loss_name: str,
        kind: Literal["cls", "patch"],
        predicted: Tensor,
        tokens: Tensor,
        heads: tuple[ProjectionHead, ProjectionHead],
        temperature: float,
        metrics: dict[str, Tensor],
    ) -> Tensor:
        """Distil the teacher's `tokens` (…, C) into the student's `predicted` (…, C) or, per token, (…, L, C)."""
        student_head, teacher_head = heads
        with torch.no_grad():
            teacher = teacher_head.project(tokens.flatten(0, -2))
            prototypes = teacher_head.weight()
            bias = (self.cls_balance if kind == "cls" else self.patch_balance)(teacher, prototypes, temperature)
        student = student_head.project(predicted.flatten(0, -2))
        result = distill(
            student,
            student_head.weight(),
            teacher.repeat_interleave(len(student) // len(teacher), 0),
            prototypes,
            bias,
            student_temperature=self.objective.student_temperature,
            teacher_temperature=temperature,
        )
        metrics[loss_name] = result.loss.detach()
        metrics[f"{kind}_entropy"] = result.entropy
        metrics[f"{kind}_batch_entropy"] = torch.special.entr(distributed.average(result.mean_target)).sum()
        metrics[f"{kind}_feature_std"] = feature_std(tokens)
        return result.loss

    def predict_patches(self, now: Tensor) -> Tensor:
        """(B, F, 3, H, W) frames -> (B, F, N, C) predicted patch tokens of the next frames."""
        tokens = self.student.predictor(self._student_tokens(now.flatten(0, 1)))
        return tokens[:, 1:].unflatten(0, now.shape[:2])

    def predict_cls(self, local: Tensor) -> Tensor:
        """(B, F, L, 3, h, w) local views -> (B, F, L, C) predicted class tokens of their frames."""
        pixels = local.flatten(0, 2)
        if self.objective.local_path == "predictor":
            tokens = self.student.predictor(self._student_tokens(pixels))
        else:
            tokens = self.student.backbone.forward_features(pixels)
        return tokens[:, 0].unflatten(0, local.shape[:3])

    def _student_tokens(self, pixels: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, 1 + N, C) tokens for the prediction head, after the final norm or before it."""
        backbone = self.student.backbone
        if self.objective.predictor.norm_input:
            return backbone.forward_features(pixels)
        layers: Any = backbone.forward_intermediates(
            pixels, indices=1, return_prefix_tokens=True, output_fmt="NLC", intermediates_only=True
        )
        ((patches, cls),) = layers
        return torch.cat([cls, patches], dim=1)
