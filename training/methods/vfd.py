"""Next-frame self-distillation (Simon, Kim, Yeom: Video Self-Distillation for Single-Image Encoders).

1. A clip of K frames is cut to one region, shared by all frames; local views are cut from the future frames.
2. The student encodes all global views but the last, and all local views; a prediction head follows its backbone.
3. The teacher, the student's moving average without the prediction head, encodes the future frames' global views.
4. Dense loss (equation 1): from frame j the student predicts the teacher's patch tokens of frame j + 1.
5. Global loss (equation 2): from a local view the student predicts the teacher's class token of the same frame.

Legend: B = clips, F = future frames, L = local views per frame, N = patches, C = width, D = prototypes.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from training.data.batch import Batch
from training.data.views import View, pre_crop, random_box
from training.methods.method import At, Build, Losses, Spec
from training.methods.self_distillation import DistillationObjective, SelfDistillation, Tower
from training.nn.heads import Predictor, PredictorConfig
from training.nn.some_patches import encode_some
from video_distilled_encoder.errors import InputError
from video_distilled_encoder.tokens import tokens_after


@dataclass(frozen=True)
class Objective(DistillationObjective):
    """Settings of the method."""

    dense_weight: float = 0.5
    """Weight of equation 1; 0 leaves it out ("global only")."""
    global_weight: float = 0.5
    """Weight of equation 2; 0 leaves it out ("dense only")."""
    patch_share: float = 1.0
    """Share of the patches, drawn anew for each clip, whose tokens are compared: unbiased, and cheaper."""
    token_dropout: float = 0.0
    """Share of the run, from its start, in which the student sees no other patches of a frame than those
    (`patch_share`): its steps are cheaper, and what it leaves out is to be inferred (token dropout, heavy at first and
    none at the end: arXiv 2410.22364)."""
    teacher_frames: Literal["future", "last"] = "future"
    """Frames the teacher encodes: from the second on (both equations), or the last alone (the first paper's prose)."""
    local_path: Literal["predictor", "bypass"] = "predictor"
    """Local views pass through the prediction head (the hat of equation 2), or go straight to the projection head."""
    frame_styles: Literal["mixed", "view1", "view2"] = "mixed"
    """Photometrics of a frame's global view: DINO's first or second at random, or one of them (unstated)."""
    predictor: PredictorConfig = field(default_factory=PredictorConfig)
    """The prediction head."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if min(self.dense_weight, self.global_weight) < 0 or self.dense_weight + self.global_weight == 0:
            raise InputError("objective.dense_weight and .global_weight must not be negative, nor both 0")
        if not 0 < self.patch_share <= 1:
            raise InputError(f"objective.patch_share must lie in (0, 1], got {self.patch_share}")
        if not 0 <= self.token_dropout <= 1 or (self.token_dropout and self.patch_share == 1):
            raise InputError(
                "objective.token_dropout is a share of the run, in [0, 1], in which patches are left out: it wants a "
                f".patch_share below 1; got {self.token_dropout} and {self.patch_share}"
            )

    def phases(self) -> list[float]:
        """Return where in the run its steps begin to cost something else."""
        return [self.token_dropout]


def future_frames(objective: Objective, frames: int) -> range:
    """Return the numbers, from 0, of the frames that the teacher encodes."""
    return range(1 if objective.teacher_frames == "future" else frames - 1, frames)


def plan_views(rng: np.random.Generator, size: tuple[int, int], spec: Spec) -> list[View]:
    """Return the views of a clip: one global view per frame, all of one region, then the local views frame by frame."""
    config, objective = spec.views, spec.objective
    frame, cropped = pre_crop(rng, size, config)
    region = random_box(rng, cropped, config.global_area)
    flip = bool(rng.random() < config.flip)
    mask = sample_patches(rng, (config.global_size // spec.patch) ** 2, objective.patch_share)
    arrays = {} if mask is None else {"mask": mask}
    future = future_frames(objective, spec.clips.frames)
    large, small = (config.global_size,) * 2, (config.local_size,) * 2
    views = []
    for number in range(future.start - 1, future.stop):
        if not config.flip_shared:
            flip = bool(rng.random() < config.flip)
        style = objective.frame_styles
        if style == "mixed":
            style = ("view1", "view2")[rng.integers(2)]
        views.append(View("global", number, region, flip, large, style, arrays))
    source = cropped if config.local_from == "pre_crop" else frame
    for number in future:
        for _ in range(config.local_views):
            box = random_box(rng, source, config.local_area)
            views.append(View("local", number, box, bool(rng.random() < config.flip), small, "local"))
    return views


def sample_patches(rng: np.random.Generator, count: int, share: float) -> np.ndarray | None:
    """Return a (count,) mask of a random `share` of the patches; none for all of them."""
    if share == 1:
        return None
    mask = np.zeros(count, dtype=bool)
    mask[rng.choice(count, round(share * count), replace=False)] = True
    return mask


class Student(Tower):
    """Backbone, prediction head and projection head."""

    def __init__(self, backbone: VisionTransformer, objective: Objective) -> None:
        super().__init__(backbone, objective.head)
        self.predictor = Predictor(backbone.embed_dim, objective.predictor)


class Method(SelfDistillation):
    """Equations 1 and 2."""

    student: Student

    def __init__(self, spec: Spec, build: Build) -> None:
        objective: Objective = spec.objective
        if spec.clips.frames < 2:
            raise InputError(f"vfd predicts the next frame: clips.frames must be at least 2, got {spec.clips.frames}")
        if objective.global_weight and not spec.views.local_views:
            raise InputError("vfd predicts from local views: raise views.local_views, or set objective.global_weight 0")
        student, teacher = build(True), build(False)
        super().__init__(objective, Student(student, objective), Tower(teacher, objective.head))
        self.objective = objective

    def forward(self, batch: Batch, at: At) -> Losses:
        """Compute the weighted sum of equations 1 and 2."""
        objective, progress = self.objective, at.progress
        frames = batch["global"]["pixels"]
        tokens_BFNC = self.teach(frames[:, 1:])
        total = torch.zeros((), device=tokens_BFNC.device)
        metrics: dict[str, Tensor] = {}
        if objective.dense_weight:
            mask = batch["global"]["mask"][:, :-1] if "mask" in batch["global"] else None
            patches_BFNC = self.student.tokens.patches(tokens_BFNC)
            loss = self.dense_loss(frames[:, :-1], patches_BFNC, mask, progress, metrics)
            metrics["dense_loss"] = loss.detach()
            total = total + objective.dense_weight * loss
        if objective.global_weight:
            local = batch["local"]["pixels"].unflatten(1, (tokens_BFNC.shape[1], -1))
            loss = self.distill("cls", self.predict_cls(local), self.student.tokens.cls(tokens_BFNC), progress, metrics)
            metrics["global_loss"] = loss.detach()
            total = total + objective.global_weight * loss
        return Losses(total, metrics)

    @torch.no_grad()
    def teach(self, future: Tensor) -> Tensor:
        """Encode (B, F, 3, H, W) future frames as (B, F, P + N, C) tokens."""
        return self.teacher.backbone.forward_features(future.flatten(0, 1)).unflatten(0, future.shape[:2])

    def dense_loss(
        self, now: Tensor, patches: Tensor, mask: Tensor | None, progress: float, metrics: dict[str, Tensor]
    ) -> Tensor:
        """Equation 1.

        While `token_dropout` lasts, the student sees of each frame the patches that are compared, and no others.

        Args:
            now: (B, F, 3, H, W) frames.
            patches: (B, F, N, C) the teacher's patch tokens of the frames that follow them.
            mask: (B, F, N) the patches that are compared, equally many of each frame; all if it is not given.
            progress: share of the run that is over.
            metrics: receives the statistics of the targets.
        """
        if mask is None:
            return self.distill("patch", self.predict_patches(now), patches, progress, metrics)
        count = round(self.objective.patch_share * mask.shape[-1])
        # topk of a mask finds its places without asking the device how many there are
        chosen = mask.float().topk(count, dim=-1, sorted=False).indices[..., None]  # (B, F, k, 1)
        if progress < self.objective.token_dropout:
            predicted = self.predict_patches(now, chosen)
        else:
            predicted = torch.take_along_dim(self.predict_patches(now), chosen, dim=2)
        return self.distill("patch", predicted, torch.take_along_dim(patches, chosen, dim=2), progress, metrics)

    def predict_patches(self, now: Tensor, seen: Tensor | None = None) -> Tensor:
        """(B, F, 3, H, W) frames -> (B, F, N, C) predicted patch tokens of the next; of the (B, F, k, 1) seen alone."""
        tokens = self._student_tokens(now.flatten(0, 1), None if seen is None else seen.flatten(0, 1))
        return self.student.tokens.patches(self.student.predictor(tokens)).unflatten(0, now.shape[:2])

    def predict_cls(self, local: Tensor) -> Tensor:
        """(B, F, L, 3, h, w) local views -> (B, F, L, C) predicted class tokens of their frames."""
        pixels = local.flatten(0, 2)
        if self.objective.local_path == "predictor":
            tokens = self.student.predictor(self._student_tokens(pixels))
        else:
            tokens = self.student.backbone.forward_features(pixels)
        return self.student.tokens.cls(tokens).unflatten(0, local.shape[:3])

    def _student_tokens(self, pixels: Tensor, seen: Tensor | None = None) -> Tensor:
        """(B, 3, H, W) -> (B, P + N, C) tokens for the prediction head, after the final norm or before it.

        Args:
            pixels: what is encoded.
            seen: (B, k, 1) the patches that are; all if it is not given.
        """
        backbone, normed = self.student.backbone, self.objective.predictor.norm_input
        if seen is None:
            last = len(backbone.blocks) - 1
            return (
                backbone.forward_features(pixels)
                if normed
                else tokens_after(backbone, pixels, [last], norm=False)[last]
            )
        return encode_some(backbone, pixels, seen[..., 0], norm=normed)
