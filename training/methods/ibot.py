"""iBOT on video frames (Zhou et al. 2022): DINO, and masked patches of the same view.

1. Views as in DINO; blocks of patches of some of the student's global views are replaced by a mask token.
2. The class tokens learn as in DINO; the student's masked patch tokens learn the teacher's at the same places.

Facts from the published ViT-S recipe: one head for both, masks on half of the views, 10 to 50 % of their patches.
Legend: B = clips, V = views, N = patches, C = width.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from training.data.batch import Batch
from training.data.views import View
from training.methods import dino
from training.methods.method import At, Build, Losses, Spec
from training.methods.self_distillation import DistillationObjective, SelfDistillation, Tower
from video_distilled_encoder.errors import InputError


@dataclass(frozen=True)
class Objective(DistillationObjective):
    """Settings of the method."""

    mask_probability: float = 0.5
    """Share of the global views that are masked."""
    mask_share: tuple[float, float] = (0.1, 0.5)
    """Share of a masked view's patches, drawn uniformly."""
    patch_weight: float = 1.0
    """Weight of the masked patches' loss beside the class tokens'."""

    def __post_init__(self) -> None:
        super().__post_init__()
        low, high = self.mask_share
        if not (0 <= self.mask_probability <= 1 and 0 < low <= high < 1):
            raise InputError("objective.mask_probability must lie in [0, 1] and .mask_share be 0 < low <= high < 1")


def plan_views(rng: np.random.Generator, size: tuple[int, int], spec: Spec) -> list[View]:
    """Return DINO's views, the global ones with their masks."""
    objective: Objective = spec.objective
    side = spec.views.global_size // spec.patch
    views = dino.plan_views(rng, size, spec)
    for number in range(2):
        share = rng.uniform(*objective.mask_share) if rng.random() < objective.mask_probability else 0.0
        mask = block_mask(rng, side, round(share * side * side)).ravel()
        views[number] = views[number]._replace(arrays={"mask": mask})
    return views


def block_mask(rng: np.random.Generator, side: int, count: int) -> np.ndarray:
    """Return a (side, side) mask of exactly `count` patches, made of random rectangles (BEiT's block-wise masking)."""
    mask = np.zeros((side, side), dtype=bool)
    while (missing := count - int(mask.sum())) > 0:
        area = rng.uniform(min(4, missing), missing)
        ratio = math.exp(rng.uniform(math.log(0.3), math.log(1 / 0.3)))
        height, width = (min(max(round(math.sqrt(area * r)), 1), side) for r in (ratio, 1 / ratio))
        top, left = rng.integers(side - height + 1), rng.integers(side - width + 1)
        block = np.zeros_like(mask)
        block[top : top + height, left : left + width] = True
        new = np.flatnonzero(block & ~mask)
        mask.ravel()[new[:missing]] = True
    return mask


class Student(Tower):
    """Backbone, head and the token that stands for a masked patch."""

    def __init__(self, backbone: VisionTransformer, objective: Objective) -> None:
        super().__init__(backbone, objective.head)
        # below the blocks: learnt with what is there, for its gradient would have to pass through all of them
        learnt = backbone.patch_embed.proj.weight.requires_grad
        self.mask_token = nn.Parameter(torch.zeros(backbone.embed_dim), requires_grad=learnt)
        nn.init.trunc_normal_(self.mask_token, std=0.02)

    def encode_masked(self, pixels: Tensor, mask: Tensor) -> Tensor:
        """(B, 3, H, W) pixels and (B, N) masks -> (B, P + N, C) tokens; timm's forward with patches replaced."""

        def replace(embed: nn.Module, inputs: object, patches: Tensor) -> Tensor:  # (B, h, w, C)
            return torch.where(mask.view(*patches.shape[:3], 1), self.mask_token.to(patches.dtype), patches)

        hook = self.backbone.patch_embed.register_forward_hook(replace)
        try:
            return self.backbone.forward_features(pixels)
        finally:
            hook.remove()


class Method(SelfDistillation):
    """Cross-entropy of class tokens between views, and of masked patch tokens within them."""

    student: Student

    def __init__(self, spec: Spec, build: Build) -> None:
        objective: Objective = spec.objective
        if spec.clips.frames not in (1, 2):
            raise InputError(f"clips.frames is {spec.clips.frames}, but this method takes 1, or 2 for time-aug")
        student, teacher = build(True), build(False)
        super().__init__(objective, Student(student, objective), Tower(teacher, objective.head))
        self.objective = objective

    @torch.no_grad()
    def teach(self, batch: Batch, at: At) -> tuple[Tensor, Tensor]:
        """Encode the global views by the teacher: (B, V, P + N, C) tokens, and the (B, V, N) masks for the student."""
        pixels = batch["global"]["pixels"]
        tokens = self.teacher.backbone.forward_features(pixels.flatten(0, 1))
        return tokens.unflatten(0, pixels.shape[:2]), batch["global"]["mask"]

    def most_masked(self, patches: int) -> int:
        """Return how many of a view's patches are masked at most."""
        return min(math.ceil(self.objective.mask_share[1] * patches), patches)

    def forward(self, batch: Batch, at: At) -> Losses:
        """Add the loss between views and `patch_weight` times that of the masked patches."""
        pixels = batch["global"]["pixels"]
        layout = self.student.tokens
        taught_BVNC, mask_BVN = self.teach(batch, at)
        learnt_BVNC = self.student.encode_masked(pixels.flatten(0, 1), mask_BVN.flatten(0, 1))
        learnt_BVNC = learnt_BVNC.unflatten(0, pixels.shape[:2])
        learnt_cls = [layout.cls(learnt_BVNC)]
        if "local" in batch:
            learnt_cls.append(dino.encode_cls(self.student, batch["local"]["pixels"]))
        metrics: dict[str, Tensor] = {}
        pairs = dino.pair_views(torch.cat(learnt_cls, dim=1))
        global_ = self.distill("cls", pairs, layout.cls(taught_BVNC), at.progress, metrics)
        # Each view's masked patches count alike, however many they are; a view without any counts nothing. The head
        # sees as many patches of each view as are masked at most, of which the others weigh nothing.
        weights_BVN = mask_BVN / mask_BVN.sum(-1, keepdim=True).clamp(min=1) / mask_BVN[..., 0].numel()
        weights_BVk, chosen_BVk = weights_BVN.topk(self.most_masked(mask_BVN.shape[-1]), dim=-1, sorted=False)
        masked_BVkC = torch.take_along_dim(layout.patches(learnt_BVNC), chosen_BVk[..., None], dim=2)
        patches = self.distill(
            "patch",
            masked_BVkC,
            layout.patches(taught_BVNC),
            at.progress,
            metrics,
            weights=weights_BVk,
            chosen=chosen_BVk,
        )
        metrics |= {"global_loss": global_.detach(), "dense_loss": patches.detach()}
        return Losses(global_ + self.objective.patch_weight * patches, metrics)
