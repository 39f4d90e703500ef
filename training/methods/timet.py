"""Clusters carried along time (Salehi et al., TimeT: Time Does Tell, ICCV 2023), for an encoder that exists.

1. The frames of a clip are cut to one region and keep their colours.
2. The teacher encodes all of them. Its patches of the first frame are assigned to prototypes, each of which is used
   equally often in the batch (Sinkhorn-Knopp).
3. The assignments are carried to the last frame by the similarity of the teacher's patches, from frame to frame.
4. The student sees the last frame alone; each of its patches learns the prototype that is carried to it most.
5. Patches that propagation to the first frame and back leads further off than a patch are left out: they were hidden,
   or left the view. This is ours; in the paper all count.

In the published code the features that carry are the student's and the head has a third hidden layer, of 512; here they
are the teacher's, and the head is DINO's. Legend: B = clips, T = frames, N = patches, C = width, D = prototypes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from training.common import distributed
from training.data.batch import Batch
from training.data.views import View, pre_crop, random_box
from training.methods.method import At, Build, Losses, Spec
from training.methods.self_distillation import LONG, DistillationObjective, SelfDistillation, Tower, feature_spread
from training.nn.balance import TargetKind
from training.nn.heads import HeadConfig
from training.nn.propagation import comes_home, transport
from video_distilled_encoder.errors import InputError

_MOST_LEFT_OUT = 0.95
"""Share of the patches without which a step teaches next to nothing."""


@dataclass(frozen=True)
class Objective(DistillationObjective):
    """Settings of the method."""

    targets: TargetKind = "sinkhorn_knopp"
    """How the teacher's logits become assignments: sinkhorn_knopp (TimeT, with 3 rounds) or centering."""
    teacher_temperature: tuple[float, float] = (0.05, 0.05)
    """Of the assignments, at the start and after the warm-up (TimeT's epsilon)."""
    teacher_momentum: tuple[float, float] = (0.995, 1.0)
    """Of the teacher's moving average, at the start and at the end of a cosine (TimeT)."""
    freeze_last_layer: float = 0.0
    """Share of the run during which the prototypes stay as they are."""
    head: HeadConfig = field(default_factory=lambda: HeadConfig(prototypes=200, hidden=1024, norm_last_layer=True))
    """The projection head (TimeT: 200 prototypes of length 1, hidden layers of 1024)."""
    top_k: int = 5
    """Patches of earlier frames that a patch is made of (DINO's label propagation)."""
    radius: int = 6
    """Rows and columns of patches, to each side, in which they lie (TimeT)."""
    propagation_temperature: float = 0.1
    """Of their weights (DINO's label propagation)."""
    home: int | None = 1
    """How many patches off a patch may come back, to count; null: all count, as in the paper."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.top_k < 1 or self.radius < 0 or self.propagation_temperature <= 0:
            raise InputError("objective.top_k and .propagation_temperature must be positive and .radius at least 0")
        if self.home is not None and self.home < 0:
            raise InputError(f"objective.home is a number of patches, or null, got {self.home}")

    def logits_at_once(self) -> int:
        """Return 0: with few prototypes, all are kept."""
        return 0


def plan_views(rng: np.random.Generator, size: tuple[int, int], spec: Spec) -> list[View]:
    """Return one view per frame, all of one region, in the frames' own colours."""
    config = spec.views
    region = random_box(rng, pre_crop(rng, size, config)[1], config.global_area)
    flip = bool(rng.random() < config.flip)
    return [View("global", frame, region, flip, (config.global_size,) * 2, None) for frame in range(spec.clips.frames)]


class Method(SelfDistillation):
    """Cross-entropy of the last frame's patches with the assignments of the first frame's, carried to them."""

    def __init__(self, spec: Spec, build: Build) -> None:
        objective: Objective = spec.objective
        if spec.clips.frames < 2:
            raise InputError(
                f"timet carries assignments along a clip: clips.frames must be at least 2, got {spec.clips.frames}; "
                "without time, set clips.still true"
            )
        student, teacher = build(True), build(False)
        super().__init__(objective, Tower(student, objective.head), Tower(teacher, objective.head))
        self.objective = objective
        self._lost = 0

    def forward(self, batch: Batch, at: At) -> Losses:
        """Average over all patches what those that come home have to learn."""
        frames = batch["global"]["pixels"]
        targets_BN, kept_BN, metrics = self.teach(frames, at.progress)
        tokens = self.student.backbone.forward_features(frames[:, -1])
        learnt_BNE = self.student.patch_head.project(self.student.tokens.patches(tokens))
        with torch.autocast(frames.device.type, enabled=False):
            prototypes = self.student.patch_head.weight()
            logits_BND = learnt_BNE.to(prototypes.dtype) @ prototypes.T / self.objective.student_temperature
            errors_BN = F.cross_entropy(logits_BND.mT, targets_BN, reduction="none")
        # The sum is over what is kept and the mean over all, as in MoSiC: no process has to know what others keep.
        loss = (errors_BN * kept_BN).mean()
        right = (logits_BND.argmax(-1) == targets_BN) & kept_BN
        count = kept_BN.sum().clamp(min=1)
        metrics |= {"dense_loss": (errors_BN * kept_BN).detach().sum() / count, "followed": right.sum() / count}
        return Losses(loss, metrics)

    @torch.no_grad()
    def teach(self, frames: Tensor, progress: float) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Carry assignments along (B, T, 3, H, W) clips.

        Returns:
            (B, N) the prototype that each patch of the last frame is to name, (B, N) whether it counts, and numbers for
            the log.
        """
        objective, layout = self.objective, self.teacher.tokens
        tokens = self.teacher.backbone.forward_features(frames.flatten(0, 1))
        patches_BTNC = layout.patches(tokens).unflatten(0, frames.shape[:2])
        first_BND = self.assign(patches_BTNC[:, 0], progress)
        grid = layout.grid((frames.shape[-2], frames.shape[-1]))
        features = patches_BTNC.unflatten(2, grid)
        there, back = (
            transport(
                found,
                top_k=objective.top_k,
                radius=objective.radius,
                temperature=objective.propagation_temperature,
            )
            for found in (features, features.flip(1))
        )
        with torch.autocast(frames.device.type, enabled=False):  # in bfloat16 many assignments would tie
            carried_BND = there @ first_BND
        targets_BN = carried_BND.argmax(-1)
        kept_BN = torch.ones_like(targets_BN, dtype=torch.bool)
        if objective.home is not None:
            kept_BN = comes_home(there, back, grid, objective.home)
        used = F.one_hot(targets_BN.flatten(), first_BND.shape[-1]).to(first_BND.dtype).mean(0)
        spread, rank = feature_spread(patches_BTNC)
        return (
            targets_BN,
            kept_BN,
            {
                "left_out": 1 - kept_BN.to(first_BND.dtype).mean(),
                "patch_entropy": torch.special.entr(first_BND).sum(-1).mean(),
                "carried_entropy": torch.special.entr(carried_BND).sum(-1).mean(),
                "patch_batch_entropy": torch.special.entr(distributed.average(used)).sum(),
                "patch_feature_std": spread,
                "patch_feature_rank": rank,
            },
        )

    def assign(self, patches: Tensor, progress: float) -> Tensor:
        """(B, N, C) patch tokens of the teacher -> (B, N, D) their shares of each prototype."""
        head, temperature = self.teacher.patch_head, self.teacher_temperature(progress)
        projected = head.project(patches)
        with self.stopwatch.part("balance_time", projected.device):
            bias = self.patch_balance(projected.flatten(0, -2), head.weight(), temperature)
        with torch.autocast(patches.device.type, enabled=False):
            prototypes = head.weight()
            return torch.softmax(projected.to(prototypes.dtype) @ prototypes.T / temperature - bias, dim=-1)

    def watch(self, row: Mapping[str, float]) -> str | None:
        """Tell when all images look the same, or when nothing has come home for some time."""
        self._lost = self._lost + 1 if row["left_out"] > _MOST_LEFT_OUT else 0
        if self._lost >= LONG:
            return (
                f"for {LONG} steps more than {_MOST_LEFT_OUT:.0%} of the patches have not come home, so nothing can be "
                "learnt from them: lower clips.stride, raise objective.radius or objective.home, or start from an "
                "encoder (--init-from)"
            )
        return super().watch(row)
